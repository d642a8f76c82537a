//! `[limits]`: how often callers may call, and keys be used.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use kms_core::{
    class::ClassName,
    limits::{Rules, WINDOWS_MAX, Window},
};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::duration;

/// `[limits]`: nothing is limited that does not stand here. Each replica counts for itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    caller: Windows,
    key: Windows,
    class: BTreeMap<ClassName, Windows>,
}

/// A list of `{ per = "1s", max = 200, burst = 400 }`.
#[derive(Debug, Clone, Default)]
struct Windows(Vec<Window>);

/// A window as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(deserialize_with = "duration::deserialize")]
    per: Duration,
    max: NonZeroU32,
    burst: Option<NonZeroU32>,
}

impl Limits {
    /// As core has them.
    pub(crate) fn rules(&self) -> Rules {
        let classes = self.class.iter().map(|(name, windows)| (*name, windows.0.clone()));
        Rules { caller: self.caller.0.clone(), key: self.key.0.clone(), classes: classes.collect() }
    }
}

impl<'de> Deserialize<'de> for Windows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Vec::<Fields>::deserialize(deserializer)?;
        if fields.len() > WINDOWS_MAX {
            return Err(D::Error::custom(format_args!("at most {WINDOWS_MAX} windows limit one thing")));
        }
        let window = |Fields { per, max, burst }| Window::new(max, per, burst).map_err(D::Error::custom);
        Ok(Self(fields.into_iter().map(window).collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Rules, String> {
        toml::from_str::<Limits>(text).map(|limits| limits.rules()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_no_list_of_windows_is_refused_and_says_why() {
        for (text, part) in [
            ("caller = 200", "sequence"),
            (r#"caller = [{ per = "1s" }]"#, "missing field `max`"),
            (r#"caller = [{ per = "1s", max = 0 }]"#, "nonzero"),
            (r#"caller = [{ per = "1s", max = 1, burst = 0 }]"#, "nonzero"),
            (r#"caller = [{ per = "second", max = 1 }]"#, "is not a duration"),
            (r#"caller = [{ per = "1s", max = 1, brust = 2 }]"#, "unknown field `brust`"),
            (r#"key = [{ per = "30d", max = 1, burst = 4000000000 }]"#, "within a year"),
            (
                r#"[class]
                roots = []"#,
                "unknown variant `roots`",
            ),
            ("callers = []", "unknown field `callers`"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        let many = format!("key = [{}]", r#"{ per = "1s", max = 1 },"#.repeat(WINDOWS_MAX + 1));
        assert!(parse(&many).is_err_and(|error| error.contains("at most 8 windows")));
    }

    #[test]
    fn windows_are_read_as_written_and_a_burst_is_the_maximum_unless_said_otherwise() {
        assert_eq!(parse(""), Ok(Rules::default()));
        let text = r#"
            caller = [{ per = "1s", max = 200, burst = 400 }, { per = "1h", max = 100000 }]
            [class]
            root = [{ per = "1m", max = 5 }]"#;
        let window = |max, seconds, burst| {
            let [max, burst] = [max, burst].map(|n| NonZeroU32::new(n).expect("more than none"));
            Window::new(max, Duration::from_secs(seconds), Some(burst)).expect("a window")
        };
        let expected = Rules {
            caller: vec![window(200, 1, 400), window(100_000, 3_600, 100_000)],
            key: Vec::new(),
            classes: BTreeMap::from([(ClassName::Root, vec![window(5, 60, 5)])]),
        };
        assert_eq!(parse(text), Ok(expected));
    }
}
