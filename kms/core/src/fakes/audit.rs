//! A log in memory, which can be made to refuse.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::audit::{AuditLog, Event, Refused};

/// Keeps every event.
#[derive(Default)]
pub struct MemoryLog {
    events: Mutex<Vec<Event>>,
    full: AtomicBool,
    broken: AtomicBool,
}

impl MemoryLog {
    /// Everything recorded so far.
    pub fn events(&self) -> Vec<Event> {
        self.lock().clone()
    }

    /// Refuses to reserve from now on, or no longer.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// Takes reservations but fails to record, or no longer: the disk breaks while work is under way.
    pub fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AuditLog for MemoryLog {
    type Slot = ();

    fn reserve(&self) -> Result<(), Refused> {
        if self.full.load(Ordering::SeqCst) { Err(Refused("full".to_owned())) } else { Ok(()) }
    }

    async fn record(&self, records: Vec<((), Event)>) -> Result<(), Refused> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(Refused("broken".to_owned()));
        }
        self.lock().extend(records.into_iter().map(|(_, event)| event));
        Ok(())
    }

    fn record_later(&self, _slot: (), event: Event) {
        self.lock().push(event);
    }
}
