//! `kms completions SHELL`.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::{Cli, failure::Failure, output};

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "kms", &mut script);
        output::print_bytes(&script)
    }
}
