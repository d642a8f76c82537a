//! `kms envelope open`.

use clap::Args;

use super::{
    Key,
    files::Files,
    transfer::{Direction, Placement, Transfer},
};
use crate::{connection::Connection, context::Contexts, failure::Failure, output::Format};

/// Open files: FILE.sealed becomes FILE, of mode 0600; exit code 7 when one does not open
///
/// A file is there whole or not at all. Standard output gets the plaintext chunk by chunk: each is authentic, but only exit
/// code 0 says that it was all of it. Let whoever reads the pipe wait for that (set -o pipefail).
#[derive(Debug, Args)]
pub(super) struct Open {
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    contexts: Contexts,
    #[command(flatten)]
    placement: Placement,
}

impl Open {
    pub(super) async fn run(self, connection: &Connection, format: Format) -> Result<(), Failure> {
        let transfer = Transfer {
            direction: Direction::Open,
            envelopes: self.key.envelopes(connection).await?,
            context: self.contexts.parse()?,
            placement: self.placement,
        };
        transfer.run(&self.files, format).await
    }
}
