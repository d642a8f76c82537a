//! Names of keys and versions on the command line: `NAME` or `keys/NAME`, and `--version N`.

use std::{fmt, str::FromStr};

/// A key's resource name, `keys/{key}` (AIP-122). What may stand in it is for the server to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyName(String);

impl KeyName {
    /// The last part.
    pub(crate) fn id(&self) -> &str {
        &self.0
    }

    /// `keys/{key}/versions/{number}`.
    pub(crate) fn version(&self, number: u32) -> String {
        format!("{self}/versions/{number}")
    }

    /// The name of that version, or of the key when none is given.
    pub(crate) fn maybe_version(&self, number: Option<u32>) -> String {
        number.map_or_else(|| self.to_string(), |number| self.version(number))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "keys/{}", self.0)
    }
}

impl FromStr for KeyName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("keys/").unwrap_or(text) {
            "" => Err("a key name cannot be empty"),
            id if id.contains('/') => Err("name the key alone; a version is named by --version"),
            id => Ok(Self(id.to_owned())),
        }
    }
}

/// Reads `K=V`.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a label is written NAME=VALUE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_versions_are_no_key_names() {
        for bad in ["", "keys/", "keys/a/versions/1", "a/b"] {
            assert!(bad.parse::<KeyName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_key_may_be_named_short_or_in_full() {
        for text in ["web", "keys/web"] {
            let name: KeyName = text.parse().expect("a name");
            assert_eq!(
                (name.to_string().as_str(), name.version(2).as_str()),
                ("keys/web", "keys/web/versions/2")
            );
        }
    }

    #[test]
    fn a_label_needs_a_name_and_may_have_any_value() {
        assert!(parse_label("env").is_err() && parse_label("=prod").is_err());
        assert_eq!(parse_label("expr=a=b"), Ok(("expr".to_owned(), "a=b".to_owned())));
        assert_eq!(parse_label("empty="), Ok(("empty".to_owned(), String::new())));
    }
}
