//! The parent's half: spawns the front and the workers, reaps them, and kills a worker when the front says so.
//!
//! It has no network, no PIN and no module. It exists because seccomp and Landlock are inherited and only tighten: the
//! front may then exec nothing, while workers get the looser profile that vendor libraries need. And it alone says
//! which module a worker loads, so that a front gone astray cannot. It exits when the front exits.

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    process::{Pid, Signal},
    rand::GetRandomFlags,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Child,
    signal::unix::{self as unix_signal, SignalKind, signal},
    sync::oneshot,
    task::JoinSet,
    time::timeout,
};

use crate::{
    Uri,
    pool::SOCKET_NAME,
    signals,
    wire::{self, Exit, FromSupervisor, Inbox, Order, Secret, ToSupervisor},
};

/// What the supervisor must know about workers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program that runs [`crate::worker::main`], usually this executable.
    pub program: PathBuf,
    /// The name that it is given (argv\[0\]), which is what ps(1) shows.
    pub name: OsString,
    /// Its arguments, for instance `hsm-worker`.
    pub args: Vec<OsString>,
    /// Variables on top of the inherited environment, for vendor modules. Never a secret.
    pub env: Vec<(OsString, OsString)>,
    /// The token that every worker serves.
    pub uri: Uri,
    /// PKCS#11 sessions of one worker, each on a thread of its own.
    pub sessions_per_worker: u16,
    /// Directory of the pool's socket; the same as the pool's.
    pub runtime_dir: PathBuf,
    /// Directory of the locks between all processes that use this token.
    pub lock_dir: PathBuf,
    /// A profile of the token instead of the built-in one; see [`crate::profile`].
    pub profile_file: Option<PathBuf>,
    /// How long workers may take to leave by themselves at the end.
    pub leave_timeout: Duration,
    /// How long a worker that is still starting is waited for at the end: it must not be killed.
    pub startup_timeout: Duration,
}

/// Most workers that may live at once: a front gone astray must not fork without end.
const WORKERS_MAX: usize = 256;

/// The signals that ask the server to end, from [`Signals::catch`] on.
#[derive(Debug)]
pub struct Signals {
    terminate: unix_signal::Signal,
    interrupt: unix_signal::Signal,
    /// `None` where SIGHUP is ignored: nohup(1).
    hangup: Option<unix_signal::Signal>,
}

impl Signals {
    /// Keeps SIGTERM, SIGINT and SIGHUP from killing this process. Call it before anything that must be tidied up, in
    /// the runtime that will [`run`].
    pub fn catch() -> io::Result<Self> {
        let hangup = if signals::hangup_is_ignored()? { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
        })
    }

    /// The next one, as the front shall hear it: a closed terminal asks for the same as SIGTERM.
    async fn next(&mut self) -> Signal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.interrupt.recv() => Signal::INT,
            _ = hangup => Signal::TERM,
        }
    }
}

/// Spawns `front` with one end of the control socket as its standard input, serves it, forwards `signals` to it, and
/// returns its exit status when it and the workers are gone.
pub async fn run(mut front: Command, settings: Settings, mut signals: Signals) -> io::Result<ExitStatus> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    front.stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut front = tokio::process::Command::from(front).process_group(0).spawn()?;
    let workers = serve(UnixStream::from_std(ours)?, settings);
    let ended = async {
        loop {
            let signal = tokio::select! {
                status = front.wait() => return status,
                signal = signals.next() => signal,
            };
            forward(&front, signal);
        }
    };
    // The front's end of the socket closes with it, which ends `serve`.
    let ((), status) = tokio::join!(workers, ended);
    status
}

/// Serves one pool over `control` until it hangs up, then sees its workers out.
pub async fn serve(control: UnixStream, settings: Settings) {
    let mut supervisor = Supervisor { settings, workers: HashMap::new(), exits: JoinSet::new() };
    let (mut reader, mut writer) = control.into_split();
    let mut inbox = Inbox::default();
    loop {
        tokio::select! {
            read = reader.read(inbox.room()) => match read {
                Ok(len) if len > 0 => inbox.filled(len),
                _ => break,
            },
            Some(exit) = supervisor.exits.join_next() => {
                let Ok(exit) = exit else { continue };
                supervisor.workers.remove(&exit.pid);
                if tell(&mut writer, &FromSupervisor::Exited(exit)).await.is_err() {
                    break;
                }
            }
        }
        if supervisor.obey(&mut inbox, &mut writer).await.is_err() {
            break;
        }
    }
    drop((reader, writer));
    supervisor.see_out().await;
}

struct Supervisor {
    settings: Settings,
    /// Living children by process id. An id stands here until its process is reaped, so it is never another's.
    workers: HashMap<u32, Worker>,
    exits: JoinSet<Exit>,
}

struct Worker {
    ready: bool,
    kill: Option<oneshot::Sender<()>>,
}

