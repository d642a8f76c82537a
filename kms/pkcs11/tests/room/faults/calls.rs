//! Calls that fail, hang, crash, or give what they should not.

use std::time::{Duration, Instant};

use kms_core::{Algorithm, Hsm, hsm::Fault};

use super::{is_right, is_unavailable};
use crate::support::{Rig, eventually, soon, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_error_costs_the_worker_and_nothing_else() {
    let (rig, controller) = Rig::faulty("", |_| ());
    rig.workers_are(2).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let before = rig.workers();
    controller.set(&"C_Sign nth 1 times 1: return CKR_DEVICE_ERROR".parse().unwrap());
    // With luck the first call meets no fault: its worker is the other one.
    let mut failed = 0;
    while controller.fired() == 0 {
        failed += u32::from(is_unavailable(rig.sign(&key, soon()).await));
    }
    assert!(failed <= 1);
    eventually("the worker is replaced", || {
        let now = rig.workers();
        now.len() == 2 && before.iter().filter(|pid| !now.contains(pid)).count() == 1
    })
    .await;
    rig.sign(&key, soon()).await.unwrap();
    assert_eq!(controller.fired(), 1, "one call of the whole fleet");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_general_error_once_does_not_cost_the_worker_even_when_no_session_is_free() {
    let (rig, controller) = Rig::faulty_worker().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    rig.sign(&key, soon()).await.unwrap();
    let before = rig.workers();
    // The worker's two are all that there are: the failed one must be closed before another is opened.
    let script = "C_Sign nth 1 times 1: return CKR_GENERAL_ERROR\nC_OpenSession always: session-cap 2";
    controller.set(&script.parse().unwrap());
    let signed = rig.sign(&key, soon()).await;
    assert!(matches!(signed, Ok(_) | Err(Fault::Failed(_))), "{signed:?}");
    rig.sign(&key, soon()).await.unwrap();
    assert_eq!((controller.fired(), rig.workers()), (1, before), "the canary was well");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_its_library_keeps_after_the_link_was_lost_is_killed() {
    let (rig, controller) = Rig::faulty("", |config| (config.workers, config.spare_workers) = (1, 1));
    eventually("both are ready", || rig.pool.health().spares_ready == 1).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let script = "C_Sign nth 1 times 1: return CKR_DEVICE_ERROR\nC_CloseSession always times 1: hang";
    controller.set(&script.parse().unwrap());
    rig.sign(&key, soon()).await.unwrap();
    eventually("it was replaced", || {
        let health = rig.pool.health();
        (health.workers_ready, health.spares_ready, health.respawns) == (1, 1, 1)
    })
    .await;
    rig.sign(&key, soon()).await.unwrap();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_general_error_that_the_canary_meets_too_costs_the_worker() {
    let (rig, controller) = Rig::faulty_worker().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let before = rig.workers();
    controller.set(&"C_Sign,C_GenerateRandom always times 2: return CKR_GENERAL_ERROR".parse().unwrap());
    is_unavailable(rig.sign(&key, soon()).await);
    eventually("it is replaced", || matches!(rig.workers()[..], [now] if now != before[0])).await;
    rig.sign(&key, soon()).await.unwrap();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_cost_no_call_but_the_one_that_crashed() {
    const CALLS: u32 = 300;
    let (rig, controller) = Rig::faulty("", |_| ());
    rig.workers_are(2).await;
    let (key, spki) = rig.key(Algorithm::Es256).await;
    controller.set(&"C_Sign every 50: crash".parse().unwrap());
    let mut failed = 0;
    for _ in 0..CALLS {
        match rig.sign(&key, soon()).await {
            Ok(signature) => assert!(is_right(&spki, &signature)),
            other => failed += u32::from(is_unavailable(other)),
        }
    }
    let crashes = controller.fired();
    assert!(crashes >= 3, "{crashes} crashes");
    assert!(failed <= crashes, "{failed} calls failed by {crashes} crashes");
    controller.clear();
    rig.workers_are(2).await;
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hang_is_bounded_by_the_deadline_and_costs_the_worker() {
    let (rig, controller) = Rig::faulty_worker().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let [hung] = rig.workers()[..] else { panic!("one worker") };
    controller.set(&"C_Sign nth 1 times 1: hang".parse().unwrap());
    let (began, patience) = (Instant::now(), Duration::from_millis(300));
    assert_eq!(rig.sign(&key, within(patience)).await, Err(Fault::DeadlineExceeded));
    let took = began.elapsed();
    assert!(took >= patience && took < patience + Duration::from_secs(1), "{took:?}");
    eventually("it is replaced", || rig.workers().iter().any(|pid| *pid != hung)).await;
    rig.sign(&key, soon()).await.unwrap();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_module_is_no_hung_one() {
    let (rig, controller) = Rig::faulty_worker().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    rig.sign(&key, soon()).await.unwrap();
    let before = rig.workers();
    controller.set(&"C_Sign always: delay-ms 300".parse().unwrap());
    let began = Instant::now();
    rig.sign(&key, soon()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(rig.workers(), before);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_reaches_core_as_a_signature_that_does_not_verify() {
    let (rig, controller) = Rig::faulty_worker().await;
    let (key, spki) = rig.key(Algorithm::Es256).await;
    assert!(is_right(&spki, &rig.sign(&key, soon()).await.unwrap()));
    // The length query before it is no call of its own: it neither counts nor fails.
    controller.set(&"C_Sign nth 1: flip-bit 300".parse().unwrap());
    assert!(!is_right(&spki, &rig.sign(&key, soon()).await.unwrap()));
    assert!(is_right(&spki, &rig.sign(&key, soon()).await.unwrap()));
    assert_eq!(controller.fired(), 1);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shortened_signature_is_refused() {
    let (rig, controller) = Rig::faulty_worker().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    rig.sign(&key, soon()).await.unwrap();
    controller.set(&"C_Sign always: shorten".parse().unwrap());
    let signed = rig.sign(&key, soon()).await;
    assert!(matches!(&signed, Err(Fault::Failed(text)) if text.contains("63 bytes")), "{signed:?}");
    rig.close().await;
}
