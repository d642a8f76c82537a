//! The worker's end of the socket: leader and followers.
//!
//! A thread locks the input, takes one request out of what was read (one read brings many), lets go, executes, and
//! appends the answer to the output. The output is flushed when no request is left, or when its first answer would
//! otherwise wait longer than [`ANSWER_AGE_MAX`]: a busy worker makes few system calls, an idle one answers at once.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
    time::{Duration, Instant},
};

use super::session::{LinkLost, TokenSession};
use crate::wire::{Answer, FromWorker, Inbox, Operation, Outbox, Request};

/// How long an answer may wait for company.
const ANSWER_AGE_MAX: Duration = Duration::from_micros(200);

/// Largest buffer of answers that is kept for reuse, in bytes.
const BUFFER_KEPT_MAX: usize = 256 * 1024;

/// The socket, shared by the threads of a worker.
pub(super) struct Link {
    input: Mutex<Input>,
    output: Mutex<Output>,
}

/// Why a thread stopped serving.
pub(super) enum Ended {
    /// The pool hung up.
    Closed,
    /// The HSM link is lost; the answer that says so was sent.
    LinkLost,
    /// The socket failed, or the pool sent what it cannot mean.
    Broken,
}

struct Input {
    stream: UnixStream,
    inbox: Inbox,
}

struct Output {
    stream: UnixStream,
    buffer: Outbox,
    /// When the first answer in `buffer` was put there.
    since: Option<Instant>,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        let output = Output { stream: stream.try_clone()?, buffer: Outbox::default(), since: None };
        Ok(Self { input: Mutex::new(Input { stream, inbox: Inbox::default() }), output: Mutex::new(output) })
    }

    /// Serves requests with one session until the end.
    pub(super) fn serve(&self, mut session: TokenSession) -> Ended {
        loop {
            let request = match self.next() {
                Ok(Some(request)) => request,
                Ok(None) => return Ended::Closed,
                Err(_) => return Ended::Broken,
            };
            let started = Instant::now();
            let performed = session.perform(&request);
            let (result, lost) = match performed {
                Ok(result) => (result, false),
                Err(LinkLost(fault)) => (Err(fault), true),
            };
            let sent = self.answer(&FromWorker::Answer(Answer { id: request.id, result }), started);
            if lost {
                let _ = self.flush();
                return Ended::LinkLost;
            }
            if sent.is_err() {
                return Ended::Broken;
            }
        }
    }

    /// The next request, or `None` when the pool hung up.
    fn next(&self) -> io::Result<Option<Request>> {
        let mut input = match self.input.try_lock() {
            Ok(input) => input,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                // Another thread reads, perhaps for long.
                self.flush()?;
                lock(&self.input)
            }
        };
        loop {
            let Input { stream, inbox } = &mut *input;
            if let Some(body) = inbox.take().map_err(io::Error::other)? {
                let request = Request::decode(body).map_err(io::Error::other)?;
                if request.secret_len_max().is_some() {
                    inbox.wipe_taken();
                }
                if !is_quick(&request.operation) {
                    self.flush()?;
                }
                return Ok(Some(request));
            }
            self.flush()?;
            match stream.read(inbox.room()) {
                Ok(0) => return Ok(None),
                Ok(len) => inbox.filled(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&self, message: &FromWorker, started: Instant) -> io::Result<()> {
        let now = Instant::now();
        let mut output = lock(&self.output);
        output.buffer.push(message.secret_len_max(), |body| message.encode(body));
        let since = *output.since.get_or_insert(now);
        // The next answer will take about as long as this one did.
        if (now - since) + (now - started) > ANSWER_AGE_MAX { output.flush() } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        lock(&self.output).flush()
    }
}

impl Output {
    fn flush(&mut self) -> io::Result<()> {
        if self.since.take().is_some() {
            self.stream.write_all(self.buffer.bytes())?;
            self.buffer.clear(BUFFER_KEPT_MAX);
        }
        Ok(())
    }
}

/// Others may take seconds.
fn is_quick(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Sign { .. } | Operation::WrapKey { .. } | Operation::UnwrapKey { .. } | Operation::Check
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
