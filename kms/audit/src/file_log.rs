//! The log as core sees it.

use std::{
    fs::File,
    future::Future,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use kms_core::{
    AuditLog,
    audit::{Event, Refused},
};
use tokio::sync::oneshot;

use crate::{
    OpenError,
    ledger::Ledger,
    line,
    queue::{Batch, Health, Queue, Slot},
    recovery::{self, Segment},
    writer::{GROUP_LEN_MAX, Writer},
};

/// An audit log in a directory of its own. Dropping it writes what is queued and waits for that.
pub struct FileLog {
    queue: Arc<Queue>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Holds the lock on the directory.
    _lock: Option<File>,
}

/// Where, and how much.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory; made with mode 0700 when it is not there.
    pub dir: PathBuf,
    /// Operations that may be under way at once, records waiting for the disk included.
    pub slots_max: usize,
    /// New operations are refused while the file system has fewer free bytes; those under way are finished.
    pub free_bytes_min: u64,
}

impl Options {
    /// 65,536 places and 64 MiB of free space to be kept.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), slots_max: 65_536, free_bytes_min: 64 << 20 }
    }
}

impl FileLog {
    /// Opens the log, or begins one. A tail that a crash left half-written is moved to a file beside it.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let lock = recovery::lock(&options.dir)?;
        let Segment { file, end, next_seq } = recovery::open_segment(&options.dir)?;
        Self::start(file, end, next_seq, options, Some(lock)).map_err(recovery::io(&options.dir))
    }

    /// Goes on with `ledger` at byte `end` and number `next_seq`.
    pub(crate) fn start<L: Ledger>(
        ledger: L,
        end: u64,
        next_seq: u64,
        options: &Options,
        lock: Option<File>,
    ) -> io::Result<Self> {
        let queue = Queue::new(options.slots_max);
        let writer = Writer::new(ledger, Arc::clone(&queue), end, next_seq, options.free_bytes_min);
        let thread = thread::Builder::new().name("kms-audit".to_owned()).spawn(move || writer.run())?;
        Ok(Self { queue, writer: Mutex::new(Some(thread)), _lock: lock })
    }

    /// Takes no new places from here on, writes what is queued, and returns when that is durable. Blocks.
    /// Whoever still holds a place then is refused. Calling it twice does nothing more.
    pub fn flush_and_close(&self) {
        self.queue.close();
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the audit log's writer panicked");
        }
    }

    /// A look at the log; cheap.
    pub fn health(&self) -> Health {
        self.queue.health()
    }

    fn push(
        &self,
        records: Vec<(Slot, Event)>,
    ) -> Result<Option<oneshot::Receiver<Result<(), Refused>>>, Refused> {
        if records.is_empty() {
            return Ok(None);
        }
        let (sender, receiver) = oneshot::channel();
        let mut batch =
            Batch { lines: Vec::new(), slots: Vec::with_capacity(records.len()), done: Some(sender) };
        for (slot, event) in records {
            line::push_event(&mut batch.lines, &event)?;
            batch.slots.push(slot);
        }
        if batch.len_on_disk_max() > GROUP_LEN_MAX {
            return Err(Refused(format!("records of more than {GROUP_LEN_MAX} bytes at once")));
        }
        self.queue.push(batch)?;
        Ok(Some(receiver))
    }
}

impl AuditLog for FileLog {
    type Slot = Slot;

    fn reserve(&self) -> Result<Slot, Refused> {
        self.queue.reserve()
    }

    /// The records are queued when this is called: they are kept even if the future is dropped at once.
    fn record(&self, records: Vec<(Slot, Event)>) -> impl Future<Output = Result<(), Refused>> + Send {
        let queued = self.push(records);
        async move {
            match queued? {
                Some(done) => {
                    done.await.unwrap_or_else(|_| Err(Refused("its writer has stopped".to_owned())))
                }
                None => Ok(()),
            }
        }
    }

    fn record_later(&self, slot: Slot, event: Event) {
        let mut lines = Vec::new();
        let queued = line::push_event(&mut lines, &event)
            .and_then(|()| self.queue.push(Batch { lines, slots: vec![slot], done: None }));
        if let Err(refused) = queued {
            // Nothing was released, so this record is a courtesy; but somebody should know.
            self.queue.lose(1);
            tracing::warn!(%refused, operation = %event.operation, "an abandoned operation is not in the audit log");
        }
    }
}

impl Drop for FileLog {
    fn drop(&mut self) {
        self.flush_and_close();
    }
}
