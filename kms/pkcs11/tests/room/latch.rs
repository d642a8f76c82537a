//! The PIN latch as the pool uses it: no leave, no C_Login; and nothing is shown before the latch knows.

use std::{
    mem,
    sync::{Arc, Mutex},
};

use kms_core::{Hsm, pin_latch::Outcome};
use kms_pkcs11::{
    Pool,
    pool::{Config, Latch, Later, PoolLatch, StartError, Status},
    wire::{Refusal, RefusalKind},
};
use kms_softhsm::EphemeralToken;
use tokio::{sync::Semaphore, task::JoinHandle};

use crate::{
    admin,
    support::{self, eventually},
};

/// A latch that writes down what it is asked and told, and says what the test wants.
#[derive(Clone)]
pub(crate) struct Book(Arc<Page>);

struct Page {
    asked: Mutex<Vec<String>>,
    told: Mutex<Vec<Outcome>>,
    /// What it answers, if not yes.
    refusal: Option<Refusal>,
    /// How often it may answer.
    answers: Semaphore,
    /// Whether the next outcome is lost.
    loses: Mutex<bool>,
}

impl Default for Book {
    fn default() -> Self {
        Self::new(None, Semaphore::MAX_PERMITS)
    }
}

impl Book {
    fn new(refusal: Option<Refusal>, answers: usize) -> Self {
        Self(Arc::new(Page {
            asked: Mutex::default(),
            told: Mutex::default(),
            refusal,
            answers: Semaphore::new(answers),
            loses: Mutex::default(),
        }))
    }

    pub(crate) fn latch(&self) -> PoolLatch {
        PoolLatch(Arc::new(self.clone()))
    }

    pub(crate) fn told(&self) -> Vec<Outcome> {
        self.0.told.lock().unwrap().clone()
    }

    fn asked(&self) -> usize {
        self.0.asked.lock().unwrap().len()
    }
}

impl Latch for Book {
    fn take<'a>(&'a self, token_serial: &'a str) -> Later<'a, Result<(), Refusal>> {
        self.0.asked.lock().unwrap().push(token_serial.to_owned());
        Box::pin(async {
            self.0.answers.acquire().await.unwrap().forget();
            self.0.refusal.clone().map_or(Ok(()), Err)
        })
    }

    fn settle<'a>(&'a self, _: &'a str, outcome: &'a Outcome) -> Later<'a, Result<Option<String>, String>> {
        Box::pin(async {
            if mem::take(&mut *self.0.loses.lock().unwrap()) {
                return Err("the store is full".to_owned());
            }
            self.0.told.lock().unwrap().push(outcome.clone());
            Ok(match outcome {
                Outcome::Refused(text) => Some(text.clone()),
                _ => None,
            })
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_latch_that_refuses_keeps_the_pin_from_the_token() {
    for kind in [RefusalKind::Pin, RefusalKind::Passing] {
        let token = EphemeralToken::new().unwrap();
        std::fs::write(token.pin_file(), "not-the-pin").unwrap();
        let book =
            Book::new(Some(Refusal { kind, text: "refused before".to_owned() }), Semaphore::MAX_PERMITS);
        let (pool, supervisor, _dir) = start(&token, &book);
        let error = pool.wait_ready().await.unwrap_err();
        assert_eq!(error.to_string(), "refused before");
        assert_eq!(matches!(error, StartError::Pin(_)), kind == RefusalKind::Pin);
        eventually("the worker left by itself", || pool.health().respawns > 0).await;
        drop(pool);
        supervisor.await.unwrap();
        assert_eq!(admin::user_pin(&token), "Fine", "the wrong PIN has reached the token");
        assert_eq!(book.told(), [], "nothing was tried");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_latch_may_be_slow_and_hears_of_each_worker_before_it_serves() {
    let token = EphemeralToken::new().unwrap();
    let book = Book::new(None, 0);
    let (pool, supervisor, _dir) = start(&token, &book);
    eventually("it is asked", || book.asked() == 1).await;
    assert_eq!(*pool.status().borrow(), Status::Starting);
    assert_eq!((pool.health().workers_ready, book.told().len()), (0, 0));
    book.0.answers.add_permits(2);
    pool.wait_ready().await.unwrap();
    assert!(!book.told().is_empty(), "it serves before the latch knows");
    eventually("both serve", || pool.health().workers_ready == 2).await;
    assert_eq!(book.told(), [Outcome::Succeeded, Outcome::Succeeded]);
    assert_eq!(*book.0.asked.lock().unwrap(), [token.serial(), token.serial()]);
    drop(pool);
    supervisor.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_pin_is_known_to_the_latch_before_it_is_reported() {
    let token = EphemeralToken::new().unwrap();
    std::fs::write(token.pin_file(), "not-the-pin").unwrap();
    let book = Book::default();
    let (pool, supervisor, _dir) = start(&token, &book);
    let error = pool.wait_ready().await.unwrap_err();
    assert_eq!(book.told(), [Outcome::Refused(error.to_string())]);
    drop(pool);
    supervisor.await.unwrap();
    assert_eq!(book.asked(), 1);
    assert_eq!(admin::user_pin(&token), "CountLow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_was_lost_is_told_again_before_the_next_try() {
    let token = EphemeralToken::new().unwrap();
    let book = Book::default();
    *book.0.loses.lock().unwrap() = true;
    let (pool, supervisor, _dir) = start(&token, &book);
    pool.wait_ready().await.unwrap();
    eventually("both serve", || pool.health().workers_ready == 2).await;
    assert_eq!((book.asked(), book.told().len()), (2, 2));
    drop(pool);
    supervisor.await.unwrap();
}

fn start(token: &EphemeralToken, book: &Book) -> (Pool, JoinHandle<()>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let runtime_dir = dir.path().join("run");
    let config =
        Config { workers: 2, spare_workers: 0, runtime_dir, latch: book.latch(), ..Config::default() };
    let (pool, supervisor) = support::link(token, &token.uri(), dir.path(), config);
    (pool, supervisor, dir)
}
