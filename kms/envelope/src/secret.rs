//! Bytes that nobody else may see: zeroized when they are dropped, never shown, never copied unasked.

use std::fmt;

use zeroize::Zeroizing;

/// Secret bytes of any length. Whoever reads them says so: `expose_secret` is there to be searched for.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

/// A data key: 256 bits, from which the key of each payload is derived.
pub struct DataKey(Zeroizing<[u8; 32]>);

/// A data key has another length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a data key has 32 bytes")]
pub struct WrongLength;

impl SecretBytes {
    /// Takes the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    pub fn expose_secret(&self) -> &[u8] {
        &self.0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl DataKey {
    /// Draws one. `random` fills a buffer with bytes that nobody can guess.
    pub fn generate<E>(random: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut bytes = Zeroizing::new([0; 32]);
        random(&mut *bytes)?;
        Ok(Self(bytes))
    }

    /// From its 32 bytes.
    pub fn from_secret(secret: SecretBytes) -> Result<Self, WrongLength> {
        let mut bytes = Zeroizing::new([0; 32]);
        if secret.len() != bytes.len() {
            return Err(WrongLength);
        }
        bytes.copy_from_slice(secret.expose_secret());
        Ok(Self(bytes))
    }

    /// The 32 bytes.
    pub fn expose_secret(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes([{} bytes])", self.len())
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let text = format!("{:?} {:?}", SecretBytes::new(vec![171; 4]), DataKey(Zeroizing::new([171; 32])));
        assert_eq!(text, "SecretBytes([4 bytes]) DataKey(..)");
    }

    #[test]
    fn a_data_key_has_32_bytes() {
        for len in [0, 16, 31, 33, 64] {
            assert_eq!(
                DataKey::from_secret(SecretBytes::new(vec![1; len])).err(),
                Some(WrongLength),
                "{len}"
            );
        }
        let key = DataKey::from_secret(SecretBytes::new(vec![1; 32])).expect("32 bytes");
        assert_eq!(key.expose_secret(), &[1; 32]);
    }
}
