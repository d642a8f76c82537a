//! The wall clock of the command line: one place, as everywhere.

use jiff::Timestamp;

/// The time of this machine.
#[expect(clippy::disallowed_methods, reason = "the command line is an edge: here the clock enters")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
