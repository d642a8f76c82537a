//! `kms env`: a sealed .env file, which is opened into the environment of one command and nowhere else.

mod dotenv;
mod run;
mod seal;

use clap::{Args, Subcommand};
use kms_client::envelope::{EncryptionContext, EnvelopeContext};

use crate::{connection::Connection, context::KeyContext, failure::Failure, output::Format};

/// Largest .env file: 1 MiB.
const ENV_BYTES_MAX: usize = 1 << 20;
/// What the payload is bound to, so that nothing else that was sealed is taken for an environment.
const CONTENT: (&str, &str) = ("content", "dotenv");

/// Seal a .env file, and run commands with what it says
#[derive(Debug, Args)]
pub(crate) struct Env {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Run),
    Seal(seal::Seal),
}

impl Env {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        match self.verb {
            Verb::Run(verb) => verb.run(&self.connection).await,
            Verb::Seal(verb) => verb.run(&self.connection, format).await,
        }
    }
}

fn context(key: KeyContext) -> Result<EnvelopeContext, Failure> {
    let (name, value) = CONTENT;
    let local = EncryptionContext::new([(name.to_owned(), value.to_owned())])
        .map_err(|error| Failure::other(error.to_string()))?;
    Ok(EnvelopeContext { key: key.parse()?, local })
}
