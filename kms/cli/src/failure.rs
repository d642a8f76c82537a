//! How a command fails: one line that says what went wrong, one that says what to do next, and an exit code
//! that scripts can rely on.

use std::{fmt::Display, process::ExitCode};

/// Shown by `kms --help`; docs/reference/cli.md repeats it.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed for a reason that is none of those below
  2  usage: the arguments, or what they say, cannot be right
  3  the key, version or access token does not exist
  4  not authenticated, or not permitted
  5  the state of the key or of the service does not allow it, it changed meanwhile, or somebody else must approve it
  6  unavailable, overloaded or out of time: trying again can succeed
  7  the signature does not verify, or the envelope or wrapped key does not open";

/// What the process answers to its caller. The numbers are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// None of those below.
    Other = 1,
    /// The arguments, or what they say. Clap answers the same.
    Usage = 2,
    /// The thing does not exist.
    NotFound = 3,
    /// Unauthenticated or forbidden.
    Denied = 4,
    /// State, or a conflict.
    Precondition = 5,
    /// Unavailable, exhausted, timed out.
    Unavailable = 6,
    /// A signature that does not verify, an envelope that does not open.
    NotVerified = 7,
}

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    /// A failure without a code of its own.
    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::new(Code::Other, message)
    }

    /// Says what to do next.
    #[must_use]
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// `result` with `what` failed in front of the error, e.g. a path.
    pub(crate) fn about<E: Display>(what: impl Display) -> impl FnOnce(E) -> Self {
        move |error| Self::other(format!("{what}: {error}"))
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let code = error.chain().find_map(|cause| cause.downcast_ref()).map_or(Code::Other, code);
        Self::new(code, format!("{error:#}"))
    }
}

/// What core's own errors mean, when core runs in this process: `kms bootstrap`.
fn code(error: &kms_core::Error) -> Code {
    use kms_core::error::Kind;
    match error.kind() {
        Kind::InvalidArgument => Code::Usage,
        Kind::NotFound => Code::NotFound,
        Kind::PermissionDenied => Code::Denied,
        Kind::Conflict | Kind::FailedPrecondition => Code::Precondition,
        Kind::ResourceExhausted | Kind::DeadlineExceeded | Kind::Unavailable => Code::Unavailable,
        Kind::Internal => Code::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_help_text() {
        use Code::{Denied, NotFound, NotVerified, Other, Precondition, Unavailable, Usage};
        for code in [Other, Usage, NotFound, Denied, Precondition, Unavailable, NotVerified] {
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", code as u8)), "{code:?}");
        }
    }
}
