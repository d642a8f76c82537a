//! Answers that are lost, and a lock that is not given back.

use std::time::{Duration, Instant};

use kms_core::{
    Store as _,
    pin_latch::{Place, State},
    store::Fault,
};
use kms_store::PostgresStore;
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};

use crate::{
    PATIENCE, World, beat, insert,
    wire::{Fate, Wire},
};

/// An operation has 10 s, and 5 s before that to get a connection.
const OPERATION_MAX: Duration = Duration::from_secs(15);
/// A beat has 3 s: several of them must fit before the fence, which is at 10 s.
const BEAT_MAX: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_unknown_whether_it_was_done_or_not() {
    let world = World::new();
    let wire = Wire::to(world.cluster.addr()).await;
    let store = PostgresStore::open(&world.options_at(wire.addr)).await.expect("it opens");
    let start = store.check().await.expect("it works");

    wire.set_fate(Fate::AnswerLost);
    let fault = store.commit(insert("done")).await.expect_err("nobody answers");
    assert!(matches!(fault, Fault::Unknown(_)), "{fault}");
    let snapshot = store.load(None).await.expect("it reads");
    assert_eq!(snapshot.generation.0, start.0 + 1);
    assert_eq!(names(&snapshot), ["done"]);
    let again = store.commit(insert("done")).await.expect_err("it is there");
    assert!(matches!(again, Fault::Exists(_)), "{again}");

    wire.set_fate(Fate::Lost);
    let fault = store.commit(insert("not-done")).await.expect_err("nobody answers");
    assert!(matches!(fault, Fault::Unknown(_)), "{fault}");
    assert_eq!(store.load(None).await.expect("it reads"), snapshot, "nothing was committed");
    store.commit(insert("not-done")).await.expect("now it is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_stranger_keeps_the_lock_others_are_refused_in_time_and_readers_do_not_wait() {
    let world = World::new();
    let store = world.open().await;
    let known = store.commit(insert("before")).await.expect("it is written");
    let url = world.database.url_at(world.cluster.addr());
    let options: PgConnectOptions = url.parse().expect("a URL");
    let mut stranger =
        PgConnection::connect_with(&options.password(world.database.password())).await.expect("it connects");
    let mut held = stranger.begin().await.expect("it begins");
    sqlx::query("SELECT value FROM generation FOR UPDATE").execute(&mut *held).await.expect("it locks");

    let place = Place { token_serial: "t".to_owned(), pin_generation: 1 };
    let commit = timed(async { store.commit(insert("during")).await.map(drop) });
    let check = timed(async { store.check().await.map(drop) });
    let latch = timed(store.set_pin_latch(&place, State::UNTRIED, State::PROVEN));
    let pulse = timed(async { store.pulse(beat("a", known)).await.map(drop) });
    let reading = async {
        let snapshot = store.load(None).await.expect("it reads");
        assert_eq!(names(&snapshot), ["before"]);
        assert_eq!(store.request("any").await.expect("it reads"), None);
        Instant::now()
    };
    let (commit, check, latch, pulse, read_at) = tokio::join!(commit, check, latch, pulse, reading);
    for (what, (outcome, began, ended), bound) in [
        ("a commit", commit, OPERATION_MAX),
        ("a check", check, OPERATION_MAX),
        ("a PIN latch", latch, OPERATION_MAX),
        ("a beat", pulse, BEAT_MAX),
    ] {
        let fault = outcome.expect_err("the lock is not to be had");
        assert!(matches!(fault, Fault::Unavailable(_)), "{what}: {fault}");
        assert!(fault.to_string().contains("database"), "{what}: {fault}");
        assert!(ended - began <= bound, "{what} took {:?}", ended - began);
        assert!(read_at < ended, "the readers waited as long as {what}");
    }
    assert_eq!(store.load(None).await.expect("it reads").generation, known, "one was done all the same");

    held.rollback().await.expect("it lets go");
    let made = store.commit(insert("after")).await.expect("it is written");
    assert_eq!(store.pulse(beat("a", known)).await.expect("a pulse").generation, made);
    assert_eq!(store.pin_latch(&place).await.expect("it reads"), State::UNTRIED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_paused_with_the_lock_in_its_hands_loses_it_and_the_others_go_on() {
    let world = World::new();
    let wire = Wire::to(world.cluster.addr()).await;
    let paused = PostgresStore::open(&world.options_at(wire.addr)).await.expect("it opens");
    let other = world.open().await;
    let start = other.check().await.expect("it works");

    wire.set_fate(Fate::Paused);
    let asked = paused.clone();
    let asked = tokio::spawn(async move { asked.commit(insert("paused")).await });
    wire.until_done().await;

    // Whoever asks too early is told so in time, and may ask again.
    let began = Instant::now();
    let made = loop {
        let (outcome, began_once, ended) = timed(other.commit(insert("other"))).await;
        assert!(ended - began_once <= OPERATION_MAX, "it took {:?}", ended - began_once);
        match outcome {
            Ok(made) => break made,
            Err(fault) => assert!(matches!(fault, Fault::Unavailable(_)), "{fault}"),
        }
        assert!(began.elapsed() < PATIENCE, "the lock is never given back");
    };
    assert_eq!(made.0, start.0 + 1);
    let fault = asked.await.expect("it runs").expect_err("nobody answers");
    assert!(matches!(fault, Fault::Unknown(_)), "{fault}");
    assert_eq!(names(&other.load(None).await.expect("it reads")), ["other"]);
    paused.commit(insert("paused")).await.expect("it is back");
}

fn names(snapshot: &kms_core::store::Snapshot) -> Vec<&str> {
    snapshot.keys.iter().map(|(key, _)| key.id.as_str()).collect()
}

/// What came of it, and when it began and ended.
async fn timed<T>(work: impl Future<Output = Result<T, Fault>>) -> (Result<T, Fault>, Instant, Instant) {
    let began = Instant::now();
    let outcome = work.await;
    (outcome, began, Instant::now())
}
