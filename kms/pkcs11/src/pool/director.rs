//! Starts workers one after another, replaces those that die or hang, and stops at the first refused PIN.
//!
//! One task owns all of it. Starting one at a time keeps two promises: with a wrong PIN exactly one C_Login reaches
//! the token, and no process looks for the token while SoftHSM rewrites it. It also makes a start the probe of a link
//! that is down: one process after another, later and later, until one comes back with a canary.
//!
//! Beside the workers that serve stand spare ones, READY and idle, which take over in the moment in which a serving
//! one dies, hangs or grows old.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use kms_core::pin_latch::Outcome;
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::sleep_until,
};

mod login;

use super::{
    Shared,
    events::{self, Event},
    link::Link,
    login::{After, Logins},
    rendezvous::{self, Arrival},
    slot::{Login, Slot, Start, State},
    status::Status,
};
use crate::wire::{Exit, FromSupervisor, Ready, Refusal, RefusalKind, Secret, ToSupervisor, frame};

/// The director looks again after this time at the latest.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And after this time at the earliest, while a start hangs.
const LOOK_REST: Duration = Duration::from_millis(100);
/// A worker that did less than this is not suspected of leaking memory.
const OPERATIONS_BEFORE_LEAK: u64 = 100;
/// How long after the end of a worker that never came in its hello may still arrive.
const ARRIVAL_GRACE: Duration = Duration::from_millis(200);
/// Events that may wait for the director.
const EVENTS_MAX: usize = 256;

struct Director {
    shared: Arc<Shared>,
    control: OwnedWriteHalf,
    sender: mpsc::Sender<Event>,
    slots: Vec<Slot>,
    /// Hellos that came before the supervisor's word of their worker.
    early: Vec<Arrival>,
    links: JoinSet<()>,
    logins: Logins,
    pin_refused: Option<String>,
    /// The last refused start, and how many in a row.
    failing: Option<(Refusal, u32)>,
    /// Logins in a row that ended in doubt.
    doubts: u32,
    /// The supervisor is gone.
    abandoned: bool,
}

/// Starts the director's task.
pub(super) fn spawn(shared: Arc<Shared>, listener: UnixListener, control: UnixStream) -> AbortHandle {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let (reader, writer) = control.into_split();
    let mut links = JoinSet::new();
    // Helpers live in the director's set, so that they end with it.
    links.spawn(rendezvous::accept(listener, sender.clone()));
    links.spawn(events::listen(reader, sender.clone()));
    let (logins, logins_task) = Logins::new(shared.config.latch.clone(), sender.clone());
    links.spawn(logins_task);
    let now = Instant::now();
    let wanted = shared.config.workers.max(1).saturating_add(shared.config.spare_workers);
    let slots = (1..=wanted).map(|number| Slot::new(number, now)).collect();
    let director = Director {
        shared,
        control: writer,
        sender,
        slots,
        early: Vec::new(),
        links,
        logins,
        pin_refused: None,
        failing: None,
        doubts: 0,
        abandoned: false,
    };
    tokio::spawn(director.run(events)).abort_handle()
}

