//! What lies between callers and the writer: places, batches that wait, and the word that says no.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use kms_core::audit::Refused;
use tokio::sync::oneshot;

/// Shared by the log, its slots and its writer.
pub(crate) struct Queue {
    state: Mutex<State>,
    work: Condvar,
    slots_max: usize,
    slots_free: AtomicUsize,
    /// Whether `state` says no, so that `reserve` takes no lock as long as all is well.
    refusing: AtomicBool,
    /// Records that were queued and are not settled.
    records_waiting: AtomicUsize,
    lost: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<Batch>,
    writer_sleeps: bool,
    closing: bool,
    /// Nothing is taken any more: broken, or closed.
    shut: Option<Refused>,
    /// No new places, but those that are taken are honoured: the disk is nearly full.
    low: Option<Refused>,
    written: Written,
}

/// What the writer has done so far.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Written {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) syncs: u64,
    pub(crate) last_sync: Duration,
    pub(crate) free_bytes: u64,
}

/// A place that was taken in the log. Dropping it gives it back.
pub struct Slot {
    queue: Arc<Queue>,
    /// Whether its record was queued.
    is_queued: bool,
}

/// The records of one `record` call: written together, acknowledged together.
pub(crate) struct Batch {
    /// One line per record, without sequence numbers.
    pub(crate) lines: Vec<u8>,
    pub(crate) slots: Vec<Slot>,
    /// Who waits, if anybody does.
    pub(crate) done: Option<oneshot::Sender<Result<(), Refused>>>,
}

/// A look at the log, for metrics and readiness.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// Why records are refused at the moment; `None` when all is well.
    pub refusal: Option<String>,
    /// Records made durable since the log was opened.
    pub records_written: u64,
    /// Bytes made durable since the log was opened.
    pub bytes_written: u64,
    /// Syncs since the log was opened; `records_written / syncs` is the mean group.
    pub syncs: u64,
    /// How long the last sync took, in seconds.
    pub last_sync_seconds: f64,
    /// Places taken, queued records included.
    pub slots_taken: usize,
    /// Records that are queued or being written.
    pub records_waiting: usize,
    /// Places in all.
    pub slots_max: usize,
    /// Free bytes of the file system when it was last looked at.
    pub free_bytes: u64,
    /// Records of abandoned operations that could not be kept, because the log was broken or closed.
    pub records_lost: u64,
}

impl Queue {
    pub(crate) fn new(slots_max: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            work: Condvar::new(),
            slots_max,
            slots_free: AtomicUsize::new(slots_max),
            refusing: AtomicBool::new(false),
            records_waiting: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
        })
    }

    pub(crate) fn reserve(self: &Arc<Self>) -> Result<Slot, Refused> {
        if self.refusing.load(Relaxed)
            && let Some(refused) = self.lock().refusal()
        {
            return Err(refused);
        }
        let taken = self.slots_free.try_update(Relaxed, Relaxed, |free| free.checked_sub(1));
        taken.map(|_| Slot { queue: Arc::clone(self), is_queued: false }).map_err(|_| {
            Refused(format!(
                "all {} places are taken; the disk does not keep up with the load",
                self.slots_max
            ))
        })
    }

    /// Queues a batch for the writer; never waits for the disk.
    pub(crate) fn push(&self, mut batch: Batch) -> Result<(), Refused> {
        let mut state = self.lock();
        if let Some(refused) = &state.shut {
            return Err(refused.clone());
        }
        batch.slots.iter_mut().for_each(|slot| slot.is_queued = true);
        self.records_waiting.fetch_add(batch.slots.len(), Relaxed);
        state.waiting.push(batch);
        // A wake-up costs a system call; a writer that is busy comes back by itself.
        if state.writer_sleeps {
            self.work.notify_one();
        }
        Ok(())
    }

    /// Notes records that could not be queued and that nobody waits for.
    pub(crate) fn lose(&self, records: u64) {
        self.lost.fetch_add(records, Relaxed);
    }

    /// For the writer: swaps what waits into `work`, which must be empty; waits at most `tick` for something
    /// to come. `false` when nothing waits and nothing will.
    pub(crate) fn take(&self, work: &mut Vec<Batch>, tick: Duration) -> bool {
        let mut state = self.lock();
        if state.waiting.is_empty() && !state.closing {
            state.writer_sleeps = true;
            state = self.work.wait_timeout(state, tick).unwrap_or_else(PoisonError::into_inner).0;
            state.writer_sleeps = false;
        }
        std::mem::swap(&mut state.waiting, work);
        let drained = work.is_empty() && state.closing;
        if drained {
            self.shut(&mut state, Refused("it is closed".to_owned()));
        }
        !drained
    }

    /// For the writer: nothing is taken any more. The first reason stays. Returns what was waiting.
    pub(crate) fn break_with(&self, refused: Refused) -> Vec<Batch> {
        let mut state = self.lock();
        self.shut(&mut state, refused);
        std::mem::take(&mut state.waiting)
    }

    /// For the writer: no new places while the disk is nearly full.
    pub(crate) fn set_low(&self, low: Option<Refused>, free_bytes: u64) {
        let mut state = self.lock();
        state.low = low;
        state.written.free_bytes = free_bytes;
        self.refusing.store(state.refusal().is_some(), Relaxed);
    }

    /// For the writer: one more group is durable.
    pub(crate) fn note(&self, records: u64, bytes: u64, sync: Duration) {
        let written = &mut self.lock().written;
        written.records += records;
        written.bytes += bytes;
        written.syncs += 1;
        written.last_sync = sync;
    }

    /// No new places from here on; the writer ends once it has written what waits.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        self.refusing.store(true, Relaxed);
        self.work.notify_one();
    }

    pub(crate) fn health(&self) -> Health {
        let state = self.lock();
        Health {
            refusal: state.refusal().map(|refused| refused.0),
            records_written: state.written.records,
            bytes_written: state.written.bytes,
            syncs: state.written.syncs,
            last_sync_seconds: state.written.last_sync.as_secs_f64(),
            slots_taken: self.slots_max - self.slots_free.load(Relaxed).min(self.slots_max),
            records_waiting: self.records_waiting.load(Relaxed),
            slots_max: self.slots_max,
            free_bytes: state.written.free_bytes,
            records_lost: self.lost.load(Relaxed),
        }
    }

    fn shut(&self, state: &mut State, refused: Refused) {
        state.shut.get_or_insert(refused);
        self.refusing.store(true, Relaxed);
    }

    /// No code panics while it holds the lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refusal(&self) -> Option<Refused> {
        let closing = || self.closing.then(|| Refused("it is being closed".to_owned()));
        self.shut.clone().or_else(closing).or_else(|| self.low.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.queue.slots_free.fetch_add(1, Relaxed);
        if self.is_queued {
            self.queue.records_waiting.fetch_sub(1, Relaxed);
        }
    }
}

impl Batch {
    /// Gives the places back, then wakes the caller: it may want to reserve again at once.
    pub(crate) fn settle(self, result: Result<(), Refused>) {
        drop(self.slots);
        if let Some(done) = self.done {
            // The caller may have gone; its records are kept all the same.
            let _ = done.send(result);
        }
    }
}
