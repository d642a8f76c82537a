//! Killed, stopped and overloaded workers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

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
    // In flight when the worker is given up: it fails then, not at its own far deadline.
    let given_up = rig.sign(&key, soon()).await;
    assert!(matches!(given_up, Err(Fault::Unavailable(_))), "{given_up:?}");
    eventually("it is replaced", || rig.workers().iter().any(|pid| *pid != stopped)).await;
    // The same key, from a worker that has never seen it.
    rig.sign(&key, soon()).await.unwrap();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_at_once_and_recovers() {
    let rig = Rig::with(|config| {
        (config.workers, config.queue_max) = (1, 8);
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
async fn killing_ready_workers_under_load_costs_only_what_is_in_flight() {
    const KILLS: u32 = 30;
    const CALLERS: u32 = 8;
    let rig = Arc::new(Rig::new().await);
    let (key, _) = rig.key(Algorithm::Es256).await;
    let (stop, failed, signed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (rig, key, stop) = (Arc::clone(&rig), key.clone(), Arc::clone(&stop));
            let (failed, signed) = (Arc::clone(&failed), Arc::clone(&signed));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match rig.sign(&key, soon()).await {
                        Ok(_) => signed.fetch_add(1, Ordering::Relaxed),
                        Err(Fault::Unavailable(_)) => failed.fetch_add(1, Ordering::Relaxed),
                        Err(other) => panic!("{other:?}"),
                    };
                }
            })
        })
        .collect();
    for kill in 0..KILLS {
        rig.workers_are(2).await;
        let before = signed.load(Ordering::Relaxed);
        let victim = rig.workers()[usize::try_from(kill % 2).unwrap()];
        signal(victim, Signal::KILL);
        eventually("signing goes on", || signed.load(Ordering::Relaxed) > before + 10).await;
        eventually("the pool has seen the death", || !rig.workers().contains(&victim)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let lost = failed.load(Ordering::Relaxed);
    assert!(lost <= KILLS * CALLERS, "{lost} calls failed");
    rig.workers_are(2).await;
    assert!(rig.pool.health().respawns >= u64::from(KILLS));
    rig.sign(&key, soon()).await.unwrap();
    Arc::try_unwrap(rig).ok().unwrap().close().await;
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
async fn one_hung_worker_does_not_hold_up_the_others() {
    let rig = Rig::new().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let hung = rig.workers()[0];
    signal(hung, Signal::STOP);
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let (pool, key) = (rig.pool.clone(), key.clone());
            tokio::spawn(async move {
                let input = kms_core::signature::input_of(Algorithm::Es256, b"m");
                pool.sign(&grant(), &key, Algorithm::Es256, input, within(Duration::from_secs(1)))
                    .await
                    .is_ok()
            })
        })
        .collect();
    let mut signed = 0;
    for call in calls {
        signed += u32::from(call.await.unwrap());
    }
    assert!(signed >= 32, "only {signed} of 64");
    eventually("the hung worker is replaced", || {
        !rig.workers().contains(&hung) && rig.pool.health().workers_ready == 2
    })
    .await;
    rig.close().await;
}
