//! Opening an envelope that is in memory, and giving it other recipients.

use zeroize::Zeroizing;

use crate::{
    context::EnvelopeContext,
    header::{Header, HeaderError, Purpose},
    payload::{CHUNK_LEN, Chunks, Failed, TAG_LEN},
    secret::{DataKey, SecretBytes},
    wrapped_key::WrappedKey,
};

/// An envelope whose header is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Its header.
    pub header: Header,
    /// The chunks.
    payload: &'a [u8],
}

/// Why an envelope did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is no envelope of ours, or of a newer kind.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// It does not open. One reason for everything: another data key, context or door, or any bit of it.
    #[error("it does not open: check the key and the contexts; if they are right, it was changed or cut")]
    NotOpened,
}

impl<'a> Envelope<'a> {
    /// Reads the header.
    pub fn parse(envelope: &'a [u8]) -> Result<Self, HeaderError> {
        let (header, payload) = Header::parse(envelope)?;
        Ok(Self { header, payload })
    }

    /// Opens it. `purpose` is the door at which it is opened.
    pub fn open(
        &self,
        data_key: &DataKey,
        purpose: Purpose,
        context: &EnvelopeContext,
    ) -> Result<SecretBytes, OpenError> {
        if self.header.purpose != purpose {
            return Err(OpenError::NotOpened);
        }
        let mut chunks = Chunks::of(&self.header, data_key, context)?;
        // Cut out from under one buffer, so that no copy of the plaintext is left behind.
        let mut plaintext = Zeroizing::new(Vec::with_capacity(self.payload.len()));
        let mut chunk = Zeroizing::new(Vec::with_capacity(self.payload.len().min(CHUNK_LEN + TAG_LEN)));
        let mut rest = self.payload;
        loop {
            let is_last = rest.len() <= CHUNK_LEN + TAG_LEN;
            let (sealed, behind) = rest.split_at(rest.len().min(CHUNK_LEN + TAG_LEN));
            chunk.clear();
            chunk.extend_from_slice(sealed);
            let opened = chunks.open(&mut chunk, is_last)?;
            if is_last && opened.is_empty() && !plaintext.is_empty() {
                return Err(OpenError::NotOpened);
            }
            plaintext.extend_from_slice(opened);
            if is_last {
                return Ok(SecretBytes::new(std::mem::take(&mut *plaintext)));
            }
            rest = behind;
        }
    }

    /// The same envelope for other recipients: every byte of its payload, and what it is bound to, stays as it is.
    pub fn rewrapped(&self, recipients: Vec<WrappedKey>) -> Result<Vec<u8>, HeaderError> {
        let header = Header { recipients, ..self.header.clone() };
        header.fits()?;
        Ok([&header.to_bytes(), self.payload].concat())
    }
}

impl From<Failed> for OpenError {
    fn from(_: Failed) -> Self {
        Self::NotOpened
    }
}
