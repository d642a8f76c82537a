//! `kms serve` and the two commands that it starts itself: the front and the HSM workers. All of them are this
//! executable (docs/ARCHITECTURE.md, "Processes").

use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use clap::Args;
use kms_server::parent::{self, WorkerCommand};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::{configuration::Configuration, failure::Failure};

/// Name of the hidden command that faces callers.
pub(crate) const FRONT: &str = "serve-front";
/// Name of the hidden command that faces the HSM.
pub(crate) const WORKER: &str = "hsm-worker";

/// This very executable, even when another build has meanwhile taken its path: a worker that is replaced after an
/// upgrade must be of the build that runs (proc_pid_exe(5)).
const PROGRAM: &str = "/proc/self/exe";
/// What ps(1) shows in its place.
const NAME: &str = "kms";

/// Run the server
#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    configuration: Configuration,
    /// End when the process of this number, which must be our parent, ends: for `kms dev`
    #[arg(long, hide = true, value_name = "PID")]
    follow: Option<i32>,
}

/// The process that faces callers; started by `serve`
#[derive(Debug, Args)]
pub(crate) struct Front {
    #[command(flatten)]
    configuration: Configuration,
}

impl Serve {
    /// Runs the server to its end, and answers the front's exit code.
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        if let Some(parent) = self.follow {
            follow(parent)?;
        }
        let config = self.configuration.load()?;
        let mut front = Command::new(PROGRAM);
        front.arg0(NAME).arg(FRONT).args(self.configuration.to_args());
        let worker = WorkerCommand {
            program: PROGRAM.into(),
            name: NAME.into(),
            args: vec![WORKER.into()],
            env: Vec::new(),
        };
        Ok(parent::run(&config, front, worker)?)
    }
}

impl Front {
    pub(crate) fn run(self) -> Result<(), Failure> {
        // The kernel has called this process "exe"; only for show.
        let _ = fs::write("/proc/self/comm", NAME);
        #[cfg(feature = "failpoints")]
        let _armed = kms_core::failpoint::arm();
        Ok(kms_server::front::run(&self.configuration.load()?)?)
    }
}

/// Has the kernel send SIGTERM when the parent dies (PR_SET_PDEATHSIG, prctl(2)), so that a killed `kms dev`
/// leaves no server behind.
fn follow(parent: i32) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(Failure::about("cannot follow the parent"))?;
    // It may have died before the kernel knew of our wish.
    let present = getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == parent);
    if present {
        Ok(())
    } else {
        Err(Failure::other(format!("process {parent} is not our parent, or is gone")))
    }
}
