//! The payload: a key of its own for each, derived from the data key, and chunks under it (HKDF: RFC 5869; AES-GCM: SP 800-38D;
//! the chunks are the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár).
//!
//! A data key may serve many envelopes, so no nonce of the data key's exists: the payload key is fresh with the salt, and
//! under it each chunk has its number and whether it is the last. All that the payload is bound to stands in the info of the
//! derivation, so a chunk needs no additional data: under another context there is another key.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    constant_time,
    hkdf::{HKDF_SHA256, KeyType, Salt},
};
use zeroize::Zeroizing;

use crate::{
    context::EnvelopeContext,
    header::{Header, Purpose, SUITE},
    secret::DataKey,
    wrapped_key::DataKeyId,
};

/// Length in bytes of the plaintext of every chunk but the last.
pub const CHUNK_LEN: usize = 65_536;
/// Length in bytes of what stands behind the ciphertext of each chunk.
pub(crate) const TAG_LEN: usize = 16;

/// What the info of the derivation begins with: it is that of nothing else.
const AAD_DOMAIN: &[u8] = b"kms payload v1\0";
const FORMAT_VERSION: u8 = 1;

/// Seals or opens the chunks of one payload, in order.
pub(crate) struct Chunks {
    key: LessSafeKey,
    next: Option<u32>,
}

/// Something did not fit, or there are more chunks than there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed;

/// Key and commitment.
struct Derived;

impl KeyType for Derived {
    fn len(&self) -> usize {
        64
    }
}

/// What a payload is bound to: everything about its envelope but the recipients, whom a rewrap replaces.
struct Bound<'a> {
    purpose: Purpose,
    data_key_id: &'a DataKeyId,
    salt: &'a [u8; 32],
    context: &'a EnvelopeContext,
}

impl Bound<'_> {
    /// The payload AAD, in its one encoding.
    fn aad(&self) -> Vec<u8> {
        let mut out = AAD_DOMAIN.to_vec();
        out.extend_from_slice(&[FORMAT_VERSION, SUITE, self.purpose as u8]);
        out.extend_from_slice(self.data_key_id.as_bytes());
        out.extend_from_slice(self.salt);
        for context in [&self.context.key, &self.context.local] {
            let context = context.canonical();
            out.extend_from_slice(&u32::try_from(context.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(&context);
        }
        out
    }
}

impl Chunks {
    /// For a new payload: its key, and the commitment for its header.
    pub(crate) fn begin(
        data_key: &DataKey,
        purpose: Purpose,
        data_key_id: &DataKeyId,
        salt: &[u8; 32],
        context: &EnvelopeContext,
    ) -> Result<(Self, [u8; 32]), Failed> {
        let aad = Bound { purpose, data_key_id, salt, context }.aad();
        let pseudorandom = Salt::new(HKDF_SHA256, salt).extract(data_key.expose_secret());
        let mut derived = Zeroizing::new([0; 64]);
        let info = [aad.as_slice()];
        let filled = pseudorandom.expand(&info, Derived).and_then(|output| output.fill(&mut *derived));
        filled.map_err(|_| Failed)?;
        let (key, committed) = derived.split_at(32);
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| Failed)?);
        let mut commitment = [0; 32];
        commitment.copy_from_slice(committed);
        Ok((Self { key, next: Some(0) }, commitment))
    }

    /// For the payload of an envelope: only under the one data key that made it.
    pub(crate) fn of(header: &Header, data_key: &DataKey, context: &EnvelopeContext) -> Result<Self, Failed> {
        let (chunks, commitment) =
            Self::begin(data_key, header.purpose, &header.data_key_id, &header.salt, context)?;
        constant_time::verify_slices_are_equal(&commitment, &header.commitment).map_err(|_| Failed)?;
        Ok(chunks)
    }

    /// Encrypts the next chunk in place, and appends its tag.
    pub(crate) fn seal(&mut self, chunk: &mut Vec<u8>, is_last: bool) -> Result<(), Failed> {
        let nonce = self.nonce(is_last)?;
        self.key.seal_in_place_append_tag(nonce, Aad::empty(), chunk).map_err(|_| Failed)
    }

    /// Decrypts the next chunk in place: what comes back is its plaintext.
    pub(crate) fn open<'a>(&mut self, chunk: &'a mut [u8], is_last: bool) -> Result<&'a mut [u8], Failed> {
        let nonce = self.nonce(is_last)?;
        self.key.open_in_place(nonce, Aad::empty(), chunk).map_err(|_| Failed)
    }

    /// Each number once: seven zero bytes, the number, and whether it is the last.
    fn nonce(&mut self, is_last: bool) -> Result<Nonce, Failed> {
        let number = self.next.ok_or(Failed)?;
        self.next = if is_last { None } else { number.checked_add(1) };
        let mut nonce = [0; NONCE_LEN];
        nonce[7..11].copy_from_slice(&number.to_be_bytes());
        nonce[11] = u8::from(is_last);
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EncryptionContext, SecretBytes};

    #[test]
    fn no_chunk_comes_after_the_last_one_nor_after_the_last_number() {
        let key = DataKey::from_secret(SecretBytes::new(vec![1; 32])).expect("32 bytes");
        let begin = || {
            let (id, context) = (DataKeyId::from_bytes([2; 16]), EnvelopeContext::default());
            Chunks::begin(&key, Purpose::Native, &id, &[3; 32], &context).expect("a key").0
        };
        let mut chunks = begin();
        assert_eq!(chunks.seal(&mut vec![], true), Ok(()));
        assert_eq!(chunks.seal(&mut vec![], true), Err(Failed));
        let mut chunks = begin();
        chunks.next = Some(u32::MAX);
        assert_eq!(chunks.seal(&mut vec![], false), Ok(()));
        assert_eq!(chunks.seal(&mut vec![], true), Err(Failed), "a number would come twice");
    }

    #[test]
    fn everything_but_the_recipients_is_bound() {
        let context = |name: &str| {
            EncryptionContext::new([(name.to_owned(), "v".to_owned())]).expect("a small context")
        };
        let both = EnvelopeContext { key: context("a"), local: context("b") };
        let (id, salt) = (DataKeyId::from_bytes([1; 16]), [2; 32]);
        let plain = Bound { purpose: Purpose::Native, data_key_id: &id, salt: &salt, context: &both };
        let swapped = EnvelopeContext { key: context("b"), local: context("a") };
        let joined = EnvelopeContext::of_key(
            EncryptionContext::new(["a", "b"].map(|name| (name.to_owned(), "v".to_owned()))).expect("small"),
        );
        let other_id = DataKeyId::from_bytes([9; 16]);
        for other in [
            Bound { purpose: Purpose::Vault, ..plain },
            Bound { data_key_id: &other_id, ..plain },
            Bound { salt: &[9; 32], ..plain },
            Bound { context: &swapped, ..plain },
            Bound { context: &joined, ..plain },
        ] {
            assert_ne!(other.aad(), plain.aad());
        }
    }
}
