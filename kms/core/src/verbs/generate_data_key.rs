//! GenerateDataKey, with and without the key itself: random bytes, wrapped under the version that wraps now.

use kms_envelope::{DataKeyId, EncryptionContext, Purpose as Door, SecretBytes};

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Hsm, KeyId, Kms, Store, Unsettled,
    time::{Deadline, Timestamp},
    verbs::{
        batch::{Item, batch, single},
        wrapping::{Terms, Wrapped, wrapping_version},
    },
};

/// Shortest and longest data key in bytes.
pub const DATA_KEY_LEN: std::ops::RangeInclusive<usize> = 16..=64;

/// A data key to be made.
#[derive(Debug)]
pub struct GenerateDataKey {
    /// With which key it is wrapped.
    pub id: KeyId,
    /// Its length in bytes, within [`DATA_KEY_LEN`].
    pub len: usize,
    /// What must be said again to unwrap it.
    pub context: EncryptionContext,
    /// Whether the caller gets the key itself, too.
    pub with_plaintext: bool,
}

/// A new data key.
#[derive(Debug)]
pub struct DataKeyMade {
    /// The key itself, if that was asked for.
    pub plaintext: Option<SecretBytes>,
    /// The same, wrapped.
    pub wrapped: Wrapped,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Makes a data key.
    pub async fn generate_data_key(
        &self,
        caller: &Caller,
        request: GenerateDataKey,
        deadline: Deadline,
    ) -> Result<DataKeyMade, Error> {
        single(self.generate_one(caller, request, self.clock.now(), deadline)).await
    }

    /// Makes up to [`super::BATCH_ITEMS_MAX`] data keys.
    pub async fn batch_generate_data_key(
        &self,
        caller: &Caller,
        requests: Vec<GenerateDataKey>,
        deadline: Deadline,
    ) -> Result<Vec<Result<DataKeyMade, Error>>, Error> {
        let now = self.clock.now();
        batch(requests, |request| self.generate_one(caller, request, now, deadline)).await
    }

    async fn generate_one(
        &self,
        caller: &Caller,
        request: GenerateDataKey,
        now: Timestamp,
        deadline: Deadline,
    ) -> Item<A, DataKeyMade> {
        let action = match request.with_plaintext {
            true => Action::GenerateDataKey,
            false => Action::GenerateDataKeyWithoutPlaintext,
        };
        let mut admission = self.gate.admit_in(caller, action, &request.id, &request.context, now).await?;
        let result = self.generate_admitted(&mut admission, request, now, deadline).await;
        Ok((admission, result))
    }

    async fn generate_admitted(
        &self,
        admission: &mut Admission<A>,
        request: GenerateDataKey,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Unsettled<DataKeyMade>, Error> {
        if !DATA_KEY_LEN.contains(&request.len) {
            let text = format!("a data key has {} to {} bytes", DATA_KEY_LEN.start(), DATA_KEY_LEN.end());
            return Err(Error::invalid("length", text));
        }
        let entry = self.catalog.entry(&request.id)?;
        let version = wrapping_version(&entry, &request.context, now)?;
        admission.uses_version(version.row.number);
        let key = self.random_secret(request.len)?;
        let copy = request.with_plaintext.then(|| SecretBytes::new(key.expose_secret().to_vec()));
        let terms = Terms {
            data_key_id: DataKeyId(self.random()?),
            door: Door::Native,
            context_digest: request.context.digest(),
        };
        let wrapped = self.wrap_with(admission, &entry, version, &terms, key, deadline).await?;
        Ok(wrapped.map(|wrapped| DataKeyMade { plaintext: copy, wrapped }))
    }

    /// So many random bytes that nobody else knows.
    pub(super) fn random_secret(&self, len: usize) -> Result<SecretBytes, Error> {
        let mut bytes = vec![0; len];
        (self.entropy)(&mut bytes)?;
        Ok(SecretBytes::new(bytes))
    }
}
