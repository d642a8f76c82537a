//! One worker as callers see it: what was sent and not answered, and the two halves of its socket.
//!
//! Callers append requests to a buffer; the writer sends whatever has gathered in one write; the reader takes every
//! answer of one read. Nothing here is per call but one table entry and one oneshot.
//!
//! A worker holds few calls, a *window*: as much as it does in [`WINDOW_NS`], so that it hardly ever waits for us, and no
//! more, because what it holds has no turn any more: of long calls one for each session. The rest waits in the `queue`.
//!
//! A worker that ends takes no call with it that may be made twice: those that it was probably not at go to another
//! worker as if nothing had happened, the others once ([`SUSPECTS_MAX`], `call::ENDINGS_MAX`), so that a call that
//! crashes the vendor's library costs two workers and no more.

use std::{
    collections::HashMap,
    io, mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use kms_core::hsm::Fault;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::{Notify, mpsc},
};

use super::{
    Shared,
    call::{Call, NewCall, Reply},
    cost::{Costs, Kind},
    events::Event,
};
use crate::{
    clock,
    wire::{Answer, FromWorker, Inbox, LOG_IN, Outbox, Request, STAY_OUT},
};

/// Added to a worker's weight while it changes the token: signatures should not wait behind a key generation.
const WEIGHT_CHANGING: u32 = 1 << 20;
/// Added while it is suspiciously silent.
const WEIGHT_STALLED: u32 = 1 << 24;
/// The weight of a worker that takes nothing more.
const WEIGHT_CLOSED: u32 = u32::MAX;
/// How much work, in nanoseconds, a worker holds.
const WINDOW_NS: u64 = 4_000_000;
/// Most calls that it holds, however short they are.
const WINDOW_CALLS_MAX: usize = 64;
/// Largest write buffer that is kept for reuse, in bytes.
const BUFFER_KEPT_MAX: usize = 256 * 1024;
/// How many of the oldest unanswered calls an ended worker may have been at: one for each session, and those whose
/// answers were made and not sent yet.
const SUSPECTS_MAX: usize = 16;

/// One worker.
pub(super) struct Link {
    pub(super) number: u16,
    pub(super) pid: u32,
    state: Mutex<State>,
    /// What [`Link::weight`] shows; written under the lock.
    weight: AtomicU32,
    /// What [`Link::is_full`] shows; written under the lock.
    full: AtomicBool,
    sessions: usize,
    /// Wakes the writer.
    outgoing: Notify,
    /// Wakes the watch.
    pub(super) active: Notify,
}

struct State {
    calls: HashMap<u64, Call>,
    next_id: u64,
    out: Outbox,
    /// Whether the writer knows that there is something to write.
    writing: bool,
    /// Whether the watch looks at this link.
    watched: bool,
    closed: bool,
    /// Takes nothing more, and finishes what it has.
    retiring: bool,
    /// The worker has said that its HSM link is lost, and is about to end.
    lost: bool,
    stalled: bool,
    /// How many of `calls` change the token.
    changing: u32,
    /// What all of `calls` are expected to cost, in nanoseconds.
    load_ns: u64,
    /// Answers that said more than that the link is lost.
    answered: u64,
    /// The newest call that was answered: older ones have been met by a session.
    answered_id_max: u64,
    /// Since when the oldest call is the oldest: its sending, or the last answer before it.
    head_since: Instant,
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
    pub(super) fn new(number: u16, pid: u32, sessions: u16) -> Self {
        let state = State {
            calls: HashMap::new(),
            next_id: 0,
            out: Outbox::default(),
            writing: false,
            watched: false,
            closed: false,
            retiring: false,
            lost: false,
            stalled: false,
            changing: 0,
            load_ns: 0,
            answered: 0,
            answered_id_max: 0,
            head_since: Instant::now(),
        };
        Self {
            number,
            pid,
            state: Mutex::new(state),
            weight: AtomicU32::new(0),
            full: AtomicBool::new(false),
            sessions: usize::from(sessions.max(1)),
            outgoing: Notify::new(),
            active: Notify::new(),
        }
    }

    /// How much it has to do, or `None` when it takes nothing more. A hint: read without the lock.
    pub(super) fn weight(&self) -> Option<u32> {
        Some(self.weight.load(Ordering::Relaxed)).filter(|weight| *weight != WEIGHT_CLOSED)
    }

