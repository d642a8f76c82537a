//! Beats: how a replica stays one with the others. The server calls [`Kms::beat`] about once a second and whenever
//! [`Kms::changed`] resolves; nothing here waits for time by itself.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    AuditLog, Clock, Error, Hsm, Kms, Store,
    fence::Fenced,
    replica::{Beat, CLOCK_SKEW_MAX, FENCE, LeaseToken, Pulse, ReplicaId},
    store::{Fault, Generation},
    time::{SignedDuration, Timestamp},
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
    /// The generation of the last beat that the store has taken.
    said: Option<Generation>,
    /// The last that confirmed something.
    pulse: Option<Arc<Pulse>>,
    /// The last of all.
    heard: Option<Heard>,
}

/// What the store said, whatever follows from it: for operators.
#[derive(Clone)]
pub(crate) struct Heard {
    pub(crate) pulse: Arc<Pulse>,
    /// When it was asked.
    pub(crate) at: Instant,
    /// How far our clock is ahead of the store's.
    pub(crate) clock_skew: SignedDuration,
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

    /// What the next beat says about this replica, and its status from now on: a beat may wait long for the store.
    pub fn set_report(&self, report: String) {
        self.beats.last().report = report;
    }

    /// How far this replica's clock is ahead of the store's, as the store last showed it.
    pub fn clock_skew(&self) -> Option<SignedDuration> {
        self.beats.heard().map(|heard| heard.clock_skew)
    }

    /// How long ago the store confirmed what this replica knows; `None` before the first time.
    pub fn confirmed_age(&self) -> Option<Duration> {
        self.fence.age()
    }

    /// Resolves when the store may have gone past the catalog, or the catalog has gone past what the last beat said, or
    /// after `at_most`: time for a beat. Others wait for what it says.
    pub async fn changed(&self, at_most: Duration) {
        let known = self.generation();
        if self.beats.last().said.is_none_or(|said| said >= known) {
            self.store.changed(known, at_most).await;
        }
    }

    /// This run of this server.
    pub fn replica(&self) -> &ReplicaId {
        &self.replica
    }

    /// What the store said last, if it has said anything.
    pub fn last_pulse(&self) -> Option<Arc<Pulse>> {
        self.beats.last().pulse.clone()
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

    /// The time by which others will be held to a lead, or to the life of a token: the store's, asked for just now, or
    /// ours where that is later. A clock that was set back since the last beat must not shorten either.
    pub(crate) async fn time_for_all(&self) -> Result<Timestamp, Error> {
        let pulse = self.pulse(self.next_beat()).await?;
        Ok(self.clock.now().max(pulse.now))
    }

    /// A beat with what the last one said. After a reload another one, so that the others see it.
    pub(crate) async fn beat_again(&self) -> Result<Pulse, Error> {
        let known = self.generation();
        let pulse = self.beat_once().await?;
        if self.generation() == known { Ok(pulse) } else { self.beat_once().await }
    }

    async fn beat_once(&self) -> Result<Pulse, Error> {
        let beat = self.next_beat();
        let known = beat.generation;
        let (sent, before) = (self.clock.instant(), self.clock.now());
        let pulse = self.pulse(beat).await?;
        self.beats.last().said = known;
        let after = self.clock.now();
        // The store read its clock somewhere in between: the worst case counts.
        let [behind, ahead] = [before, after].map(|now| now.duration_since(pulse.now));
        let by = if behind.abs() > ahead.abs() { behind } else { ahead };
        self.beats.last().heard = Some(Heard { pulse: Arc::new(pulse.clone()), at: sent, clock_skew: by });
        if known > Some(pulse.generation) {
            return Err(self.store_went_backwards(pulse.generation.0));
        }
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

    fn next_beat(&self) -> Beat {
        let last = self.beats.last();
        // Whoever is fenced for more than a lost beat leaves the background work to others.
        let leads = last.leads && self.fence.check_obstacle().is_ok();
        let (replica, generation) = (self.replica.clone(), Some(self.generation()));
        Beat { replica, generation, leads, report: last.report.clone() }
    }

    async fn pulse(&self, beat: Beat) -> Result<Pulse, Error> {
        let pulse = self.store.pulse(beat).await.inspect_err(|fault| {
            self.beats.doubt();
            tracing::warn!(%fault, "the database gave no pulse");
        });
        Ok(pulse?)
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

    pub(crate) fn heard(&self) -> Option<Heard> {
        self.last().heard.clone()
    }

    pub(crate) fn report(&self) -> String {
        self.last().report.clone()
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
