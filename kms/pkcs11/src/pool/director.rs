//! Starts workers one after another, replaces those that die or hang, and stops at the first refused PIN.
//!
//! One task owns all of it. Starting one at a time keeps two promises: with a wrong PIN exactly one C_Login reaches
//! the token, and no process looks for the token while SoftHSM rewrites it.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::sleep_until,
};

use super::{
    Shared,
    link::Link,
    rendezvous::{self, Arrival},
    slot::{Slot, State},
    status::Status,
    watch,
};
use crate::wire::{Exit, FromSupervisor, Inbox, Ready, Refusal, RefusalKind, Secret, ToSupervisor, frame};

/// The director looks again after this time at the latest.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// And after this time at the earliest, while a start hangs.
const LOOK_REST: Duration = Duration::from_millis(100);
/// Events that may wait for the director.
const EVENTS_MAX: usize = 256;

/// What the director hears.
pub(super) enum Event {
    /// From the supervisor.
    Control(FromSupervisor),
    /// The supervisor hung up.
    ControlClosed,
    /// Somebody said hello.
    Arrived(Arrival),
    /// A worker is READY.
    Ready { number: u16, pid: u32, ready: Ready },
    /// A worker's start was refused.
    Refused { number: u16, pid: u32, refusal: Refusal },
    /// A worker's socket ended.
    LinkClosed { number: u16, pid: u32 },
    /// A worker does not answer.
    Hung { number: u16, pid: u32 },
}

struct Director {
    shared: Arc<Shared>,
    control: OwnedWriteHalf,
    sender: mpsc::Sender<Event>,
    slots: Vec<Slot>,
    /// Hellos that came before the supervisor's word of their worker.
    early: Vec<Arrival>,
    links: JoinSet<()>,
    pin_refused: Option<String>,
    /// The last refused start, and how many in a row.
    failing: Option<(Refusal, u32)>,
}

/// Starts the director's task.
pub(super) fn spawn(shared: Arc<Shared>, listener: UnixListener, control: UnixStream) -> AbortHandle {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let (reader, writer) = control.into_split();
    let mut links = JoinSet::new();
    // Helpers live in the director's set, so that they end with it.
    links.spawn(rendezvous::accept(listener, sender.clone()));
    links.spawn(listen(reader, sender.clone()));
    let now = Instant::now();
    let slots = (1..=shared.config.workers.max(1)).map(|number| Slot::new(number, now)).collect();
    let director = Director {
        shared,
        control: writer,
        sender,
        slots,
        early: Vec::new(),
        links,
        pin_refused: None,
        failing: None,
    };
    tokio::spawn(director.run(events)).abort_handle()
}

