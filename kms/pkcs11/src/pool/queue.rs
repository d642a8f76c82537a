//! The bounded queue: a call that finds no place is told so before anything grows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kms_core::{epoch::Step, hsm::Fault};

use crate::wire::Operation;

/// When a refused caller may find a place: a full queue of 1,024 signatures drains in about this time.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Counts every call from its entry to its answer, also those that nobody waits for any more.
pub(super) struct Queue {
    counts: Arc<Counts>,
    max: u32,
}

/// One call's place. Given back when dropped.
pub(super) struct Place {
    counts: Arc<Counts>,
    changes: bool,
}

struct Counts {
    calls: AtomicU32,
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
            changes: AtomicU32::new(0),
            changed_ns: AtomicU64::new(0),
            epoch: Instant::now(),
        };
        Self { counts: Arc::new(counts), max }
    }

    /// Takes a place, or refuses.
    pub(super) fn enter(&self, operation: &Operation) -> Result<Place, Fault> {
        if self.counts.calls.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.counts.calls.fetch_sub(1, Ordering::Relaxed);
            return Err(Fault::Busy { retry_after: RETRY_AFTER });
        }
        let changes = match operation {
            Operation::Generate(_) | Operation::Destroy(_) | Operation::List(_) => true,
            Operation::Epoch(step) => *step != Step::Read,
            Operation::Find(_)
            | Operation::Sign { .. }
            | Operation::WrapKey { .. }
            | Operation::UnwrapKey { .. }
            | Operation::Check => false,
        };
        if changes {
            self.counts.changes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Place { counts: Arc::clone(&self.counts), changes })
    }

    /// Calls that wait or run.
    pub(super) fn len(&self) -> u32 {
        self.counts.calls.load(Ordering::Relaxed)
    }

    /// Whether a change of the token, or a listing, waits or runs.
    pub(super) fn is_changing(&self) -> bool {
        self.counts.changes.load(Ordering::Relaxed) > 0
    }

    /// When the last change ended.
    pub(super) fn last_change(&self) -> Instant {
        self.counts.epoch + Duration::from_nanos(self.counts.changed_ns.load(Ordering::Relaxed))
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
        self.counts.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_and_a_place_given_back_is_taken_again() {
        let queue = Queue::new(2);
        let places = [queue.enter(&Operation::Check), queue.enter(&Operation::Check)];
        assert!(places.iter().all(Result::is_ok));
        assert!(matches!(queue.enter(&Operation::Check), Err(Fault::Busy { .. })));
        assert_eq!(queue.len(), 2);
        drop(places);
        assert!(queue.enter(&Operation::Check).is_ok());
    }
}
