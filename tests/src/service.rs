//! `kms dev` in a directory of its own.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::{Environment, PATIENCE, Process, Running, Tree, kill, kms, until};

/// A running development service: SoftHSM token, SQLite, TLS, an administrator's access token, a sample key.
///
/// Fields drop in order: the processes end before the directory goes.
#[derive(Debug)]
pub struct Service {
    running: Option<Running>,
    environment: Environment,
    home: TempDir,
}

impl Service {
    /// Starts one and waits until it serves.
    pub async fn start() -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("kms-story-").tempdir()?;
        let (running, environment) = launch(home.path()).await?;
        Ok(Self { running: Some(running), environment, home })
    }

    /// Starts it again on the same directory, after [`Self::terminate`] or [`Self::kill`].
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let (running, environment) = launch(self.home.path()).await?;
        self.running = Some(running);
        self.environment = environment;
        Ok(())
    }

    /// Asks it to end and waits until every process of it has.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        let mut running = self.running.take().context("it does not run")?;
        let tree = running.tree()?;
        let status = running.terminate().await?;
        all_gone(&tree).await?;
        Ok(status)
    }

    /// Kills one of its processes (SIGKILL) and waits until all of them are gone.
    pub async fn kill(&mut self, which: impl FnOnce(&Tree) -> Option<Pid>) -> anyhow::Result<()> {
        let mut running = self.running.take().context("it does not run")?;
        let tree = running.tree()?;
        kill(which(&tree).context("there is no such process")?, Signal::KILL)?;
        running.ended().await?;
        all_gone(&tree).await
    }

    /// Its processes now.
    pub fn tree(&self) -> anyhow::Result<Tree> {
        self.running.as_ref().context("it does not run")?.tree()
    }

    /// What it has written to standard error since it was first started.
    pub fn log(&self) -> String {
        self.running.as_ref().map(Running::log).unwrap_or_default()
    }

    /// The directory that `kms dev --dir` was given.
    pub fn dir(&self) -> PathBuf {
        dev_dir(self.home.path())
    }
}

impl Deref for Service {
    type Target = Environment;

    fn deref(&self) -> &Environment {
        &self.environment
    }
}

async fn launch(home: &Path) -> anyhow::Result<(Running, Environment)> {
    let dir = dev_dir(home);
    let env_file = dir.join("env");
    // The ports are new at each start: an old file would send us to nobody.
    if env_file.exists() {
        std::fs::remove_file(&env_file)?;
    }
    let mut command = Command::new(kms()?);
    command.args(["dev", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--dir"]).arg(&dir);
    let mut running = Running::start(&mut command, &home.join("log"))?;
    running.ready_when(&env_file).await?;
    Ok((running, Environment::read(&env_file)?))
}

fn dev_dir(home: &Path) -> PathBuf {
    home.join("dev")
}

async fn all_gone(tree: &Tree) -> anyhow::Result<()> {
    until("every process has gone", PATIENCE, async || {
        Ok((!tree.pids().into_iter().any(Process::runs)).then_some(()))
    })
    .await
}
