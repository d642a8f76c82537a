//! Throw-away and development tokens on SoftHSM 2 (Debian's `softhsm2`), for tests and for `kms dev`.
//!
//! [`EphemeralToken`] lives in a temporary directory and goes with it; [`DevToken`] stays in a directory that
//! the developer names. Each has its own `softhsm2.conf`, so that neither sees the machine's tokens. The PINs
//! lie in files beside the token: good for development, never for production. They are given to
//! `softhsm2-util` through a pseudo-terminal, because arguments can be read by every user of the machine.

pub mod faults;

mod dev;
mod ephemeral;
mod install;
mod program;
mod secret;
mod token;

use std::path::{Path, PathBuf};

pub use dev::DevToken;
pub use ephemeral::EphemeralToken;
pub use token::Token;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Debian's package is not there.
    #[error("SoftHSM's {0} was not found; install it: apt-get install softhsm2")]
    NotInstalled(&'static str),
    /// The environment names a module that is not there.
    #[error("SOFTHSM2_MODULE names {0}, which is not a file; correct it or unset it")]
    NoSuchModule(PathBuf),
    /// `softhsm2.conf` has no way to write this path.
    #[error(
        "SoftHSM cannot keep tokens in {0}: the path has one of '#', '=' or a control character, or is not UTF-8"
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
    /// `softhsm2-util` failed.
    #[error("softhsm2-util {action} failed: {output}")]
    Program {
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
