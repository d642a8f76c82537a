//! The published key sets: a pure function of (generation, now), the same bytes and ETag on every replica.
//!
//! A replica that is cut off serves its sets on as a cache would: what it knew at its last confirmation grows old in
//! its hands, and reaches nobody when it is older than a verifier might have kept it.

use std::sync::Arc;

use crate::{
    AuditLog, Clock, Error, Hsm, KeyId, Kms, Store,
    algorithm::Hash,
    catalog::{Entry, Picture},
    fence::Fenced,
    jwk::{Jwk, base64url},
    time::{SignedDuration, Timestamp},
};

/// The longest that a verifier may keep a set.
pub(crate) const MAX_AGE_MAX: SignedDuration = SignedDuration::from_secs(300);

/// A JWK Set (RFC 7517 §5), ready to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedKeys {
    /// The JSON text.
    pub body: Arc<[u8]>,
    /// A strong entity tag, with its quotes.
    pub etag: String,
    /// How long a verifier may keep it, in seconds: half of the shortest publish lead at most, so that every
    /// cache has seen a version before it signs.
    pub max_age_seconds: u32,
    /// The `alg` values that occur in it, sorted.
    pub algorithms: Vec<&'static str>,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// The key set of one key, or of all. `None` when there is no such key. Public: it asks for no caller. Unavailable
    /// when this replica cannot know the set: it was cut off for longer than a verifier may keep one, or its clock is
    /// wrong.
    pub fn published_keys(&self, key: Option<&KeyId>) -> Result<Option<PublishedKeys>, Error> {
        let stale = self.fence.staleness().map_err(Fenced::refusal)?;
        let Some(mut keys) = publish(&self.catalog.now(), key, self.clock.now()) else { return Ok(None) };
        let stale_seconds = u32::try_from(stale.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX);
        let left = keys.max_age_seconds.checked_sub(stale_seconds);
        keys.max_age_seconds = left.ok_or_else(|| Fenced::Unconfirmed(Some(stale)).refusal())?;
        Ok(Some(keys))
    }
}

fn publish(picture: &Picture, key: Option<&KeyId>, now: Timestamp) -> Option<PublishedKeys> {
    let entries: Vec<&Entry> = match key {
        Some(key) => vec![&**picture.keys.get(key).filter(|entry| entry.key.purpose.is_published())?],
        None => {
            picture.keys.values().map(|entry| &**entry).filter(|e| e.key.purpose.is_published()).collect()
        }
    };
    let mut algorithms = Vec::new();
    let mut max_age = MAX_AGE_MAX;
    let mut jwks: Vec<String> = Vec::new();
    for entry in entries {
        max_age = max_age.min(entry.key.publish_lead / 2);
        for version in entry.versions.iter().filter(|version| version.row.is_published(now)) {
            algorithms.push(entry.key.algorithm.jose_name());
            jwks.extend(version.public.as_ref().and_then(|public| Jwk::to_json(public.jwk()).ok()));
        }
    }
    algorithms.sort_unstable();
    algorithms.dedup();
    let body = format!(r#"{{"keys":[{}]}}"#, jwks.join(",")).into_bytes();
    let etag = format!("\"{}\"", base64url(&Hash::Sha256.digest(&body).as_ref()[..16]));
    let max_age_seconds = u32::try_from(max_age.as_secs()).unwrap_or(0);
    Some(PublishedKeys { body: body.into(), etag, max_age_seconds, algorithms })
}
