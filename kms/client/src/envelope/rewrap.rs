//! Moving envelopes to the version that wraps now. The data key is unwrapped and wrapped in the HSM; no byte of a payload
//! is read, and no context is needed.
//!
//! Whether an envelope is there already is decided by what it says itself, and costs no operation of the HSM. Envelopes
//! that share a data key, as those of one cache do, share its move: in batches of neighbours, such as rows in the order
//! of their making, a rotation costs far fewer operations than there are envelopes.

use std::collections::HashMap;

use kms_envelope::{Envelope, Header, WrappedKey, rewrapped};

use super::{BATCH_ITEMS_MAX, Envelopes, Error, Kms, Primary};

impl<K: Kms> Envelopes<K> {
    /// The same envelope under the version that wraps now; `None` if it is there already.
    pub async fn rewrap(&self, envelope: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        only(self.rewrap_all(&[envelope]).await?)
    }

    /// The same for many, with one call for what must be moved of up to [`BATCH_ITEMS_MAX`] of them. One result for each,
    /// in their order: one that fails stops no other.
    pub async fn rewrap_all<E: AsRef<[u8]>>(
        &self,
        envelopes: &[E],
    ) -> Result<Vec<Result<Option<Vec<u8>>, Error>>, Error> {
        let headers = envelopes.iter().map(|envelope| {
            let envelope = Envelope::parse(envelope.as_ref())?;
            Ok(envelope.header().clone())
        });
        let moved = self.moved(headers.collect()).await?;
        let whole = |(envelope, header): (&E, Result<Option<Header>, Error>)| match header? {
            Some(header) => Ok(Some(rewrapped(envelope.as_ref(), header.recipients().to_vec())?)),
            None => Ok(None),
        };
        Ok(envelopes.iter().zip(moved).map(whole).collect())
    }

    /// The same for headers alone, for who stores envelopes as streams: [`Header::read`] what there is, [`Header::write`]
    /// the new one, and copy what follows.
    pub async fn rewrap_headers(
        &self,
        headers: Vec<Header>,
    ) -> Result<Vec<Result<Option<Header>, Error>>, Error> {
        self.moved(headers.into_iter().map(Ok).collect()).await
    }

    /// The same for one header.
    pub async fn rewrap_header(&self, header: Header) -> Result<Option<Header>, Error> {
        only(self.rewrap_headers(vec![header]).await?)
    }

    /// The number of the version that wraps now. Envelopes under any other are to be rewrapped.
    pub async fn primary_version(&self) -> Result<u32, Error> {
        Ok(self.0.kms.primary(&self.0.key).await?.version)
    }

    async fn moved(
        &self,
        headers: Vec<Result<Header, Error>>,
    ) -> Result<Vec<Result<Option<Header>, Error>>, Error> {
        if headers.is_empty() {
            return Ok(Vec::new());
        }
        let primary = self.0.kms.primary(&self.0.key).await?;
        let is_to_be_moved = |recipient: &&WrappedKey| {
            let header = recipient.header();
            header.key_uid == primary.key_uid && header.key_version.get() != primary.version
        };
        // Those that are to be moved, each once.
        let mut wraps = HashMap::new();
        for recipient in headers.iter().flatten().flat_map(Header::recipients).filter(is_to_be_moved) {
            wraps.insert(recipient.to_bytes(), Err(senseless("a result of a batch is missing")));
        }
        self.move_each(&primary, &mut wraps).await;
        let renewed = |header: Result<Header, Error>| {
            let header = header?;
            let mut recipients = header.recipients().to_vec();
            if !recipients.iter().any(|recipient| recipient.header().key_uid == primary.key_uid) {
                return Err(Error::NotOpened);
            }
            let mut has_moved = false;
            for recipient in &mut recipients {
                if let Some(moved) = wraps.get(&recipient.to_bytes()) {
                    *recipient = moved.as_ref().map_err(again)?.clone();
                    has_moved = true;
                }
            }
            Ok(if has_moved { Some(header.with_recipients(recipients)?) } else { None })
        };
        Ok(headers.into_iter().map(renewed).collect())
    }

    /// Moves the keys of `wraps`. A call that fails is the failure of what was in it, and stops no other.
    async fn move_each(&self, primary: &Primary, wraps: &mut HashMap<Vec<u8>, Result<WrappedKey, Error>>) {
        let all: Vec<Vec<u8>> = wraps.keys().cloned().collect();
        for batch in all.chunks(BATCH_ITEMS_MAX) {
            let moved = match self.0.kms.rewrap_keys(&self.0.key, batch.to_vec()).await {
                Ok(moved) => moved,
                Err(error) => vec![Err(error); batch.len()],
            };
            for (wrapped, moved) in batch.iter().zip(moved) {
                let moved = moved.map_err(Error::from).and_then(|moved| checked(wrapped, &moved, primary));
                wraps.insert(wrapped.clone(), moved);
            }
        }
    }
}

/// What came back for `wrapped`, if it can be what was asked for: the same data key under the same key, and under a
/// version that is no older than what was, or than the one that wraps now.
fn checked(wrapped: &[u8], moved: &[u8], primary: &Primary) -> Result<WrappedKey, Error> {
    let moved = WrappedKey::parse(moved).map_err(|error| senseless(&error.to_string()))?;
    let (old, new) = (WrappedKey::parse(wrapped)?, moved.header());
    let old = old.header();
    let is_the_same = (new.key_uid, new.purpose, new.data_key_id, new.context_digest)
        == (old.key_uid, old.purpose, old.data_key_id, old.context_digest);
    if !is_the_same || new.key_version.get() < primary.version.min(old.key_version.get()) {
        return Err(senseless("it moved a data key to another key, or to an older version"));
    }
    Ok(moved)
}

fn senseless(why: &str) -> Error {
    crate::Error::senseless(why).into()
}

/// The failure of one wrapped key, for each envelope that has it.
fn again(error: &Error) -> Error {
    match error {
        Error::Kms(error) => Error::Kms(error.clone()),
        _ => Error::NotOpened,
    }
}

fn only<T>(results: Vec<Result<T, Error>>) -> Result<T, Error> {
    results.into_iter().next().unwrap_or_else(|| Err(senseless("a result is missing")))
}
