//! Decrypt: an envelope of Encrypt, or of an SDK, with a small payload.

use kms_envelope::{DataKey, Envelope, EnvelopeContext, Purpose as Door, WrappedKey};

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Hsm, KeyId, Kms, Store, Unsettled,
    catalog::Entry,
    time::{Deadline, Timestamp},
    verbs::{
        Opened,
        batch::{Item, batch, single},
        encrypt::PAYLOAD_LEN_MAX,
        wrapping::{check_header, check_purpose},
    },
};

/// Longest envelope in bytes: the longest payload and the longest header.
pub const ENVELOPE_LEN_MAX: usize = PAYLOAD_LEN_MAX + 40 * 1024;

/// An envelope to be opened.
#[derive(Debug)]
pub struct Decrypt {
    /// With which key.
    pub id: KeyId,
    /// The envelope.
    pub envelope: Vec<u8>,
    /// What was said when it was made.
    pub context: EnvelopeContext,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Opens an envelope.
    pub async fn decrypt(
        &self,
        caller: &Caller,
        request: Decrypt,
        deadline: Deadline,
    ) -> Result<Opened, Error> {
        single(self.decrypt_one(caller, request, self.clock.now(), deadline)).await
    }

    /// Opens up to [`super::BATCH_ITEMS_MAX`] envelopes.
    pub async fn batch_decrypt(
        &self,
        caller: &Caller,
        requests: Vec<Decrypt>,
        deadline: Deadline,
    ) -> Result<Vec<Result<Opened, Error>>, Error> {
        let now = self.clock.now();
        batch(requests, |request| self.decrypt_one(caller, request, now, deadline)).await
    }

    async fn decrypt_one(
        &self,
        caller: &Caller,
        request: Decrypt,
        now: Timestamp,
        deadline: Deadline,
    ) -> Item<A, Opened> {
        let Decrypt { id, envelope, context } = request;
        let parsed = parse_envelope(&envelope);
        let header = self.header_for(&id, parsed.as_ref().ok());
        let action =
            header.map_or(Action::Decrypt, |header| self.unwrap_action(&id, &header, Action::Decrypt));
        let mut admission = self.gate.admit_in(caller, action, &id, &context.key, now).await?;
        let result = match parsed {
            Ok(parsed) => self.decrypt_admitted(&mut admission, &id, &parsed, &context, now, deadline).await,
            Err(error) => Err(error),
        };
        Ok((admission, result))
    }

    async fn decrypt_admitted(
        &self,
        admission: &mut Admission<A>,
        id: &KeyId,
        envelope: &Envelope<'_>,
        context: &EnvelopeContext,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Unsettled<Opened>, Error> {
        let entry = self.catalog.entry(id)?;
        check_purpose(&entry.key)?;
        let (_, wrapped) = recipient(&entry, envelope)?;
        let version = wrapped.header().key_version.get();
        admission.uses_version(version);
        check_header(wrapped.header(), Door::Native, Some(&context.key))?;
        let data_key = self.unwrap_with(admission, &entry, wrapped, now, deadline).await?;
        let is_primary = entry.is_primary(version, now);
        data_key.try_map(|data_key| {
            let data_key = DataKey::from_secret(data_key).map_err(|_| Error::not_opened())?;
            let plaintext =
                envelope.open(&data_key, Door::Native, context).map_err(|_| Error::not_opened())?;
            Ok(Opened { key: id.clone(), version, plaintext, is_primary })
        })
    }
}

/// The header of an envelope, before any key is touched.
pub(super) fn parse_envelope(envelope: &[u8]) -> Result<Envelope<'_>, Error> {
    if envelope.len() > ENVELOPE_LEN_MAX {
        let text =
            format!("an envelope of more than {ENVELOPE_LEN_MAX} bytes is opened by an SDK, with UnwrapKey");
        return Err(Error::invalid("ciphertext", text));
    }
    Envelope::parse(envelope).map_err(|error| Error::invalid("ciphertext", error.to_string()))
}

/// The recipient whom this key unwraps, and its place.
pub(super) fn recipient<'a>(
    entry: &Entry,
    envelope: &'a Envelope<'_>,
) -> Result<(usize, &'a WrappedKey), Error> {
    let mut recipients = envelope.header().recipients().iter().enumerate();
    recipients.find(|(_, wrapped)| wrapped.header().key_uid == entry.key.uid.0).ok_or_else(Error::not_opened)
}
