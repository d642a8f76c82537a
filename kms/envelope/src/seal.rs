//! Sealing what is in memory, and rewrapping.

use aws_lc_rs::error::Unspecified;

use crate::{
    DataKey, DataKeyId, Envelope, EnvelopeContext, Purpose, WrappedKey,
    error::{Malformed, RandomError, RecipientsError, SealError},
    header::Header,
    payload::{Binding, CHUNK_LEN, Chunks, TAG_LEN},
};

/// For whom an envelope is.
#[derive(Debug, Clone)]
pub struct SealHeader {
    /// The data key, wrapped once for each: 1 to [`Header::RECIPIENTS_MAX`].
    pub recipients: Vec<WrappedKey>,
    /// The door through which it may leave.
    pub purpose: Purpose,
    /// The data key.
    pub data_key_id: DataKeyId,
}

/// Puts `plaintext` into an envelope. `random` gives the 32 bytes of the salt: they must be fresh for every envelope.
pub fn seal(
    data_key: &DataKey,
    seal_header: SealHeader,
    context: &EnvelopeContext,
    plaintext: &[u8],
    random: impl FnOnce(&mut [u8]) -> Result<(), RandomError>,
) -> Result<Vec<u8>, SealError> {
    let (header, mut chunks) = begin(data_key, seal_header, context, random)?;
    let mut envelope = header.to_bytes();
    let count = plaintext.len().div_ceil(CHUNK_LEN).max(1);
    let mut written = envelope.len();
    envelope.resize(written + plaintext.len() + count * TAG_LEN, 0);
    for number in 1..=count {
        let plain = &plaintext[(number - 1) * CHUNK_LEN..plaintext.len().min(number * CHUNK_LEN)];
        let end = written + plain.len() + TAG_LEN;
        chunks.seal(plain, &mut envelope[written..end], number == count)?;
        written = end;
    }
    Ok(envelope)
}

/// The header of a new envelope, and the key of its payload.
pub(crate) fn begin(
    data_key: &DataKey,
    seal_header: SealHeader,
    context: &EnvelopeContext,
    random: impl FnOnce(&mut [u8]) -> Result<(), RandomError>,
) -> Result<(Header, Chunks), SealError> {
    let SealHeader { recipients, purpose, data_key_id } = seal_header;
    let mut salt = [0; 32];
    random(&mut salt)?;
    let (chunks, commitment) = Binding { purpose, data_key_id, salt: &salt, context }
        .derive(data_key)
        .map_err(|Unspecified| SealError::Library)?;
    let header = Header::new(purpose, data_key_id, salt, commitment, recipients)?;
    if *header.context_digest() != context.key.digest() {
        return Err(RecipientsError::Context.into());
    }
    Ok((header, chunks))
}

/// Why an envelope was not rewrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RewrapError {
    /// It is none.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The recipients are another envelope's.
    #[error(transparent)]
    Recipients(#[from] RecipientsError),
}

/// The same envelope for other `recipients`. Every other byte is kept, and no key is needed. For a file of any length:
/// [`Header::read`], [`Header::with_recipients`], [`Header::write`], and copy what follows.
pub fn rewrapped(envelope: &[u8], recipients: Vec<WrappedKey>) -> Result<Vec<u8>, RewrapError> {
    let envelope = Envelope::parse(envelope)?;
    let mut bytes = envelope.header().with_recipients(recipients)?.to_bytes();
    bytes.extend(envelope.payload());
    Ok(bytes)
}
