//! Sealing what is in memory, and the data key that many seals share.

use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use kms_envelope::{DataKey, EncryptionContext, EnvelopeContext, Purpose, SealHeader, WrappedKey};

use super::{Envelopes, Error, Kms, Policy};

/// A data key to seal with, and what it was used for so far.
pub(super) struct SealingKey {
    pub(super) data_key: DataKey,
    wrapped: WrappedKey,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    messages: u64,
    bytes: u64,
}

impl<K: Kms> Envelopes<K> {
    /// Puts `plaintext` into an envelope. At most one call to the service, and most often none.
    pub async fn seal(&self, context: &EnvelopeContext, plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        let key = self.sealing_key(&context.key, plaintext.len() as u64).await?;
        let random = |salt: &mut [u8]| self.0.random(salt);
        Ok(kms_envelope::seal(&key.data_key, key.header(), context, plaintext, random)?)
    }

    /// A data key for one more message of `len` bytes under this key context.
    pub(super) async fn sealing_key(
        &self,
        context: &EncryptionContext,
        len: u64,
    ) -> Result<Arc<SealingKey>, Error> {
        let inner = &self.0;
        let fetch = || {
            let (inner, context) = (Arc::clone(inner), context.clone());
            async move {
                let generated = inner.kms.generate(&inner.key, &context).await?;
                let key = SealingKey::new(generated.plaintext, &generated.wrapped_key, &context)?;
                Ok(Arc::new(key))
            }
            .boxed()
        };
        let accept = |key: &SealingKey| key.take(len, &inner.policy);
        Ok(inner.sealing.get(context.digest(), accept, fetch).await?)
    }
}

impl SealingKey {
    fn new(
        plaintext: kms_envelope::SecretBytes,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<Self, crate::Error> {
        let data_key =
            DataKey::from_secret(plaintext).map_err(|error| crate::Error::senseless(&error.to_string()))?;
        let wrapped =
            WrappedKey::parse(wrapped).map_err(|error| crate::Error::senseless(&error.to_string()))?;
        if wrapped.header().context_digest != context.digest() {
            return Err(crate::Error::senseless(
                "the data key is wrapped under another context than it was asked for",
            ));
        }
        Ok(Self { data_key, wrapped, used: Mutex::default() })
    }

    /// For whom an envelope under this key is.
    pub(super) fn header(&self) -> SealHeader {
        SealHeader {
            recipients: vec![self.wrapped.clone()],
            purpose: Purpose::Native,
            data_key_id: self.wrapped.header().data_key_id,
        }
    }

    /// Takes one message of `len` bytes from what may still be sealed; false if too little is left.
    fn take(&self, len: u64, policy: &Policy) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = used.bytes.saturating_add(len);
        let first = used.messages == 0;
        if !first && (used.messages >= policy.messages_max || bytes > policy.bytes_max) {
            return false;
        }
        *used = Used { messages: used.messages + 1, bytes };
        true
    }

    /// A stream that was taken for empty turned out to have `len` bytes more.
    pub(super) fn add_bytes(&self, len: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.bytes = used.bytes.saturating_add(len);
    }
}
