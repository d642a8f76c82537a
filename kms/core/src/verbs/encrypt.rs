//! Encrypt: a small payload into an envelope of its own, under a data key that is used once.

use kms_envelope::{
    DataKey, DataKeyId, EnvelopeContext, Purpose as Door, RandomError, SealHeader, SecretBytes,
};

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Hsm, KeyId, Kms, Store, Unsettled,
    time::{Deadline, Timestamp},
    verbs::{
        batch::{Item, batch, single},
        wrapping::{Terms, wrapping_version},
    },
};

/// Longest payload in bytes; an SDK seals longer ones.
pub const PAYLOAD_LEN_MAX: usize = 64 * 1024;

/// Length in bytes of the data key of an envelope.
const DATA_KEY_LEN: usize = 32;

/// A payload to be encrypted.
#[derive(Debug)]
pub struct Encrypt {
    /// With which key its data key is wrapped.
    pub id: KeyId,
    /// The payload, at most [`PAYLOAD_LEN_MAX`] bytes.
    pub plaintext: SecretBytes,
    /// What must be said again to open it.
    pub context: EnvelopeContext,
}

/// A payload that was encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encrypted {
    /// The key.
    pub key: KeyId,
    /// The version that wrapped the data key.
    pub version: u32,
    /// The envelope.
    pub envelope: Vec<u8>,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Encrypts a payload.
    pub async fn encrypt(
        &self,
        caller: &Caller,
        request: Encrypt,
        deadline: Deadline,
    ) -> Result<Encrypted, Error> {
        single(self.encrypt_one(caller, request, self.clock.now(), deadline)).await
    }

    /// Encrypts up to [`super::BATCH_ITEMS_MAX`] payloads.
    pub async fn batch_encrypt(
        &self,
        caller: &Caller,
        requests: Vec<Encrypt>,
        deadline: Deadline,
    ) -> Result<Vec<Result<Encrypted, Error>>, Error> {
        let now = self.clock.now();
        batch(requests, |request| self.encrypt_one(caller, request, now, deadline)).await
    }

    async fn encrypt_one(
        &self,
        caller: &Caller,
        request: Encrypt,
        now: Timestamp,
        deadline: Deadline,
    ) -> Item<A, Encrypted> {
        let mut admission =
            self.gate.admit_in(caller, Action::Encrypt, &request.id, &request.context.key, now).await?;
        let result = self.encrypt_admitted(&mut admission, request, now, deadline).await;
        Ok((admission, result))
    }

    async fn encrypt_admitted(
        &self,
        admission: &mut Admission<A>,
        request: Encrypt,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Unsettled<Encrypted>, Error> {
        let Encrypt { id, plaintext, context } = request;
        if plaintext.expose_secret().len() > PAYLOAD_LEN_MAX {
            let text = format!(
                "a payload has at most {PAYLOAD_LEN_MAX} bytes; for a longer one ask for a data key, and seal it with an SDK"
            );
            return Err(Error::invalid("plaintext", text));
        }
        let entry = self.catalog.entry(&id)?;
        let version = wrapping_version(&entry, &context.key, now)?;
        let number = version.row.number;
        admission.uses_version(number);
        let bytes = self.random_secret(DATA_KEY_LEN)?;
        let unusable = |_| Error::internal("a data key has the wrong length");
        let data_key =
            DataKey::from_secret(SecretBytes::new(bytes.expose_secret().to_vec())).map_err(unusable)?;
        let data_key_id = DataKeyId(self.random()?);
        let terms = Terms { data_key_id, door: Door::Native, context_digest: context.key.digest() };
        let wrapped = self.wrap_with(admission, &entry, version, &terms, bytes, deadline).await?;
        wrapped.try_map(|wrapped| {
            let header = SealHeader { recipients: vec![wrapped.wrapped], purpose: Door::Native, data_key_id };
            let random = |bytes: &mut [u8]| (self.entropy)(bytes).map_err(|_| RandomError);
            let envelope = kms_envelope::seal(&data_key, header, &context, plaintext.expose_secret(), random);
            let envelope = envelope.map_err(|error| Error::internal(format!("cannot seal: {error}")))?;
            Ok(Encrypted { key: id, version: number, envelope })
        })
    }
}
