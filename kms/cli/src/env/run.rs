//! `kms env run`: opens a sealed .env file into the environment of a command, and becomes that command.
//!
//! Nothing is written to disk, and no process of ours is left that holds the plaintext: exec(2) replaces it, and what we
//! held is zeroized before. Whoever may read /proc/PID/environ of the command (the same user, and root) reads it there.

use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::PathBuf,
    process::Command,
};

use clap::Args;
use kms_client::envelope::{CHUNK_LEN, Header};

use super::{ENV_BYTES_MAX, context, dotenv};
use crate::{connection::Connection, context::KeyContext, envelope::Key, failure::Failure, input};

/// Longest envelope: one tag of 16 bytes for each chunk.
const ENVELOPE_BYTES_MAX: usize = Header::LEN_MAX + ENV_BYTES_MAX + 16 * (ENV_BYTES_MAX / CHUNK_LEN + 1);
/// The variables of this program's own configuration, its credential's file among them.
const OURS: &[u8] = b"KMS_";

/// Run a command with the variables of a sealed .env file, and with no other trace of them
///
/// They win over variables that are set already. KMS_* variables, which lead to the credential, are not passed on.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The file, as `kms env seal` wrote it
    #[arg(long, value_name = "FILE", default_value = ".env.sealed")]
    file: PathBuf,
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    context: KeyContext,
    /// Pass KMS_* variables on to the command too
    #[arg(long)]
    keep_kms_env: bool,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Run {
    /// Returns only when it fails.
    pub(super) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let context = context(self.context)?;
        let sealed = input::read_file(&self.file, ENVELOPE_BYTES_MAX)?;
        let text = self.key.envelopes(connection).await?.open(&context, &sealed).await?;
        let variables = dotenv::parse(text.expose_secret()).map_err(Failure::about(self.file.display()))?;
        let (program, arguments) = self.command.split_first().ok_or_else(|| Failure::usage("no command"))?;
        let mut command = Command::new(program);
        command.args(arguments);
        if !self.keep_kms_env {
            for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(name)) {
                command.env_remove(name);
            }
        }
        for variable in &variables {
            command.env(&variable.name, OsStr::from_bytes(variable.value.expose_secret()));
        }
        // The command has what it needs; the copy in `command` goes with this process's memory.
        drop((variables, text));
        let error = command.exec();
        Err(Failure::usage(format!("cannot run {}: {error}", program.display()))
            .hint("name a program, after --"))
    }
}

fn is_ours(name: &OsStr) -> bool {
    name.as_bytes().starts_with(OURS)
}
