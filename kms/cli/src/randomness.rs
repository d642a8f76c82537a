//! The random bytes of the command line: one place, as for the clock.

use kms_envelope::RandomError;

/// Fills `bytes` from the operating system's generator, by way of aws-lc.
#[expect(clippy::disallowed_methods, reason = "the command line is an edge: here randomness enters")]
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), RandomError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| RandomError)
}
