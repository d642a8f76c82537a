//! The bounded queue in front of the workers: who gets a place in it, and what waits there.
//!
//! A place is held from a call's entry to its answer. Who may take one follows from what is free (dynamic thresholds,
//! Choudhury and Hahne, 1998): a lane holds at most [`LANE_PART`] times what is free, and a caller at most
//! [`CALLER_PART`] times what its lane may still take. So one caller alone gets most of the queue, many get a little
//! each, and whoever comes new finds a place. What was let in is never put out again. The last places are for
//! [`Lane::Unseal`] alone.
//!
//! Who would find its deadline passed when its turn comes is refused at once, before the queue grows.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kms_core::{
    epoch::Step,
    hsm::{Fault, LaneHealth},
    lane::Lane,
};

use super::{
    call::Call,
    cost::{Costs, Kind},
    lanes::Lanes,
};
use crate::wire::Operation;

/// When a refused caller may come again, at the least and at the most.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(50);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);
/// The part of all places that is kept for unseals, one in so many.
const UNSEAL_PLACES: u32 = 64;
/// A lane holds at most this many times what is free.
const LANE_PART: i64 = 8;
/// A caller holds at most this many times what its lane may still take.
const CALLER_PART: i64 = 4;
/// Callers in a lane from which on those that hold nothing are forgotten.
const IDLE_CALLERS_MAX: usize = 256;

/// What waits, and who holds how much.
pub(super) struct Queue {
    front: Mutex<Front>,
    counts: Arc<Counts>,
    pub(super) costs: Costs,
    max: u32,
}

/// What is kept under the lock.
pub(super) struct Front {
    pub(super) waiting: Lanes<Call>,
    /// Nothing that waits has its deadline before this.
    earliest: Option<Instant>,
    callers: [HashMap<Arc<str>, Arc<AtomicU32>>; Lane::ALL.len()],
    lanes: [Flow; Lane::ALL.len()],
}

/// What a lane has seen.
#[derive(Default)]
struct Flow {
    refused: u64,
    sent: u64,
    waited: Duration,
}

/// Who asks for what.
pub(super) struct Entry<'a> {
    pub(super) lane: Lane,
    pub(super) caller: &'a Arc<str>,
    pub(super) operation: &'a Operation,
    pub(super) deadline: Instant,
}

/// One call's place. Given back when dropped.
pub(super) struct Place {
    counts: Arc<Counts>,
    /// How many places its caller holds.
    held: Arc<AtomicU32>,
    pub(super) lane: Lane,
    pub(super) caller: Arc<str>,
    pub(super) kind: Kind,
    /// What it is expected to cost, in nanoseconds.
    pub(super) cost_ns: u64,
    entered: Instant,
    changes: bool,
}

struct Counts {
    calls: AtomicU32,
    lanes: [AtomicU32; Lane::ALL.len()],
    /// Generations and destructions, for whose lock others may wait, and listings, which take as long.
    changes: AtomicU32,
    /// When the last of them ended, in nanoseconds after `epoch`.
    changed_ns: AtomicU64,
    epoch: Instant,
}

impl Queue {
    pub(super) fn new(max: u32) -> Self {
        let counts = Counts {
            calls: AtomicU32::new(0),
            lanes: Lane::ALL.map(|_| AtomicU32::new(0)),
            changes: AtomicU32::new(0),
            changed_ns: AtomicU64::new(0),
            epoch: Instant::now(),
        };
        let front = Front {
            waiting: Lanes::default(),
            earliest: None,
            callers: Lane::ALL.map(|_| HashMap::new()),
            lanes: Lane::ALL.map(|_| Flow::default()),
        };
        Self { front: Mutex::new(front), counts: Arc::new(counts), costs: Costs::default(), max }
    }

    /// Takes a place, or refuses. `workers` share what waits.
    pub(super) fn enter(&self, entry: &Entry<'_>, workers: usize) -> Result<Place, Fault> {
        let now = Instant::now();
        let kind = Kind::of(entry.operation);
        let cost_ns = self.costs.of(kind);
        let mut front = self.front();
        let held = front.held(entry.lane, entry.caller);
        if let Err(retry_after) = self.admit(&front, entry, &held, cost_ns, workers, now) {
            front.lanes[entry.lane as usize].refused += 1;
            return Err(Fault::Busy { retry_after });
        }
        let changes = changes(entry.operation);
        let counts = Arc::clone(&self.counts);
        counts.calls.fetch_add(1, Ordering::Relaxed);
        counts.lanes[entry.lane as usize].fetch_add(1, Ordering::Relaxed);
        counts.changes.fetch_add(changes.into(), Ordering::Relaxed);
        held.fetch_add(1, Ordering::Relaxed);
        let (lane, caller) = (entry.lane, Arc::clone(entry.caller));
        Ok(Place { counts, held, lane, caller, kind, cost_ns, entered: now, changes })
    }

    /// What waits, for as long as the guard lives.
    pub(super) fn front(&self) -> MutexGuard<'_, Front> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that wait or run.
    pub(super) fn len(&self) -> u32 {
        self.counts.calls.load(Ordering::Relaxed)
    }

