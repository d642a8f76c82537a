//! Durations as people write them in a configuration: `500ms`, `5s`, `15m`, `36h`, `30d`, and sums, `1h30m`.

use std::time::Duration;

use serde::{Deserialize as _, Deserializer, de::Error as _};

/// Longest duration that a configuration may name, in seconds: ten years of 365 days.
const SECONDS_MAX: u64 = 10 * 365 * DAY_SECONDS;
const DAY_SECONDS: u64 = 24 * 60 * 60;

/// For `#[serde(deserialize_with)]`: a string such as `"15m"`.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| {
        D::Error::custom(format_args!(
            "{text:?} is not a duration; write for instance \"500ms\", \"5s\", \"15m\", \"36h\", \"30d\" or \"1h30m\""
        ))
    })
}

/// Like [`deserialize`], for a field that may be absent.
pub(super) fn deserialize_some<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    deserialize(deserializer).map(Some)
}

/// Like [`deserialize`], for what would wear out token or log if it were done without a pause.
pub(super) fn at_least_seconds<'de, const SECONDS: u64, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let duration = deserialize(deserializer)?;
    if duration < Duration::from_secs(SECONDS) {
        return Err(D::Error::custom(format_args!("this is too short; it must be at least {SECONDS}s")));
    }
    Ok(duration)
}

/// Likewise, with both ends.
pub(super) fn between_seconds<'de, const LEAST: u64, const MOST: u64, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let duration = at_least_seconds::<LEAST, D>(deserializer)?;
    if duration > Duration::from_secs(MOST) {
        return Err(D::Error::custom(format_args!("this is too long; it must be at most {MOST}s")));
    }
    Ok(duration)
}

/// Parses a sum of whole numbers with units, greater than zero; `None` when it is anything else.
fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(60 * 60)?),
            "d" => Duration::from_secs(number.checked_mul(DAY_SECONDS)?),
            _ => return None,
        };
        total = total.checked_add(part)?;
        rest = tail;
    }
    (!total.is_zero() && total.as_secs() <= SECONDS_MAX).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for text in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "5w",
            "0s",
            "1.5h",
            "5s ",
            "5S",
            "11y",
            "3651d",
            "99999999999999999999s",
            "18446744073709551615d",
            "é",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn people_write_units_and_sums() {
        for (text, milliseconds) in
            [("500ms", 500), ("5s", 5_000), ("15m", 900_000), ("1h30m", 5_400_000), ("30d", 2_592_000_000)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(milliseconds)), "{text:?}");
        }
    }
}
