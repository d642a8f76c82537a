//! `kms envelope`: files and pipes of any size, sealed and opened here under data keys that are wrapped in the HSM, and
//! moved to another version without their payload being touched.
//!
//! A file is there whole or not at all ([`crate::partial`]). Symbolic links are not followed: whoever may write in a
//! folder must not choose what is read and replaced.

mod campaign;
mod files;
mod header_swap;
mod inspect;
mod open;
mod pace;
mod rewrap;
mod seal;
mod tally;
mod transfer;

pub(crate) use self::{seal::seal_one, transfer::Placement};
use clap::{Args, Subcommand};
use kms_client::envelope::{Envelopes, Policy};

use crate::{connection::Connection, failure::Failure, name::KeyName, output::Format};

/// What is put after the name of a sealed file.
pub(crate) const SEALED: &str = "sealed";

/// Seal, open, inspect and rewrap files and pipes of any size
#[derive(Debug, Args)]
pub(crate) struct Envelope {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Seal(seal::Seal),
    Open(open::Open),
    Inspect(inspect::Inspect),
    Rewrap(rewrap::Rewrap),
}

/// Under which key.
#[derive(Debug, Args)]
pub(crate) struct Key {
    /// Name of the key that wraps the data keys
    #[arg(long, env = "KMS_KEY", value_name = "NAME")]
    key: KeyName,
}

impl Envelope {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        match self.verb {
            Verb::Seal(verb) => verb.run(&self.connection, format).await,
            Verb::Open(verb) => verb.run(&self.connection, format).await,
            Verb::Inspect(verb) => verb.run(format),
            Verb::Rewrap(verb) => verb.run(&self.connection, format).await,
        }
    }
}

impl Key {
    /// Its resource name.
    pub(crate) fn name(&self) -> String {
        self.key.to_string()
    }

    /// Connects. Nothing is asked of the service yet.
    pub(crate) async fn envelopes(&self, connection: &Connection) -> Result<Envelopes, Failure> {
        Ok(Envelopes::new(connection.client().await?, self.name(), Policy::default()))
    }
}
