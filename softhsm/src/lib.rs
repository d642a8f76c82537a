//! Throw-away and development tokens, for tests and for `kms dev`.
//!
//! [`EphemeralToken`] lives in a temporary directory and goes with it: a SoftHSM token (Debian's `softhsm2`), or a
//! Kryoptic one (built by `scripts/setup test`). [`RemoteToken`] puts p11-kit's server in front of either, so that
//! there is a far side that can fail. [`DevToken`] is a SoftHSM token that stays in a directory of the developer's
//! choice. Each has its own configuration, so that none sees the machine's tokens. The PINs lie in files beside the
//! token: good for development, never for production. They are given to the tokens' programs through a
//! pseudo-terminal or a variable, because arguments can be read by every user of the machine.

pub mod faults;

mod dev;
mod ephemeral;
mod install;
mod pkcs11_tool;
mod program;
mod remote;
mod secret;
mod token;

use std::path::{Path, PathBuf};

pub use dev::DevToken;
pub use ephemeral::EphemeralToken;
pub use remote::RemoteToken;
pub use token::Token;

/// Variables that lead a module to its configuration.
const SOFTHSM_CONF: &str = "SOFTHSM2_CONF";
const KRYOPTIC_CONF: &str = "KRYOPTIC_CONF";

/// For tests: what was made, or `None` when its software is not installed. That is told on standard error, and
/// remains an error where `CI=true`.
#[expect(clippy::print_stderr, reason = "a test that is left out must not go unnoticed")]
pub fn unless_left_out<T>(made: Result<T, Error>) -> Result<Option<T>, Error> {
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    match made {
        Err(error @ Error::NotInstalled { .. }) if !ci => {
            eprintln!("LEFT OUT: {error}");
            Ok(None)
        }
        made => made.map(Some),
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A module or program is not there.
    #[error("{what} was not found; to bring it, run: {cure}")]
    NotInstalled {
        /// What is missing.
        what: &'static str,
        /// What to run.
        cure: &'static str,
    },
    /// The environment names a module that is not there.
    #[error("{variable} names {path}, which is not a file; correct it or unset it")]
    NoSuchModule {
        /// The variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The token's configuration has no way to write this path.
    #[error(
        "no token can be kept in {0}: the path has one of '#', '=', '\"', '\\' or a control character, or is not UTF-8"
    )]
    UnfitPath(PathBuf),
    /// The directory holds something that is not a whole development token.
    #[error("{dir} cannot be used: {why}; restore it, or remove the directory to begin anew")]
    Unusable {
        /// The development directory.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A program failed.
    #[error("{program} {action} failed: {output}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Its action, e.g. `--init-token`.
        action: &'static str,
        /// What it said.
        output: String,
    },
    /// There is no fault shim.
    #[error("the fault shim does not build: {0}")]
    Shim(String),
    /// The file system or the operating system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or device.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
