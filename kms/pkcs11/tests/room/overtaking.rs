//! Exit and last words of a worker reach the pool over different sockets, in any order. This test plays supervisor and
//! worker over the real sockets, because no real pair overtakes each other on demand.

use std::path::Path;

use kms_core::{Hsm, pin_latch::Outcome};
use kms_pkcs11::{
    Pool,
    pool::{Config, PoolLatch, StartError, Status},
    wire::{
        self, Exit, FromSupervisor, FromWorker, Hello, Inbox, Ready, Refusal, RefusalKind, Secret,
        ToSupervisor,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{latch::Book, support::eventually};

struct Play {
    pool: Pool,
    control: UnixStream,
    inbox: Inbox,
    dir: tempfile::TempDir,
}

impl Play {
    fn new() -> Self {
        Self::with(PoolLatch::default())
    }

    fn with(latch: PoolLatch) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime_dir = dir.path().join("run");
        let config = Config { workers: 1, spare_workers: 0, runtime_dir, latch, ..Config::default() };
        let (ours, control) = UnixStream::pair().unwrap();
        Self { pool: Pool::start(config, ours).unwrap(), control, inbox: Inbox::default(), dir }
    }

    /// What the pool asks of its supervisor; `None` when it hangs up.
    async fn asked(&mut self) -> Option<ToSupervisor> {
        loop {
            if let Some(body) = self.inbox.take().unwrap() {
                return Some(ToSupervisor::decode(body).unwrap());
            }
            match self.control.read(self.inbox.room()).await.unwrap() {
                0 => return None,
                len => self.inbox.filled(len),
            }
        }
    }

    /// A worker that has leave to call C_Login.
    async fn logging_in(&mut self) -> UnixStream {
        assert_eq!(self.asked().await, Some(ToSupervisor::Spawn { number: 1 }));
        let secret = || Secret::from_bytes([7; 32]);
        self.tell(&FromSupervisor::Spawned { number: 1, pid: std::process::id(), secret: secret() }).await;
        let mut worker = connect(self.dir.path()).await;
        say(
            &mut worker,
            &FromWorker::Hello(Hello { build: wire::BUILD_ID.to_owned(), number: 1, secret: secret() }),
        )
        .await;
        say(&mut worker, &FromWorker::LoggingIn("s".to_owned())).await;
        let mut word = [1; wire::LOG_IN.len()];
        worker.read_exact(&mut word).await.unwrap();
        assert_eq!(word, wire::LOG_IN);
        worker
    }

    /// Tells the pool of the exit.
    async fn exited(&mut self) {
        let status = "signal: 11 (SIGSEGV)".to_owned();
        let exit = Exit { number: 1, pid: std::process::id(), status };
        self.tell(&FromSupervisor::Exited(exit)).await;
    }

    /// The same, and returns when the pool has heard it.
    async fn exit_was_heard(&mut self) {
        self.exited().await;
        // Heard in order, and seen in the status.
        let text = "a mark".to_owned();
        self.tell(&FromSupervisor::SpawnFailed { number: u16::MAX, text: text.clone() }).await;
        let pool = &self.pool;
        eventually(
            "the pool has heard it",
            || matches!(&*pool.status().borrow(), Status::Failing { refusal, .. } if refusal.text == text),
        )
        .await;
    }

    async fn tell(&mut self, message: &FromSupervisor) {
        let mut out = Vec::new();
        wire::frame(&mut out, |body| message.encode(body));
        self.control.write_all(&out).await.unwrap();
    }

    /// The pool gave up because of the PIN, and never asks for another worker.
    async fn gives_up(self, expected: &str) {
        let Self { pool, mut control, mut inbox, dir: _dir } = self;
        eventually("the PIN is refused", || matches!(&*pool.status().borrow(), Status::PinRefused(_))).await;
        let error = pool.wait_ready().await.unwrap_err();
        assert!(matches!(&error, StartError::Pin(text) if text.contains(expected)), "{error}");
        eventually("the worker is buried", || pool.health().respawns > 0).await;
        drop(pool);
        // Everything that it has asked for since.
        let mut rest = Vec::new();
        assert!(inbox.take().unwrap().is_none());
        control.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "{rest:?}");
    }
}

#[tokio::test]
async fn a_pin_refusal_that_the_exit_overtakes_still_ends_all_tries() {
    let mut play = Play::new();
    let mut worker = play.logging_in().await;
    play.exit_was_heard().await;
    let refusal = Refusal { kind: RefusalKind::Pin, text: "C_Login gave PinIncorrect".to_owned() };
    say(&mut worker, &FromWorker::Refused(refusal)).await;
    drop(worker);
    play.gives_up("PinIncorrect").await;
}

#[tokio::test]
async fn a_worker_that_dies_inside_the_login_is_not_tried_again() {
    let mut play = Play::new();
    let worker = play.logging_in().await;
    play.exit_was_heard().await;
    drop(worker);
    play.gives_up("died while logging in (signal: 11 (SIGSEGV))").await;

    let mut play = Play::new();
    drop(play.logging_in().await);
    play.exited().await;
    play.gives_up("died while logging in").await;
}

#[tokio::test]
async fn a_worker_that_dies_before_or_after_the_login_is_replaced() {
    let mut play = Play::new();
    let mut worker = play.logging_in().await;
    play.exit_was_heard().await;
    let ready = Ready {
        token_serial: "s".to_owned(),
        token_label: "l".to_owned(),
        library: "m".to_owned(),
        may_die_starting: false,
        algorithms: Vec::new(),
    };
    say(&mut worker, &FromWorker::Ready(ready)).await;
    drop(worker);
    let mut worker = play.logging_in().await;
    play.exit_was_heard().await;
    let lost = Refusal { kind: RefusalKind::Passing, text: "C_Login gave DeviceRemoved".to_owned() };
    say(&mut worker, &FromWorker::Refused(lost)).await;
    drop(worker);
    play.logging_in().await;
}

#[tokio::test]
async fn a_latch_may_let_a_death_inside_the_login_pass() {
    let book = Book::default();
    let mut play = Play::with(book.latch());
    let worker = play.logging_in().await;
    play.exit_was_heard().await;
    drop(worker);
    play.logging_in().await;
    let died = Outcome::Died("signal: 11 (SIGSEGV)".to_owned());
    assert_eq!(book.told(), [died]);
}

async fn connect(dir: &Path) -> UnixStream {
    UnixStream::connect(dir.join("run/hsm.sock")).await.unwrap()
}

async fn say(worker: &mut UnixStream, message: &FromWorker) {
    let mut out = Vec::new();
    wire::frame(&mut out, |body| message.encode(body));
    worker.write_all(&out).await.unwrap();
}