impl Supervisor {
    async fn obey(&mut self, inbox: &mut Inbox, writer: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
        while let Some(body) = inbox.take().map_err(io::Error::other)? {
            match ToSupervisor::decode(body).map_err(io::Error::other)? {
                ToSupervisor::Spawn { number } => {
                    if let Err(error) = self.spawn(number, writer).await {
                        let text = format!("{} cannot be started: {error}", self.settings.program.display());
                        tell(writer, &FromSupervisor::SpawnFailed { number, text }).await?;
                    }
                }
                ToSupervisor::IsReady { pid } => {
                    if let Some(worker) = self.workers.get_mut(&pid) {
                        worker.ready = true;
                    }
                }
                ToSupervisor::Kill { pid } => {
                    if let Some(worker) = self.workers.get_mut(&pid) {
                        worker.kill();
                    }
                }
            }
        }
        Ok(())
    }

    async fn spawn(&mut self, number: u16, writer: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
        if self.workers.len() >= WORKERS_MAX {
            return Err(io::Error::other(format!("{WORKERS_MAX} workers live already")));
        }
        let secret = random_secret()?;
        let order = Order {
            socket: self.settings.runtime_dir.join(SOCKET_NAME),
            secret: secret.clone(),
            number,
            uri: self.settings.uri.to_string(),
            sessions: self.settings.sessions_per_worker,
            lock_dir: self.settings.lock_dir.clone(),
            profile_file: self.settings.profile_file.clone(),
        };
        let mut child = tokio::process::Command::new(&self.settings.program)
            .arg0(&self.settings.name)
            .args(&self.settings.args)
            .envs(self.settings.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            // A group of its own: a Ctrl-C at the terminal is for the supervisor alone.
            .process_group(0)
            .spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("it has no process id"))?;
        let stdin = child.stdin.take();
        let (kill, killed) = oneshot::channel();
        self.workers.insert(pid, Worker { ready: false, kill: Some(kill) });
        self.exits.spawn(reap(child, number, pid, killed));
        tell(writer, &FromSupervisor::Spawned { number, pid, secret }).await?;
        if let Some(mut stdin) = stdin {
            let mut bytes = zeroize::Zeroizing::new(Vec::new());
            wire::frame(&mut bytes, |body| order.encode(body));
            // A worker that is gone already is reported as exited.
            let _ = stdin.write_all(&bytes).await;
        }
        Ok(())
    }

    /// The pool is gone: workers see their sockets close and leave. READY ones that do not are killed; a starting one
    /// must not be.
    async fn see_out(mut self) {
        if timeout(self.settings.leave_timeout, self.all_gone()).await.is_err() {
            for worker in self.workers.values_mut().filter(|worker| worker.ready) {
                worker.kill();
            }
            if timeout(self.settings.startup_timeout, self.all_gone()).await.is_err() {
                tracing::error!(workers = self.workers.len(), "HSM workers are left behind while starting");
            }
        }
        // Not aborted: dropping a child does not kill it.
        self.exits.detach_all();
    }

    async fn all_gone(&mut self) {
        while let Some(exit) = self.exits.join_next().await {
            if let Ok(exit) = exit {
                self.workers.remove(&exit.pid);
            }
        }
    }
}

impl Worker {
    fn kill(&mut self) {
        if let Some(kill) = self.kill.take() {
            // The receiver is gone only when the process is.
            let _ = kill.send(());
        }
    }
}

/// Owns the child: whoever kills it also reaps it, so the process id cannot have passed to another process.
async fn reap(mut child: Child, number: u16, pid: u32, killed: oneshot::Receiver<()>) -> Exit {
    let status = tokio::select! {
        status = child.wait() => status,
        Ok(()) = killed => match child.start_kill() {
            Ok(()) => child.wait().await,
            Err(error) => Err(error),
        },
    };
    let status = match status {
        Ok(status) if status.signal().is_some() || status.code().is_some() => status.to_string(),
        Ok(status) => format!("odd status {}", status.into_raw()),
        Err(error) => format!("not waited for: {error}"),
    };
    Exit { number, pid, status }
}

fn forward(front: &Child, signal: Signal) {
    let pid = front.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Not reaped yet, so the id is still the front's. It can only fail when the front has just ended.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn random_secret() -> io::Result<Secret> {
    let mut bytes = [0; 32];
    // The kernel gives up to 256 bytes whole.
    let len = rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    if len == bytes.len() {
        Ok(Secret::from_bytes(bytes))
    } else {
        Err(io::Error::other("short random bytes"))
    }
}

async fn tell(writer: &mut (impl AsyncWriteExt + Unpin), message: &FromSupervisor) -> io::Result<()> {
    let mut out = zeroize::Zeroizing::new(Vec::new());
    wire::frame(&mut out, |body| message.encode(body));
    writer.write_all(&out).await
}
