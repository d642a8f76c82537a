//! A wrapped key: a header that says what it is, all of it authenticated, and the wrapped bytes.

use std::fmt;

use crate::header::{HeaderError, Purpose, Reader};

const MAGIC: &[u8; 4] = b"KMSW";
const FORMAT_VERSION: u8 = 1;
/// What the additional data of a wrap begins with: it is that of nothing else.
const AAD_DOMAIN: &[u8] = b"kms wrap v1\0";

/// A wrapped key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// What it is.
    pub header: WrapHeader,
    /// What came out of the wrap, at most [`WrappedKey::WRAPPED_LEN_MAX`] bytes. A256GCMKW: IV (12 bytes) ‖ ciphertext ‖
    /// tag (16 bytes).
    pub wrapped: Vec<u8>,
}

/// What stands before the wrapped bytes: each field is bound to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrapHeader {
    /// How it is wrapped.
    pub algorithm: WrapAlgorithm,
    /// Through which door: what one door wraps, no other unwraps.
    pub purpose: Purpose,
    /// The wrapping key, for ever.
    pub key_uid: [u8; 16],
    /// Its version, from 1.
    pub key_version: u32,
    /// The key that is wrapped.
    pub data_key_id: DataKeyId,
    /// [`crate::EncryptionContext::digest`] of its context: a rewrap needs no context.
    pub context_digest: [u8; 32],
}

/// How a key is wrapped. Another one, a post-quantum one say, is another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum WrapAlgorithm {
    /// AES-256-GCM (RFC 7518 §4.7).
    A256GcmKw = 1,
    /// RSAES-OAEP with SHA-256 (RFC 7518 §4.3), the additional data as its label.
    RsaOaep256 = 2,
}

/// 128 random bits that name a data key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataKeyId([u8; 16]);

impl WrappedKey {
    /// Most wrapped bytes.
    pub const WRAPPED_LEN_MAX: usize = 4_096;
    /// Longest encoding in bytes.
    pub const LEN_MAX: usize = WrapHeader::LEN + 2 + Self::WRAPPED_LEN_MAX;

    /// The encoding.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.header.to_bytes();
        // What is longer does not parse.
        out.extend_from_slice(&u16::try_from(self.wrapped.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(&self.wrapped);
        out
    }

    /// Reads one, and nothing behind it.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() > Self::LEN_MAX {
            return Err(HeaderError::Malformed);
        }
        let mut reader = Reader::new(bytes);
        reader.magic(MAGIC, FORMAT_VERSION)?;
        let algorithm = match reader.u8()? {
            1 => WrapAlgorithm::A256GcmKw,
            2 => WrapAlgorithm::RsaOaep256,
            _ => return Err(HeaderError::Unknown),
        };
        let purpose = Purpose::from_byte(reader.u8()?)?;
        if reader.u8()? != 0 {
            return Err(HeaderError::Malformed);
        }
        let header = WrapHeader {
            algorithm,
            purpose,
            key_uid: reader.array()?,
            key_version: u32::from_be_bytes(reader.array()?),
            data_key_id: DataKeyId(reader.array()?),
            context_digest: reader.array()?,
        };
        let len = usize::from(u16::from_be_bytes(reader.array()?));
        let wrapped = reader.rest().to_vec();
        let is_possible = (1..=Self::WRAPPED_LEN_MAX).contains(&len) && header.key_version > 0;
        if wrapped.len() == len && is_possible {
            Ok(Self { header, wrapped })
        } else {
            Err(HeaderError::Malformed)
        }
    }
}

impl WrapHeader {
    /// Length in bytes.
    const LEN: usize = 76;

    /// The additional data of the wrap: every byte of the header.
    pub fn aad(&self) -> Vec<u8> {
        [AAD_DOMAIN, &self.to_bytes()].concat()
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LEN + 2 + 60);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[FORMAT_VERSION, self.algorithm as u8, self.purpose as u8, 0]);
        out.extend_from_slice(&self.key_uid);
        out.extend_from_slice(&self.key_version.to_be_bytes());
        out.extend_from_slice(&self.data_key_id.0);
        out.extend_from_slice(&self.context_digest);
        out
    }
}

impl DataKeyId {
    /// From its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for DataKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DataKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKeyId({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn a_wrapped_key(len: usize) -> WrappedKey {
        let header = WrapHeader {
            algorithm: WrapAlgorithm::A256GcmKw,
            purpose: Purpose::Native,
            key_uid: [1; 16],
            key_version: 0x0102_0304,
            data_key_id: DataKeyId([2; 16]),
            context_digest: [3; 32],
        };
        WrappedKey { header, wrapped: vec![4; len] }
    }

    #[test]
    fn cut_prolonged_and_impossible_ones_are_refused() {
        let whole = a_wrapped_key(60).to_bytes();
        for cut in 0..whole.len() {
            assert!(WrappedKey::parse(&whole[..cut]).is_err(), "cut at {cut}");
        }
        assert!(WrappedKey::parse(&[&whole[..], &[0]].concat()).is_err(), "prolonged");
        for (place, byte) in [(0, b'k'), (4, 0), (4, 2), (5, 0), (5, 3), (6, 0), (6, 4), (7, 1)] {
            let mut odd = whole.clone();
            odd[place] = byte;
            assert!(WrappedKey::parse(&odd).is_err(), "byte {place} = {byte}");
        }
        let mut zero = whole;
        zero[24..28].fill(0);
        assert!(WrappedKey::parse(&zero).is_err(), "versions count from 1");
        for len in [0, 4097] {
            assert!(WrappedKey::parse(&a_wrapped_key(len).to_bytes()).is_err(), "{len} wrapped bytes");
        }
    }

    #[test]
    fn it_reads_back_as_it_was_written_and_says_each_field_in_its_aad() {
        let one = a_wrapped_key(60);
        assert_eq!(WrappedKey::parse(&one.to_bytes()).as_ref(), Ok(&one));
        let header = &one.header;
        let changed = [
            WrapHeader { algorithm: WrapAlgorithm::RsaOaep256, ..header.clone() },
            WrapHeader { purpose: Purpose::Vault, ..header.clone() },
            WrapHeader { key_uid: [9; 16], ..header.clone() },
            WrapHeader { key_version: 9, ..header.clone() },
            WrapHeader { data_key_id: DataKeyId([9; 16]), ..header.clone() },
            WrapHeader { context_digest: [9; 32], ..header.clone() },
        ];
        for other in changed {
            assert_ne!(other.aad(), header.aad(), "{other:?}");
        }
        assert_eq!(header.aad(), [AAD_DOMAIN, &one.to_bytes()[..WrapHeader::LEN]].concat());
    }

    proptest! {
        #[test]
        fn garbage_never_panics_and_what_parses_has_one_encoding(
            bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let bytes = [&b"KMSW\x01"[..], &bytes].concat();
            if let Ok(parsed) = WrappedKey::parse(&bytes) {
                prop_assert_eq!(parsed.to_bytes(), bytes);
            }
        }
    }
}
