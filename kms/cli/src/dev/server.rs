//! The development server: `kms serve` as a child process, watched until it ends.
//!
//! It gets a process group of its own, so that Ctrl-C on the terminal reaches it once, through us. Should we be
//! killed, it hears of it (`--follow`) and drains.

use std::{
    env,
    ffi::OsStr,
    fs,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use reqwest::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use super::address::reachable;
use crate::{failure::Failure, output};

/// From spawn to readiness, workers' logins included.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// How often a starting server is asked whether it is ready.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How often a person at the terminal is told that we still wait.
const TELL_INTERVAL: Duration = Duration::from_secs(3);

/// A running `kms serve`.
pub(super) struct Server {
    child: Child,
}

/// `listening.json`: where the server listens, written by it once its sockets are bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Listening {
    pub(super) grpc: SocketAddr,
    pub(super) http: SocketAddr,
}

impl Server {
    /// Starts `kms serve` with one more variable in its environment.
    pub(super) fn spawn(config: &Path, variable: (&str, &OsStr)) -> Result<Self, Failure> {
        let program = env::current_exe().map_err(Failure::about("cannot find this executable"))?;
        let child = Command::new(&program)
            .arg("serve")
            .arg("--config")
            .arg(config)
            .arg("--follow")
            .arg(std::process::id().to_string())
            .env(variable.0, variable.1)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(Failure::about(program.display()))?;
        Ok(Self { child })
    }

    /// Waits until the server is ready, and says where it listens. `file` is its `listening.json`.
    pub(super) async fn ready(&mut self, file: &Path) -> Result<Listening, Failure> {
        let started = Instant::now();
        let mut told = started;
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .build()
            .map_err(Failure::about("cannot make an HTTP client"))?;
        loop {
            if let Some(status) = self.child.try_wait().map_err(Failure::about("cannot watch the server"))? {
                return Err(ended(status));
            }
            let state = match read(file) {
                None => "the server starts its workers".to_owned(),
                Some(listening) => {
                    let url = format!("http://{}/readyz", reachable(listening.http));
                    match client.get(&url).send().await {
                        Ok(answer) if answer.status() == StatusCode::OK => return Ok(listening),
                        Ok(answer) => {
                            format!(
                                "{url} answers {}: {}",
                                answer.status(),
                                answer.text().await.unwrap_or_default()
                            )
                        }
                        Err(error) => format!("{url}: {error}"),
                    }
                }
            };
            if started.elapsed() > START_TIMEOUT {
                let message = format!("the server is not ready after {} s: {state}", START_TIMEOUT.as_secs());
                return Err(Failure::other(message).hint("its log above says why"));
            }
            if output::watched() && told.elapsed() > TELL_INTERVAL {
                told = Instant::now();
                output::note(&format!("waiting ({} s): {state}", started.elapsed().as_secs()));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until the server ends.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus, Failure> {
        self.child.wait().await.map_err(Failure::about("cannot watch the server"))
    }

    /// Passes a signal on. One that comes too late is no error.
    pub(super) fn signal(&self, signal: Signal) {
        // While the child is not reaped its number cannot be another's; after that there is no number.
        if let Some(pid) = self.pid() {
            let _ = kill_process(pid, signal);
        }
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()?).ok()?)
    }
}

/// The failure of a server that ended by itself.
pub(super) fn ended(status: ExitStatus) -> Failure {
    Failure::other(format!("the server ended by itself: {status}")).hint("its log above says why")
}

fn read(file: &Path) -> Option<Listening> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}
