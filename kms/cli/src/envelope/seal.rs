//! `kms envelope seal`.

use clap::Args;
use kms_client::envelope::EnvelopeContext;

use super::{
    Key,
    files::Files,
    transfer::{Direction, Placement, Transfer},
};
use crate::{connection::Connection, context::Contexts, failure::Failure, input::Source, output::Format};

/// Seal files: FILE becomes FILE.sealed, and stays. In a folder, files that end in .sealed are left out
#[derive(Debug, Args)]
pub(super) struct Seal {
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    contexts: Contexts,
    #[command(flatten)]
    placement: Placement,
}

impl Seal {
    pub(super) async fn run(self, connection: &Connection, format: Format) -> Result<(), Failure> {
        seal(&self.key, connection, self.contexts.parse()?, &self.files, self.placement, format).await
    }
}

/// Seals one file, for `kms env seal`.
pub(crate) async fn seal_one(
    key: &Key,
    connection: &Connection,
    context: EnvelopeContext,
    source: Source,
    placement: Placement,
    format: Format,
) -> Result<(), Failure> {
    seal(key, connection, context, &Files::one(source), placement, format).await
}

async fn seal(
    key: &Key,
    connection: &Connection,
    context: EnvelopeContext,
    files: &Files,
    placement: Placement,
    format: Format,
) -> Result<(), Failure> {
    let envelopes = key.envelopes(connection).await?;
    Transfer { direction: Direction::Seal, envelopes, context, placement }.run(files, format).await
}
