//! One worker as callers see it: what was sent and not answered, and the two halves of its socket.
//!
//! Callers append requests to a buffer; the writer sends whatever has gathered in one write; the reader takes every
//! answer of one read. Nothing here is per call but one table entry and one oneshot.

use std::{
    collections::HashMap,
    io, mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kms_core::hsm::Fault;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::{Notify, mpsc, oneshot},
};

use super::{events::Event, queue::Place};
use crate::{
    clock,
    wire::{Answer, FromWorker, Inbox, LOG_IN, Operation, Outcome, Request, frame},
};

/// Added to a worker's weight while it changes the token: signatures should not wait behind a key generation.
const WEIGHT_CHANGING: u32 = 1 << 20;
/// Added while it is suspiciously silent.
const WEIGHT_STALLED: u32 = 1 << 24;
/// The weight of a worker that takes nothing more.
const WEIGHT_CLOSED: u32 = u32::MAX;
/// Largest write buffer that is kept for reuse, in bytes.
const BUFFER_KEPT_MAX: usize = 256 * 1024;

/// A call on its way in.
pub(super) struct NewCall {
    pub(super) place: Place,
    pub(super) operation: Operation,
    pub(super) deadline: Instant,
}

/// One worker.
pub(super) struct Link {
    pub(super) number: u16,
    pub(super) pid: u32,
    state: Mutex<State>,
    /// What [`Link::weight`] shows; written under the lock.
    weight: AtomicU32,
    /// Wakes the writer.
    outgoing: Notify,
    /// Wakes the watch.
    pub(super) active: Notify,
}

struct State {
    calls: HashMap<u64, Call>,
    next_id: u64,
    out: Vec<u8>,
    /// Whether the writer knows that there is something to write.
    writing: bool,
    /// Whether the watch looks at this link.
    watched: bool,
    closed: bool,
    stalled: bool,
    /// How many of `calls` change the token.
    changing: u32,
    /// Whether it ever answered with more than that the link is lost.
    answered: bool,
    /// Since when the oldest call is the oldest: its sending, or the last answer before it.
    head_since: Instant,
}

struct Call {
    /// `None` once the caller was told that its deadline passed. The place is held until the worker answers.
    reply: Option<oneshot::Sender<Result<Outcome, Fault>>>,
    deadline: Instant,
    place: Place,
}

/// What the watch saw.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// Nothing in flight.
    Idle,
    /// Calls in flight, answers coming.
    Busy,
    /// The oldest call has waited too long.
    Hung,
}

/// When a worker counts as hung.
pub(super) struct Patience {
    pub(super) timeout: Duration,
    /// Waiting before this moment does not count,
    pub(super) since: Instant,
    /// up to this limit: changes that end all the time must not hide a hung worker.
    pub(super) longest: Duration,
    /// Whether one hung session may hide behind others that answer.
    pub(super) many_sessions: bool,
}

impl Link {
    pub(super) fn new(number: u16, pid: u32) -> Self {
        let state = State {
            calls: HashMap::new(),
            next_id: 0,
            out: Vec::new(),
            writing: false,
            watched: false,
            closed: false,
            stalled: false,
            changing: 0,
            answered: false,
            head_since: Instant::now(),
        };
        Self {
            number,
            pid,
            state: Mutex::new(state),
            weight: AtomicU32::new(0),
            outgoing: Notify::new(),
            active: Notify::new(),
        }
    }

    /// How much it has to do, or `None` when it takes nothing more. A hint: read without the lock.
    pub(super) fn weight(&self) -> Option<u32> {
        Some(self.weight.load(Ordering::Relaxed)).filter(|weight| *weight != WEIGHT_CLOSED)
    }

    /// Queues a call for the worker. Gives it back when the worker is gone; then nothing was sent.
    pub(super) fn submit(&self, call: NewCall) -> Result<oneshot::Receiver<Result<Outcome, Fault>>, NewCall> {
        let deadline_ns = clock::instant_ns(call.deadline);
        let mut state = self.lock();
        if state.closed {
            return Err(call);
        }
        let NewCall { place, operation, deadline } = call;
        let id = state.next_id;
        state.next_id += 1;
        frame(&mut state.out, |body| Request { id, deadline_ns, operation }.encode(body));
        if state.calls.is_empty() {
            state.head_since = Instant::now();
        }
        state.changing += u32::from(place.changes());
        let (reply, answer) = oneshot::channel();
        state.calls.insert(id, Call { reply: Some(reply), deadline, place });
        self.weigh(&state);
        let wake_writer = !mem::replace(&mut state.writing, true);
        let wake_watch = !mem::replace(&mut state.watched, true);
        drop(state);
        if wake_writer {
            self.outgoing.notify_one();
        }
        if wake_watch {
            self.active.notify_one();
        }
        Ok(answer)
    }

    /// Tells the worker that it may call C_Login.
    pub(super) fn let_log_in(&self) {
        let mut state = self.lock();
        state.out.extend_from_slice(&LOG_IN);
        state.writing = true;
        drop(state);
        self.outgoing.notify_one();
    }

    /// Sends what callers queue, until the socket fails.
    pub(super) async fn write(&self, mut socket: OwnedWriteHalf) -> io::Result<()> {
        let mut sending = Vec::new();
        loop {
            if self.lock().calls.len() > 1 {
                // Others are at it: let every caller that can run now add its request to this write.
                tokio::task::yield_now().await;
            }
            {
                let mut state = self.lock();
                mem::swap(&mut state.out, &mut sending);
                state.writing = !sending.is_empty();
            }
            if sending.is_empty() {
                self.outgoing.notified().await;
                continue;
            }
            socket.write_all(&sending).await?;
            sending.clear();
            sending.shrink_to(BUFFER_KEPT_MAX);
        }
    }

