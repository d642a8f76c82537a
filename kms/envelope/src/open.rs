//! Opening what is in memory.

use zeroize::Zeroizing;

use crate::{
    DataKey, EnvelopeContext, Purpose, SecretBytes,
    error::{Malformed, OpenError},
    header::Header,
    payload::{SEALED_CHUNK_LEN, TAG_LEN, unlock},
};

/// An envelope that was read as far as that goes without its data key.
#[derive(Debug, Clone)]
pub struct Envelope<'a> {
    header: Header,
    payload: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Splits an envelope into header and payload. Nothing of it is proven yet.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut payload = bytes;
        match Header::read(&mut payload) {
            Ok(header) => Ok(Self { header, payload }),
            Err(OpenError::Malformed(malformed)) => Err(malformed),
            // Reading from memory does not fail otherwise.
            Err(OpenError::NotOpened | OpenError::Io(_)) => Err(Malformed::Cut("header of the envelope")),
        }
    }

    /// Whom to ask for the data key.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The encrypted chunks.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The plaintext: all of it, or nothing.
    pub fn open(
        &self,
        data_key: &DataKey,
        expected: Purpose,
        context: &EnvelopeContext,
    ) -> Result<SecretBytes, OpenError> {
        let mut chunks = unlock(&self.header, data_key, expected, context)?;
        let sealed_chunks = self.payload.chunks(SEALED_CHUNK_LEN);
        let count = sealed_chunks.len();
        if count == 0 {
            return Err(OpenError::NotOpened);
        }
        let lens = sealed_chunks.clone().map(|sealed| sealed.len().checked_sub(TAG_LEN));
        let len = lens.sum::<Option<usize>>().ok_or(OpenError::NotOpened)?;
        let mut plaintext = Zeroizing::new(vec![0; len]);
        let mut rest = &mut plaintext[..];
        for (number, sealed) in (1..).zip(sealed_chunks) {
            let len = sealed.len() - TAG_LEN;
            let (plain, after) = rest.split_at_mut(len);
            chunks.open(sealed, plain, number == count)?;
            rest = after;
        }
        Ok(SecretBytes::new(std::mem::take(&mut plaintext)))
    }
}

/// The plaintext of `envelope`, if it was sealed under `data_key` for the door `expected` with this `context`.
pub fn open(
    data_key: &DataKey,
    envelope: &[u8],
    expected: Purpose,
    context: &EnvelopeContext,
) -> Result<SecretBytes, OpenError> {
    Envelope::parse(envelope)?.open(data_key, expected, context)
}
