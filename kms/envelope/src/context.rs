//! The encryption context: names and values that are bound to a ciphertext and must be given again to open it (the term
//! is AWS KMS's). It is no secret, and stands in no envelope: what is stored is at most a digest of it.
//!
//! Bytes are taken as they are, without Unicode normalisation or trimming: whoever opens must say exactly what whoever
//! sealed said.

use std::{collections::BTreeMap, fmt};

use aws_lc_rs::digest::{Context, SHA256};

/// Separates this digest from every other use of SHA-256.
const DIGEST_LABEL: &[u8] = b"kms key context v1\0";

/// Names and values, each name once, in ascending order of the names' bytes.
#[derive(Clone, PartialEq, Eq, Default, Hash)]
pub struct EncryptionContext(BTreeMap<String, String>);

/// Why pairs are no encryption context. It names the pair; values are not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// More than [`EncryptionContext::PAIRS_MAX`].
    #[error("an encryption context has at most 64 pairs")]
    Pairs,
    /// Empty, or longer than [`EncryptionContext::NAME_LEN_MAX`].
    #[error("a name in an encryption context has 1 to 128 bytes, one has {0}")]
    NameLen(usize),
    /// Longer than [`EncryptionContext::VALUE_LEN_MAX`].
    #[error("the value of {name:?} in the encryption context has {len} bytes; at most 1,024 are allowed")]
    ValueLen {
        /// Whose value it is.
        name: String,
        /// In bytes.
        len: usize,
    },
    /// The same name twice.
    #[error("the name {0:?} stands more than once in the encryption context; give it one value")]
    Duplicate(String),
    /// Longer than [`EncryptionContext::CANONICAL_LEN_MAX`].
    #[error(
        "the encryption context is too long: at most 8,192 bytes with 2 + 4 bytes per pair; shorten its values"
    )]
    Len,
}

impl EncryptionContext {
    /// Most pairs.
    pub const PAIRS_MAX: usize = 64;
    /// Longest name in bytes.
    pub const NAME_LEN_MAX: usize = 128;
    /// Longest value in bytes.
    pub const VALUE_LEN_MAX: usize = 1024;
    /// Longest canonical encoding in bytes.
    pub const CANONICAL_LEN_MAX: usize = 8192;

    /// Takes `pairs` in any order.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, ContextError> {
        let mut context = BTreeMap::new();
        let mut len = 2;
        for (name, value) in pairs {
            if name.is_empty() || name.len() > Self::NAME_LEN_MAX {
                return Err(ContextError::NameLen(name.len()));
            }
            if value.len() > Self::VALUE_LEN_MAX {
                return Err(ContextError::ValueLen { len: value.len(), name });
            }
            if context.contains_key(&name) {
                return Err(ContextError::Duplicate(name));
            }
            if context.len() == Self::PAIRS_MAX {
                return Err(ContextError::Pairs);
            }
            len += 4 + name.len() + value.len();
            if len > Self::CANONICAL_LEN_MAX {
                return Err(ContextError::Len);
            }
            context.insert(name, value);
        }
        Ok(Self(context))
    }

    /// The pairs in their order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of `name`.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one encoding: the number of pairs, then each pair's name and value, each after its length. Numbers are two
    /// bytes, big-endian.
    pub fn canonical(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(short(self.0.len()));
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            bytes.extend(short(text.len()));
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    /// SHA-256 of a label and the canonical encoding: what a wrapped key says of its context. It hides nothing that can
    /// be guessed.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        context.update(DIGEST_LABEL);
        context.update(&self.canonical());
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }
}

/// Values may name people: they do not belong in logs.
impl fmt::Debug for EncryptionContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptionContext")?;
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What a payload is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EnvelopeContext {
    /// What the KMS sees and its policy can require: tenant, table, ...
    pub key: EncryptionContext,
    /// What only the caller knows: row, column, path, ...
    pub local: EncryptionContext,
}

/// A length of at most two bytes.
fn short(len: usize) -> [u8; 2] {
    debug_assert!(len <= usize::from(u16::MAX), "limits of a context are below 2^16");
    (len as u16).to_be_bytes()
}
