//! A key-encryption key in software, which stands for the HSM, and envelopes made with it from fixed bytes.

use std::{io::Read as _, num::NonZeroU32};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use kms_envelope::{
    DataKey, DataKeyId, EncryptionContext, Envelope, EnvelopeContext, OpenError, Opener, Purpose, SealHeader,
    SecretBytes, WrapAlgorithm, WrapHeader, WrappedKey, seal,
};

/// One version of a key of purpose `wrap`.
pub(crate) struct Kek {
    key: LessSafeKey,
    uid: [u8; 16],
    version: NonZeroU32,
}

impl Kek {
    pub(crate) fn new(seed: u8) -> Self {
        Self {
            key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[seed; 32]).unwrap()),
            uid: [seed; 16],
            version: NonZeroU32::new(u32::from(seed)).unwrap(),
        }
    }

    pub(crate) fn wrap(
        &self,
        data_key: &DataKey,
        data_key_id: DataKeyId,
        purpose: Purpose,
        context: &EncryptionContext,
    ) -> WrappedKey {
        let header = WrapHeader {
            algorithm: WrapAlgorithm::A256GcmKw,
            purpose,
            key_uid: self.uid,
            key_version: self.version,
            data_key_id,
            context_digest: context.digest(),
        };
        let iv = [9; 12];
        let mut text = data_key.expose_secret().to_vec();
        let nonce = Nonce::assume_unique_for_key(iv);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header.aad()), &mut text).unwrap();
        WrappedKey::new(header, [&iv[..], &text].concat()).unwrap()
    }

    /// What UnwrapKey does: the header must name this very version, and all of it is authenticated.
    pub(crate) fn unwrap(&self, wrapped: &WrappedKey, context: &EncryptionContext) -> Option<DataKey> {
        let header = wrapped.header();
        let is_ours = (header.key_uid, header.key_version) == (self.uid, self.version);
        (is_ours && header.algorithm == WrapAlgorithm::A256GcmKw)
            .then(|| self.unwrap_whatever_it_says(wrapped, context))?
    }

    /// Without looking who is named: the header is authenticated all the same.
    pub(crate) fn unwrap_whatever_it_says(
        &self,
        wrapped: &WrappedKey,
        context: &EncryptionContext,
    ) -> Option<DataKey> {
        if wrapped.header().context_digest != context.digest() {
            return None;
        }
        let (iv, text) = wrapped.wrapped().split_first_chunk::<12>()?;
        let (mut text, aad) = (text.to_vec(), Aad::from(wrapped.header().aad()));
        let key = self.key.open_in_place(Nonce::assume_unique_for_key(*iv), aad, &mut text).ok()?.to_vec();
        DataKey::from_secret(SecretBytes::new(key)).ok()
    }

    /// The whole way of an envelope: the header says whom to ask, the KEK unwraps, the payload opens.
    pub(crate) fn open(
        &self,
        envelope: &[u8],
        expected: Purpose,
        context: &EnvelopeContext,
    ) -> Result<Vec<u8>, OpenError> {
        let envelope = Envelope::parse(envelope)?;
        let key = envelope
            .header()
            .recipients()
            .iter()
            .find_map(|recipient| self.unwrap(recipient, &context.key))
            .ok_or(OpenError::NotOpened)?;
        opened_both_ways(&envelope, &key, expected, context)
    }
}

/// In memory and as a stream, which must agree.
pub(crate) fn opened_both_ways(
    envelope: &Envelope<'_>,
    key: &DataKey,
    expected: Purpose,
    context: &EnvelopeContext,
) -> Result<Vec<u8>, OpenError> {
    let whole = envelope.open(key, expected, context).map(|plaintext| plaintext.expose_secret().to_vec());
    let mut streamed = Vec::new();
    let end = Opener::new(envelope.payload(), envelope.header(), key, expected, context)
        .and_then(|mut opener| Ok(opener.read_to_end(&mut streamed)?));
    assert_eq!(whole.is_ok(), end.is_ok(), "memory and stream disagree");
    let plaintext = whole?;
    assert!(streamed == plaintext, "memory and stream disagree");
    Ok(plaintext)
}

pub(crate) fn data_key(seed: u8) -> DataKey {
    DataKey::from_secret(SecretBytes::new(vec![seed; 32])).unwrap()
}

pub(crate) fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
    EncryptionContext::new(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()))).unwrap()
}

pub(crate) fn customers() -> EnvelopeContext {
    EnvelopeContext {
        key: context(&[("tenant", "acme"), ("table", "customers")]),
        local: context(&[("row", "17")]),
    }
}

/// For one recipient, under the data key of seed 1, in [`customers`], with a salt of `salt`s.
pub(crate) fn sealed(kek: &Kek, purpose: Purpose, plaintext: &[u8], salt: u8) -> Vec<u8> {
    let (key, context) = (data_key(1), customers());
    let header = seal_header(kek, purpose, &key, &context);
    seal(&key, header, &context, plaintext, fixed(salt)).unwrap()
}

pub(crate) fn seal_header(
    kek: &Kek,
    purpose: Purpose,
    key: &DataKey,
    context: &EnvelopeContext,
) -> SealHeader {
    let data_key_id = DataKeyId([5; 16]);
    SealHeader { recipients: vec![kek.wrap(key, data_key_id, purpose, &context.key)], purpose, data_key_id }
}

/// A generator that always gives the same byte.
pub(crate) fn fixed(byte: u8) -> impl FnOnce(&mut [u8]) -> Result<(), kms_envelope::RandomError> {
    move |bytes| {
        bytes.fill(byte);
        Ok(())
    }
}

/// `len` bytes of which no two chunks are the same.
pub(crate) fn plaintext(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index ^ (index >> 8) ^ (index >> 16)) as u8).collect()
}
