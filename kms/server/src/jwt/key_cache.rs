//! The key set of one issuer, kept for a while, and read anew when a token needs it.
//!
//! At most one read is under way, whatever tokens ask for: a key id that nobody knows makes a new one no sooner than
//! the cooldown after the last, and a read goes on when its caller has left. Whoever waits for it does so for a bounded
//! time in a bounded crowd. An issuer that is away or lies changes nothing: its last good set stays.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use kms_core::{Clock, KeyId};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{
    Limits,
    key_set::{Key, KeySet},
    key_source,
    refusal::Refusal,
};
use crate::config::{JwtAlgorithm, JwtIssuer, KeySource};

/// How old a set may be, and how soon it may be asked for again.
struct Pace {
    /// Older than this, a set is read anew.
    fresh_for: Duration,
    /// From the beginning of one read to that of the next.
    cooldown: Duration,
    /// Older than this, a token whose key is there waits nevertheless until the set has been read anew: after an idle night an
    /// issuer may have withdrawn it.
    waits_after: Duration,
    /// Older than this, a set that could not be read anew is believed no longer.
    believed_for: Duration,
}

pub(super) struct KeyCache {
    issuer: KeyId,
    source: KeySource,
    pace: Pace,
    limits: Limits,
    clock: Arc<dyn Clock>,
    set: ArcSwapOption<KeySet>,
    reads: Mutex<Reads>,
    /// Changes when a read has ended.
    ended: watch::Sender<()>,
    /// Places for those who wait.
    places: Semaphore,
}

/// What was read, when.
#[derive(Default)]
struct Reads {
    is_under_way: bool,
    last_began: Option<Instant>,
    last_good: Option<Instant>,
    /// What is wrong since the last good one: told once.
    failure: Option<String>,
}

/// A read that is under way, until this is dropped.
struct UnderWay(Arc<KeyCache>);

impl Pace {
    fn of(source: &KeySource) -> Self {
        let seconds = Duration::from_secs;
        match source {
            // As quick as a certificate that is replaced; and nobody is at the other end to be slow.
            KeySource::File(_) => {
                let (fresh_for, cooldown) = (seconds(5), seconds(5));
                Self { fresh_for, cooldown, waits_after: Duration::ZERO, believed_for: Duration::MAX }
            }
            KeySource::Url { .. } => {
                let (fresh_for, cooldown) = (seconds(600), seconds(30));
                let (waits_after, believed_for) = (seconds(3_600), seconds(86_400));
                Self { fresh_for, cooldown, waits_after, believed_for }
            }
        }
    }
}

impl KeyCache {
    pub(super) fn new(issuer: &JwtIssuer, clock: Arc<dyn Clock>, limits: Limits) -> Self {
        Self {
            issuer: issuer.name.clone(),
            source: issuer.keys.clone(),
            pace: Pace::of(&issuer.keys),
            limits,
            clock,
            set: ArcSwapOption::empty(),
            reads: Mutex::default(),
            ended: watch::Sender::new(()),
            places: Semaphore::new(limits.waiting_max),
        }
    }

    /// The key that fits a token; of a set that is read for it, where the one that we have does not do.
    pub(super) async fn key(
        self: &Arc<Self>,
        kid: Option<&str>,
        algorithm: JwtAlgorithm,
    ) -> Result<Key, Refusal> {
        let known = self.pick(kid, algorithm);
        let is_missing = matches!(known, Err(Refusal::NoKeySet | Refusal::NoSuchKey));
        let age = self.age();
        let Some(end) = self.read_if(is_missing) else { return self.believed(known) };
        if known.is_ok() && age < self.pace.waits_after {
            return known;
        }
        match self.wait_for(end).await {
            Err(refusal) if known.is_err() => Err(refusal),
            _ => self.believed(self.pick(kid, algorithm)),
        }
    }

    fn believed(&self, key: Result<Key, Refusal>) -> Result<Key, Refusal> {
        if self.age() < self.pace.believed_for { key } else { Err(Refusal::NoKeySet) }
    }

    /// Since the last good read; for ever, when there was none.
    fn age(&self) -> Duration {
        let now = self.clock.instant();
        self.reads().last_good.map_or(Duration::MAX, |at| now.saturating_duration_since(at))
    }

    fn pick(&self, kid: Option<&str>, algorithm: JwtAlgorithm) -> Result<Key, Refusal> {
        let set = self.set.load();
        set.as_ref().ok_or(Refusal::NoKeySet)?.pick(kid, algorithm).cloned()
    }

    /// Sees to it that a read is under way, if a key `is_missing` or the set is old, and it is not too soon for one.
    fn read_if(self: &Arc<Self>, is_missing: bool) -> Option<watch::Receiver<()>> {
        let now = self.clock.instant();
        let older = |than: Duration, at: Option<Instant>| {
            at.is_none_or(|at| now.saturating_duration_since(at) >= than)
        };
        let mut reads = self.reads();
        if !is_missing && !older(self.pace.fresh_for, reads.last_good) {
            return None;
        }
        // Made under the lock: its end cannot be missed.
        let end = self.ended.subscribe();
        if !reads.is_under_way {
            if !older(self.pace.cooldown, reads.last_began) {
                return None;
            }
            reads.is_under_way = true;
            reads.last_began = Some(now);
            let under_way = UnderWay(Arc::clone(self));
            tokio::spawn(async move { under_way.0.read().await });
        }
        Some(end)
    }

    async fn wait_for(&self, mut end: watch::Receiver<()>) -> Result<(), Refusal> {
        let _place = self.places.try_acquire().map_err(|_| Refusal::IssuerBusy)?;
        let ended = timeout(self.limits.wait_max, end.changed()).await;
        ended.map_err(|_| Refusal::IssuerSlow)?.map_err(|_| Refusal::NoKeySet)
    }

    async fn read(&self) {
        let issuer = self.issuer.as_str();
        match key_source::read(&self.source, self.limits.fetch_max).await {
            Ok(set) => {
                self.set.store(Some(Arc::new(set)));
                let mut reads = self.reads();
                reads.last_good = Some(self.clock.instant());
                if reads.failure.take().is_some() {
                    tracing::info!(issuer, "the keys of a JWT issuer are there again");
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                let mut reads = self.reads();
                if reads.failure.as_ref() != Some(&error) {
                    tracing::warn!(issuer, error, "no keys of a JWT issuer; those that were there last stay");
                    reads.failure = Some(error);
                }
            }
        }
    }

    fn reads(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.reads().is_under_way = false;
        self.0.ended.send_replace(());
    }
}
