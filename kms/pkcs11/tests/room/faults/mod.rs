//! What a module does wrong, done on purpose by the fault shim below real workers.
//!
//! A call that meets a fault may fail, or succeed where somebody retries it; it never gets a wrong answer.

mod calls;
mod objects;
mod starting;
mod wraps;

use kms_core::{Algorithm, hsm::Fault, signature};
use kms_softhsm::faults::{Controller, Event};

/// Whether a call failed because its worker is gone. No other failure is to be expected.
pub(super) fn is_unavailable<T: std::fmt::Debug>(result: Result<T, Fault>) -> bool {
    match result {
        Ok(_) => false,
        Err(fault) => {
            assert!(matches!(fault, Fault::Unavailable(_)), "{fault:?}");
            true
        }
    }
}

pub(super) fn is_right(spki: &[u8], made: &[u8]) -> bool {
    signature::verifies(Algorithm::Es256, spki, &signature::input_of(Algorithm::Es256, b"m"), made)
}

pub(super) fn logins(controller: &Controller) -> usize {
    controller.reports().iter().filter(|report| matches!(report.event, Event::Login { .. })).count()
}
