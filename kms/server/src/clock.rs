//! Where time and randomness enter: nowhere else are the system's clock and generator asked.

use std::time::{Duration, Instant};

use jiff::{Timestamp, TimestampRound, Unit};
use kms_core::{Clock, Error, time::Deadline};

/// The system's clock, in whole microseconds: what a store can keep and give back unchanged.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one door through which the wall clock enters")]
    fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        let truncate = TimestampRound::new().smallest(Unit::Microsecond).mode(jiff::RoundMode::Trunc);
        // Rounding fails only beyond the calendar's end; then the unrounded time is as good.
        now.round(truncate).unwrap_or(now)
    }

    fn within(&self, span: Duration) -> Deadline {
        Deadline::at(Instant::now() + span)
    }
}

/// The operating system's generator, through aws-lc-rs.
#[expect(clippy::disallowed_methods, reason = "this is the one door through which randomness enters")]
pub fn entropy(buffer: &mut [u8]) -> Result<(), Error> {
    aws_lc_rs::rand::fill(buffer)
        .map_err(|_| Error::internal("the operating system's random generator failed; nothing was done"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_counts_whole_microseconds() {
        assert_eq!(SystemClock.now().subsec_nanosecond() % 1_000, 0);
    }

    #[test]
    fn entropy_differs_every_time() {
        let (mut one, mut other) = ([0; 32], [0; 32]);
        entropy(&mut one).expect("random bytes");
        entropy(&mut other).expect("random bytes");
        assert_ne!(one, other);
    }
}
