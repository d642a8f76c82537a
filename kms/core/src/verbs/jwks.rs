//! The published key sets: a pure function of (generation, now), the same bytes and ETag on every replica.
//!
//! A replica that is cut off serves its sets on as a cache would: what it knew at its last confirmation grows old in
//! its hands, and reaches nobody when it is older than a verifier might have kept it.

use std::sync::Arc;

use bytes::Bytes;

use crate::{AuditLog, Clock, Error, Hsm, Key, KeyId, Kms, Store, fence::Fenced, time::SignedDuration};

/// The longest that a verifier may keep a set.
pub(crate) const MAX_AGE_MAX: SignedDuration =
    SignedDuration::from_secs(PublishedKeys::MAX_AGE_SECONDS_MAX as i64);

/// A JWK Set (RFC 7517 §5), ready to be served. A clone copies nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedKeys {
    /// The JSON text.
    pub body: Bytes,
    /// A strong entity tag, with its quotes: ASCII.
    pub etag: Bytes,
    /// How long a verifier may keep it, in seconds: half of the shortest publish lead at most, so that every
    /// cache has seen a version before it signs. At most [`Self::MAX_AGE_SECONDS_MAX`].
    pub max_age_seconds: u32,
    /// The `alg` values that occur in it, sorted.
    pub algorithms: Arc<[&'static str]>,
}

impl PublishedKeys {
    /// The longest that a verifier may keep a set, in seconds.
    pub const MAX_AGE_SECONDS_MAX: u32 = 300;
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// The key set of one key, or of all. `None` when there is no such key. Public: it asks for no caller. Unavailable
    /// when this replica cannot know the set: it was cut off for longer than a verifier may keep one, or its clock is
    /// wrong.
    pub fn published_keys(&self, key: Option<&KeyId>) -> Result<Option<PublishedKeys>, Error> {
        let stale = self.fence.staleness().map_err(Fenced::refusal)?;
        let Some(set) = self.catalog.key_set(key, self.clock.now()) else { return Ok(None) };
        let stale_seconds = u32::try_from(stale.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX);
        let max_age = set.max_age.min(self.settings.jwks_max_age);
        let max_age_seconds = u32::try_from(max_age.as_secs()).unwrap_or(0);
        let left = max_age_seconds.checked_sub(stale_seconds);
        Ok(Some(PublishedKeys {
            body: set.body.clone(),
            etag: set.etag.clone(),
            max_age_seconds: left.ok_or_else(|| Fenced::Unconfirmed(Some(stale)).refusal())?,
            algorithms: Arc::clone(&set.algorithms),
        }))
    }

    /// How long a verifier may keep a set that it has by now. The servers that ran before this one may have allowed the
    /// longest, unless there was no key then.
    pub(crate) fn sets_kept(&self) -> SignedDuration {
        let up = SignedDuration::try_from(self.clock.instant().saturating_duration_since(self.opened.at));
        let until = MAX_AGE_MAX + Key::FENCE + Key::CLOCKS_APART;
        match self.opened.with_keys && up.is_ok_and(|up| up < until) {
            true => MAX_AGE_MAX,
            false => self.settings.jwks_max_age.min(MAX_AGE_MAX),
        }
    }
}
