//! A plain TCP proxy under the test's control: a balancer in front of several servers, or the network before one.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// How much one read takes.
const BUFFER_LEN: usize = 16 * 1024;

/// Forwards connections until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    backends: Mutex<Vec<SocketAddr>>,
    next: AtomicUsize,
    /// Whether bytes pass. While they do not, nobody is told: connections are taken and stay silent.
    passes: watch::Sender<bool>,
    /// How many answers are still to be swallowed, each with its connection.
    swallows: AtomicU64,
    /// Whether all answers are lost at the moment.
    loses_answers: AtomicBool,
    /// Counts how often every connection was broken.
    broken: watch::Sender<u64>,
}

impl Proxy {
    /// Listens on a free port of this host. A connection goes to the next of `backends` that takes it.
    pub async fn to(backends: Vec<SocketAddr>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            backends: Mutex::new(backends),
            next: AtomicUsize::new(0),
            passes: watch::Sender::new(true),
            swallows: AtomicU64::new(0),
            loses_answers: AtomicBool::new(false),
            broken: watch::Sender::new(0),
        });
        let mut task = JoinSet::new();
        task.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { addr, shared, _task: task })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on new connections go to these.
    pub fn set_backends(&self, backends: Vec<SocketAddr>) {
        *self.shared.backends() = backends;
    }

    /// Cuts the network: nothing passes any more, in either direction, and nobody is told.
    pub fn cut(&self) {
        self.shared.passes.send_replace(false);
    }

    /// Mends it. What was on its way arrives.
    pub fn mend(&self) {
        self.shared.passes.send_replace(true);
    }

    /// The next bytes that a backend sends on any connection are lost, and the connection with them.
    pub fn swallow_next_answer(&self) {
        self.shared.swallows.fetch_add(1, Ordering::SeqCst);
    }

    /// From now on what callers send arrives and what backends send is lost, until [`Proxy::break_connections`].
    pub fn lose_answers(&self) {
        self.shared.loses_answers.store(true, Ordering::SeqCst);
    }

    /// Breaks every connection that there is, and loses no more answers.
    pub fn break_connections(&self) {
        self.shared.broken.send_modify(|times| *times += 1);
        self.shared.loses_answers.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn backends(&self) -> std::sync::MutexGuard<'_, Vec<SocketAddr>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In turn, so that every backend gets its share.
    async fn connect(&self) -> Option<TcpStream> {
        let backends = self.backends().clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        for at in 0..backends.len() {
            if let Ok(stream) = TcpStream::connect(backends[(first + at) % backends.len()]).await {
                return Some(stream);
            }
        }
        None
    }

    fn swallows_this(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        self.swallows.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((caller, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        let mut broken = shared.broken.subscribe();
        connections.spawn(async move {
            wait_until_passes(&shared).await;
            if let Some(backend) = shared.connect().await {
                let (from_caller, to_caller) = caller.into_split();
                let (from_backend, to_backend) = backend.into_split();
                // The end of either direction is the end of both.
                let until_broken = broken.clone();
                tokio::select! {
                    () = forward(from_caller, to_backend, &shared, None) => {}
                    () = forward(from_backend, to_caller, &shared, Some(&until_broken)) => {}
                    _ = broken.changed() => {}
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// `answers` of a connection that has been broken do not count any more.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    answers: Option<&watch::Receiver<u64>>,
) {
    let mut buffer = vec![0; BUFFER_LEN];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        wait_until_passes(shared).await;
        let is_broken = |broken: &watch::Receiver<u64>| broken.has_changed().unwrap_or(true);
        if answers.is_some_and(|broken| shared.loses_answers.load(Ordering::SeqCst) || is_broken(broken)) {
            continue;
        }
        if (answers.is_some() && shared.swallows_this()) || to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

async fn wait_until_passes(shared: &Shared) {
    // The sender lives as long as what it is shared with.
    let _ = shared.passes.subscribe().wait_for(|passes| *passes).await;
}