    /// Whether it holds as much as it should. A hint, like its weight.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Queues a call for the worker, or gives it back when the worker takes none.
    pub(super) fn submit(&self, call: Call) -> Option<Call> {
        let Call { reply, call: NewCall { place, operation, deadline, endings, repeated } } = call;
        let deadline_ns = clock::instant_ns(deadline);
        let mut state = self.lock();
        if state.takes_nothing() {
            return Some(Call { reply, call: NewCall { place, operation, deadline, endings, repeated } });
        }
        let id = state.next_id;
        state.next_id += 1;
        let request = Request { id, deadline_ns, operation };
        state.out.push(request.secret_len_max(), |body| request.encode(body));
        if state.calls.is_empty() {
            state.head_since = Instant::now();
        }
        state.changing += u32::from(place.changes());
        state.load_ns += place.cost_ns;
        let call = NewCall { place, operation: request.operation, deadline, endings, repeated };
        state.calls.insert(id, Call { reply, call });
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
        None
    }

    /// Tells the worker whether it may call C_Login.
    pub(super) fn answer_login(&self, may: bool) {
        let mut state = self.lock();
        state.out.push_whole(if may { &LOG_IN } else { &STAY_OUT });
        state.writing = true;
        drop(state);
        self.outgoing.notify_one();
    }

