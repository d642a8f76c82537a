//! A request that came back without an answer, and whether it can have had an effect.
//!
//! Two things make certain that it had none: there was no connection to send it on, or it was still waiting for its
//! turn when the connection ended. The second has three forms: hyper hands back what it had not yet written
//! (`is_canceled`); the server refuses the stream, or names in a GOAWAY an earlier one as its last, and so says that it
//! never will have processed it (RFC 9113 §6.8 and §8.7). Everything else may have happened.

use std::{error::Error, fmt};

use tonic::{ConnectError, transport};

/// No answer came from the replica at `addr`.
#[derive(Debug)]
pub struct Unreached {
    addr: String,
    cause: transport::Error,
}

impl Unreached {
    pub(crate) fn new(addr: String, cause: transport::Error) -> Self {
        Self { addr, cause }
    }

    /// Whether the server has certainly not begun with the request.
    pub fn never_sent(&self) -> bool {
        let mut next = self.cause.source();
        while let Some(cause) = next {
            if is_of_a_request_never_sent(cause) {
                return true;
            }
            next = cause.source();
        }
        false
    }
}

fn is_of_a_request_never_sent(error: &(dyn Error + 'static)) -> bool {
    let hyper = error.downcast_ref::<hyper::Error>();
    let h2 = error.downcast_ref::<h2::Error>();
    error.is::<ConnectError>()
        || hyper.is_some_and(hyper::Error::is_canceled)
        || h2.is_some_and(|error| {
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            let closing = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            error.is_remote() && (refused || closing)
        })
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.addr)
    }
}

impl Error for Unreached {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.cause)
    }
}
