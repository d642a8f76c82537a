//! The payload: its key, and its chunks.
//!
//! Each envelope has a key of its own, HKDF-SHA-256 (RFC 5869) of the data key with 32 fresh random bytes as salt, so a
//! data key may be cached and used often without any nonce ever repeating under one key. What the payload is bound to is
//! the `info` of that derivation: with another purpose, data-key id or context another key comes out. AES-256-GCM's own
//! AAD is therefore empty: it would bind the same bytes once more, in every chunk.
//!
//! The derivation also gives a **commitment** to data key and context. GCM alone does not commit to its key: one ciphertext
//! can be made that opens under two (Grubbs, Lu, Ristenpart 2017). It is compared, in constant time, before any chunk is
//! opened.
//!
//! Chunks follow the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015): the nonce is a counter and a flag for
//! the last chunk, so none can be dropped, doubled or moved, and the end cannot be cut off or extended.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    constant_time::verify_slices_are_equal,
    error::Unspecified,
    hkdf::{HKDF_SHA256, KeyType, Salt},
};
use zeroize::Zeroizing;

use crate::{
    DataKey, DataKeyId, EncryptionContext, EnvelopeContext, Purpose,
    error::{OpenError, SealError},
    header::{FORMAT_VERSION, Header, SUITE},
};

/// The plaintext of every chunk but the last, in bytes. The last has at most as many.
pub const CHUNK_LEN: usize = 65_536;
/// GCM's tag in bytes.
pub(crate) const TAG_LEN: usize = 16;
/// A chunk as it is stored, in bytes.
pub(crate) const SEALED_CHUNK_LEN: usize = CHUNK_LEN + TAG_LEN;

const AAD_LABEL: &[u8] = b"kms payload v1\0";

/// What a payload's key is derived with, besides the data key.
pub(crate) struct Binding<'a> {
    pub(crate) purpose: Purpose,
    pub(crate) data_key_id: DataKeyId,
    pub(crate) salt: &'a [u8; 32],
    pub(crate) context: &'a EnvelopeContext,
}

impl Binding<'_> {
    /// The payload's key, ready for its chunks, and the commitment to it.
    pub(crate) fn derive(&self, data_key: &DataKey) -> Result<(Chunks, [u8; 32]), Unspecified> {
        let output = derive(data_key.expose_secret(), self.salt, &self.aad())?;
        let (key, committed) = output.split_at(32);
        let mut commitment = [0; 32];
        commitment.copy_from_slice(committed);
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?);
        Ok((Chunks { key, next: Some(0) }, commitment))
    }

    /// The payload AAD: no two bindings have the same, since each field has a fixed length or its length before it.
    fn aad(&self) -> Vec<u8> {
        let mut aad = AAD_LABEL.to_vec();
        aad.extend([FORMAT_VERSION, SUITE, self.purpose.to_byte()]);
        aad.extend(self.data_key_id.0);
        aad.extend(self.salt);
        extend_with_context(&mut aad, &self.context.key);
        extend_with_context(&mut aad, &self.context.local);
        aad
    }
}

fn extend_with_context(aad: &mut Vec<u8>, context: &EncryptionContext) {
    let canonical = context.canonical();
    // At most EncryptionContext::CANONICAL_LEN_MAX.
    aad.extend((canonical.len() as u32).to_be_bytes());
    aad.extend(canonical);
}

/// The key of a payload that is `expected` to be for this door, if `data_key` and `context` are those it was sealed with.
pub(crate) fn unlock(
    header: &Header,
    data_key: &DataKey,
    expected: Purpose,
    context: &EnvelopeContext,
) -> Result<Chunks, OpenError> {
    // The purpose that the caller expects is what goes in: what the header says need not even be looked at.
    let (chunks, commitment) =
        Binding { purpose: expected, data_key_id: header.data_key_id, salt: &header.salt, context }
            .derive(data_key)?;
    verify_slices_are_equal(&commitment, &header.commitment)?;
    if header.purpose != expected {
        return Err(OpenError::NotOpened);
    }
    Ok(chunks)
}