    /// Each lane, in the order of [`Lane::ALL`].
    pub(super) fn lanes(&self) -> [LaneHealth; Lane::ALL.len()] {
        let front = self.front();
        Lane::ALL.map(|lane| {
            let Flow { refused, sent, waited } = front.lanes[lane as usize];
            let waiting = u32::try_from(front.waiting.len_in(lane)).unwrap_or(u32::MAX);
            LaneHealth { waiting, refused, sent, waited }
        })
    }

    /// Whether a change of the token, or a listing, waits or runs.
    pub(super) fn is_changing(&self) -> bool {
        self.counts.changes.load(Ordering::Relaxed) > 0
    }

    /// When the last change ended.
    pub(super) fn last_change(&self) -> Instant {
        self.counts.epoch + Duration::from_nanos(self.counts.changed_ns.load(Ordering::Relaxed))
    }

    /// Takes out what waits in vain at `now`.
    pub(super) fn take_late(&self, now: Instant) -> Vec<Call> {
        let mut front = self.front();
        if front.earliest.is_none_or(|earliest| now < earliest) {
            return Vec::new();
        }
        let mut earliest = None;
        let late = front.waiting.take(|call| {
            let is_late = call.deadline() <= now || call.is_abandoned();
            if !is_late {
                earliest = earlier(earliest, call.deadline());
            }
            is_late
        });
        front.earliest = earliest;
        late
    }

    /// Whether there is a place for it, or when there may be.
    fn admit(
        &self,
        front: &Front,
        entry: &Entry<'_>,
        held: &AtomicU32,
        cost_ns: u64,
        workers: usize,
        now: Instant,
    ) -> Result<(), Duration> {
        let workers = workers.max(1) as u64;
        let lane = self.counts.lanes[entry.lane as usize].load(Ordering::Relaxed);
        if !has_place(self.max, self.len(), entry.lane, lane, held.load(Ordering::Relaxed)) {
            let drained = Duration::from_nanos(front.waiting.work_ns() / workers);
            return Err(drained.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX));
        }
        let before_ns = front.waiting.work_before_ns(entry.lane, entry.caller, cost_ns);
        let left = entry.deadline.saturating_duration_since(now);
        match Duration::from_nanos((before_ns + cost_ns) / workers).checked_sub(left) {
            // With nobody before it, it may try.
            Some(too_long) if before_ns > 0 => Err(too_long.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)),
            _ => Ok(()),
        }
    }
}

/// Whether somebody in `lane`, which has `lane_len` of all `len` places, may have one more than `held`.
fn has_place(max: u32, len: u32, lane: Lane, lane_len: u32, held: u32) -> bool {
    if lane == Lane::Unseal {
        return len < max;
    }
    let free = i64::from(max.saturating_sub(len)) - i64::from(max.div_ceil(UNSEAL_PLACES));
    // After `k` more it holds `lane_len + k`, and `free - k` are left.
    let lane_room = LANE_PART * free - i64::from(lane_len);
    free > 0 && lane_room > 0 && i64::from(held) * (LANE_PART + 1) < CALLER_PART * lane_room
}

/// Whether it changes the token, or takes as long.
fn changes(operation: &Operation) -> bool {
    match operation {
        Operation::Generate(_) | Operation::Destroy(_) | Operation::List(_) => true,
        Operation::Epoch(step) => *step != Step::Read,
        Operation::Find(_)
        | Operation::Sign { .. }
        | Operation::WrapKey { .. }
        | Operation::UnwrapKey { .. }
        | Operation::Check => false,
    }
}

impl Front {
    /// Lets a call wait.
    pub(super) fn push(&mut self, call: Call) {
        self.earliest = earlier(self.earliest, call.deadline());
        let place = call.place();
        let (lane, caller, cost_ns) = (place.lane, Arc::clone(&place.caller), place.cost_ns);
        let first = call.is_repeated();
        self.waiting.push(lane, &caller, cost_ns, first, call);
    }

    /// Notes that a call goes to a worker.
    pub(super) fn sends(&mut self, place: &Place) {
        let lane = &mut self.lanes[place.lane as usize];
        lane.sent += 1;
        lane.waited += place.entered.elapsed();
    }

    fn held(&mut self, lane: Lane, caller: &Arc<str>) -> Arc<AtomicU32> {
        let callers = &mut self.callers[lane as usize];
        if let Some(held) = callers.get(caller) {
            return Arc::clone(held);
        }
        if callers.len() >= IDLE_CALLERS_MAX {
            callers.retain(|_, held| held.load(Ordering::Relaxed) > 0);
        }
        Arc::clone(callers.entry(Arc::clone(caller)).or_default())
    }
}

impl Place {
    /// Whether this call changes the token, or takes as long.
    pub(super) fn changes(&self) -> bool {
        self.changes
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.changes {
            let now = u64::try_from(self.counts.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.counts.changed_ns.fetch_max(now, Ordering::Relaxed);
            self.counts.changes.fetch_sub(1, Ordering::Relaxed);
        }
        self.held.fetch_sub(1, Ordering::Relaxed);
        self.counts.lanes[self.lane as usize].fetch_sub(1, Ordering::Relaxed);
        self.counts.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The earlier of two, of which one may be absent.
fn earlier(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}

#[cfg(test)]
pub(super) mod tests;
