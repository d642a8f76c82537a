//! The front's half: [`Pool`] implements [`Hsm`](kms_core::Hsm) by worker processes.
//!
//! A call takes a place in a bounded queue, waits there for its turn, goes to the READY worker with the least to do, and
//! is answered by that worker, by its deadline, or by that worker's death, whichever comes first. `hsm` is the pool as
//! core sees it, `call` one call on its way, `queue` who gets a place, `lanes` whose turn it is, `cost` what a call costs,
//! `link` one worker as callers see it, `director` starts and replaces workers by what `events` brings it, `login` asks
//! the PIN latch for it, `watch` ends deadlines and finds hung workers, `rendezvous` is the door through which workers
//! come in.

mod call;
mod cost;
mod director;
mod events;
mod hsm;
mod lanes;
mod link;
mod login;
mod queue;
mod rendezvous;
mod slot;
mod status;
mod watch;

use std::{
    io,
    num::NonZeroU64,
    os::fd::AsFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use kms_core::{Grant, hsm::Fault, time::Deadline};
use tokio::{
    net::UnixStream,
    sync::{oneshot, watch as watch_channel},
    task::AbortHandle,
};

use self::{
    call::{Call, NewCall, Reply, Submitted},
    link::Link,
    queue::{Entry, Front, Queue},
};
use crate::wire::{Operation, Outcome, Ready};

pub use hsm::{AAD_LEN_MAX, PLAINTEXT_LEN_MAX};
pub use login::{Latch, Later, PoolLatch};
pub use status::{StartError, Status};

/// Name of the pool's socket in its runtime directory.
pub(crate) const SOCKET_NAME: &str = "hsm.sock";

/// How a pool behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Worker processes that serve at once.
    pub workers: u16,
    /// READY workers beside them, which take over when one of them dies, hangs or retires.
    pub spare_workers: u16,
    /// PKCS#11 sessions of one worker; the same as the supervisor's.
    pub sessions_per_worker: u16,
    /// How long a worker may be silent on a signature, a search or a check before it is replaced.
    pub call_timeout: Duration,
    /// The same while a key pair is being generated or destroyed, or the token listed (a 4096-bit modulus takes seconds).
    pub change_timeout: Duration,
    /// After this time a start is reported as hanging.
    pub startup_timeout: Duration,
    /// A worker that was asked nothing for this long is sent a canary: links die unnoticed.
    pub keep_alive: Duration,
    /// After so many operations a worker is replaced by a fresh one; `None` for never.
    pub worker_operations_max: Option<NonZeroU64>,
    /// A worker that holds so much memory (resident, in bytes) is replaced by a fresh one; `None` for never.
    pub worker_memory_bytes_max: Option<NonZeroU64>,
    /// Most calls that wait or run at once. One caller alone gets about seven tenths of them.
    pub queue_max: u32,
    /// A private directory (0700, made if absent) for the socket.
    pub runtime_dir: PathBuf,
    /// What remembers tries of the PIN.
    pub latch: PoolLatch,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 2,
            spare_workers: 1,
            sessions_per_worker: 1,
            call_timeout: Duration::from_secs(5),
            change_timeout: Duration::from_secs(60),
            startup_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            worker_operations_max: NonZeroU64::new(10_000_000),
            worker_memory_bytes_max: NonZeroU64::new(1 << 30),
            queue_max: 2048,
            runtime_dir: PathBuf::from("/run/kms"),
            latch: PoolLatch::default(),
        }
    }
}

/// The link to the HSM. Clones share it; it closes when the last clone is dropped, and workers leave.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
    _director: Arc<Director>,
}

/// What calls and the director share.
pub(crate) struct Shared {
    config: Config,
    queue: Queue,
    /// READY workers that serve; spare ones are the director's.
    links: ArcSwap<Vec<Arc<Link>>>,
    /// What the first READY worker said; all others must name the same token.
    token: ArcSwapOption<Ready>,
    status: watch_channel::Sender<Status>,
    respawns: AtomicU64,
    workers_ready: AtomicU32,
    spares_ready: AtomicU32,
    /// Workers that retired for their age.
    recycled: AtomicU64,
    /// Calls that were given to another worker when theirs ended.
    repeated: AtomicU64,
    /// Calls that a worker dropped because their deadline had passed.
    expired: AtomicU64,
}

/// Stops the director when the last pool is dropped.
struct Director(AbortHandle);

/// The control socket that [`crate::supervisor::run`] left on standard input.
pub fn control_from_stdin() -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

