//! The encryption context as arguments: names and values that must be given again to open what was made with them.

use std::collections::BTreeMap;

use clap::Args;
use kms_client::envelope::{EncryptionContext, EnvelopeContext};

use crate::failure::Failure;

/// What the service sees, and a key can require.
#[derive(Debug, Default, Args)]
pub(crate) struct KeyContext {
    /// A name and a value of the encryption context, which the service sees; may be repeated. No secret: it is not stored
    /// and must be given again, byte for byte
    #[arg(long = "context", value_name = "NAME=VALUE", value_parser = parse_pair)]
    pairs: Vec<(String, String)>,
}

/// The same, and what the payload alone is bound to.
#[derive(Debug, Default, Args)]
pub(crate) struct Contexts {
    #[command(flatten)]
    key: KeyContext,
    /// The same, bound to the payload alone, where the service does not see it; may be repeated
    #[arg(long = "payload-context", value_name = "NAME=VALUE", value_parser = parse_pair)]
    local: Vec<(String, String)>,
}

impl KeyContext {
    pub(crate) fn parse(self) -> Result<EncryptionContext, Failure> {
        parse("--context", self.pairs)
    }
}

impl Contexts {
    pub(crate) fn parse(self) -> Result<EnvelopeContext, Failure> {
        Ok(EnvelopeContext { key: self.key.parse()?, local: parse("--payload-context", self.local)? })
    }
}

/// As the wire carries it.
pub(crate) fn to_wire(context: &EncryptionContext) -> BTreeMap<String, String> {
    context.pairs().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn parse(flag: &str, pairs: Vec<(String, String)>) -> Result<EncryptionContext, Failure> {
    EncryptionContext::new(pairs).map_err(|error| Failure::usage(format!("{flag}: {error}")))
}

/// Reads `NAME=VALUE`.
pub(crate) fn parse_pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a pair of a context is written NAME=VALUE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn a_pair_needs_a_name_and_may_have_any_value() {
        assert!(parse_pair("tenant").is_err() && parse_pair("=a").is_err());
        assert_eq!(parse_pair("path=a=b"), Ok(pair("path", "a=b")));
        assert_eq!(parse_pair("empty="), Ok(pair("empty", "")));
    }

    #[test]
    fn a_name_that_is_given_twice_is_refused_by_its_flag() {
        let twice = KeyContext { pairs: vec![pair("tenant", "a"), pair("tenant", "b")] };
        let failure = twice.parse().expect_err("two values");
        assert!(failure.message().starts_with("--context: ") && failure.message().contains("tenant"));
        let local = Contexts { local: vec![pair("row", "1"); 2], ..Default::default() };
        assert!(local.parse().expect_err("twice").message().starts_with("--payload-context: "));
    }
}
