//! A started program: its log, its processes, its end.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open},
};

use crate::{PATIENCE, Tree, kill, until};

/// A program that was started and is ended with this value. Its standard output and error go to a log.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts it. The log is appended to.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Waits until `path` is there, which the program makes when it is ready, and fails when it ends before.
    pub async fn ready_when(&mut self, path: &Path) -> anyhow::Result<()> {
        until(&format!("{} is written", path.display()), PATIENCE, async || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the program ended with {status}:\n{}", self.log());
            }
            Ok(path.exists().then_some(()))
        })
        .await
    }

    /// The id of the program that was started.
    pub fn pid(&self) -> anyhow::Result<Pid> {
        Pid::from_raw(i32::try_from(self.child.id())?).context("process 0")
    }

    /// Its processes now.
    pub fn tree(&self) -> anyhow::Result<Tree> {
        Ok(Tree::of(self.pid()?)?)
    }

    /// What it said until now.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        kill(self.pid()?, Signal::TERM)?;
        self.ended().await
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        until("the program ends", PATIENCE, async || Ok(self.child.try_wait()?)).await
    }

    /// Ends it, gently if it lets itself be, and leaves no process behind.
    fn end(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = self.pid()?;
        let tree = self.tree()?;
        kill(pid, Signal::TERM)?;
        if !ends_within(pid, Duration::from_secs(20))? {
            for pid in tree.pids() {
                // A stopped process must also go.
                kill(pid, Signal::KILL)?;
            }
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    #[expect(clippy::print_stderr, reason = "the test harness shows it when the test fails")]
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("the program does not end: {error:#}");
        }
        eprintln!("--- {}\n{}---", self.log.display(), self.log());
    }
}

fn ends_within(pid: Pid, patience: Duration) -> io::Result<bool> {
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
    let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&patience))?;
    Ok(ended > 0)
}
