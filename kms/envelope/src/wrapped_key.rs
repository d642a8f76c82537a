//! A wrapped key: a data key (or any key) under a version of a key in the HSM, together with a header that says which.
//!
//! The header is the additional data of the wrap, so nothing in it can be changed: for A256GCMKW (RFC 7518 §4.7) it is
//! GCM's AAD, for RSA-OAEP-256 the label (RFC 8017 §7.1). A rewrap makes another wrapped key with the same data-key id,
//! purpose and context digest.

use std::num::NonZeroU32;

use crate::{DataKeyId, error::Malformed};

const MAGIC: &[u8; 4] = b"KMSW";
const FORMAT_VERSION: u8 = 1;
const AAD_LABEL: &[u8] = b"kms wrap v1\0";
const HEADER_LEN: usize = 76;
/// IV and tag of A256GCMKW.
const GCM_OVERHEAD_LEN: usize = 12 + 16;

/// The door through which a ciphertext came, and alone may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Our own API.
    Native = 1,
    /// The Vault transit API.
    Vault = 2,
    /// Kubernetes KMS v2.
    Kubernetes = 3,
}

impl Purpose {
    /// The byte that stands for it.
    pub const fn to_byte(self) -> u8 {
        self as u8
    }

    pub(crate) fn parse(byte: u8) -> Result<Self, Malformed> {
        match byte {
            1 => Ok(Self::Native),
            2 => Ok(Self::Vault),
            3 => Ok(Self::Kubernetes),
            found => Err(Malformed::Unknown { what: "purpose", found }),
        }
    }
}

/// How a key is wrapped. There is room for a post-quantum wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WrapAlgorithm {
    /// AES-256-GCM: IV, ciphertext, tag.
    A256GcmKw = 1,
    /// RSA-OAEP with SHA-256. It does not say who wrapped: anybody can who has the public key.
    RsaOaep256 = 2,
}

impl WrapAlgorithm {
    /// The byte that stands for it.
    pub const fn to_byte(self) -> u8 {
        self as u8
    }

    fn parse(byte: u8) -> Result<Self, Malformed> {
        match byte {
            1 => Ok(Self::A256GcmKw),
            2 => Ok(Self::RsaOaep256),
            found => Err(Malformed::Unknown { what: "wrap algorithm", found }),
        }
    }

    fn fits(self, wrapped_len: usize) -> bool {
        match self {
            Self::A256GcmKw => (WrappedKey::KEY_LEN_MIN + GCM_OVERHEAD_LEN
                ..=WrappedKey::KEY_LEN_MAX + GCM_OVERHEAD_LEN)
                .contains(&wrapped_len),
            Self::RsaOaep256 => (1..=WrappedKey::WRAPPED_LEN_MAX).contains(&wrapped_len),
        }
    }
}

/// What a wrap is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrapHeader {
    /// How.
    pub algorithm: WrapAlgorithm,
    /// For which door.
    pub purpose: Purpose,
    /// The 128 random bits that name the key in the HSM for ever.
    pub key_uid: [u8; 16],
    /// Which of its versions.
    pub key_version: NonZeroU32,
    /// What is wrapped.
    pub data_key_id: DataKeyId,
    /// [`EncryptionContext::digest`](crate::EncryptionContext::digest) of the key context.
    pub context_digest: [u8; 32],
}

impl WrapHeader {
    /// What the HSM gets as GCM's AAD or as OAEP's label: a label of ours, then the header as it is stored.
    pub fn aad(&self) -> Vec<u8> {
        [AAD_LABEL, &self.to_bytes()].concat()
    }

    fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..8].copy_from_slice(&[FORMAT_VERSION, self.algorithm.to_byte(), self.purpose.to_byte(), 0]);
        bytes[8..24].copy_from_slice(&self.key_uid);
        bytes[24..28].copy_from_slice(&self.key_version.get().to_be_bytes());
        bytes[28..44].copy_from_slice(&self.data_key_id.0);
        bytes[44..].copy_from_slice(&self.context_digest);
        bytes
    }

    fn parse(bytes: &mut &[u8]) -> Result<Self, Malformed> {
        if &take::<4>(bytes)? != MAGIC {
            return Err(Malformed::NotOurs("wrapped key"));
        }
        let [version, algorithm, purpose, reserved] = take(bytes)?;
        if version != FORMAT_VERSION {
            return Err(Malformed::Unknown { what: "format version", found: version });
        }
        let header = Self {
            algorithm: WrapAlgorithm::parse(algorithm)?,
            purpose: Purpose::parse(purpose)?,
            key_uid: take(bytes)?,
            key_version: NonZeroU32::new(u32::from_be_bytes(take(bytes)?))
                .ok_or(Malformed::Broken("the key version of a wrapped key is 0"))?,
            data_key_id: DataKeyId(take(bytes)?),
            context_digest: take(bytes)?,
        };
        match reserved {
            0 => Ok(header),
            _ => Err(Malformed::Broken("the reserved byte of a wrapped key is not 0")),
        }
    }
}

/// A key under a version of a key in the HSM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    header: WrapHeader,
    wrapped: Vec<u8>,
}

impl WrappedKey {
    /// Shortest key that is wrapped, in bytes.
    pub const KEY_LEN_MIN: usize = 16;
    /// Longest key that is wrapped, in bytes.
    pub const KEY_LEN_MAX: usize = 1024;
    /// Longest ciphertext of any algorithm, in bytes.
    pub const WRAPPED_LEN_MAX: usize = 4096;
    /// Longest encoding in bytes.
    pub const LEN_MAX: usize = HEADER_LEN + 2 + Self::WRAPPED_LEN_MAX;

    /// What the HSM answered: for A256GCMKW IV, ciphertext and tag in one; for RSA-OAEP-256 the ciphertext.
    pub fn new(header: WrapHeader, wrapped: Vec<u8>) -> Result<Self, Malformed> {
        if !header.algorithm.fits(wrapped.len()) {
            return Err(Malformed::Broken("a wrapped key has a length that its algorithm does not give"));
        }
        Ok(Self { header, wrapped })
    }

    /// What the wrap is bound to.
    pub fn header(&self) -> &WrapHeader {
        &self.header
    }

    /// For A256GCMKW IV (12 bytes), ciphertext and tag (16); for RSA-OAEP-256 the ciphertext.
    pub fn wrapped(&self) -> &[u8] {
        &self.wrapped
    }

    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        // At most WRAPPED_LEN_MAX, as `new` made sure.
        let len = self.wrapped.len() as u16;
        [&self.header.to_bytes()[..], &len.to_be_bytes(), &self.wrapped].concat()
    }

    /// The only reading of these bytes: [`WrappedKey::to_bytes`] gives them back.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let header = WrapHeader::parse(&mut bytes)?;
        let len = usize::from(u16::from_be_bytes(take(&mut bytes)?));
        if bytes.len() < len {
            return Err(Malformed::Cut("wrapped key"));
        }
        if bytes.len() > len {
            return Err(Malformed::Broken("something follows a wrapped key"));
        }
        if !header.algorithm.fits(len) {
            return Err(Malformed::Broken("a wrapped key has a length that its algorithm does not give"));
        }
        Ok(Self { header, wrapped: bytes.to_vec() })
    }
}

/// The next `N` bytes.
fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(Malformed::Cut("wrapped key"))?;
    *bytes = rest;
    Ok(*taken)
}
