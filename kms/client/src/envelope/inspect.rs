//! What an envelope says of itself to whoever has no key.

use kms_envelope::{Envelope, Header, Malformed};

/// The header of an envelope: its data key's id and, for each recipient, key and version. Nothing of it is proven until
/// it is opened.
pub fn inspect(envelope: &[u8]) -> Result<Header, Malformed> {
    Ok(Envelope::parse(envelope)?.header().clone())
}

/// The number of the version that wraps an envelope's data key, of the first if it has several recipients. Kept in a
/// column of its own, it shows what a rotation has yet to move, and is what `ReportUsage` counts.
pub fn key_version(envelope: &[u8]) -> Result<u32, Malformed> {
    Ok(Envelope::parse(envelope)?.header().recipients()[0].header().key_version.get())
}