impl Pool {
    /// Binds the socket and begins to start workers through the supervisor behind `control`. Returns at once;
    /// [`Pool::wait_ready`] tells how it went.
    pub fn start(config: Config, control: UnixStream) -> io::Result<Self> {
        let listener = rendezvous::bind(&config.runtime_dir)?;
        let shared = Arc::new(Shared {
            queue: Queue::new(config.queue_max),
            links: ArcSwap::default(),
            token: ArcSwapOption::empty(),
            status: watch_channel::Sender::new(Status::Starting),
            respawns: AtomicU64::new(0),
            workers_ready: AtomicU32::new(0),
            spares_ready: AtomicU32::new(0),
            recycled: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            config,
        });
        let director = director::spawn(Arc::clone(&shared), listener, control);
        Ok(Self { shared, _director: Arc::new(Director(director)) })
    }

    /// Waits until a worker is READY, or until it is plain that none will be without the operator.
    pub async fn wait_ready(&self) -> Result<(), StartError> {
        status::wait_ready(self.shared.status.subscribe()).await
    }

    /// The state of the link, and its changes.
    pub fn status(&self) -> watch_channel::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// What the token said of itself, once a worker was READY.
    pub fn token(&self) -> Option<Arc<Ready>> {
        self.shared.token.load_full()
    }

    /// Process ids of the READY workers, for status and for those who want to kill one.
    pub fn worker_pids(&self) -> Vec<u32> {
        self.shared.links.load().iter().map(|link| link.pid).collect()
    }

    /// Calls that workers dropped before the token, because their deadline had passed.
    pub fn expired_calls(&self) -> u64 {
        self.shared.expired.load(Ordering::Relaxed)
    }

    async fn call(&self, grant: &Grant, operation: Operation, deadline: Deadline) -> Result<Outcome, Fault> {
        let deadline = deadline.instant();
        if deadline <= Instant::now() {
            return Err(Fault::DeadlineExceeded);
        }
        let entry = Entry { lane: grant.lane(), caller: grant.caller(), operation: &operation, deadline };
        let place = self.shared.queue.enter(&entry, self.shared.links.load().len())?;
        let mut call = NewCall::new(place, operation, deadline);
        loop {
            call = match self.shared.submit(call) {
                Submitted::Sent(reply) => match reply.await {
                    Ok(Reply::Answered(result)) => return result,
                    Ok(Reply::Again(call)) => {
                        self.shared.repeated.fetch_add(1, Ordering::Relaxed);
                        call
                    }
                    Ok(Reply::Released(call)) => call,
                    Err(_) => return Err(Fault::Unavailable("the pool is closed".into())),
                },
                Submitted::Refused(call) => {
                    self.shared.link_or_fault(deadline).await?;
                    call
                }
            };
        }
    }
}

impl Shared {
    /// Sends a call to a worker, or lets it wait for its turn. Gives it back when there is no worker.
    fn submit(&self, call: NewCall) -> Submitted {
        let mut front = self.queue.front();
        let links = self.links.load();
        if least_busy(&links).is_none() {
            return Submitted::Refused(call);
        }
        let (reply, answer) = oneshot::channel();
        front.push(call.awaited(Some(reply)));
        send(&mut front, &links);
        Submitted::Sent(answer)
    }

    /// Lets those follow that wait, now that there is room, or no worker any more.
    fn refill(&self) {
        let mut front = self.queue.front();
        let links = self.links.load();
        send(&mut front, &links);
        // The director publishes whenever a worker ends, so nobody is left to wait for one.
        let released = if links.is_empty() { front.waiting.take(|_| true) } else { Vec::new() };
        drop(front);
        released.into_iter().for_each(Call::release);
    }

    /// Waits for a READY worker; fails at once where none will come.
    async fn link_or_fault(&self, deadline: Instant) -> Result<(), Fault> {
        let mut status = self.status.subscribe();
        if let Some(fault) = status.borrow_and_update().fault() {
            return Err(fault);
        }
        if least_busy(&self.links.load()).is_some() {
            return Ok(());
        }
        match tokio::time::timeout_at(deadline.into(), status.changed()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(status.borrow().fault_at_deadline()),
        }
    }
}

/// The READY worker with the least to do.
fn least_busy(links: &[Arc<Link>]) -> Option<&Link> {
    let open = links.iter().filter_map(|link| Some((link.weight()?, link)));
    open.min_by_key(|(weight, _)| *weight).map(|(_, link)| &**link)
}

/// Gives workers what waits, in its turn, as long as one has room.
fn send(front: &mut Front, links: &[Arc<Link>]) {
    // When the one with the least to do is full, so are the others, or they are busy with changes, or silent.
    while let Some(link) = least_busy(links).filter(|link| !link.is_full()) {
        let Some(call) = front.waiting.pop() else { return };
        if call.is_abandoned() {
            continue;
        }
        if call.deadline() <= Instant::now() {
            call.end_late();
            continue;
        }
        front.sends(call.place());
        if let Some(call) = link.submit(call) {
            // The worker ended in this moment.
            front.push(call);
        }
    }
}

impl Drop for Director {
    fn drop(&mut self) {
        self.0.abort();
    }
}