    /// Hands out answers until the socket ends; the director hears everything else. Counts in `late` the calls that
    /// the worker dropped because their deadline had passed.
    pub(super) async fn read(
        &self,
        mut socket: OwnedReadHalf,
        mut inbox: Inbox,
        events: &mpsc::Sender<Event>,
        late: &AtomicU64,
    ) -> io::Result<()> {
        let (number, pid) = (self.number, self.pid);
        let mut answers = Vec::new();
        loop {
            while let Some(body) = inbox.take().map_err(io::Error::other)? {
                match FromWorker::decode(body).map_err(io::Error::other)? {
                    FromWorker::Answer(answer) => answers.push(answer),
                    FromWorker::LoggingIn => drop(events.send(Event::LoggingIn { number, pid }).await),
                    FromWorker::Ready(ready) => drop(events.send(Event::Ready { number, pid, ready }).await),
                    FromWorker::Refused(refusal) => {
                        drop(events.send(Event::Refused { number, pid, refusal }).await)
                    }
                    FromWorker::Hello(_) => return Err(io::Error::other("a second hello")),
                }
            }
            if !answers.is_empty() {
                late.fetch_add(self.settle(&mut answers)?, Ordering::Relaxed);
            }
            match socket.read(inbox.room()).await? {
                0 => return Ok(()),
                len => inbox.filled(len),
            }
        }
    }

    /// Fails everything in flight and takes nothing more.
    pub(super) fn close(&self, why: &str) {
        let mut state = self.lock();
        state.closed = true;
        state.out = Vec::new();
        state.changing = 0;
        let calls = mem::take(&mut state.calls);
        self.weigh(&state);
        drop(state);
        for reply in calls.into_values().filter_map(|call| call.reply) {
            // A caller that has gone needs no answer.
            let _ = reply.send(Err(Fault::Unavailable(why.to_owned())));
        }
    }

    /// Whether the worker was ever of use.
    pub(super) fn has_answered(&self) -> bool {
        self.lock().answered
    }

    /// Tells callers whose deadline has passed, and looks whether the worker still answers.
    pub(super) fn look(&self, now: Instant, stalled_after: Duration, patience: &Patience) -> Sight {
        let mut state = self.lock();
        if state.calls.is_empty() {
            return Sight::Idle;
        }
        let mut late = Vec::new();
        let mut overdue = false;
        for call in state.calls.values_mut().filter(|call| call.deadline <= now) {
            late.extend(call.reply.take());
            // The worker drops late calls when it meets them; this one it has not met for long.
            overdue |= patience.many_sessions
                && (now > call.deadline.max(patience.since) + patience.timeout
                    || now > call.deadline + patience.longest);
        }
        overdue |= now > state.head_since + patience.longest;
        let waited = now.saturating_duration_since(state.head_since.max(patience.since));
        state.stalled = waited > stalled_after;
        self.weigh(&state);
        drop(state);
        for reply in late {
            let _ = reply.send(Err(Fault::DeadlineExceeded));
        }
        if waited > patience.timeout || overdue { Sight::Hung } else { Sight::Busy }
    }

    /// Ends the watch's attention, unless a call has come meanwhile.
    pub(super) fn stop_watching(&self) -> bool {
        let mut state = self.lock();
        if state.calls.is_empty() {
            state.watched = false;
        }
        !state.watched
    }

    fn settle(&self, answers: &mut Vec<Answer>) -> io::Result<u64> {
        let mut late = 0;
        let mut settled = Vec::with_capacity(answers.len());
        let mut state = self.lock();
        for Answer { id, result } in answers.drain(..) {
            let Some(call) = state.calls.remove(&id) else {
                if state.closed {
                    continue;
                }
                return Err(io::Error::other("an answer to no question"));
            };
            state.changing -= u32::from(call.place.changes());
            late += u64::from(matches!(result, Err(Fault::DeadlineExceeded)));
            settled.push((call, result));
        }
        state.answered |= settled.iter().any(|(_, result)| !matches!(result, Err(Fault::Unavailable(_))));
        state.head_since = Instant::now();
        state.stalled = false;
        self.weigh(&state);
        drop(state);
        for (call, result) in settled {
            if let Some(reply) = call.reply {
                // A caller that has gone needs no answer.
                let _ = reply.send(result);
            }
        }
        Ok(late)
    }

    fn weigh(&self, state: &State) {
        let weight = if state.closed {
            WEIGHT_CLOSED
        } else {
            let calls = u32::try_from(state.calls.len()).unwrap_or(WEIGHT_CHANGING).min(WEIGHT_CHANGING - 1);
            calls
                + if state.changing > 0 { WEIGHT_CHANGING } else { 0 }
                + if state.stalled { WEIGHT_STALLED } else { 0 }
        };
        self.weight.store(weight, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::queue::Queue, *};

    #[test]
    fn changes_that_end_all_the_time_do_not_hide_a_hung_worker() {
        let (link, queue, began) = (Link::new(1, 1), Queue::new(1), Instant::now());
        let place = queue.enter(&Operation::Check).unwrap_or_else(|_| panic!("there is room"));
        let call = NewCall { place, operation: Operation::Check, deadline: began + Duration::from_secs(600) };
        assert!(link.submit(call).is_ok());
        let look = |after: Duration| {
            let patience = Patience {
                timeout: Duration::from_secs(5),
                since: began + after,
                longest: Duration::from_secs(65),
                many_sessions: false,
            };
            link.look(began + after, Duration::from_secs(1), &patience)
        };
        assert_eq!(look(Duration::from_secs(60)), Sight::Busy, "it waits for others' changes");
        assert_eq!(look(Duration::from_secs(70)), Sight::Hung);
    }
}
