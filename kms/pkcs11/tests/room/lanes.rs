//! Who waits for whom, with real workers.

use std::time::{Duration, Instant};

use kms_core::{
    Action, Algorithm, Grant, Hsm, Unsettled,
    hsm::{Fault, KeyRef},
    lane::Lane,
    signature,
};
use kms_softhsm::faults::Controller;
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::support::{Rig, eventually, grant, signal, soon, within};

/// What each signature takes.
const CALL: Duration = Duration::from_millis(10);

async fn sign(rig: &Rig, key: &KeyRef, grant: Grant, time: Duration) -> Result<Duration, Fault> {
    let (pool, key, began) = (rig.pool.clone(), key.clone(), Instant::now());
    let input = signature::input_of(Algorithm::Es256, b"m");
    let signed = pool.sign(&grant, &key, Algorithm::Es256, input, within(time)).await;
    signed.map(Unsettled::open_for_conformance).map(|_| began.elapsed())
}

fn of(lane: Lane, caller: &str) -> Grant {
    Grant::for_conformance(Action::Sign).in_lane(lane, caller)
}

/// Two workers for whom each signature takes [`CALL`], and a key that both know.
async fn slow() -> (Rig, Controller, KeyRef) {
    let (rig, controller) = Rig::faulty("", |config| config.call_timeout = Duration::from_secs(20));
    rig.pool.wait_ready().await.unwrap();
    rig.workers_are(2).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    controller.set(&format!("C_Sign always: delay-ms {}", CALL.as_millis()).parse().unwrap());
    let calls: JoinSet<_> = (0..8).map(|_| signing(&rig, &key, of(Lane::Sign, "first"))).collect();
    assert!(calls.join_all().await.iter().all(Result::is_ok));
    (rig, controller, key)
}

fn signing(
    rig: &Rig,
    key: &KeyRef,
    grant: Grant,
) -> impl Future<Output = Result<(), Fault>> + Send + 'static + use<> {
    let (pool, key) = (rig.pool.clone(), key.clone());
    let input = signature::input_of(Algorithm::Es256, b"m");
    async move { pool.sign(&grant, &key, Algorithm::Es256, input, soon()).await.map(drop) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unseal_beside_a_flood_is_never_refused_and_waits_for_one_call_at_most() {
    let (rig, _controller, key) = slow().await;
    let mut flood: JoinSet<_> = (0..4_000).map(|_| signing(&rig, &key, of(Lane::Sign, "flood"))).collect();
    eventually("the flood is refused", || rig.pool.health().lanes[Lane::Sign as usize].refused > 0).await;
    let mut waits = Vec::new();
    for _ in 0..50 {
        waits.push(sign(&rig, &key, of(Lane::Unseal, "vault"), Duration::from_secs(60)).await.unwrap());
    }
    waits.sort();
    let other = sign(&rig, &key, of(Lane::Sign, "other"), Duration::from_secs(60)).await.unwrap();
    let health = rig.pool.health().lanes;
    assert_eq!(health[Lane::Unseal as usize].refused, 0);
    assert_eq!(health[Lane::Unseal as usize].sent, 50);
    assert!(health[Lane::Sign as usize].waiting > 200, "the flood stands: {health:?}");
    // One that a worker is at, and its own; a busy machine is slower. Behind the flood it would be 10 s.
    assert!(waits[45] < 10 * CALL && waits[49] < 40 * CALL, "{waits:?}");
    assert!(other < 40 * CALL, "{other:?}");
    flood.abort_all();
    while flood.join_next().await.is_some() {}
    // Whose caller has gone is not sent.
    eventually("the queue is empty", || rig.pool.health().in_flight == 0).await;
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_turn_ends_at_its_deadline_even_when_workers_hang() {
    let rig = Rig::with(|config| {
        config.workers = 1;
        config.call_timeout = Duration::from_secs(20);
    })
    .await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let [worker] = rig.workers()[..] else { panic!("one worker") };
    signal(worker, Signal::STOP);
    let held: JoinSet<_> = (0..100).map(|_| signing(&rig, &key, of(Lane::Sign, "a"))).collect();
    eventually("some wait", || rig.pool.health().lanes[Lane::Sign as usize].waiting > 10).await;
    let patience = Duration::from_millis(300);
    let began = Instant::now();
    assert_eq!(sign(&rig, &key, of(Lane::Sign, "b"), patience).await, Err(Fault::DeadlineExceeded));
    let took = began.elapsed();
    assert!(took >= patience && took < patience + Duration::from_millis(100), "{took:?}");
    signal(worker, Signal::CONT);
    assert!(held.join_all().await.iter().all(Result::is_ok), "the others were done");
    assert_eq!(rig.workers(), [worker]);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_outlives_the_worker_and_goes_to_the_next_one() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let [worker] = rig.workers()[..] else { panic!("one worker") };
    signal(worker, Signal::STOP);
    let calls: JoinSet<_> = (0..200).map(|_| signing(&rig, &key, of(Lane::Sign, "a"))).collect();
    eventually("some wait", || rig.pool.health().lanes[Lane::Sign as usize].waiting > 10).await;
    signal(worker, Signal::KILL);
    assert!(calls.join_all().await.iter().all(Result::is_ok));
    assert_eq!(rig.pool.health().in_flight, 0);
    rig.pool.check(&grant(), soon()).await.unwrap();
    rig.close().await;
}