impl Director {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        loop {
            let until = self.start_next().await;
            let event = tokio::select! {
                event = events.recv() => event,
                // Forget helpers that have ended.
                Some(_) = self.links.join_next() => continue,
                () = sleep_until(until.into()) => { self.report_slow_start().await; continue }
            };
            match event {
                Some(Event::ControlClosed) | None => break,
                Some(event) => self.hear(event).await,
            }
        }
        tracing::error!("the supervisor is gone: HSM workers can no longer be replaced");
        self.shared.status.send_replace(Status::Abandoned);
        // Workers that live serve on until they are gone; their sockets are in `links`.
        while self.links.join_next().await.is_some() {}
    }

    /// Starts a worker when one is due and none is starting. Returns when to look again.
    async fn start_next(&mut self) -> Instant {
        let now = Instant::now();
        let far = now + LOOK_EVERY;
        if self.pin_refused.is_some() {
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
            Event::Ready { number, pid, ready } => self.ready(number, pid, ready).await,
            Event::Refused { number, pid, refusal } => self.refused(number, pid, refusal),
            Event::LinkClosed { number, pid } => self.part(number, pid, "its connection ended").await,
            Event::Hung { number, pid } => self.part(number, pid, "it does not answer").await,
            Event::ControlClosed => {}
        }
    }

    fn spawned(&mut self, number: u16, pid: u32, secret: Secret) {
        if let Some(slot) = self.slot(number) {
            slot.state = State::Starting { pid, secret, since: Instant::now(), link: None };
        }
        if let Some(at) = self.early.iter().position(|arrival| arrival.pid == pid) {
            let arrival = self.early.swap_remove(at);
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
            State::Starting { pid, secret, link: link @ None, .. }
                if *pid == arrival.pid && secret.matches(&arrival.hello.secret) =>
            {
                let new = Arc::new(Link::new(arrival.hello.number, arrival.pid));
                *link = Some(Arc::clone(&new));
                let (reader, writer) = arrival.stream.into_split();
                self.links.spawn(attend(
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
        let State::Starting { pid: starting, link: Some(link), .. } = &slot.state else { return };
        if *starting != pid {
            return;
        }
        slot.state = State::Ready { link: Arc::clone(link), since: Instant::now() };
        self.tell(&ToSupervisor::IsReady { pid }).await;
        tracing::info!(
            number,
            pid,
            token = ready.token_label,
            library = ready.library,
            "HSM worker is ready"
        );
        self.shared.token.store(Some(Arc::new(ready)));
        self.failing = None;
        self.publish();
    }

    fn refused(&mut self, number: u16, pid: u32, refusal: Refusal) {
        let Some(slot) = self.slot(number) else { return };
        if !matches!(&slot.state, State::Starting { pid: starting, .. } if *starting == pid) {
            return;
        }
        slot.state = State::Leaving { pid, served: false };
        if refusal.kind == RefusalKind::Pin {
            tracing::error!(
                reason = refusal.text,
                "the PIN was refused; no HSM worker will be started any more"
            );
            self.pin_refused = Some(refusal.text.clone());
        }
        self.note_failure(refusal);
    }

    /// Ends a READY worker. A starting one is let be: it leaves by itself, or hangs and is reported.
    async fn part(&mut self, number: u16, pid: u32, why: &str) {
        let kill_starting = self.shared.token.load().as_ref().is_some_and(|token| token.may_die_starting);
        let Some(slot) = self.slot(number) else { return };
        let served = slot.has_served();
        match &slot.state {
            State::Ready { link, .. } if link.pid == pid => {
                link.close(&format!("the HSM worker was replaced: {why}"));
            }
            State::Starting { pid: starting, .. } if *starting == pid && kill_starting => {}
            _ => return,
        }
        slot.state = State::Leaving { pid, served };
        tracing::warn!(number, pid, why, "HSM worker is replaced");
        self.publish();
        self.tell(&ToSupervisor::Kill { pid }).await;
    }

    fn exited(&mut self, exit: &Exit) {
        let Some(slot) = self.slot(exit.number) else { return };
        let served = slot.has_served();
        match &slot.state {
            State::Ready { link, .. } if link.pid == exit.pid => link.close("the HSM worker died"),
            State::Leaving { pid, .. } if *pid == exit.pid => {}
            State::Starting { pid, .. } if *pid == exit.pid => {
                let text = format!("an HSM worker died while it started ({})", exit.status);
                self.note_failure(Refusal { kind: RefusalKind::Passing, text });
            }
            _ => return,
        }
        tracing::warn!(number = exit.number, pid = exit.pid, status = exit.status, "HSM worker is gone");
        self.down(exit.number, served);
    }

    fn down(&mut self, number: u16, served: bool) {
        if let Some(slot) = self.slot(number) {
            slot.went_down(served);
        }
        self.shared.respawns.fetch_add(1, Ordering::Relaxed);
        self.publish();
    }

    fn note_failure(&mut self, refusal: Refusal) {
        tracing::warn!(reason = refusal.text, "HSM worker could not start");
        let attempts = self.failing.take().map_or(0, |(_, attempts)| attempts).saturating_add(1);
        self.failing = Some((refusal, attempts));
        self.publish();
    }

    /// Says loudly that a start hangs. Killing it could destroy the token, so only a profile that allows it does.
    async fn report_slow_start(&mut self) {
        let limit = self.shared.config.startup_timeout;
        let slow = self.slots.iter_mut().find_map(|slot| match &mut slot.state {
            State::Starting { pid, since, .. } if since.elapsed() >= limit => {
                *since = Instant::now();
                Some((slot.number, *pid))
            }
            _ => None,
        });
        if let Some((number, pid)) = slow {
            let text = format!(
                "HSM worker {pid} has been starting for {limit:?}; it is not killed, look at the HSM"
            );
            tracing::error!(number, pid, "{text}");
            self.failing = Some((Refusal { kind: RefusalKind::Configuration, text }, u32::MAX));
            self.publish();
            self.part(number, pid, "its start hangs").await;
        }
    }

    /// Shows callers the READY workers and the state that follows from them.
    fn publish(&self) {
        let ready: Vec<Arc<Link>> = self
            .slots
            .iter()
            .filter_map(|slot| match &slot.state {
                State::Ready { link, .. } => Some(Arc::clone(link)),
                _ => None,
            })
            .collect();
        self.shared.workers_ready.store(u32::try_from(ready.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        let status = match (&self.pin_refused, &self.failing) {
            _ if !ready.is_empty() => Status::Ready,
            (Some(text), _) => Status::PinRefused(text.clone()),
            (None, Some((refusal, attempts))) => {
                Status::Failing { refusal: refusal.clone(), attempts: *attempts }
            }
            (None, None) => Status::Starting,
        };
        self.shared.links.store(Arc::new(ready));
        self.shared.status.send_replace(status);
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

/// Reads what the supervisor says.
async fn listen(mut reader: OwnedReadHalf, events: mpsc::Sender<Event>) {
    let mut inbox = Inbox::default();
    let heard: io::Result<()> = async {
        loop {
            while let Some(body) = inbox.take().map_err(io::Error::other)? {
                let message = FromSupervisor::decode(body).map_err(io::Error::other)?;
                events.send(Event::Control(message)).await.map_err(io::Error::other)?;
            }
            match reader.read(inbox.room()).await? {
                0 => return Ok(()),
                len => inbox.filled(len),
            }
        }
    }
    .await;
    if let Err(error) = heard {
        tracing::error!(%error, "the control socket failed");
    }
    let _ = events.send(Event::ControlClosed).await;
}

/// Runs one worker's connection until it ends.
async fn attend(
    link: Arc<Link>,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    inbox: Inbox,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
) {
    let (number, pid) = (link.number, link.pid);
    // Reader, writer and watch are tasks of their own, so that each is woken alone.
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let link = Arc::clone(&link);
        async move { link.write(writer).await.err() }
    });
    tasks.spawn({
        let watched = watch::watch(Arc::clone(&link), Arc::clone(&shared), events.clone());
        async move {
            watched.await;
            std::future::pending().await
        }
    });
    let ended = tokio::select! {
        read = link.read(reader, inbox, &events, &shared.expired) => read.err(),
        Some(Ok(error)) = tasks.join_next() => error,
    };
    link.close("the HSM worker died");
    if let Some(error) = ended {
        tracing::warn!(number, pid, %error, "the connection to an HSM worker failed");
    }
    let _ = events.send(Event::LinkClosed { number, pid }).await;
}
