//! JWK Sets (RFC 7517 §5), written once and served until time or a commit changes them.
//!
//! What stands in a set is a pure function of (rows, now), and it changes with now only at times that stand in the
//! rows. So a set holds from one of these times to the next, and whoever asks in between gets the same bytes. It is
//! kept beside what it was made of: a key's with its entry, which the pictures after a commit share as long as the
//! key does not change, and that of all keys with the picture. A commit or the next time thus makes only the sets of
//! the keys anew that it concerns, and the one of all from theirs.

use std::{ops::Range, sync::Arc};

use arc_swap::ArcSwapOption;
use bytes::Bytes;

use crate::{
    algorithm::Hash,
    catalog::{Entry, Picture},
    jwk::base64url,
    time::{SignedDuration, Timestamp},
    verbs::MAX_AGE_MAX,
};

#[cfg(test)]
mod tests;

const OPENING: &str = r#"{"keys":["#;
const CLOSING: &str = "]}";

/// A set and what is to be said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeySet {
    /// When it is what stands in the rows.
    holds: Range<Timestamp>,
    /// The JSON text.
    pub(crate) body: Bytes,
    /// A strong entity tag, with its quotes.
    pub(crate) etag: Bytes,
    /// How long a verifier may keep it.
    pub(crate) max_age: SignedDuration,
    /// The `alg` values that occur in it, sorted.
    pub(crate) algorithms: Arc<[&'static str]>,
}

/// Room for one set: the one that was asked for last, for time seldom goes backwards. Read without a lock.
#[derive(Default)]
pub(crate) struct Kept(ArcSwapOption<KeySet>);

impl Kept {
    /// The set at `now`: the kept one if it holds then, or else what `write` makes, which is kept from here on.
    /// Whoever asks meanwhile makes the same.
    fn at(&self, now: Timestamp, write: impl FnOnce() -> KeySet) -> Arc<KeySet> {
        if let Some(kept) = &*self.0.load()
            && kept.holds.contains(&now)
        {
            return Arc::clone(kept);
        }
        let set = Arc::new(write());
        self.0.store(Some(Arc::clone(&set)));
        set
    }
}

impl Picture {
    /// The set of all keys.
    pub(crate) fn key_set(&self, now: Timestamp) -> Arc<KeySet> {
        self.kept.at(now, || KeySet::of_all(self.keys.values().map(|entry| entry.key_set(now))))
    }
}

impl Entry {
    /// The set of this key.
    pub(crate) fn key_set(&self, now: Timestamp) -> Arc<KeySet> {
        self.kept.at(now, || KeySet::of(self, now))
    }
}

impl KeySet {
    fn of(entry: &Entry, now: Timestamp) -> Self {
        let published = entry.versions.iter().filter(|version| version.row.is_published(now));
        let jwks: Vec<String> = published
            .filter_map(|version| version.public.as_ref().and_then(|public| public.jwk().to_json().ok()))
            .collect();
        let algorithms: &[_] = if jwks.is_empty() { &[] } else { &[entry.key.algorithm.jose_name()] };
        let times = entry.versions.iter().filter_map(|version| version.row.born.as_ref());
        let mut holds = Timestamp::MIN..Timestamp::MAX;
        for at in times.flat_map(|born| born.timeline.times()) {
            if at <= now {
                holds.start = holds.start.max(at);
            } else {
                holds.end = holds.end.min(at);
            }
        }
        let max_age = MAX_AGE_MAX.min(entry.key.publish_lead / 2);
        Self::new(holds, jwks.join(",").as_bytes(), max_age, algorithms.into())
    }

    /// The set of all keys, from the sets of each at one moment, in their order.
    fn of_all(sets: impl Iterator<Item = Arc<Self>>) -> Self {
        let mut holds = Timestamp::MIN..Timestamp::MAX;
        let mut jwks = Vec::new();
        let mut max_age = MAX_AGE_MAX;
        let mut algorithms = Vec::new();
        for set in sets {
            holds = holds.start.max(set.holds.start)..holds.end.min(set.holds.end);
            max_age = max_age.min(set.max_age);
            for name in &*set.algorithms {
                if !algorithms.contains(name) {
                    algorithms.push(name);
                }
            }
            let of_one = set.jwks();
            if !jwks.is_empty() && !of_one.is_empty() {
                jwks.push(b',');
            }
            jwks.extend_from_slice(of_one);
        }
        algorithms.sort_unstable();
        Self::new(holds, &jwks, max_age, algorithms.into())
    }

    fn new(
        holds: Range<Timestamp>,
        jwks: &[u8],
        max_age: SignedDuration,
        algorithms: Arc<[&'static str]>,
    ) -> Self {
        let body = [OPENING.as_bytes(), jwks, CLOSING.as_bytes()].concat();
        let etag = format!("\"{}\"", base64url(&Hash::Sha256.digest(&body).as_ref()[..16]));
        Self { holds, body: body.into(), etag: etag.into(), max_age, algorithms }
    }

    /// The JWKs in it, separated by commas.
    fn jwks(&self) -> &[u8] {
        &self.body[OPENING.len()..self.body.len() - CLOSING.len()]
    }
}