/// A payload's key and the place of the next chunk. After the last chunk it must be dropped.
pub(crate) struct Chunks {
    key: LessSafeKey,
    /// None once all 2^32 are used up.
    next: Option<u32>,
}

impl Chunks {
    /// Seals `plain` into `sealed`, which is a tag longer.
    pub(crate) fn seal(&mut self, plain: &[u8], sealed: &mut [u8], last: bool) -> Result<(), SealError> {
        let nonce = self.next_nonce(last).ok_or(SealError::TooLong)?;
        Ok(seal(&self.key, nonce, b"", plain, sealed)?)
    }

    /// Opens `sealed` into `plain`, which is a tag shorter, and holds zeroes if it does not open.
    pub(crate) fn open(&mut self, sealed: &[u8], plain: &mut [u8], last: bool) -> Result<(), OpenError> {
        // One payload has one encoding: a last chunk is empty only when it is the only one.
        if last && plain.is_empty() && self.next != Some(0) {
            return Err(OpenError::NotOpened);
        }
        let nonce = self.next_nonce(last).ok_or(OpenError::NotOpened)?;
        open(&self.key, nonce, b"", sealed, plain).map_err(|error| {
            plain.fill(0);
            error.into()
        })
    }

    fn next_nonce(&mut self, last: bool) -> Option<Nonce> {
        let counter = self.next?;
        self.next = counter.checked_add(1);
        let mut nonce = [0; 12];
        nonce[7..11].copy_from_slice(&counter.to_be_bytes());
        nonce[11] = u8::from(last);
        Some(Nonce::assume_unique_for_key(nonce))
    }
}

/// HKDF-SHA-256: 64 bytes.
fn derive(ikm: &[u8], salt: &[u8], info: &[u8]) -> Result<Zeroizing<[u8; 64]>, Unspecified> {
    let mut output = Zeroizing::new([0; 64]);
    let info = [info];
    Salt::new(HKDF_SHA256, salt).extract(ikm).expand(&info, KeyAndCommitment)?.fill(&mut output[..])?;
    Ok(output)
}

/// AES-256-GCM, ciphertext and tag into `sealed`.
fn seal(
    key: &LessSafeKey,
    nonce: Nonce,
    aad: &[u8],
    plain: &[u8],
    sealed: &mut [u8],
) -> Result<(), Unspecified> {
    let (ciphertext, tag) = sealed.split_at_mut(plain.len());
    key.seal_out_of_place_scatter(nonce, Aad::from(aad), plain, ciphertext, &[], tag)
}

/// The inverse. What is in `plain` after a failure is nobody's to see.
fn open(
    key: &LessSafeKey,
    nonce: Nonce,
    aad: &[u8],
    sealed: &[u8],
    plain: &mut [u8],
) -> Result<(), Unspecified> {
    let (ciphertext, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or(Unspecified)?;
    key.open_separate_gather(nonce, Aad::from(aad), ciphertext, tag, plain)
}

struct KeyAndCommitment;

impl KeyType for KeyAndCommitment {
    fn len(&self) -> usize {
        64
    }
}

#[cfg(test)]
mod wycheproof;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chunk_counter_never_starts_over() {
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap();
        let mut chunks = Chunks { key: LessSafeKey::new(key), next: Some(u32::MAX) };
        let mut sealed = [0; 17];
        chunks.seal(&[1], &mut sealed, false).unwrap();
        assert!(matches!(chunks.seal(&[1], &mut sealed, true), Err(SealError::TooLong)));
        assert!(matches!(chunks.open(&sealed, &mut [0], true), Err(OpenError::NotOpened)));
    }

    #[test]
    fn what_does_not_open_leaves_nothing_in_the_buffer() {
        let key = || LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap());
        let mut sealed = [0; 3 + TAG_LEN];
        Chunks { key: key(), next: Some(0) }.seal(b"abc", &mut sealed, true).unwrap();
        sealed[18] ^= 1;
        let mut plain = [9; 3];
        let opened = Chunks { key: key(), next: Some(0) }.open(&sealed, &mut plain, true);
        assert!(matches!(opened, Err(OpenError::NotOpened)));
        assert_eq!(plain, [0; 3]);
    }
}
