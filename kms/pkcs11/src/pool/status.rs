//! The state of the link, as the server and waiting callers see it.

use kms_core::hsm::Fault;
use tokio::sync::watch;

use crate::wire::{Refusal, RefusalKind};

/// Passing failures of starts in a row, after which nobody should wait: [`super::Pool::wait_ready`] gives up, and
/// calls fail at once. The pool itself goes on to try.
const PASSING_MAX: u32 = 3;

/// The state of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// No worker is READY yet, or again.
    Starting,
    /// No worker is READY, and starts fail.
    Failing {
        /// Why the last one failed.
        refusal: Refusal,
        /// How many failed in a row.
        attempts: u32,
    },
    /// At least one worker is READY.
    Ready,
    /// The PIN was refused once, and there will be no second try. Terminal; the text says what to do.
    PinRefused(String),
    /// The supervisor is gone: no worker can be started or replaced. Terminal; the front should drain and exit.
    Abandoned,
}

/// Why the link did not come up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The PIN. Nothing more is tried.
    #[error("{0}")]
    Pin(String),
    /// Module, token or configuration. The pool goes on trying.
    #[error("{0}")]
    Token(String),
    /// The supervisor is gone.
    #[error("the supervisor is gone; workers cannot be started")]
    Abandoned,
}

impl Status {
    /// What a call gets at once in this state, where waiting is vain.
    pub(super) fn fault(&self) -> Option<Fault> {
        match self {
            Self::PinRefused(text) => Some(Fault::Unavailable(text.clone())),
            Self::Abandoned => {
                Some(Fault::Unavailable("the supervisor of the HSM workers is gone".to_owned()))
            }
            Self::Failing { refusal, attempts } if *attempts >= PASSING_MAX => {
                Some(Fault::Unavailable(refusal.text.clone()))
            }
            Self::Starting | Self::Failing { .. } | Self::Ready => None,
        }
    }

    /// What a call gets that waited for a worker until its deadline.
    pub(super) fn fault_at_deadline(&self) -> Fault {
        match self {
            Self::Failing { refusal, .. } => Fault::Unavailable(refusal.text.clone()),
            _ => Fault::DeadlineExceeded,
        }
    }
}

/// Waits for the first READY worker or a failure that waiting does not cure.
pub(super) async fn wait_ready(mut status: watch::Receiver<Status>) -> Result<(), StartError> {
    loop {
        match &*status.borrow_and_update() {
            Status::Ready => return Ok(()),
            Status::PinRefused(text) => return Err(StartError::Pin(text.clone())),
            Status::Abandoned => return Err(StartError::Abandoned),
            Status::Failing { refusal, attempts }
                if refusal.kind == RefusalKind::Configuration || *attempts >= PASSING_MAX =>
            {
                return Err(StartError::Token(refusal.text.clone()));
            }
            Status::Starting | Status::Failing { .. } => {}
        }
        if status.changed().await.is_err() {
            return Err(StartError::Abandoned);
        }
    }
}
