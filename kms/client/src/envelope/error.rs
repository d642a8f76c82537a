//! Why something was not sealed, opened or rewrapped.

use std::io;

use kms_envelope::{ContextError, Malformed, OpenError, RecipientsError, RewrapError, SealError};

/// A failure of this module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The one answer for a wrong context, a wrong key, and any bit that differs: whoever tries learns no more.
    #[error(
        "the envelope does not open: its key or its encryption context is another one, or its bytes were changed; \
         open it with what it was sealed with, or restore it from a copy"
    )]
    NotOpened,
    /// This is no envelope, or one of a newer kind. Found before any key was touched.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The service did not do it.
    #[error(transparent)]
    Kms(crate::Error),
    /// The names and values are no encryption context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// It was not sealed, and not for a reason of the service.
    #[error(transparent)]
    Seal(SealError),
    /// The stream could not be read or written.
    #[error("the stream failed: {0}")]
    Io(io::Error),
}

impl Error {
    /// What the service answered, where it refused or was away.
    pub fn as_kms(&self) -> Option<&crate::Error> {
        match self {
            Self::Kms(error) => Some(error),
            _ => None,
        }
    }
}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        match error.reason() {
            Some("NOT_OPENED") => Self::NotOpened,
            _ => Self::Kms(error),
        }
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::NotOpened => Self::NotOpened,
            OpenError::Malformed(malformed) => Self::Malformed(malformed),
            OpenError::Io(error) => Self::from(error),
        }
    }
}

impl From<SealError> for Error {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Io(error) => Self::Io(error),
            other => Self::Seal(other),
        }
    }
}

impl From<RewrapError> for Error {
    fn from(error: RewrapError) -> Self {
        match error {
            RewrapError::Malformed(malformed) => Self::Malformed(malformed),
            RewrapError::Recipients(error) => Self::from(error),
        }
    }
}

impl From<RecipientsError> for Error {
    fn from(error: RecipientsError) -> Self {
        Self::Seal(error.into())
    }
}

impl From<io::Error> for Error {
    /// A reader of an envelope can only speak of its own failures by `io::Error`.
    fn from(error: io::Error) -> Self {
        let is_ours = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref())
            .is_some_and(|inner: &OpenError| matches!(inner, OpenError::NotOpened));
        if is_ours { Self::NotOpened } else { Self::Io(error) }
    }
}
