//! The server's processes: the postmaster, and its children, one for each connection and some for itself.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    process::{Command, ExitStatus},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
    time::Timespec,
};

/// How long anything may take on a busy machine before it counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(10);

/// A running postmaster.
#[derive(Debug)]
pub(crate) struct Postmaster {
    process: Process,
    /// Has started it and waits for its end: a thread of our own, because the postmaster dies with the thread that
    /// started it, and a test's thread may end earlier than the test's process.
    keeper: JoinHandle<io::Result<ExitStatus>>,
}

/// One process, held by a descriptor: the id may be another's by the time it is used.
#[derive(Debug)]
struct Process {
    pid: Pid,
    fd: OwnedFd,
}

impl Postmaster {
    /// Starts it. It may end at once.
    pub(crate) fn start(mut command: Command) -> anyhow::Result<Self> {
        let (tell, told) = mpsc::channel();
        let keeper = thread::Builder::new().name("postmaster".to_owned()).spawn(move || {
            let mut child = command.spawn()?;
            // Not reaped before `wait`, so the id is still its own. The receiver waits.
            let _ = tell.send(Process::of(Pid::from_child(&child)));
            child.wait()
        })?;
        match told.recv() {
            Ok(process) => Ok(Self { process: process?.context("it is not reaped yet")?, keeper }),
            Err(mpsc::RecvError) => bail!("setpriv (Debian's util-linux): {:?}", status(keeper)),
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.process.pid
    }

    /// Waits until `condition` is met, or says that it ended.
    pub(crate) fn until(
        &self,
        what: &str,
        mut condition: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition()? {
            ensure!(!self.process.ends_within(GLANCE)?, "PostgreSQL has ended; it should be so that {what}");
            ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        }
        Ok(())
    }

    /// Stops it and its children where they are.
    pub(crate) fn freeze(&self) -> anyhow::Result<()> {
        self.freeze_itself()?;
        self.until("every process is stopped", || {
            let running: Vec<_> =
                self.children()?.into_iter().filter(|(_, state)| !at_rest(*state)).collect();
            for (pid, _) in &running {
                signal(*pid, Signal::STOP)?;
            }
            Ok(running.is_empty())
        })
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) -> anyhow::Result<()> {
        for (pid, _) in self.children()? {
            signal(pid, Signal::CONT)?;
        }
        self.process.signal(Signal::CONT)
    }

    /// Kills it and its children, and waits until they are gone.
    pub(crate) fn kill(self) -> anyhow::Result<()> {
        if !self.process.ends_within(Duration::ZERO)? {
            self.freeze_itself()?;
        }
        let mut all = vec![];
        for (pid, _) in self.children()? {
            all.extend(Process::of(pid)?);
        }
        all.push(self.process);
        for process in &all {
            process.signal(Signal::KILL)?;
        }
        for process in all {
            ensure!(process.ends_within(PATIENCE)?, "process {:?} outlives SIGKILL", process.pid);
        }
        status(self.keeper)?;
        Ok(())
    }

    /// Asks it to disconnect everybody and to end, and waits until it has ("fast shutdown").
    pub(crate) fn shut_down(self) -> anyhow::Result<()> {
        self.process.signal(Signal::INT)?;
        ensure!(self.process.ends_within(PATIENCE)?, "PostgreSQL does not shut down");
        let status = status(self.keeper)?;
        ensure!(status.success(), "PostgreSQL ended with {status}");
        Ok(())
    }

    /// Afterwards it starts no more children.
    fn freeze_itself(&self) -> anyhow::Result<()> {
        self.process.signal(Signal::STOP)?;
        self.until("the postmaster is stopped", || {
            Ok(stat(self.pid()).is_none_or(|(_, state)| at_rest(state)))
        })
    }

    /// Its children and their states.
    fn children(&self) -> anyhow::Result<Vec<(Pid, char)>> {
        let mut children = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let Some(pid) = pid else { continue };
            // It may go while it is read.
            if let Some((parent, state)) = stat(pid)
                && parent == self.pid().as_raw_nonzero().get()
            {
                children.push((pid, state));
            }
        }
        Ok(children)
    }
}

impl Process {
    /// `None` when it has gone.
    fn of(pid: Pid) -> anyhow::Result<Option<Self>> {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Ok(Some(Self { pid, fd })),
            Err(Errno::SRCH) => Ok(None),
            Err(errno) => Err(errno).context("pidfd_open"),
        }
    }

    /// A process that has gone already is no error.
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno).context("pidfd_send_signal"),
        }
    }

    /// Waits for its end (pidfd_open(2): the descriptor is then readable), or for this time to pass.
    fn ends_within(&self, time: Duration) -> anyhow::Result<bool> {
        let deadline = Instant::now() + time;
        loop {
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
            match poll(&mut [PollFd::new(&self.fd.as_fd(), PollFlags::IN)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("poll"),
            }
        }
    }
}

fn signal(pid: Pid, signal: Signal) -> anyhow::Result<()> {
    Process::of(pid)?.map_or(Ok(()), |process| process.signal(signal))
}

/// Parent and state of a process, as proc(5) shows them.
fn stat(pid: Pid) -> Option<(i32, char)> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // "pid (name) state ppid ...", and the name may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

/// Stopped, or dead and not reaped.
fn at_rest(state: char) -> bool {
    matches!(state, 'T' | 't' | 'Z' | 'X')
}

fn status(keeper: JoinHandle<io::Result<ExitStatus>>) -> anyhow::Result<ExitStatus> {
    let status = keeper.join().map_err(|_| anyhow::anyhow!("the thread that waits for it has panicked"))?;
    Ok(status?)
}
