//! The thread that owns the file: take, write once, sync once, wake.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kms_core::audit::Refused;

use crate::{
    ledger::Ledger,
    line,
    queue::{Batch, Queue},
};

/// Bytes that go to disk under one sync, at most: what a crash can leave half-written.
pub(crate) const GROUP_LEN_MAX: usize = 4 << 20;
/// How often the free space is looked at: at least once in this time, ...
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// ... and once in so many bytes written.
const LOOK_BYTES: u64 = 8 << 20;

pub(crate) struct Writer<L> {
    ledger: L,
    queue: Arc<Queue>,
    /// Everything before it is durable; the file ends here.
    end: u64,
    next_seq: u64,
    free_bytes_min: u64,
    looked_at: Instant,
    written_since_look: u64,
}

impl<L: Ledger> Writer<L> {
    /// A writer that goes on at byte `end` with number `next_seq`. Looks at the free space at once.
    pub(crate) fn new(ledger: L, queue: Arc<Queue>, end: u64, next_seq: u64, free_bytes_min: u64) -> Self {
        let looked_at = Instant::now();
        let mut writer =
            Self { ledger, queue, end, next_seq, free_bytes_min, looked_at, written_since_look: 0 };
        writer.look_at_disk();
        writer
    }

    /// Runs until the queue is closed and drained, or the file fails.
    pub(crate) fn run(mut self) {
        let _stopped = RefuseAtEnd(Arc::clone(&self.queue));
        let mut work = Vec::new();
        let mut bytes = Vec::new();
        while self.queue.take(&mut work, LOOK_EVERY) {
            if self.looked_at.elapsed() >= LOOK_EVERY || self.written_since_look >= LOOK_BYTES {
                self.look_at_disk();
            }
            let mut rest = work.drain(..).peekable();
            while let Some(first) = rest.next() {
                bytes.clear();
                let mut next_seq = line::number(&first.lines, self.next_seq, self.next_seq, &mut bytes);
                let mut group = vec![first];
                while let Some(batch) =
                    rest.next_if(|next| bytes.len() + next.len_on_disk_max() <= GROUP_LEN_MAX)
                {
                    next_seq = line::number(&batch.lines, next_seq, self.next_seq, &mut bytes);
                    group.push(batch);
                }
                if let Err(refused) = self.write(&bytes, next_seq) {
                    let waiting = self.queue.break_with(refused.clone());
                    group
                        .into_iter()
                        .chain(rest)
                        .chain(waiting)
                        .for_each(|batch| batch.settle(Err(refused.clone())));
                    return;
                }
                group.into_iter().for_each(|batch| batch.settle(Ok(())));
            }
        }
    }

    /// Makes `bytes` durable, or says why the log is broken from now on.
    fn write(&mut self, bytes: &[u8], next_seq: u64) -> Result<(), Refused> {
        let written =
            self.ledger.write_at(bytes, self.end).map_err(|error| format!("a write failed: {error}"));
        let began = Instant::now();
        written
            .and_then(|()| self.ledger.sync().map_err(|error| format!("a sync failed: {error}")))
            .map_err(|why| self.cut_back(&why))?;
        let len = bytes.len() as u64;
        self.queue.note(next_seq - self.next_seq, len, began.elapsed());
        self.end += len;
        self.written_since_look += len;
        self.next_seq = next_seq;
        Ok(())
    }

    /// Takes back what no one was told is there. If that fails too, the next opening finds a torn tail or
    /// records of operations whose results were never released: both are harmless.
    fn cut_back(&mut self, why: &str) -> Refused {
        tracing::error!(
            why,
            offset = self.end,
            "the audit log is broken; nothing is done until it is opened again"
        );
        if let Err(error) = self.ledger.cut(self.end) {
            tracing::error!(%error, offset = self.end, "the audit log could not be cut back to its last good record");
        }
        Refused(format!("{why}; see to its disk, then restart the server"))
    }

    fn look_at_disk(&mut self) {
        self.looked_at = Instant::now();
        self.written_since_look = 0;
        let (free, low) = match self.ledger.free_bytes() {
            Ok(free) if free >= self.free_bytes_min => (free, None),
            Ok(free) => {
                (free, Some(format!("its disk has {free} bytes free, fewer than {}", self.free_bytes_min)))
            }
            Err(error) => (0, Some(format!("its disk does not say how much is free: {error}"))),
        };
        self.queue.set_low(low.map(Refused), free);
    }
}

impl Batch {
    /// Upper bound of what the batch takes on disk, in bytes.
    pub(crate) fn len_on_disk_max(&self) -> usize {
        self.lines.len() + self.slots.len() * line::PREFIX_LEN_MAX
    }
}

/// However the thread ends, also by a defect: nobody waits for it in vain, and nothing more is taken.
struct RefuseAtEnd(Arc<Queue>);

impl Drop for RefuseAtEnd {
    fn drop(&mut self) {
        drop(self.0.break_with(Refused("its writer has stopped".to_owned())));
    }
}
