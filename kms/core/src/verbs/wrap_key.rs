//! WrapKey: a caller's key, under the version that wraps now.

use kms_envelope::{DataKeyId, EncryptionContext, Purpose as Door, SecretBytes};

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Hsm, KeyId, Kms, Store, Unsettled,
    time::{Deadline, Timestamp},
    verbs::{
        batch::{Item, batch, single},
        wrapping::{Terms, Wrapped, check_len, wrapping_version},
    },
};

/// A key to be wrapped.
#[derive(Debug)]
pub struct WrapKey {
    /// With which key.
    pub id: KeyId,
    /// [`super::WRAPPED_LEN_MIN`] to [`super::WRAPPED_LEN_MAX`] bytes.
    pub plaintext: SecretBytes,
    /// What must be said again to unwrap it.
    pub context: EncryptionContext,
    /// What it is called; random when `None`.
    pub data_key_id: Option<DataKeyId>,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Wraps a key.
    pub async fn wrap_key(
        &self,
        caller: &Caller,
        request: WrapKey,
        deadline: Deadline,
    ) -> Result<Wrapped, Error> {
        single(self.wrap_one(caller, request, self.clock.now(), deadline)).await
    }

    /// Wraps up to [`super::BATCH_ITEMS_MAX`] keys.
    pub async fn batch_wrap_key(
        &self,
        caller: &Caller,
        requests: Vec<WrapKey>,
        deadline: Deadline,
    ) -> Result<Vec<Result<Wrapped, Error>>, Error> {
        let now = self.clock.now();
        batch(requests, |request| self.wrap_one(caller, request, now, deadline)).await
    }

    async fn wrap_one(
        &self,
        caller: &Caller,
        request: WrapKey,
        now: Timestamp,
        deadline: Deadline,
    ) -> Item<A, Wrapped> {
        let mut admission =
            self.gate.admit_in(caller, Action::WrapKey, &request.id, &request.context, now).await?;
        let result = self.wrap_admitted(&mut admission, request, now, deadline).await;
        Ok((admission, result))
    }

    async fn wrap_admitted(
        &self,
        admission: &mut Admission<A>,
        request: WrapKey,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Unsettled<Wrapped>, Error> {
        check_len("plaintext", request.plaintext.expose_secret().len())?;
        let entry = self.catalog.entry(&request.id)?;
        let version = wrapping_version(&entry, &request.context, now)?;
        admission.uses_version(version.row.number);
        let terms = Terms {
            data_key_id: match request.data_key_id {
                Some(id) => id,
                None => DataKeyId(self.random()?),
            },
            door: Door::Native,
            context_digest: request.context.digest(),
        };
        self.wrap_with(admission, &entry, version, &terms, request.plaintext, deadline).await
    }
}
