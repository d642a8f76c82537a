//! Durations as people write them: `90d`, `1h30m`, `15m`, `45s`. Days are 24 hours, because a
//! key's schedule knows no calendar.

use jiff::SignedDuration;

/// Longest to shortest, in seconds.
const UNITS: [(char, i64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// The longest that is accepted: 100 years of 365 days. The server has closer limits.
const SECONDS_MAX: i64 = 100 * 365 * 86_400;

/// Reads one or more `<number><unit>`, each unit at most once and from long to short.
pub(crate) fn parse(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("{text:?} is not a duration; write it like 90d, 1h30m, 15m or 45s");
    let mut seconds: i64 = 0;
    let mut shorter = &UNITS[..];
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: i64 = rest[..digits].parse().map_err(|_| wrong())?;
        let mut after = rest[digits..].chars();
        let unit = after.next();
        let at = shorter.iter().position(|(name, _)| Some(*name) == unit).ok_or_else(wrong)?;
        seconds = number
            .checked_mul(shorter[at].1)
            .and_then(|part| seconds.checked_add(part))
            .filter(|sum| *sum <= SECONDS_MAX)
            .ok_or_else(|| format!("{text:?} is longer than 100 years"))?;
        shorter = &shorter[at + 1..];
        rest = after.as_str();
    }
    if text.is_empty() { Err(wrong()) } else { Ok(SignedDuration::from_secs(seconds)) }
}

/// The same, or `never`, which the wire tells as zero.
pub(crate) fn parse_or_never(text: &str) -> Result<SignedDuration, String> {
    if text == "never" { Ok(SignedDuration::ZERO) } else { parse(text) }
}

/// Writes a duration as [`parse`] reads it, e.g. `1h30m`; parts of a second are dropped.
pub(crate) fn format(duration: SignedDuration) -> String {
    let mut rest = duration.as_secs();
    let mut text = String::new();
    for (unit, seconds) in &UNITS {
        let number = rest / seconds;
        rest %= seconds;
        if number != 0 {
            text.push_str(&format!("{number}{unit}"));
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// The same duration as `google.protobuf.Duration`.
pub(crate) fn to_wire(duration: SignedDuration) -> prost_types::Duration {
    prost_types::Duration { seconds: duration.as_secs(), nanos: duration.subsec_nanos() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_duration_is_refused() {
        for bad in [
            "",
            "90",
            "d",
            "1.5h",
            "-1h",
            "1h 30m",
            "30m1h",
            "1h1h",
            "90D",
            "1y",
            "½h",
            "1w",
            "9223372036854775807d",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn the_longest_is_a_hundred_years() {
        assert_eq!(parse("36500d"), Ok(SignedDuration::from_secs(SECONDS_MAX)));
        assert!(parse("36500d1s").expect_err("one second more").contains("100 years"));
    }

    #[test]
    fn units_add_up_from_long_to_short() {
        let cases = [("90d", 7_776_000), ("1h30m", 5_400), ("15m", 900), ("0s", 0)];
        for (text, seconds) in cases {
            assert_eq!(parse(text), Ok(SignedDuration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for seconds in [0, 1, 59, 60, 3_599, 5_400, 86_400, 7_776_001] {
            let duration = SignedDuration::from_secs(seconds);
            assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
