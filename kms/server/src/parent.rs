//! The parent process: starts the front, starts and buries workers for it, and ends as the front ends.
//!
//! It has no network, no PIN and no module (docs/ARCHITECTURE.md, "Processes").

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Command, ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::Context as _;
use kms_pkcs11::{Uri, supervisor};

use crate::{config::Config, hygiene, runtime_dir::RuntimeDir, telemetry};

/// How long workers may take to leave by themselves when the front is gone.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How a worker is started: a program that ends in [`kms_pkcs11::worker`].
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The program; usually this executable.
    pub program: PathBuf,
    /// The name that it is given (argv\[0\]).
    pub name: OsString,
    /// Its arguments; usually `hsm-worker`.
    pub args: Vec<OsString>,
    /// Variables for the vendor's module, over the inherited ones. Never a secret.
    pub env: Vec<(OsString, OsString)>,
}

/// Runs `front`, a command that ends in [`crate::front::run`] with the same configuration, and its workers;
/// returns when all of them are gone, with the front's exit code. SIGTERM, SIGINT and SIGHUP ask
/// the front to end.
pub fn run(config: &Config, mut front: Command, worker: WorkerCommand) -> anyhow::Result<ExitCode> {
    hygiene::establish()?;
    telemetry::install(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    // Before there is anything that a signal would leave behind.
    let signals = {
        let _entered = runtime.enter();
        supervisor::Signals::catch().context("cannot wait for signals")?
    };
    let runtime_dir = RuntimeDir::open(config.runtime.dir.as_deref())?;
    // The front finds it where it finds every setting.
    front.env("KMS_RUNTIME__DIR", runtime_dir.path());
    let settings = supervisor::Settings {
        program: worker.program,
        name: worker.name,
        args: worker.args,
        env: worker.env,
        uri: config.hsm.uri.parse::<Uri>().context("hsm.uri")?,
        sessions_per_worker: config.hsm.sessions_per_worker.get(),
        runtime_dir: runtime_dir.path().to_owned(),
        lock_dir: config.lock_dir().to_owned(),
        profile_file: config.hsm.profile_file.clone(),
        leave_timeout: LEAVE_TIMEOUT,
        startup_timeout: config.hsm.startup_timeout,
    };
    let status =
        runtime.block_on(supervisor::run(front, settings, signals)).context("cannot run the server")?;
    Ok(exit_code(status))
}

/// The front's own code; 128 and the signal that killed it, as shells do.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
