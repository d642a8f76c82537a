//! `kms`: the one binary. Reads the arguments, does the command, and turns its outcome into an exit code.
//!
//! One file per group of verbs. A command returns [`Failure`](failure::Failure) when it fails; only
//! [`output`] writes to the terminal.

mod access_token;
mod clock;
mod completions;
mod connection;
mod dev;
mod duration;
mod failure;
mod input;
mod jwks;
mod jwt;
mod keys;
mod name;
mod output;
mod sign;
mod view;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{failure::Failure, output::Format};

/// A small key management service in front of a PKCS#11 HSM
#[derive(Debug, Parser)]
#[command(name = "kms", version, after_help = failure::EXIT_CODES, disable_help_subcommand = true)]
struct Cli {
    /// How results are printed: for people, or all fields for programs
    #[arg(long, short, value_enum, global = true, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Keys(keys::Keys),
    Sign(sign::Sign),
    Verify(sign::Verify),
    Jwt(jwt::Jwt),
    Jwks(jwks::Jwks),
    AccessToken(access_token::AccessToken),
    Completions(completions::Completions),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.run(cli.output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::report(&failure);
            failure.code().into()
        }
    }
}

impl Command {
    fn run(self, format: Format) -> Result<(), Failure> {
        match self {
            Self::Keys(command) => block_on(command.run(format)),
            Self::Sign(command) => block_on(command.run(format)),
            Self::Verify(command) => block_on(command.run(format)),
            Self::Jwt(command) => block_on(command.run(format)),
            Self::Jwks(command) => block_on(command.run(format)),
            Self::AccessToken(command) => block_on(command.run(format)),
            Self::Completions(command) => command.run(),
        }
    }
}

/// Runs a client verb on a runtime of one thread: it waits for one answer at a time.
fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::about("cannot start the runtime"))?
        .block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
