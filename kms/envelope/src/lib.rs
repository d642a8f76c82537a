//! Placeholder until the format lands: the one type that the HSM port needs.
use std::fmt;

use zeroize::Zeroizing;

/// Secret bytes: zeroized when dropped, and never shown.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    pub fn expose_secret(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes(..)")
    }
}

/// Placeholder.
pub struct EncryptionContext;
impl EncryptionContext {
    /// Longest name in bytes.
    pub const NAME_LEN_MAX: usize = 128;
}
