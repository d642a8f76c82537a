//! What an envelope says of itself to whoever has no key.

use kms_envelope::{Envelope, Header, Malformed, WrappedKey};

/// The header of an envelope: its data key's id and, for each recipient, key and version. Nothing of it is proven until
/// it is opened.
pub fn inspect(envelope: &[u8]) -> Result<Header, Malformed> {
    Ok(Envelope::parse(envelope)?.header().clone())
}

/// The number of the version that wraps an envelope's data key, of the key with the uid that
/// [`Envelopes::key_uid`](super::Envelopes::key_uid) gives; the lowest, if several of its versions do, for that is the one
/// that must not be destroyed yet. `None` if the envelope is for other keys only. Kept in a column of its own, it shows
/// what a rotation has yet to move, and is what `ReportUsage` counts.
pub fn key_version(envelope: &[u8], key_uid: &[u8; 16]) -> Result<Option<u32>, Malformed> {
    let envelope = Envelope::parse(envelope)?;
    let recipients = envelope.header().recipients().iter().map(WrappedKey::header);
    Ok(recipients.filter(|header| header.key_uid == *key_uid).map(|header| header.key_version.get()).min())
}