impl Director {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        loop {
            self.retire_one();
            let until = self.start_next().await;
            let event = tokio::select! {
                event = events.recv() => event,
                // Forget helpers that have ended.
                Some(_) = self.links.join_next() => continue,
                () = sleep_until(until.into()) => { self.report_slow_start().await; continue }
            };
            // The sender is ours too: this task ends with the pool.
            let Some(event) = event else { return };
            self.hear(event).await;
        }
    }

    /// Starts a worker when one is due and none is starting. Returns when to look again.
    async fn start_next(&mut self) -> Instant {
        let now = Instant::now();
        let far = now + LOOK_EVERY;
        if self.abandoned || self.pin_refused.is_some() {
            return far;
        }
        if let Some(since) = self.slots.iter().find_map(Slot::starting_since) {
            return since
                .map_or(far, |since| since + self.shared.config.startup_timeout)
                .max(now + LOOK_REST);
        }
        let due = self.slots.iter_mut().filter_map(|slot| match slot.state {
            State::Down { until } => Some((until, slot)),
            _ => None,
        });
        match due.min_by_key(|(until, slot)| (*until, slot.number)) {
            Some((until, slot)) if until <= now => {
                slot.state = State::Spawning;
                let number = slot.number;
                self.tell(&ToSupervisor::Spawn { number }).await;
                far
            }
            Some((until, _)) => until,
            None => far,
        }
    }

    async fn hear(&mut self, event: Event) {
        match event {
            Event::Control(FromSupervisor::Spawned { number, pid, secret }) => {
                self.spawned(number, pid, secret)
            }
            Event::Control(FromSupervisor::SpawnFailed { number, text }) => {
                self.note_failure(Refusal { kind: RefusalKind::Configuration, text });
                self.down(number, false);
            }
            Event::Control(FromSupervisor::Exited(exit)) => self.exited(&exit),
            Event::Arrived(arrival) => self.arrived(arrival),
            Event::LoggingIn { number, pid, token_serial } => self.logging_in(number, pid, token_serial),
            Event::Latch { number, pid, token_serial, verdict } => {
                self.latch_spoke(number, pid, token_serial, verdict)
            }
            Event::LoggedIn { number, pid } => self.logged_in(number, pid),
            Event::Ready { number, pid, ready } => self.ready(number, pid, ready).await,
            Event::Settled { number, pid, after, refused } => self.settled(number, pid, after, refused).await,
            Event::Refused { number, pid, refusal } => self.refused(number, pid, refusal),
            Event::LinkClosed { number, pid } => self.link_closed(number, pid).await,
            Event::Hung { number, pid } => self.part(number, pid, "it does not answer").await,
            Event::Lost { number, pid } => self.part(number, pid, "its HSM link is lost").await,
            // A spare serves while one is silent, and rests again when it was not for long.
            Event::Stalled => self.publish(),
            Event::Drained { number, pid } => self.part(number, pid, "its successor serves").await,
            Event::ControlClosed => {
                tracing::error!("the supervisor is gone: HSM workers can no longer be replaced");
                // Workers that live serve on, and what a login under way comes to is still kept.
                self.abandoned = true;
                self.publish();
            }
        }
    }

    fn spawned(&mut self, number: u16, pid: u32, secret: Secret) {
        if let Some(slot) = self.slot(number) {
            slot.state = State::Starting(Start {
                pid,
                secret,
                since: Instant::now(),
                link: None,
                link_closed: false,
                login: Login::Before,
                ready: None,
                exit: None,
            });
        }
        // One of them may be it; the others are strangers, or dead already.
        for arrival in std::mem::take(&mut self.early) {
            self.arrived(arrival);
        }
    }

    /// Lets a worker in when process id, number and secret are those of the one that was just spawned.
    fn arrived(&mut self, arrival: Arrival) {
        let spawning = self.slots.iter().any(|slot| matches!(slot.state, State::Spawning));
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.number == arrival.hello.number) else {
            return;
        };
        match &mut slot.state {
            State::Spawning if self.early.len() < EVENTS_MAX => self.early.push(arrival),
            State::Starting(start)
                if start.link.is_none()
                    && start.pid == arrival.pid
                    && start.secret.matches(&arrival.hello.secret) =>
            {
                let new = Arc::new(Link::new(
                    arrival.hello.number,
                    arrival.pid,
                    self.shared.config.sessions_per_worker,
                ));
                start.link = Some(Arc::clone(&new));
                let (reader, writer) = arrival.stream.into_split();
                self.links.spawn(events::attend(
                    new,
                    reader,
                    writer,
                    arrival.inbox,
                    Arc::clone(&self.shared),
                    self.sender.clone(),
                ));
            }
            _ => tracing::warn!(
                pid = arrival.pid,
                spawning,
                "a process that is no worker of ours was turned away"
            ),
        }
    }

    async fn ready(&mut self, number: u16, pid: u32, ready: Ready) {
        self.logged_in(number, pid);
        let Some(start) = self.slot(number).and_then(|slot| slot.start_of(pid)) else { return };
        if start.login == Login::Settling {
            start.ready = Some(ready);
            return;
        }
        let Some(link) = start.link.clone() else { return };
        if let Some(status) = start.exit.take() {
            return self.died_starting(number, pid, status);
        }
        let first = self.shared.token.load_full();
        if let Some(first) = first.filter(|first| first.token_serial != ready.token_serial) {
            tracing::error!(
                was = first.token_serial,
                is = ready.token_serial,
                "a worker found another token"
            );
            self.note_failure(Refusal {
                kind: RefusalKind::Configuration,
                text: "the pkcs11: URI now names another token than at start; restart kms if that is meant"
                    .to_owned(),
            });
            self.tell(&ToSupervisor::IsReady { pid }).await;
            if let Some(slot) = self.slot(number) {
                slot.state = State::Leaving { pid, served: false };
            }
            return self.tell(&ToSupervisor::Kill { pid }).await;
        }
        let Some(slot) = self.slot(number) else { return };
        slot.state = State::Ready { link, since: Instant::now() };
        self.tell(&ToSupervisor::IsReady { pid }).await;
        tracing::info!(
            number,
            pid,
            token = ready.token_label,
            library = ready.library,
            "HSM worker is ready"
        );
        self.shared.token.store(Some(Arc::new(ready)));
        (self.failing, self.doubts) = (None, 0);
        self.publish();
    }

    fn refused(&mut self, number: u16, pid: u32, refusal: Refusal) {
        let outcome = match refusal.kind {
            RefusalKind::Pin => Outcome::Refused(refusal.text.clone()),
            RefusalKind::LoginInDoubt => Outcome::Died(refusal.text.clone()),
            RefusalKind::Configuration | RefusalKind::Capacity | RefusalKind::Passing => Outcome::NotTried,
        };
        if self.settle(number, pid, outcome, After::Refuse(refusal.clone())) {
            return;
        }
        if refusal.kind == RefusalKind::LoginInDoubt {
            self.doubt(number);
        }
        let gone = match self.slot(number).and_then(|slot| slot.start_of(pid)) {
            Some(start) => start.exit.is_some(),
            // A PIN try is spent, whatever became of the worker.
            None if refusal.kind == RefusalKind::Pin => return self.note_failure(refusal),
            None => return,
        };
        if refusal.kind == RefusalKind::Capacity && self.slots.iter().any(|slot| slot.ready().is_some()) {
            tracing::warn!(
                number,
                reason = refusal.text,
                "an HSM worker found no room and will try again later"
            );
            if let Some(slot) = self.slot(number) {
                slot.wait_long();
            }
        } else {
            self.note_failure(refusal);
        }
        if gone {
            self.down(number, false);
        } else if let Some(slot) = self.slot(number) {
            slot.state = State::Leaving { pid, served: false };
        }
    }

    async fn link_closed(&mut self, number: u16, pid: u32) {
        if let Some(start) = self.slot(number).and_then(|slot| slot.start_of(pid)) {
            start.link_closed = true;
            if start.login != Login::Settling
                && let Some(status) = start.exit.take()
            {
                self.died_starting(number, pid, status);
            }
            // Its end, and how it ended, is still to come; one that lingers is a slow start.
            return;
        }
        self.part(number, pid, "its connection ended").await;
    }

    /// Ends a READY worker. A starting one is let be: it leaves by itself, or hangs and is reported.
    async fn part(&mut self, number: u16, pid: u32, why: &str) {
        let kill_starting = self.shared.token.load().as_ref().is_some_and(|token| token.may_die_starting);
        let Some(slot) = self.slot(number) else { return };
        let served = slot.has_served();
        match &slot.state {
            State::Ready { link, .. } | State::Retiring { link } if link.pid == pid => {
                link.close(&format!("the HSM worker was replaced: {why}"));
            }
            // Not inside C_Login: the token may have counted the try already.
            State::Starting(start) if start.pid == pid && kill_starting && !start.login.is_open() => {}
            _ => return,
        }
        slot.state = State::Leaving { pid, served };
        tracing::warn!(number, pid, why, "HSM worker is replaced");
        self.publish();
        self.tell(&ToSupervisor::Kill { pid }).await;
    }

    fn exited(&mut self, exit: &Exit) {
        let startup_timeout = self.shared.config.startup_timeout;
        let Some(slot) = self.slot(exit.number) else { return };
        let served = slot.has_served();
        match &mut slot.state {
            State::Ready { link, .. } | State::Retiring { link } if link.pid == exit.pid => {
                link.close("the HSM worker died");
            }
            State::Leaving { pid, .. } if *pid == exit.pid => {}
            State::Starting(start) if start.pid == exit.pid => {
                tracing::warn!(
                    pid = exit.pid,
                    status = exit.status,
                    "HSM worker is gone before it was ready"
                );
                if !start.link_closed || start.login == Login::Settling {
                    // What it still said, a refusal perhaps, is being read, or being kept; or it has come to our
                    // door and was not let in yet.
                    start.exit = Some(exit.status.clone());
                    if start.link.is_none() {
                        start.overdue_in(ARRIVAL_GRACE, startup_timeout);
                    }
                    return;
                }
                return self.died_starting(exit.number, exit.pid, exit.status.clone());
            }
            _ => return,
        }
        tracing::warn!(number = exit.number, pid = exit.pid, status = exit.status, "HSM worker is gone");
        self.down(exit.number, served);
    }

    /// Lets the oldest worker go, by what it has done or what it holds in memory: vendor libraries leak. One at a
    /// time, and only while another is READY, so that nobody waits for it: a single worker without a spare stays.
    fn retire_one(&mut self) {
        if self.slots.len() < 2 || !self.slots.iter().all(|slot| slot.ready().is_some()) {
            return;
        }
        let config = &self.shared.config;
        let worn = |link: &Link| {
            let operations = link.answered();
            if config.worker_operations_max.is_some_and(|max| operations >= max.get()) {
                return Some(format!("it did {operations} operations"));
            }
            // One that has done little has not leaked: its successor would be as large.
            let max = config.worker_memory_bytes_max.filter(|_| operations >= OPERATIONS_BEFORE_LEAK)?;
            let bytes = resident_bytes(link.pid).filter(|bytes| *bytes >= max.get())?;
            Some(format!("it holds {} MiB of memory", bytes >> 20))
        };
        let oldest = self.slots.iter_mut().find_map(|slot| {
            let link = slot.ready()?;
            Some((Arc::clone(link), worn(link)?, slot))
        });
        let Some((link, why, slot)) = oldest else { return };
        tracing::info!(number = link.number, pid = link.pid, why, "HSM worker retires");
        slot.serving = false;
        slot.state = State::Retiring { link: Arc::clone(&link) };
        self.shared.recycled.fetch_add(1, Ordering::Relaxed);
        // First the spare, so that callers always find somebody.
        self.publish();
        link.retire();
    }

    /// A worker ended before it was READY and without saying why.
    fn died_starting(&mut self, number: u16, pid: u32, status: String) {
        if self.settle(number, pid, Outcome::Died(status.clone()), After::Bury(status.clone())) {
            return;
        }
        let text = format!("an HSM worker died while it started ({status})");
        self.note_failure(Refusal { kind: RefusalKind::Passing, text });
        self.down(number, false);
    }

    /// A login may or may not have spent a PIN try. The first may be chance; after the second in a row the next waits.
    pub(super) fn doubt(&mut self, number: u16) {
        self.doubts = self.doubts.saturating_add(1);
        if self.doubts > 1
            && let Some(slot) = self.slot(number)
        {
            slot.wait_long();
        }
    }

    fn down(&mut self, number: u16, served: bool) {
        if let Some(slot) = self.slot(number) {
            slot.went_down(served);
        }
        self.shared.respawns.fetch_add(1, Ordering::Relaxed);
        self.publish();
    }

    fn note_failure(&mut self, refusal: Refusal) {
        if refusal.kind == RefusalKind::Pin {
            tracing::error!(
                reason = refusal.text,
                "the login failed; no HSM worker will be started any more"
            );
            self.pin_refused.get_or_insert(refusal.text.clone());
        } else {
            tracing::warn!(reason = refusal.text, "HSM worker could not start");
        }
        let attempts = self.failing.take().map_or(0, |(_, attempts)| attempts).saturating_add(1);
        self.failing = Some((refusal, attempts));
        self.publish();
    }

    /// Says loudly that a start hangs. Killing it could destroy the token, so only a profile that allows it does.
    async fn report_slow_start(&mut self) {
        let limit = self.shared.config.startup_timeout;
        let slow = self.slots.iter_mut().find_map(|slot| match &mut slot.state {
            State::Starting(start) if start.since.elapsed() >= limit => {
                start.since = Instant::now();
                let exit = start.exit.take_if(|_| start.login != Login::Settling);
                Some((slot.number, start.pid, exit))
            }
            _ => None,
        });
        if let Some((number, pid, Some(status))) = slow {
            // It is gone and never came in, or something that it left behind holds its connection open.
            self.died_starting(number, pid, status);
        } else if let Some((number, pid, None)) = slow {
            let text = format!(
                "HSM worker {pid} has been starting for {limit:?}; it is not killed, look at the HSM"
            );
            tracing::error!(number, pid, "{text}");
            self.failing = Some((Refusal { kind: RefusalKind::Configuration, text }, u32::MAX));
            self.publish();
            self.part(number, pid, "its start hangs").await;
        }
    }

    /// Chooses who serves, and shows callers those and the state that follows from them.
    fn publish(&mut self) {
        let wanted = usize::from(self.shared.config.workers.max(1));
        let mut room = wanted;
        // Those that serve keep on, and keep their caches warm; a silent one counts for nothing.
        for wants_to_serve in [true, false] {
            for slot in &mut self.slots {
                let Some(stalled) = slot.ready().map(|link| link.is_stalled()) else { continue };
                if slot.serving == wants_to_serve && !stalled {
                    slot.serving = room > 0;
                    room = room.saturating_sub(1);
                }
            }
        }
        let serving: Vec<Arc<Link>> =
            self.slots.iter().filter(|slot| slot.serving).filter_map(Slot::ready).cloned().collect();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let ready = self.slots.iter().filter_map(Slot::ready).count();
        self.shared.workers_ready.store(count(ready.min(wanted)), Ordering::Relaxed);
        self.shared.spares_ready.store(count(ready.saturating_sub(wanted)), Ordering::Relaxed);
        let status = match (&self.pin_refused, &self.failing) {
            _ if self.abandoned => Status::Abandoned,
            _ if ready > 0 => Status::Ready,
            (Some(text), _) => Status::PinRefused(text.clone()),
            (None, Some((refusal, attempts))) => {
                Status::Failing { refusal: refusal.clone(), attempts: *attempts }
            }
            (None, None) => Status::Starting,
        };
        self.shared.links.store(Arc::new(serving));
        self.shared.status.send_replace(status);
        self.shared.refill();
    }

    async fn tell(&mut self, message: &ToSupervisor) {
        let mut out = Vec::new();
        frame(&mut out, |body| message.encode(body));
        // A supervisor that is gone is heard of by `listen`.
        let _ = self.control.write_all(&out).await;
    }

    fn slot(&mut self, number: u16) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.number == number)
    }
}

/// What a process holds in memory (proc_pid_statm(5)): `None` when it is gone, or may not be looked at.
fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}
