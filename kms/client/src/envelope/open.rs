//! Opening what is in memory.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use futures::FutureExt as _;
use kms_envelope::{
    DataKey, EncryptionContext, Envelope, EnvelopeContext, Header, Purpose, SecretBytes, WrappedKey,
};

use super::{Envelopes, Error, Kms, cache::Id};

impl<K: Kms> Envelopes<K> {
    /// The plaintext of `envelope`: all of it, or nothing. At most one call to the service, and none if the data key is
    /// in memory or the context is another one.
    pub async fn open(&self, context: &EnvelopeContext, envelope: &[u8]) -> Result<SecretBytes, Error> {
        let envelope = Envelope::parse(envelope)?;
        let data_key = self.opening_key(envelope.header(), &context.key).await?;
        Ok(envelope.open(&data_key, Purpose::Native, context)?)
    }

    /// The data key of an envelope.
    pub(super) async fn opening_key(
        &self,
        header: &Header,
        context: &EncryptionContext,
    ) -> Result<Arc<DataKey>, Error> {
        // This is also why the wrapped key alone may name the data key in memory: it says under which context.
        if header.purpose() != Purpose::Native || *header.context_digest() != context.digest() {
            return Err(Error::NotOpened);
        }
        let wrapped = header.recipients()[self.recipient(header).await?].to_bytes();
        let inner = &self.0;
        let fetch = || {
            let (inner, context, wrapped) = (Arc::clone(inner), context.clone(), wrapped.clone());
            async move {
                let plaintext = inner.kms.unwrap_key(&inner.key, &wrapped, &context).await?;
                let data_key = DataKey::from_secret(plaintext);
                Ok(Arc::new(data_key.map_err(|error| crate::Error::senseless(&error.to_string()))?))
            }
            .boxed()
        };
        Ok(inner.opening.get(sha256(&wrapped), |_| true, fetch).await?)
    }

    /// Which of an envelope's recipients is our key: the only one, or the one with its uid.
    async fn recipient(&self, header: &Header) -> Result<usize, Error> {
        if header.recipients().len() == 1 {
            return Ok(0);
        }
        let key_uid = self.key_uid().await?;
        let is_ours = |recipient: &WrappedKey| recipient.header().key_uid == key_uid;
        header.recipients().iter().position(is_ours).ok_or(Error::NotOpened)
    }

    /// The uid of the key, which the service is asked for once.
    pub async fn key_uid(&self) -> Result<[u8; 16], Error> {
        let ask = || self.0.kms.key_uid(&self.0.key);
        Ok(*self.0.key_uid.get_or_try_init(ask).await?)
    }
}

fn sha256(bytes: &[u8]) -> Id {
    let mut id = [0; 32];
    id.copy_from_slice(digest(&SHA256, bytes).as_ref());
    id
}
