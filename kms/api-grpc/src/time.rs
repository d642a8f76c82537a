//! Times and spans between `google.protobuf` and core.

use kms_core::{
    Error,
    time::{SignedDuration, Timestamp},
};

const NANOS_PER_SECOND: i128 = 1_000_000_000;
/// The longest that `google.protobuf.Duration` allows: 10,000 years.
const DURATION_SECONDS_MAX: u64 = 315_576_000_000;

/// A moment, for the wire.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a Timestamp's seconds fit 64 bits, the remainder lies below 10^9"
)]
pub(crate) fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let nanos = at.as_nanosecond();
    prost_types::Timestamp {
        seconds: nanos.div_euclid(NANOS_PER_SECOND) as i64,
        nanos: nanos.rem_euclid(NANOS_PER_SECOND) as i32,
    }
}

/// A span, for the wire.
pub(crate) fn duration(span: SignedDuration) -> prost_types::Duration {
    prost_types::Duration { seconds: span.as_secs(), nanos: span.subsec_nanos() }
}

/// A span from the wire, of which `field` is the name. What it may be is core's business.
pub(crate) fn span(field: &'static str, duration: &prost_types::Duration) -> Result<SignedDuration, Error> {
    let prost_types::Duration { seconds, nanos } = *duration;
    let in_range = seconds.unsigned_abs() <= DURATION_SECONDS_MAX && nanos.unsigned_abs() < 1_000_000_000;
    let signs_agree = (seconds <= 0 || nanos >= 0) && (seconds >= 0 || nanos <= 0);
    if in_range && signs_agree {
        Ok(SignedDuration::new(seconds, nanos))
    } else {
        Err(Error::invalid(field, "this is no google.protobuf.Duration: a part is out of range"))
    }
}

/// A moment from the wire, of which `field` is the name.
pub(crate) fn instant(field: &'static str, time: &prost_types::Timestamp) -> Result<Timestamp, Error> {
    let in_range = (0..1_000_000_000).contains(&time.nanos);
    let at = Timestamp::new(time.seconds, time.nanos).ok().filter(|_| in_range);
    at.ok_or_else(|| Error::invalid(field, "this is no google.protobuf.Timestamp: a part is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_out_of_range_is_refused() {
        for (seconds, nanos) in [
            (i64::MIN, 0),
            (i64::MAX, 0),
            (315_576_000_001, 0),
            (1, -1),
            (-1, 1),
            (0, 1_000_000_000),
            (0, i32::MIN),
        ] {
            let duration = prost_types::Duration { seconds, nanos };
            assert_eq!(
                span("ttl", &duration).expect_err("out of range").field(),
                Some("ttl"),
                "{duration:?}"
            );
        }
    }

    #[test]
    fn spans_read_back_as_themselves() {
        for span_in in [SignedDuration::ZERO, SignedDuration::new(3600, 5), SignedDuration::new(-1, -5)] {
            assert_eq!(span("ttl", &duration(span_in)), Ok(span_in));
        }
    }

    #[test]
    fn a_moment_out_of_range_is_refused() {
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000)] {
            let time = prost_types::Timestamp { seconds, nanos };
            assert!(instant("activate_time", &time).is_err(), "{time:?}");
        }
        let at = Timestamp::new(1_800_000_000, 5_000).expect("a moment");
        assert_eq!(instant("activate_time", &timestamp(at)), Ok(at));
    }

    #[test]
    fn a_moment_before_1970_keeps_its_nanos_positive() {
        let before = Timestamp::new(-1, -250_000_000).expect("a moment");
        assert_eq!(timestamp(before), prost_types::Timestamp { seconds: -2, nanos: 750_000_000 });
    }
}
