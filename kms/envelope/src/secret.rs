//! Bytes that nobody else may see, and the data key. Memory is overwritten when they are dropped (zeroize); they stand
//! on the heap, so that moving them leaves no copy behind.

use std::fmt;

use zeroize::Zeroizing;

use crate::error::RandomError;

/// Secret bytes. No `Clone`, no serialisation, and [`SecretBytes::expose_secret`] is the only way to them.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes `bytes` over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves.
    pub fn expose_secret(&self) -> &[u8] {
        &self.0
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

/// The 32 bytes under which payloads are sealed. One may serve many envelopes: each has a key of its own derived from
/// it.
#[derive(Debug)]
pub struct DataKey(SecretBytes);

/// A data key has exactly 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a data key has 32 bytes, this secret has {0}; pass what UnwrapKey or GenerateDataKey answered")]
pub struct DataKeyLenError(pub usize);

impl DataKey {
    /// In bytes.
    pub const LEN: usize = 32;

    /// A new one. `random` fills a buffer from a generator that is fit for keys.
    pub fn generate(random: impl FnOnce(&mut [u8]) -> Result<(), RandomError>) -> Result<Self, RandomError> {
        let mut bytes = SecretBytes::new(vec![0; Self::LEN]);
        random(&mut bytes.0)?;
        Ok(Self(bytes))
    }

    /// What was unwrapped.
    pub fn from_secret(secret: SecretBytes) -> Result<Self, DataKeyLenError> {
        match secret.len() {
            Self::LEN => Ok(Self(secret)),
            other => Err(DataKeyLenError(other)),
        }
    }

    /// The 32 bytes themselves, to have them wrapped.
    pub fn expose_secret(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

/// Names a data key: 128 random bits, which are no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataKeyId(pub [u8; 16]);

impl DataKeyId {
    /// A new one.
    pub fn generate(random: impl FnOnce(&mut [u8]) -> Result<(), RandomError>) -> Result<Self, RandomError> {
        let mut id = [0; 16];
        random(&mut id)?;
        Ok(Self(id))
    }
}
