//! The whole process tree: supervisor, front and workers, each a process of its own. This test program starts itself
//! again as supervisor and as front.

use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
};

use kms_core::Hsm;
use kms_pkcs11::{
    Pool,
    pool::{self, Config, Status},
    supervisor,
};
use kms_softhsm::EphemeralToken;
use rustix::process::Signal;

use crate::support::{self, eventually, grant, signal, soon};

/// What the front of these tests exits with after it was asked to end.
const FRONT_EXIT: u8 = 7;

struct Tree {
    supervisor: Child,
    front: u32,
    workers: Vec<u32>,
    dir: tempfile::TempDir,
    _token: EphemeralToken,
}

impl Tree {
    async fn new() -> Self {
        let token = EphemeralToken::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (variable, conf) = token.env();
        let supervisor = again("supervisor_process")
            .env(variable, conf)
            .env("TEST_URI", token.uri())
            .env("TEST_DIR", dir.path())
            .spawn()
            .unwrap();
        let ready = dir.path().join("ready");
        eventually("front and workers are ready", || ready.exists()).await;
        let pids: Vec<u32> = std::fs::read_to_string(ready)
            .unwrap()
            .split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect();
        Self { supervisor, front: pids[0], workers: pids[1..].to_vec(), dir, _token: token }
    }

    async fn gone(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the supervisor ends", || {
            status = self.supervisor.try_wait().unwrap();
            status.is_some()
        })
        .await;
        for pid in self.workers.iter().copied().chain([self.front]) {
            eventually("every process ends", || !is_alive(pid)).await;
        }
        status.unwrap()
    }
}

#[tokio::test]
async fn a_signal_to_the_supervisor_ends_the_front_and_then_the_workers() {
    for kind in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut tree = Tree::new().await;
        signal(tree.supervisor.id(), kind);
        assert_eq!(tree.gone().await.code(), Some(FRONT_EXIT.into()), "the front's own exit status");
        assert!(tree.dir.path().join("asked").exists(), "the front was asked, not killed");
    }
}

#[tokio::test]
async fn a_second_signal_reaches_the_front_too() {
    let mut tree = Tree::new().await;
    signal(tree.front, Signal::USR1);
    let dir = tree.dir.path().to_owned();
    eventually("the front waits for two", || dir.join("stubborn").exists()).await;
    signal(tree.supervisor.id(), Signal::TERM);
    eventually("the front was asked once", || dir.join("asked").exists()).await;
    assert_eq!(tree.supervisor.try_wait().unwrap(), None);
    signal(tree.supervisor.id(), Signal::TERM);
    assert_eq!(tree.gone().await.code(), Some(FRONT_EXIT.into()));
}

#[tokio::test]
async fn everything_ends_when_the_front_is_killed() {
    let mut tree = Tree::new().await;
    signal(tree.front, Signal::KILL);
    assert!(!tree.gone().await.success());
}

#[tokio::test]
async fn a_hung_ready_worker_does_not_outlive_the_front() {
    let mut tree = Tree::new().await;
    signal(tree.workers[0], Signal::STOP);
    signal(tree.supervisor.id(), Signal::TERM);
    assert_eq!(tree.gone().await.code(), Some(FRONT_EXIT.into()));
}

#[tokio::test]
async fn front_and_workers_end_when_the_supervisor_is_killed() {
    let mut tree = Tree::new().await;
    signal(tree.supervisor.id(), Signal::KILL);
    assert_eq!(tree.gone().await.signal(), Some(9));
    assert!(tree.dir.path().join("abandoned").exists(), "the front noticed");
}

#[tokio::test]
#[ignore = "run by other tests, in a process of its own"]
async fn supervisor_process() {
    let signals = supervisor::Signals::catch().unwrap();
    let dir = dir();
    let uri = std::env::var("TEST_URI").unwrap();
    let settings = supervisor::Settings {
        program: PathBuf::from(support::WORKER),
        name: "kms".into(),
        args: Vec::new(),
        env: Vec::new(),
        uri: uri.parse().unwrap(),
        sessions_per_worker: 1,
        runtime_dir: dir.join("run"),
        lock_dir: dir.join("lock"),
        profile_file: None,
        leave_timeout: std::time::Duration::from_millis(500),
        startup_timeout: std::time::Duration::from_secs(30),
    };
    let status = supervisor::run(again("front_process"), settings, signals).await.unwrap();
    std::process::exit(status.code().unwrap_or(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "run by other tests, in a process of its own"]
async fn front_process() {
    let dir = dir();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).unwrap();
    let mut stubborn = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined1()).unwrap();
    let control = pool::control_from_stdin().unwrap();
    let pool = Pool::start(Config { runtime_dir: dir.join("run"), ..Config::default() }, control).unwrap();
    pool.wait_ready().await.unwrap();
    pool.check(&grant(), soon()).await.unwrap();
    eventually("both workers", || pool.worker_pids().len() == 2).await;
    let pids: Vec<u32> = [std::process::id()].into_iter().chain(pool.worker_pids()).collect();
    write(&dir, "ready", &pids.iter().map(|pid| format!("{pid} ")).collect::<String>());
    let mut status = pool.status();
    tokio::select! {
        _ = stubborn.recv() => {
            write(&dir, "stubborn", "");
            terminate.recv().await;
            write(&dir, "asked", "");
            terminate.recv().await;
        }
        _ = terminate.recv() => write(&dir, "asked", ""),
        _ = interrupt.recv() => write(&dir, "asked", ""),
        _ = status.wait_for(|status| *status == Status::Abandoned) => write(&dir, "abandoned", ""),
    }
    std::process::exit(FRONT_EXIT.into());
}

/// This program, as one of the processes above.
fn again(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("tree::{name}"), "--ignored", "--nocapture"]);
    command.stdout(std::process::Stdio::null());
    command
}

fn dir() -> PathBuf {
    std::env::var_os("TEST_DIR").unwrap().into()
}

/// Whole or not at all, for somebody waits for it.
fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join("new"), text).unwrap();
    std::fs::rename(dir.join("new"), dir.join(name)).unwrap();
}

/// A zombie whose new parent does not care counts as gone.
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
    })
}
