//! Beats: how a replica stays one with the others. The server calls [`Kms::beat`] about once a second and whenever
//! [`Kms::changed`] resolves; nothing here waits for time by itself.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    AuditLog, Clock, Error, Hsm, Kms, Store,
    fence::Fenced,
    replica::{Beat, CLOCK_SKEW_MAX, FENCE, LeaseToken, Pulse, ReplicaId},
    store::Fault,
    time::SignedDuration,
};

/// How often a load is tried again when somebody else has brought the catalog forward meanwhile.
const LOAD_ATTEMPTS_MAX: usize = 8;

/// What this replica says with each beat, and what it heard last.
#[derive(Default)]
pub(crate) struct Beats {
    last: Mutex<Last>,
    /// How often the store left an answer out, and how many of those a whole load has made good since: a failover may
    /// have put other commits in the place of those that we know, under the same numbers.
    doubts: AtomicU64,
    resolved: AtomicU64,
}

#[derive(Default)]
struct Last {
    leads: bool,
    report: String,
    pulse: Option<Arc<Pulse>>,
    clock_ahead: Option<SignedDuration>,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Tells the store that this replica lives, and brings and confirms its catalog up to date. `leads`: whether it
    /// would do the background work. `report`: one JSON object for operators. Fails when nothing was confirmed;
    /// then the fence says why.
    pub async fn beat(&self, leads: bool, report: String) -> Result<Pulse, Error> {
        {
            let mut last = self.beats.last();
            (last.leads, last.report) = (leads, report);
        }
        self.beat_again().await
    }

    /// Resolves when the store may have gone past the catalog, or after `at_most`: time for a beat.
    pub async fn changed(&self, at_most: Duration) {
        self.store.changed(self.generation(), at_most).await;
    }

    /// This run of this server.
    pub fn replica(&self) -> &ReplicaId {
        &self.replica
    }

    /// What the store said last, if it has said anything.
    pub fn last_pulse(&self) -> Option<Arc<Pulse>> {
        self.beats.last().pulse.clone()
    }

    /// By how much our clock is ahead of the store's, by the last pulse and at worst; negative when it is behind.
    pub fn clock_ahead(&self) -> Option<SignedDuration> {
        self.beats.last().clock_ahead
    }

    /// Why this replica does not work, if it does not.
    pub fn fenced(&self) -> Option<Fenced> {
        self.fence.check().err()
    }

    /// Whom to refuse because of the fence, also where no verb is entered: one who presents an access token that this
    /// replica may not know yet must hear this, not that it is unknown.
    pub fn check_fence(&self) -> Result<(), Error> {
        self.fence.check().map_err(Fenced::refusal)
    }

    /// The lease, while it is surely ours: the background work may be done.
    pub fn lease(&self) -> Option<LeaseToken> {
        self.fence.check().ok()?;
        let lease = self.last_pulse()?.lease.clone()?;
        (lease.holder == self.replica).then_some(lease.token)
    }

    /// A beat with what the last one said. After a reload another one, so that the others see it.
    pub(crate) async fn beat_again(&self) -> Result<Pulse, Error> {
        let known = self.generation();
        let pulse = self.beat_once().await?;
        if self.generation() == known { Ok(pulse) } else { self.beat_once().await }
    }

    async fn beat_once(&self) -> Result<Pulse, Error> {
        let beat = {
            let last = self.beats.last();
            let generation = Some(self.generation());
            Beat { replica: self.replica.clone(), generation, leads: last.leads, report: last.report.clone() }
        };
        let known = beat.generation;
        let (sent, before) = (self.clock.instant(), self.clock.now());
        let pulse = self.store.pulse(beat).await.inspect_err(|fault| {
            self.beats.doubt();
            tracing::warn!(%fault, "the database gave no pulse");
        })?;
        let after = self.clock.now();
        if known > Some(pulse.generation) {
            return Err(self.store_went_backwards(pulse.generation.0));
        }
        // The store read its clock somewhere in between: the worst case counts.
        let [behind, ahead] = [before, after].map(|now| now.duration_since(pulse.now));
        let by = if behind.abs() > ahead.abs() { behind } else { ahead };
        self.beats.last().clock_ahead = Some(by);
        if by.unsigned_abs() > CLOCK_SKEW_MAX {
            self.fence.clock_differs(by);
            let fenced = Fenced::ClockDiffers(by);
            tracing::error!("{fenced}");
            return Err(fenced.refusal());
        }
        if pulse.generation > self.generation() || self.beats.in_doubt().is_some() {
            self.refresh().await?;
        }
        if pulse.generation > self.generation() {
            return Err(Error::unavailable(
                "STORE_UNAVAILABLE",
                "the database shows less than it has; if this stays, it is not the primary that is read",
            ));
        }
        self.recovery_ended_elsewhere();
        self.fence.confirm(sent);
        self.beats.last().pulse = Some(Arc::new(pulse.clone()));
        Ok(pulse)
    }

    /// Brings the catalog up to the store's generation: by what was written since, or, after an answer was left out,
    /// by everything.
    pub(crate) async fn refresh(&self) -> Result<(), Error> {
        for _ in 0..LOAD_ATTEMPTS_MAX {
            let doubt = self.beats.in_doubt();
            let base = self.catalog.now();
            let since = if doubt.is_some() { None } else { Some(base.generation) };
            let snapshot = self.store.load(since).await?;
            if snapshot.generation < base.generation {
                return Err(self.store_went_backwards(snapshot.generation.0));
            }
            if self.catalog.apply(&base, since, snapshot)? {
                if let Some(doubt) = doubt {
                    self.beats.resolve(doubt);
                }
                return Ok(());
            }
        }
        Err(Error::unavailable("STORE_UNAVAILABLE", "the database changes faster than it is read; retry"))
    }

    /// After a mutation: when every replica that lives and is not fenced has it. Nobody is told before.
    pub(crate) async fn in_effect<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        let result = result?;
        self.store.propagated(self.generation(), &self.replica, FENCE).await;
        Ok(result)
    }

    /// Whether the store has heard of `replica` lately, by the last pulse.
    pub(crate) fn lives(&self, replica: &ReplicaId) -> bool {
        self.last_pulse().is_some_and(|pulse| pulse.replicas.iter().any(|other| other.id == *replica))
    }

    /// A commit whose outcome is unknown, too, is made good by reading everything.
    pub(crate) fn doubt_after(&self, fault: &Fault) {
        if matches!(fault, Fault::Unknown(_)) {
            self.beats.doubt();
        }
    }

    fn store_went_backwards(&self, generation: u64) -> Error {
        self.fence.store_went_backwards();
        let fenced = Fenced::StoreWentBackwards;
        tracing::error!(generation, known = self.generation().0, "{fenced}");
        fenced.refusal()
    }
}

impl Beats {
    fn last(&self) -> MutexGuard<'_, Last> {
        // Each field is whole even if its holder panicked.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::AcqRel);
    }

    fn in_doubt(&self) -> Option<u64> {
        let resolved = self.resolved.load(Ordering::Acquire);
        let doubts = self.doubts.load(Ordering::Acquire);
        (doubts > resolved).then_some(doubts)
    }

    fn resolve(&self, doubt: u64) {
        self.resolved.fetch_max(doubt, Ordering::AcqRel);
    }
}
