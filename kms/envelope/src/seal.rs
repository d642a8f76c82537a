//! Sealing a payload that is in memory.

use crate::{
    context::EnvelopeContext,
    header::{Header, HeaderError, Purpose},
    payload::{CHUNK_LEN, Chunks, Failed, TAG_LEN},
    secret::DataKey,
    wrapped_key::{DataKeyId, WrappedKey},
};

/// What the header of a new envelope is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealHeader {
    /// The data key, wrapped for each of them: 1 to [`Header::RECIPIENTS_MAX`].
    pub recipients: Vec<WrappedKey>,
    /// Through which door.
    pub purpose: Purpose,
    /// The data key: the one in every recipient's header.
    pub data_key_id: DataKeyId,
}

/// Why nothing was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The recipients do not fit the data key or the door, or there are too many or none.
    #[error(
        "an envelope has 1 to {} recipients, each with its data key and of its door",
        Header::RECIPIENTS_MAX
    )]
    Recipients,
    /// There is no randomness to be had.
    #[error("no random bytes are to be had")]
    Random,
    /// The payload has more chunks than can be counted.
    #[error("the payload is too long")]
    TooLong,
}

/// Seals `plaintext`. `random` fills a buffer with bytes that never come again.
pub fn seal<E>(
    data_key: &DataKey,
    header: SealHeader,
    context: &EnvelopeContext,
    plaintext: &[u8],
    random: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Vec<u8>, SealError> {
    let (header, mut chunks) = begin(data_key, header, context, random)?;
    let mut envelope = header.to_bytes();
    envelope.reserve(plaintext.len() + (plaintext.len() / CHUNK_LEN + 1) * TAG_LEN);
    let mut rest = plaintext;
    loop {
        let is_last = rest.len() <= CHUNK_LEN;
        let (chunk, behind) = rest.split_at(rest.len().min(CHUNK_LEN));
        let mut sealed = Vec::with_capacity(chunk.len() + TAG_LEN);
        sealed.extend_from_slice(chunk);
        chunks.seal(&mut sealed, is_last)?;
        envelope.extend_from_slice(&sealed);
        if is_last {
            return Ok(envelope);
        }
        rest = behind;
    }
}

/// The whole header, and what seals the chunks behind it.
pub(crate) fn begin<E>(
    data_key: &DataKey,
    header: SealHeader,
    context: &EnvelopeContext,
    random: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<(Header, Chunks), SealError> {
    let SealHeader { recipients, purpose, data_key_id } = header;
    let mut salt = [0; 32];
    random(&mut salt).map_err(|_| SealError::Random)?;
    let (chunks, commitment) = Chunks::begin(data_key, purpose, &data_key_id, &salt, context)?;
    let header = Header { purpose, data_key_id, salt, commitment, recipients };
    header.fits()?;
    Ok((header, chunks))
}

impl From<Failed> for SealError {
    fn from(_: Failed) -> Self {
        Self::TooLong
    }
}

impl From<HeaderError> for SealError {
    fn from(_: HeaderError) -> Self {
        Self::Recipients
    }
}
