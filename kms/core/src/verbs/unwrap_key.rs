//! UnwrapKey: what WrapKey, or anybody with the public half of a pair, has wrapped.

use kms_envelope::{EncryptionContext, Purpose as Door, SecretBytes, WrappedKey};

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Hsm, KeyId, Kms, Store, Unsettled,
    time::{Deadline, Timestamp},
    verbs::{
        batch::{Item, batch, single},
        wrapping::{check_header, check_purpose},
    },
};

/// A key to be unwrapped.
#[derive(Debug)]
pub struct UnwrapKey {
    /// With which key. That the header names it too is a check and no way to choose.
    pub id: KeyId,
    /// What was wrapped.
    pub wrapped: WrappedKey,
    /// What was said when it was wrapped.
    pub context: EncryptionContext,
}

/// A key that was unwrapped, or a payload that was decrypted.
#[derive(Debug)]
pub struct Opened {
    /// The key.
    pub key: KeyId,
    /// The version that unwrapped.
    pub version: u32,
    /// What came out.
    pub plaintext: SecretBytes,
    /// Whether that version is the one that wraps now.
    pub is_primary: bool,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Unwraps a key.
    pub async fn unwrap_key(
        &self,
        caller: &Caller,
        request: UnwrapKey,
        deadline: Deadline,
    ) -> Result<Opened, Error> {
        single(self.unwrap_one(caller, request, self.clock.now(), deadline)).await
    }

    /// Unwraps up to [`super::BATCH_ITEMS_MAX`] keys.
    pub async fn batch_unwrap_key(
        &self,
        caller: &Caller,
        requests: Vec<UnwrapKey>,
        deadline: Deadline,
    ) -> Result<Vec<Result<Opened, Error>>, Error> {
        let now = self.clock.now();
        batch(requests, |request| self.unwrap_one(caller, request, now, deadline)).await
    }

    async fn unwrap_one(
        &self,
        caller: &Caller,
        request: UnwrapKey,
        now: Timestamp,
        deadline: Deadline,
    ) -> Item<A, Opened> {
        let action = self.unwrap_action(&request.id, request.wrapped.header(), Action::UnwrapKey);
        let mut admission = self.gate.admit_in(caller, action, &request.id, &request.context, now).await?;
        let result = self.unwrap_admitted(&mut admission, request, now, deadline).await;
        Ok((admission, result))
    }

    async fn unwrap_admitted(
        &self,
        admission: &mut Admission<A>,
        request: UnwrapKey,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Unsettled<Opened>, Error> {
        let entry = self.catalog.entry(&request.id)?;
        check_purpose(&entry.key)?;
        let header = request.wrapped.header();
        admission.uses_version(header.key_version.get());
        check_header(header, Door::Native, Some(&request.context))?;
        let opened = self.unwrap_with(admission, &entry, &request.wrapped, now, deadline).await?;
        let version = header.key_version.get();
        let is_primary = entry.is_primary(version, now);
        Ok(opened.map(|plaintext| Opened { key: request.id, version, plaintext, is_primary }))
    }
}
