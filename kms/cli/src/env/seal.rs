//! `kms env seal`.

use std::path::PathBuf;

use clap::Args;
use kms_client::envelope::SecretBytes;

use super::{ENV_BYTES_MAX, context, dotenv};
use crate::{
    connection::Connection,
    context::KeyContext,
    envelope::{Key, Placement, seal_one},
    failure::Failure,
    input::{self, Source},
    output::Format,
};

/// Seal a .env file for `kms env run`: FILE becomes FILE.sealed, and stays
///
/// The same as `kms envelope seal --payload-context content=dotenv`, once the file was read through for mistakes.
#[derive(Debug, Args)]
pub(super) struct Seal {
    /// The file
    #[arg(long, value_name = "FILE", default_value = ".env")]
    file: PathBuf,
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    context: KeyContext,
    #[command(flatten)]
    placement: Placement,
}

impl Seal {
    pub(super) async fn run(self, connection: &Connection, format: Format) -> Result<(), Failure> {
        let context = context(self.context)?;
        let text = SecretBytes::new(input::read_file(&self.file, ENV_BYTES_MAX)?);
        dotenv::parse(text.expose_secret()).map_err(Failure::about(self.file.display()))?;
        seal_one(&self.key, connection, context, Source::File(self.file), self.placement, format).await
    }
}
