//! Encryption contexts: names and values that must be said again to open what was made with them. No secret, and bound.
//!
//! The canonical encoding has one form for each set of pairs, each part with its length: no two sets look alike.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{Context, SHA256};

/// What a digest of a key context begins with: it is one of nothing else.
const DIGEST_DOMAIN: &[u8] = b"kms key context v1\0";

/// Names and values, sorted by name. Exact bytes: nothing is normalised.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct EncryptionContext(BTreeMap<String, String>);

/// The two contexts of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct EnvelopeContext {
    /// Of the data key: what the service sees, and policy can ask for. A tenant, a table.
    pub key: EncryptionContext,
    /// Of the payload alone: what only the caller knows. A row, a column, a path.
    pub local: EncryptionContext,
}

/// What is wrong with a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// Too many pairs.
    #[error("a context has at most {} pairs", EncryptionContext::PAIRS_MAX)]
    TooManyPairs,
    /// A name is empty or too long.
    #[error("a name in a context has 1 to {} bytes", EncryptionContext::NAME_LEN_MAX)]
    NameLength,
    /// A value is too long.
    #[error("a value in a context has at most {} bytes", EncryptionContext::VALUE_LEN_MAX)]
    ValueLength,
    /// All of it is too long.
    #[error("a context has at most {} bytes in all", EncryptionContext::LEN_MAX)]
    Length,
    /// A name stands there twice.
    #[error("a name stands in the context twice")]
    Duplicate,
}

impl EncryptionContext {
    /// Most pairs.
    pub const PAIRS_MAX: usize = 64;
    /// Longest name in bytes.
    pub const NAME_LEN_MAX: usize = 128;
    /// Longest value in bytes.
    pub const VALUE_LEN_MAX: usize = 1_024;
    /// Longest canonical encoding in bytes.
    pub const LEN_MAX: usize = 8_192;

    /// A context of these pairs, in any order.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, ContextError> {
        let (mut sorted, mut len) = (BTreeMap::new(), 2);
        for (name, value) in pairs {
            if sorted.len() == Self::PAIRS_MAX {
                return Err(ContextError::TooManyPairs);
            }
            if name.is_empty() || name.len() > Self::NAME_LEN_MAX {
                return Err(ContextError::NameLength);
            }
            if value.len() > Self::VALUE_LEN_MAX {
                return Err(ContextError::ValueLength);
            }
            len += 4 + name.len() + value.len();
            if len > Self::LEN_MAX {
                return Err(ContextError::Length);
            }
            if sorted.insert(name, value).is_some() {
                return Err(ContextError::Duplicate);
            }
        }
        Ok(Self(sorted))
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Its pairs, by name.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The one encoding: the number of pairs, then each name and value, every length in two bytes, big-endian, sorted by
    /// the bytes of the names.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_len(&mut out, self.0.len());
        for (name, value) in &self.0 {
            for text in [name, value] {
                put_len(&mut out, text.len());
                out.extend_from_slice(text.as_bytes());
            }
        }
        out
    }

    /// SHA-256 of the canonical encoding, for the header of a wrapped key.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        context.update(DIGEST_DOMAIN);
        context.update(&self.canonical());
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }
}

impl EnvelopeContext {
    /// A key context, and none of the payload alone.
    pub fn of_key(key: EncryptionContext) -> Self {
        Self { key, local: EncryptionContext::default() }
    }
}

/// Every length is bounded by [`EncryptionContext::LEN_MAX`], which fits.
fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn context(pairs: &[(&str, &str)]) -> Result<EncryptionContext, ContextError> {
        EncryptionContext::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn too_much_and_the_same_twice_are_refused() {
        let many: Vec<_> = (0..65).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(EncryptionContext::new(many[..64].to_vec()).map(|all| all.0.len()), Ok(64));
        assert_eq!(EncryptionContext::new(many), Err(ContextError::TooManyPairs));
        assert_eq!(context(&[("", "x")]), Err(ContextError::NameLength));
        assert_eq!(context(&[(&"n".repeat(129), "x")]), Err(ContextError::NameLength));
        assert_eq!(context(&[("n", &"v".repeat(1025))]), Err(ContextError::ValueLength));
        assert_eq!(context(&[("a", "1"), ("b", "2"), ("a", "1")]), Err(ContextError::Duplicate));
        let long: Vec<_> = (0..8).map(|n| (n.to_string(), "v".repeat(1024))).collect();
        assert_eq!(EncryptionContext::new(long), Err(ContextError::Length));
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        let context = context(&[("b", ""), ("a", "xy")]).expect("a context");
        assert_eq!(context.canonical(), b"\0\x02\0\x01a\0\x02xy\0\x01b\0\0");
        assert_eq!(EncryptionContext::default().canonical(), b"\0\0");
    }

    proptest! {
        #[test]
        fn no_two_contexts_have_one_encoding(
            one in proptest::collection::hash_map("[ab\0]{1,3}", "[ab\0]{0,3}", 0..4),
            other in proptest::collection::hash_map("[ab\0]{1,3}", "[ab\0]{0,3}", 0..4),
        ) {
            let of = |pairs: &HashMap<String, String>| EncryptionContext::new(pairs.clone()).expect("small");
            prop_assert_eq!(of(&one).canonical() == of(&other).canonical(), one == other);
            prop_assert_eq!(of(&one).digest() == of(&other).digest(), one == other);
        }
    }
}
