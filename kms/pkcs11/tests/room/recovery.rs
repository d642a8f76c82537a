//! The link heals itself: spare workers, repeated calls, retirement, canaries for idle links, a token that goes and
//! comes back.

use std::{
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kms_core::{
    Algorithm, Hsm,
    hsm::{Fault, KeyRef},
};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::support::{Rig, eventually, grant, signal, soon, within};

/// Callers that sign without a pause until told to stop; each failure ends the test.
struct Load {
    stop: Arc<AtomicBool>,
    signed: Arc<AtomicU64>,
    callers: JoinSet<Result<(), Fault>>,
}

impl Load {
    fn start(rig: &Rig, key: &KeyRef, callers: usize) -> Self {
        let (stop, signed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let (pool, key) = (rig.pool.clone(), key.clone());
            let (stop, signed) = (Arc::clone(&stop), Arc::clone(&signed));
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let input = kms_core::signature::input_of(Algorithm::Es256, b"m");
                    let _ = pool.sign(&grant(), &key, Algorithm::Es256, input, soon()).await?;
                    signed.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Self { stop, signed, callers: tasks }
    }

    fn signed(&self) -> u64 {
        self.signed.load(Ordering::Relaxed)
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for outcome in self.callers.join_all().await {
            outcome.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_caller_notices_that_workers_die_one_after_another() {
    for spares in [0, 1] {
        dying_workers(spares).await;
    }
}

async fn dying_workers(spares: u16) {
    const KILLS: usize = 20;
    let rig = Rig::with(|config| config.spare_workers = spares).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let load = Load::start(&rig, &key, 8);
    for kill in 0..KILLS {
        eventually("all are ready", || {
            let health = rig.pool.health();
            (health.workers_ready, health.spares_ready) == (2, spares.into())
        })
        .await;
        let before = load.signed();
        let victim = rig.workers()[kill % 2];
        signal(victim, Signal::KILL);
        eventually("the death is seen", || !rig.workers().contains(&victim)).await;
        eventually("signing goes on", || load.signed() > before + 10).await;
    }
    load.stop().await;
    assert!(rig.pool.health().respawns >= KILLS as u64);
    rig.close().await;
}

/// Both are ready. (On a busy machine the spare may stand in for a moment.)
async fn one_of_two_serves(rig: &Rig) {
    eventually("one of two serves", || rig.pool.health().spares_ready == 1 && rig.workers().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spare_worker_takes_over_before_another_has_started() {
    let rig = Rig::with(|config| (config.workers, config.spare_workers) = (1, 1)).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    one_of_two_serves(&rig).await;
    let [serving] = rig.workers()[..] else { panic!("one serves") };
    signal(serving, Signal::KILL);
    eventually("the death is seen", || !rig.workers().contains(&serving)).await;
    assert_eq!(rig.workers().len(), 1, "the spare serves in the same moment");
    rig.sign(&key, soon()).await.unwrap();
    eventually("there is a spare again", || rig.pool.health().spares_ready == 1).await;
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spare_worker_stands_in_for_a_silent_one() {
    let rig = Rig::with(|config| {
        (config.workers, config.spare_workers) = (1, 1);
        config.call_timeout = Duration::from_secs(20);
    })
    .await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    one_of_two_serves(&rig).await;
    let [silent] = rig.workers()[..] else { panic!("one serves") };
    signal(silent, Signal::STOP);
    let lost = rig.sign(&key, within(Duration::from_millis(500))).await;
    assert_eq!(lost, Err(Fault::DeadlineExceeded));
    // Long before the silent one is given up.
    let began = Instant::now();
    rig.sign(&key, within(Duration::from_secs(5))).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(rig.workers().contains(&silent), "it is not given up yet");
    signal(silent, Signal::CONT);
    eventually("it is heard again, and one of the two rests", || rig.workers().len() == 1).await;
    assert_eq!(rig.pool.health().respawns, 0);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_retire_after_their_operations_and_no_caller_notices() {
    let rig = Rig::with(|config| {
        config.spare_workers = 1;
        config.worker_operations_max = NonZeroU64::new(200);
    })
    .await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let first = rig.workers();
    let load = Load::start(&rig, &key, 8);
    eventually("all of the first have gone", || first.iter().all(|pid| !rig.workers().contains(pid))).await;
    load.stop().await;
    assert!(rig.pool.health().recycled >= 2);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_has_grown_too_large_retires_unless_it_is_the_only_one() {
    for spares in [1, 0] {
        let rig = Rig::with(|config| {
            (config.workers, config.spare_workers) = (1, spares);
            config.worker_memory_bytes_max = NonZeroU64::new(1);
        })
        .await;
        let (key, _) = rig.key(Algorithm::Es256).await;
        let load = Load::start(&rig, &key, 4);
        if spares > 0 {
            eventually("it has gone", || rig.pool.health().recycled > 0).await;
        } else {
            eventually("it has done enough", || load.signed() > 1_000).await;
            assert_eq!(rig.pool.health().recycled, 0);
        }
        load.stop().await;
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_dies_while_nobody_uses_it_is_replaced_before_a_caller_comes() {
    let rig = Rig::with(|config| {
        (config.workers, config.call_timeout) = (1, Duration::from_millis(500));
        config.keep_alive = Duration::from_millis(100);
    })
    .await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let [silent] = rig.workers()[..] else { panic!("one worker") };
    signal(silent, Signal::STOP);
    eventually("it is replaced", || rig.workers().iter().any(|pid| *pid != silent)).await;
    rig.sign(&key, within(Duration::from_secs(5))).await.unwrap();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_token_is_away_calls_fail_at_once_and_when_it_is_back_they_succeed() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let conf = rig.token.conf();
    let away = conf.with_extension("away");
    std::fs::rename(conf, &away).unwrap();
    for worker in rig.workers() {
        signal(worker, Signal::KILL);
    }
    eventually("nobody is ready", || rig.workers().is_empty()).await;
    let fault = loop {
        match rig.sign(&key, within(Duration::from_secs(20))).await {
            Err(fault) => break fault,
            Ok(_) => tokio::task::yield_now().await,
        }
    };
    assert!(matches!(&fault, Fault::Unavailable(_)), "{fault:?}");
    let began = Instant::now();
    let again = rig.sign(&key, within(Duration::from_secs(20))).await;
    assert!(matches!(again, Err(Fault::Unavailable(_))), "{again:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "it waited for what does not come");
    std::fs::rename(away, conf).unwrap();
    let back = Instant::now();
    while rig.sign(&key, within(Duration::from_secs(20))).await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(30), "it does not heal");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.close().await;
}
