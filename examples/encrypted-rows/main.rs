//! Rows of PostgreSQL with a sealed column: written, read, and moved to a new version of their key without a payload
//! being decrypted. `docs/how-to/postgresql-rows.md` tells the story; each verb is a file.
//!
//! ```text
//! export KMS_ADDR=localhost:8443 KMS_CACERT=ca.pem KMS_TOKEN_FILE=token
//! export DATABASE_URL=postgres://app@localhost/shop      # the password: PGPASSFILE or ~/.pgpass
//! kms keys create customers --algorithm A256GCMKW
//! cargo run -p kms-examples --bin encrypted-rows -- fill --rows 1000
//! cargo run -p kms-examples --bin encrypted-rows -- read --id 7
//! kms keys rotate customers
//! cargo run -p kms-examples --bin encrypted-rows -- rewrap
//! cargo run -p kms-examples --bin encrypted-rows -- report
//! ```
#![expect(clippy::print_stdout, reason = "a program prints its results")]

mod customers;
mod fill;
mod read;
mod report;
mod rewrap;
mod verify;

use std::{env, fs};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use kms_client::{
    Client, Options,
    envelope::{Envelopes, Policy},
};

use crate::customers::Customers;

/// Customers in PostgreSQL, whose e-mail addresses are sealed.
#[derive(Parser)]
struct Arguments {
    /// The key under which the addresses' data keys are wrapped
    #[arg(long, env = "KMS_KEY", default_value = "keys/customers")]
    key: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Adds customers whose addresses are made up
    Fill {
        #[arg(long)]
        rows: u32,
    },
    /// Prints the address of one customer
    Read {
        #[arg(long)]
        id: i64,
    },
    /// Opens every address, and counts them by the version that wraps them
    Verify,
    /// Moves every address to the version that wraps now; may be stopped and started again at any time
    Rewrap,
    /// Tells the service how many addresses each version still wraps
    Report {
        /// The name of this store among those that use the key
        #[arg(long, default_value = "customers-db")]
        consumer: String,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Arguments { key, verb } = Arguments::parse();
    let client = client().await?;
    let envelopes = Envelopes::new(client.clone(), key, Policy::default());
    let customers = Customers::connect(&variable("DATABASE_URL")?, envelopes.key_uid().await?).await?;
    match verb {
        Verb::Fill { rows } => fill::fill(&customers, &envelopes, rows).await,
        Verb::Read { id } => read::read(&customers, &envelopes, id).await,
        Verb::Verify => verify::verify(&customers, &envelopes).await,
        Verb::Rewrap => rewrap::rewrap(&customers, &envelopes).await,
        Verb::Report { consumer } => report::report(&customers, &client, envelopes.key(), consumer).await,
    }
}

async fn client() -> anyhow::Result<Client> {
    let read = |file: String| fs::read_to_string(&file).with_context(|| format!("cannot read {file}"));
    let access_token = read(variable("KMS_TOKEN_FILE")?)?;
    let mut options = Options::new(variable("KMS_ADDR")?, access_token.trim().into());
    options.ca_pem = env::var("KMS_CACERT").ok().map(read).transpose()?.map(String::into_bytes);
    Ok(Client::connect(options).await?)
}

fn variable(name: &str) -> anyhow::Result<String> {
    env::var(name).with_context(|| format!("set {name}; see the head of this example's main.rs"))
}
