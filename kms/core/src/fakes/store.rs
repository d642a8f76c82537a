//! A store in memory, with the transactions that core relies on, for as many replicas as a test wants.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use super::{ManualClock, rows::Rows};
use crate::{
    Clock as _,
    pin_latch::{Place, State},
    replica::{Beat, Pulse, ReplicaId},
    store::{Fault, Generation, RememberedRequest, Snapshot, Store, Transaction},
    time::{SignedDuration, Timestamp},
};

/// Rows in memory, and a link to them that can be cut.
#[derive(Default)]
pub struct MemoryStore {
    rows: Arc<Mutex<Rows>>,
    clock: Arc<ManualClock>,
    cut: AtomicBool,
}

impl MemoryStore {
    /// An empty store whose clock is `clock`.
    pub fn on(clock: Arc<ManualClock>) -> Self {
        Self { clock, ..Self::default() }
    }

    /// The same rows, over a link of its own.
    pub fn linked(&self) -> Self {
        let (rows, clock) = (Arc::clone(&self.rows), Arc::clone(&self.clock));
        Self { rows, clock, cut: AtomicBool::new(false) }
    }

    /// Cuts this link, or mends it: what comes over a cut one fails, and writes nothing.
    pub fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    /// The clock that the store goes by.
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// Sets the store's clock off from the one that it goes by.
    pub fn shift_clock(&self, by: SignedDuration) {
        self.lock().clock_shift = by;
    }

    /// Puts the rows of `other` in the place of these, for everybody: a failover to a standby that had not everything.
    pub fn fail_over_to(&self, other: &Self) {
        let rows = other.lock().clone();
        *self.lock() = rows;
    }

    /// Nobody has beaten, and nobody holds the lease: those who did are known to be gone.
    pub fn forget_replicas(&self) {
        self.lock().forget_replicas();
    }

    /// From now on everybody else has a turn before and after each call.
    pub fn interleave(&self) {
        self.lock().interleaves = true;
    }

    /// The next write fails with `fault`, as in [`MemoryStore::fail_after`].
    pub fn fail_next(&self, fault: Fault) {
        self.fail_after(0, fault);
    }

    /// After `commits` that succeed, one fails with `fault`. It writes nothing, unless its outcome is unknown.
    pub fn fail_after(&self, commits: u32, fault: Fault) {
        self.lock().fault = Some((commits, fault));
    }

    /// The next write is written, but its answer is lost.
    pub fn lose_next_answer(&self) {
        self.fail_next(Fault::Unknown("the answer was lost".to_owned()));
    }

    /// The rows as they are now, in a store of their own: a backup.
    pub fn copy(&self) -> Self {
        let rows = Arc::new(Mutex::new(self.lock().clone()));
        Self { rows, clock: Arc::clone(&self.clock), cut: AtomicBool::new(false) }
    }

    /// The next load fails.
    pub fn fail_next_load(&self) {
        self.lock().next_load_fails = true;
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows, over the link.
    fn reach(&self) -> Result<MutexGuard<'_, Rows>, Fault> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(Fault::Unavailable("the link is cut".to_owned()));
        }
        Ok(self.lock())
    }

    fn now(&self, rows: &Rows) -> Timestamp {
        self.clock.now().saturating_add(rows.clock_shift).unwrap_or(Timestamp::MAX)
    }

    async fn others_turn(&self) {
        let interleaves = self.lock().interleaves;
        if interleaves {
            yield_once().await;
        }
    }
}

impl Store for Arc<MemoryStore> {
    async fn load(&self, since: Option<Generation>) -> Result<Snapshot, Fault> {
        self.others_turn().await;
        let snapshot = {
            let mut rows = self.reach()?;
            if std::mem::take(&mut rows.next_load_fails) {
                return Err(Fault::Unavailable("set by the test".to_owned()));
            }
            rows.snapshot(since)
        };
        self.others_turn().await;
        Ok(snapshot)
    }

    async fn commit(&self, transaction: Transaction) -> Result<Generation, Fault> {
        self.others_turn().await;
        let outcome = {
            let mut rows = self.reach()?;
            let fault = rows.due_fault()?;
            rows.check_lease(transaction.lease)?;
            let mut next = rows.clone();
            for write in transaction.writes {
                next.apply(write)?;
            }
            if let Some(request) = transaction.request
                && next.requests.insert(request.id.clone(), request).is_some()
            {
                return Err(Fault::Exists("this request_id".to_owned()));
            }
            next.generation.0 += 1;
            *rows = next;
            fault.map_or(Ok(rows.generation), Err)
        };
        self.others_turn().await;
        outcome
    }

    async fn request(&self, id: &str) -> Result<Option<RememberedRequest>, Fault> {
        self.others_turn().await;
        Ok(self.reach()?.requests.get(id).cloned())
    }

    async fn forget_requests(&self, before: Timestamp) -> Result<u64, Fault> {
        let mut rows = self.reach()?;
        let count = rows.requests.len();
        rows.requests.retain(|_, request| request.at >= before);
        Ok((count - rows.requests.len()) as u64)
    }

    async fn pin_latch(&self, place: &Place) -> Result<State, Fault> {
        let state = self.reach()?.pin_latches.get(place).cloned().unwrap_or(State::UNTRIED);
        self.others_turn().await;
        Ok(state)
    }

    async fn set_pin_latch(&self, place: &Place, expected: State, new: State) -> Result<(), Fault> {
        let mut rows = self.reach()?;
        let fault = rows.due_fault()?;
        if *rows.pin_latches.get(place).unwrap_or(&State::UNTRIED) != expected {
            return Err(Fault::Changed(place.to_string()));
        }
        rows.pin_latches.insert(place.clone(), new);
        fault.map_or(Ok(()), Err)
    }

    async fn check(&self) -> Result<Generation, Fault> {
        Ok(self.reach()?.generation)
    }

    async fn pulse(&self, beat: Beat) -> Result<Pulse, Fault> {
        self.others_turn().await;
        let pulse = {
            let mut rows = self.reach()?;
            let now = self.now(&rows);
            rows.pulse(beat, now)
        };
        self.others_turn().await;
        Ok(pulse)
    }

    /// At once, so far as it is not known whether anybody turns the clock; but everybody else has a turn first.
    async fn changed(&self, _known: Generation, _at_most: Duration) {
        yield_once().await;
    }

    /// `at_most` is counted by the store's clock, which somebody must turn.
    async fn propagated(&self, generation: Generation, but: &ReplicaId, at_most: Duration) {
        let started = self.clock.instant();
        loop {
            if let Ok(rows) = self.reach()
                && rows.is_everywhere(generation, but, self.now(&rows))
            {
                return;
            }
            if self.clock.instant() - started >= at_most {
                return;
            }
            yield_once().await;
        }
    }
}

/// Lets everybody else have a turn.
pub(super) async fn yield_once() {
    let mut others_had_a_turn = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut others_had_a_turn, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
