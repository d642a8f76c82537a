//! RewrapKey and ReEncrypt: to the version that wraps now. The data key is never shown, and no payload is touched.

use kms_envelope::{Envelope, Purpose as Door, WrappedKey};

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Hsm, KeyId, Kms, Store, Unsettled,
    catalog::Entry,
    time::{Deadline, Timestamp},
    verbs::{
        batch::{Item, batch, single},
        decrypt::{parse_envelope, recipient},
        wrapping::{Terms, Wrapped, check_header, check_purpose},
    },
};

/// A wrapped key to be moved.
#[derive(Debug)]
pub struct RewrapKey {
    /// With which key.
    pub id: KeyId,
    /// What was wrapped.
    pub wrapped: WrappedKey,
}

/// An envelope to be moved.
#[derive(Debug)]
pub struct ReEncrypt {
    /// With which key.
    pub id: KeyId,
    /// The envelope.
    pub envelope: Vec<u8>,
}

/// Something that was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrapped<T> {
    /// The key.
    pub key: KeyId,
    /// The version that wrapped it before.
    pub from: u32,
    /// The version that wraps it now.
    pub version: u32,
    /// What it is now.
    pub moved: T,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Moves a wrapped key.
    pub async fn rewrap_key(
        &self,
        caller: &Caller,
        request: RewrapKey,
        deadline: Deadline,
    ) -> Result<Rewrapped<WrappedKey>, Error> {
        single(self.rewrap_one(caller, request, self.clock.now(), deadline)).await
    }

    /// Moves up to [`super::BATCH_ITEMS_MAX`] wrapped keys.
    pub async fn batch_rewrap_key(
        &self,
        caller: &Caller,
        requests: Vec<RewrapKey>,
        deadline: Deadline,
    ) -> Result<Vec<Result<Rewrapped<WrappedKey>, Error>>, Error> {
        let now = self.clock.now();
        batch(requests, |request| self.rewrap_one(caller, request, now, deadline)).await
    }

    /// Moves an envelope.
    pub async fn re_encrypt(
        &self,
        caller: &Caller,
        request: ReEncrypt,
        deadline: Deadline,
    ) -> Result<Rewrapped<Vec<u8>>, Error> {
        single(self.re_encrypt_one(caller, request, self.clock.now(), deadline)).await
    }

    /// Moves up to [`super::BATCH_ITEMS_MAX`] envelopes.
    pub async fn batch_re_encrypt(
        &self,
        caller: &Caller,
        requests: Vec<ReEncrypt>,
        deadline: Deadline,
    ) -> Result<Vec<Result<Rewrapped<Vec<u8>>, Error>>, Error> {
        let now = self.clock.now();
        batch(requests, |request| self.re_encrypt_one(caller, request, now, deadline)).await
    }

    async fn rewrap_one(
        &self,
        caller: &Caller,
        request: RewrapKey,
        now: Timestamp,
        deadline: Deadline,
    ) -> Item<A, Rewrapped<WrappedKey>> {
        let RewrapKey { id, wrapped } = request;
        let action = self.unwrap_action(&id, wrapped.header(), Action::RewrapKey);
        let mut admission = self.gate.admit(caller, action, Some(&id), now).await?;
        let result = async {
            let entry = self.catalog.entry(&id)?;
            let moved = self.rewrap_admitted(&mut admission, &entry, &wrapped, now, deadline).await?;
            let from = wrapped.header().key_version.get();
            Ok(moved.map(|Wrapped { key, version, wrapped }| Rewrapped {
                key,
                from,
                version,
                moved: wrapped,
            }))
        }
        .await;
        Ok((admission, result))
    }

    async fn re_encrypt_one(
        &self,
        caller: &Caller,
        request: ReEncrypt,
        now: Timestamp,
        deadline: Deadline,
    ) -> Item<A, Rewrapped<Vec<u8>>> {
        let ReEncrypt { id, envelope } = request;
        let parsed = parse_envelope(&envelope);
        let header = self.header_for(&id, parsed.as_ref().ok());
        let action =
            header.map_or(Action::RewrapKey, |header| self.unwrap_action(&id, &header, Action::RewrapKey));
        let mut admission = self.gate.admit(caller, action, Some(&id), now).await?;
        let result = async {
            let (parsed, entry) = (parsed?, self.catalog.entry(&id)?);
            let (place, wrapped) = recipient(&entry, &parsed)?;
            let moved = self.rewrap_admitted(&mut admission, &entry, wrapped, now, deadline).await?;
            let from = wrapped.header().key_version.get();
            moved.try_map(|Wrapped { key, version, wrapped }| {
                let mut recipients = parsed.header().recipients().to_vec();
                recipients[place] = wrapped;
                let moved = kms_envelope::rewrapped(&envelope, recipients)
                    .map_err(|_| Error::internal("a moved envelope is malformed"))?;
                Ok(Rewrapped { key, from, version, moved })
            })
        }
        .await;
        Ok((admission, result))
    }

    /// Unwraps and wraps again, under one grant. The context stays what its digest says.
    async fn rewrap_admitted(
        &self,
        admission: &mut Admission<A>,
        entry: &Entry,
        wrapped: &WrappedKey,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Unsettled<Wrapped>, Error> {
        check_purpose(&entry.key)?;
        let header = wrapped.header();
        admission.uses_version(header.key_version.get());
        check_header(header, Door::Native, None)?;
        let data_key = self.unwrap_with(admission, entry, wrapped, now, deadline).await?.into_ours();
        let version = entry.primary(now)?;
        let terms = Terms {
            data_key_id: header.data_key_id,
            door: header.purpose,
            context_digest: header.context_digest,
        };
        self.wrap_with(admission, entry, version, &terms, data_key, deadline).await
    }

    /// The header of the recipient that this key unwraps.
    pub(super) fn header_for(
        &self,
        id: &KeyId,
        envelope: Option<&Envelope<'_>>,
    ) -> Option<kms_envelope::WrapHeader> {
        let entry = self.catalog.entry(id).ok()?;
        recipient(&entry, envelope?).ok().map(|(_, wrapped)| *wrapped.header())
    }
}
