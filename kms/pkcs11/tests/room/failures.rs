//! Killed, stopped and overloaded workers.

use std::time::{Duration, Instant};

use kms_core::{Algorithm, Hsm, hsm::Fault};
use rustix::process::Signal;

use crate::support::{Rig, eventually, grant, signal, soon, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_late_already_is_refused_unsent() {
    let rig = Rig::new().await;
    assert_eq!(rig.pool.check(&grant(), within(Duration::ZERO)).await, Err(Fault::DeadlineExceeded));
    assert_eq!(rig.pool.health().in_flight, 0);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_worker_costs_its_caller_the_deadline_and_is_replaced() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let [stopped] = rig.workers()[..] else { panic!("one worker") };
    signal(stopped, Signal::STOP);
    let (began, patience) = (Instant::now(), Duration::from_millis(300));
    assert_eq!(rig.sign(&key, within(patience)).await, Err(Fault::DeadlineExceeded));
    let took = began.elapsed();
    assert!(took >= patience && took < patience + Duration::from_millis(100), "{took:?}");
    // In flight when the worker is given up: its successor does it, and has never seen the key.
    rig.sign(&key, soon()).await.unwrap();
    assert!(rig.workers().iter().all(|pid| *pid != stopped), "it was replaced");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_at_once_and_recovers() {
    let rig = Rig::with(|config| {
        // Of twelve places one is for unseals, and one caller alone may have eight.
        (config.workers, config.queue_max) = (1, 12);
        config.call_timeout = Duration::from_secs(20);
    })
    .await;
    let [worker] = rig.workers()[..] else { panic!("one worker") };
    signal(worker, Signal::STOP);
    let checks: Vec<_> = (0..8)
        .map(|_| {
            let pool = rig.pool.clone();
            tokio::spawn(async move { pool.check(&grant(), soon()).await })
        })
        .collect();
    eventually("eight calls in flight", || rig.pool.health().in_flight == 8).await;
    let refused = rig.pool.check(&grant(), soon()).await;
    assert!(matches!(refused, Err(Fault::Busy { retry_after }) if !retry_after.is_zero()), "{refused:?}");
    signal(worker, Signal::CONT);
    for check in checks {
        check.await.unwrap().unwrap();
    }
    assert_eq!(rig.pool.health().in_flight, 0);
    rig.pool.check(&grant(), soon()).await.unwrap();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_whose_deadline_passed_in_the_queue_never_reaches_the_token() {
    let rig = Rig::with(|config| {
        config.workers = 1;
        config.call_timeout = Duration::from_secs(20);
    })
    .await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let [worker] = rig.workers()[..] else { panic!("one worker") };
    signal(worker, Signal::STOP);
    assert_eq!(rig.sign(&key, within(Duration::from_millis(50))).await, Err(Fault::DeadlineExceeded));
    assert_eq!(rig.pool.health().in_flight, 1, "its place is held until the worker has met it");
    signal(worker, Signal::CONT);
    eventually("the worker drops it", || rig.pool.expired_calls() == 1).await;
    assert_eq!(rig.pool.health().in_flight, 0);
    assert_eq!(rig.workers(), [worker], "no reason to replace it");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_wait_for_a_replacement_instead_of_failing() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let [victim] = rig.workers()[..] else { panic!("one worker") };
    signal(victim, Signal::KILL);
    eventually("the death is seen", || rig.workers() != [victim]).await;
    rig.sign(&key, soon()).await.unwrap();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_and_sigint_do_not_kill_a_worker() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let workers = rig.workers();
    for kind in [Signal::TERM, Signal::INT, Signal::HUP] {
        signal(workers[0], kind);
        rig.pool.check(&grant(), soon()).await.unwrap();
    }
    assert_eq!(rig.workers(), workers);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hung_worker_costs_no_call_that_can_wait_for_its_end() {
    let rig = Rig::new().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let hung = rig.workers()[0];
    signal(hung, Signal::STOP);
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let (pool, key) = (rig.pool.clone(), key.clone());
            tokio::spawn(async move {
                let input = kms_core::signature::input_of(Algorithm::Es256, b"m");
                pool.sign(&grant(), &key, Algorithm::Es256, input, soon()).await.map(drop)
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    eventually("the hung worker is replaced", || {
        !rig.workers().contains(&hung) && rig.pool.health().workers_ready == 2
    })
    .await;
    rig.close().await;
}
