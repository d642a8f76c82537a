//! Moving envelopes to the version that wraps now. The data key is unwrapped and wrapped in the HSM; no byte of a payload
//! is read, and no context is needed.
//!
//! Whether an envelope is there already is decided by what it says itself, and costs no operation of the HSM. Envelopes
//! that share a data key, as those of one cache do, share its move: in batches of neighbours, such as rows in the order
//! of their making, a rotation costs far fewer operations than there are envelopes.

use std::collections::HashMap;

use kms_envelope::{Envelope, Header, WrappedKey, rewrapped};

use super::{BATCH_ITEMS_MAX, Envelopes, Error, Kms};

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
        let stands_there = |recipient: &WrappedKey| {
            let header = recipient.header();
            header.key_uid == primary.key_uid && header.key_version.get() == primary.version
        };
        // Where each envelope's own recipient stands; those that are to be moved, each once.
        let mut ours = Vec::with_capacity(headers.len());
        let mut wraps: HashMap<Vec<u8>, Option<Result<WrappedKey, Error>>> = HashMap::new();
        for header in headers {
            let found = match header {
                Ok(header) => self.recipient(&header).await.map(|index| (header, index)),
                Err(error) => Err(error),
            };
            if let Ok((header, index)) = &found
                && !stands_there(&header.recipients()[*index])
            {
                wraps.insert(header.recipients()[*index].to_bytes(), None);
            }
            ours.push(found);
        }
        self.move_each(&mut wraps).await?;
        let renewed = |found: Result<(Header, usize), Error>| {
            let (header, index) = found?;
            let mut recipients = header.recipients().to_vec();
            match wraps.get(&recipients[index].to_bytes()) {
                None => Ok(None),
                Some(Some(Ok(wrapped))) => {
                    recipients[index] = wrapped.clone();
                    Ok(Some(header.with_recipients(recipients)?))
                }
                Some(Some(Err(error))) => Err(again(error)),
                Some(None) => Err(crate::Error::senseless("a result of a batch is missing").into()),
            }
        };
        Ok(ours.into_iter().map(renewed).collect())
    }

    async fn move_each(
        &self,
        wraps: &mut HashMap<Vec<u8>, Option<Result<WrappedKey, Error>>>,
    ) -> Result<(), Error> {
        let all: Vec<Vec<u8>> = wraps.keys().cloned().collect();
        for batch in all.chunks(BATCH_ITEMS_MAX) {
            let moved = self.0.kms.rewrap_keys(&self.0.key, batch.to_vec()).await?;
            for (wrapped, moved) in batch.iter().zip(moved) {
                let parsed = moved.map_err(Error::from).and_then(|moved| {
                    Ok(WrappedKey::parse(&moved)
                        .map_err(|error| crate::Error::senseless(&error.to_string()))?)
                });
                wraps.insert(wrapped.clone(), Some(parsed));
            }
        }
        Ok(())
    }
}

/// The failure of one wrapped key, for each envelope that has it.
fn again(error: &Error) -> Error {
    match error {
        Error::Kms(error) => Error::Kms(error.clone()),
        _ => Error::NotOpened,
    }
}

fn only<T>(results: Vec<Result<T, Error>>) -> Result<T, Error> {
    results.into_iter().next().unwrap_or_else(|| Err(crate::Error::senseless("a result is missing").into()))
}