    /// Sends what callers queue, until the socket fails.
    pub(super) async fn write(&self, mut socket: OwnedWriteHalf) -> io::Result<()> {
        let mut sending = Outbox::default();
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
            socket.write_all(sending.bytes()).await?;
            sending.clear(BUFFER_KEPT_MAX);
        }
    }

    /// Hands out answers until the socket ends, and lets those follow that wait; the director hears everything else.
    pub(super) async fn read(
        &self,
        mut socket: OwnedReadHalf,
        mut inbox: Inbox,
        events: &mpsc::Sender<Event>,
        shared: &Shared,
    ) -> io::Result<()> {
        let (number, pid) = (self.number, self.pid);
        let mut answers = Vec::new();
        loop {
            while let Some(body) = inbox.take().map_err(io::Error::other)? {
                let message = FromWorker::decode(body).map_err(io::Error::other)?;
                if message.secret_len_max().is_some() {
                    inbox.wipe_taken();
                }
                match message {
                    FromWorker::Answer(answer) => answers.push(answer),
                    FromWorker::LoggingIn(token_serial) => {
                        drop(events.send(Event::LoggingIn { number, pid, token_serial }).await)
                    }
                    FromWorker::LoggedIn => drop(events.send(Event::LoggedIn { number, pid }).await),
                    FromWorker::Ready(ready) => drop(events.send(Event::Ready { number, pid, ready }).await),
                    FromWorker::Refused(refusal) => {
                        drop(events.send(Event::Refused { number, pid, refusal }).await)
                    }
                    FromWorker::Hello(_) => return Err(io::Error::other("a second hello")),
                }
            }
            if !answers.is_empty() {
                let late = self.settle(&mut answers, &shared.queue.costs)?;
                shared.expired.fetch_add(late, Ordering::Relaxed);
                shared.refill();
            }
            match socket.read(inbox.room()).await? {
                0 => return Ok(()),
                len => inbox.filled(len),
            }
        }
    }

    /// Takes nothing more. Calls in flight that may be made twice go to other workers, the others fail.
    pub(super) fn close(&self, why: &str) {
        let mut state = self.lock();
        state.closed = true;
        state.out = Outbox::default();
        (state.changing, state.load_ns) = (0, 0);
        let mut calls: Vec<_> = mem::take(&mut state.calls).into_iter().collect();
        self.weigh(&state);
        drop(state);
        calls.sort_unstable_by_key(|(id, _)| *id);
        for (age, (_, Call { reply, call })) in calls.into_iter().enumerate() {
            if let Some(reply) = reply {
                let fault = Fault::Unavailable(why.to_owned());
                // A caller that has gone needs no answer.
                let _ = reply.send(call.ended(age < SUSPECTS_MAX, fault));
            }
        }
    }

    /// Takes nothing more, and lets the worker finish what it has.
    pub(super) fn retire(&self) {
        let mut state = self.lock();
        state.retiring = true;
        state.watched = true;
        self.weigh(&state);
        drop(state);
        self.active.notify_one();
    }

    /// Whether it was retired and has finished.
    pub(super) fn is_drained(&self) -> bool {
        let state = self.lock();
        state.retiring && state.calls.is_empty()
    }

    /// Whether the worker has said that its HSM link is lost.
    pub(super) fn is_lost(&self) -> bool {
        self.lock().lost
    }

    /// How many calls the worker has answered.
    pub(super) fn answered(&self) -> u64 {
        self.lock().answered
    }

    /// Whether the worker is suspiciously silent.
    pub(super) fn is_stalled(&self) -> bool {
        self.lock().stalled
    }

    /// Tells callers whose deadline has passed, and looks whether the worker still answers.
    pub(super) fn look(&self, now: Instant, stalled_after: Duration, patience: &Patience) -> Sight {
        let mut state = self.lock();
        if state.calls.is_empty() {
            return Sight::Idle;
        }
        let mut late = Vec::new();
        let mut overdue = false;
        let met = state.answered_id_max;
        for (id, Call { reply, call }) in state.calls.iter_mut().filter(|(_, call)| call.call.deadline <= now)
        {
            late.extend(reply.take());
            // Calls are met in their order, and late ones dropped then. One that was overtaken by an answer is in the
            // hands of a session that hangs; one that was not may only stand in a long queue.
            overdue |= patience.many_sessions
                && (*id < met && now > call.deadline.max(patience.since) + patience.timeout
                    || now > call.deadline + patience.longest);
        }
        overdue |= now > state.head_since + patience.longest;
        let waited = now.saturating_duration_since(state.head_since.max(patience.since));
        state.stalled = waited > stalled_after;
        self.weigh(&state);
        drop(state);
        for reply in late {
            let _ = reply.send(Reply::Answered(Err(Fault::DeadlineExceeded)));
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

    fn settle(&self, answers: &mut Vec<Answer>, costs: &Costs) -> io::Result<u64> {
        let (mut late, mut unknown) = (0, false);
        let mut done: Vec<Kind> = Vec::with_capacity(answers.len());
        let mut settled = Vec::with_capacity(answers.len());
        let mut state = self.lock();
        for Answer { id, result } in answers.drain(..) {
            let Some(call) = state.calls.remove(&id) else {
                unknown |= !state.closed;
                continue;
            };
            state.answered_id_max = state.answered_id_max.max(id);
            let place = &call.call.place;
            state.changing -= u32::from(place.changes());
            state.load_ns -= place.cost_ns;
            if !matches!(result, Err(Fault::DeadlineExceeded | Fault::Unavailable(_))) {
                done.push(place.kind);
            }
            late += u64::from(matches!(result, Err(Fault::DeadlineExceeded)));
            if matches!(result, Err(Fault::Unavailable(_))) {
                state.lost = true;
            } else {
                state.answered += 1;
            }
            settled.push((call, result));
        }
        let now = Instant::now();
        costs.learn(&done, now.saturating_duration_since(mem::replace(&mut state.head_since, now)));
        state.stalled = false;
        self.weigh(&state);
        drop(state);
        for (Call { reply, call }, result) in settled {
            if let Some(reply) = reply {
                let answer = match result {
                    // The worker's last word: it has lost the HSM link and ends.
                    Err(fault @ Fault::Unavailable(_)) => call.ended(true, fault),
                    result => Reply::Answered(result),
                };
                // A caller that has gone needs no answer.
                let _ = reply.send(answer);
            }
        }
        if unknown { Err(io::Error::other("an answer to no question")) } else { Ok(late) }
    }

    fn weigh(&self, state: &State) {
        let weight = if state.takes_nothing() {
            WEIGHT_CLOSED
        } else {
            let calls = u32::try_from(state.calls.len()).unwrap_or(WEIGHT_CHANGING).min(WEIGHT_CHANGING - 1);
            calls
                + if state.changing > 0 { WEIGHT_CHANGING } else { 0 }
                + if state.stalled { WEIGHT_STALLED } else { 0 }
        };
        self.weight.store(weight, Ordering::Relaxed);
        let len = state.calls.len();
        let full = len >= WINDOW_CALLS_MAX || len >= self.sessions && state.load_ns >= WINDOW_NS;
        self.full.store(full, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn takes_nothing(&self) -> bool {
        self.closed || self.retiring || self.lost
    }
}

#[cfg(test)]
mod tests;
