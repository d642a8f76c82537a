//! What a module does wrong, done on purpose by the fault shim below real workers.
//!
//! A call that meets a fault may fail, or succeed where somebody retries it; it never gets a wrong answer.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use kms_core::{
    Algorithm, Hsm,
    hsm::{CkaId, Fault, KeyRef, NewKeyPair},
    signature,
};
use kms_pkcs11::pool::StartError;
use kms_softhsm::{
    EphemeralToken,
    faults::{Controller, Event, environment},
};
use rustix::process::Signal;

use crate::support::{self, Rig, eventually, grant, random, served, signal, soon, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_without_the_dev_flag_is_refused_and_named() {
    let token = EphemeralToken::new().unwrap();
    let controller = Controller::start(token.conf().parent().unwrap()).unwrap();
    let mut env = controller.env(token.module());
    env.retain(|(name, _)| name != environment::DEV_FLAG);
    let uri = support::shim_uri(&token);
    let rig = Rig::start(token, &uri, env, |_| ());
    let error = rig.pool.wait_ready().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("is the fault shim") && text.contains("correct module-path"), "{text}");
    assert!(matches!(error, StartError::Token(_)), "no amount of waiting cures it: {error:?}");
    assert!(controller.processes().is_empty() && controller.reports().is_empty());
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_without_a_controller_forwards_everything() {
    let token = EphemeralToken::new().unwrap();
    let env = [(environment::DEV_FLAG, Path::new("1")), (environment::MODULE, token.module())];
    let env = env.map(|(name, value)| (name.into(), value.into())).to_vec();
    let uri = support::shim_uri(&token);
    let rig = Rig::start(token, &uri, env, |config| config.workers = 1);
    rig.pool.wait_ready().await.unwrap();
    let (key, _) = rig.key(Algorithm::Es256).await;
    rig.sign(&key, soon()).await.unwrap();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_slot_list_means_that_the_hsm_is_absent() {
    let (rig, controller) = Rig::faulty("C_GetSlotList always: empty-slot-list", |_| ());
    let text = rig.pool.wait_ready().await.unwrap_err().to_string();
    assert!(text.contains("HSM absent"), "{text}");
    controller.clear();
    eventually("it comes back", || rig.pool.health().workers_ready == 2).await;
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pin_flags_refuse_before_a_try_is_spent() {
    for (flag, expected) in [
        ("count-low", "CKF_USER_PIN_COUNT_LOW"),
        ("final-try", "CKF_USER_PIN_FINAL_TRY"),
        ("locked", "the token's user PIN is locked"),
    ] {
        let (rig, controller) = Rig::faulty(&format!("C_GetTokenInfo always: pin-flag {flag}"), |_| ());
        let error = rig.pool.wait_ready().await.unwrap_err();
        assert!(matches!(&error, StartError::Pin(text) if text.contains(expected)), "{flag}: {error:?}");
        assert_eq!(logins(&controller), 0, "{flag}");
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_functions_that_are_not_there_is_refused_and_named() {
    for script in [
        "C_GetInterface always: null-functions",
        "C_GetInterface always: no-interface\nC_GetFunctionList always: null-functions",
    ] {
        let (rig, controller) = Rig::faulty(script, |_| ());
        let error = rig.pool.wait_ready().await.unwrap_err();
        assert!(matches!(error, StartError::Token(_)), "{script}: {error:?}");
        assert!(
            error.to_string().contains("it lacks C_Initialize and 17 other functions"),
            "{script}: {error}"
        );
        assert!(controller.fired() > 0);
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_list_of_interfaces_leaves_the_functions_of_2_40() {
    let (rig, controller) = Rig::faulty("C_GetInterface always: no-interface", |config| config.workers = 1);
    rig.pool.wait_ready().await.unwrap();
    assert_eq!(controller.fired(), 1);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_crashes_whoever_loads_it_costs_workers_and_is_reported() {
    for script in ["C_GetInterface always: null-list", "C_Initialize always: crash"] {
        let (rig, controller) = Rig::faulty(script, |_| ());
        let text = rig.pool.wait_ready().await.unwrap_err().to_string();
        assert!(text.contains("died while it started (signal: "), "{script}: {text}");
        assert!(controller.fired() >= 1, "{script}: it is on record although the process is gone");
        rig.close().await;
    }
}

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
async fn a_general_error_once_does_not_cost_the_worker() {
    let (rig, controller) = Rig::faulty_worker().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    rig.sign(&key, soon()).await.unwrap();
    let before = rig.workers();
    controller.set(&"C_Sign nth 1 times 1: return CKR_GENERAL_ERROR".parse().unwrap());
    let signed = rig.sign(&key, soon()).await;
    assert!(matches!(signed, Ok(_) | Err(Fault::Failed(_))), "{signed:?}");
    rig.sign(&key, soon()).await.unwrap();
    assert_eq!((controller.fired(), rig.workers()), (1, before), "the canary was well");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_finds_no_session_left_says_so() {
    let (rig, _controller) = Rig::faulty("C_OpenSession always: session-cap 1", |config| config.workers = 1);
    let text = rig.pool.wait_ready().await.unwrap_err().to_string();
    assert!(text.contains("C_OpenSession gave SessionCount"), "{text}");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_beyond_the_session_cap_wait_and_a_dead_one_gives_its_sessions_back() {
    // Each has one session that holds the login, and one that works.
    let (rig, controller) = Rig::faulty("C_OpenSession always: session-cap 2", |_| ());
    rig.pool.wait_ready().await.unwrap();
    let (key, _) = rig.key(Algorithm::Es256).await;
    eventually("the second worker is refused", || controller.fired() > 0).await;
    rig.sign(&key, soon()).await.unwrap();
    let [first] = rig.workers()[..] else { panic!("one worker") };
    signal(first, Signal::KILL);
    eventually("another has its sessions", || matches!(rig.workers()[..], [now] if now != first)).await;
    let open: u32 = controller.processes().iter().map(|process| process.sessions).sum();
    assert!(open <= 2, "{open} sessions");
    controller.clear();
    rig.workers_are(2).await;
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_made_before_an_error_was_reported_is_found() {
    for code in ["CKR_DEVICE_ERROR", "CKR_GENERAL_ERROR"] {
        let (rig, controller) = Rig::faulty_worker().await;
        controller
            .set(&format!("C_GenerateKeyPair always times 1: call-then-return {code}").parse().unwrap());
        let new = new_pair();
        let made = rig.pool.generate(&grant(), &new, soon()).await;
        assert!(matches!(made, Err(Fault::Failed(_) | Fault::Unavailable(_))), "{code}: {made:?}");
        let found = served(async || rig.pool.find(&grant(), new.id, soon()).await).await;
        assert_eq!((found.private.len(), found.public.len()), (1, 1), "{code}");
        let key = KeyRef::new(new.id, &found.public[0]);
        rig.sign(&key, soon()).await.unwrap();
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_the_token_lost_is_not_found_and_not_replaced() {
    // 0: at once; 1: while it is being looked for.
    for calls in [0, 1] {
        let (rig, controller) = Rig::faulty_worker().await;
        controller.set(&format!("C_GenerateKeyPair nth 1: lose-object {calls}").parse().unwrap());
        let new = new_pair();
        rig.pool.generate(&grant(), &new, soon()).await.unwrap();
        let found = rig.pool.find(&grant(), new.id, soon()).await.unwrap();
        assert_eq!((found.private.len(), found.public.len()), (0, 1), "{calls}");
        let key = KeyRef::new(new.id, &found.public[0]);
        assert_eq!(rig.sign(&key, soon()).await, Err(Fault::KeyNotFound), "{calls}");
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_lost_after_it_was_used_is_not_found() {
    let (rig, controller) = Rig::faulty_worker().await;
    controller.set(&"C_GenerateKeyPair nth 1: lose-object 40".parse().unwrap());
    let (key, _) = rig.key(Algorithm::Es256).await;
    let mut signed = rig.sign(&key, soon()).await;
    assert!(signed.is_ok(), "{signed:?}");
    for _ in 0..40 {
        signed = rig.sign(&key, soon()).await;
    }
    assert_eq!(signed, Err(Fault::KeyNotFound));
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_that_are_swapped_after_a_reconnect_do_not_sign() {
    let (rig, controller) = Rig::faulty_worker().await;
    let keys = [rig.key(Algorithm::Es256).await.0, rig.key(Algorithm::Es256).await.0];
    for key in &keys {
        rig.sign(key, soon()).await.unwrap();
    }
    controller.set(&"C_FindObjects always: swap-handles".parse().unwrap());
    let [before] = rig.workers()[..] else { panic!("one worker") };
    signal(before, Signal::KILL);
    eventually("it is replaced", || matches!(rig.workers()[..], [now] if now != before)).await;
    for key in &keys {
        let signed = rig.sign(key, soon()).await;
        assert!(matches!(signed, Err(Fault::KeyMismatch(_))), "{signed:?}");
    }
    assert!(controller.fired() > 0);
    controller.clear();
    for key in &keys {
        rig.sign(key, soon()).await.unwrap();
    }
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_private_key_under_the_right_public_key_does_not_sign() {
    let (rig, controller) = Rig::faulty_worker().await;
    let keys = [rig.key(Algorithm::Es256).await.0, rig.key(Algorithm::Es256).await.0];
    controller.set(&"C_SignInit always: swap-handles".parse().unwrap());
    for key in &keys {
        let signed = rig.sign(key, soon()).await;
        assert!(matches!(signed, Err(Fault::KeyMismatch(_))), "{signed:?}");
    }
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_the_token_forgot_heals_by_a_new_worker_and_loses_no_key() {
    for when in ["C_SignInit", "C_Sign", "C_FindObjectsInit", "C_GetAttributeValue"] {
        let (rig, controller) = Rig::faulty_worker().await;
        let (key, spki) = rig.key(Algorithm::Es256).await;
        if when == "C_SignInit" {
            // The handle is known: only signing meets the lost login.
            rig.sign(&key, soon()).await.unwrap();
        }
        let before = rig.workers();
        controller.set(&format!("{when} nth 1 times 1: forget-login").parse().unwrap());
        is_unavailable(rig.sign(&key, soon()).await);
        let signature = served(async || rig.sign(&key, soon()).await).await;
        assert!(is_right(&spki, &signature), "{when}");
        assert_ne!(rig.workers(), before, "{when}: a new worker");
        assert_eq!((controller.fired(), logins(&controller)), (1, 2), "{when}");
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_without_login_does_not_say_that_there_is_no_key() {
    let (rig, controller) = Rig::faulty_worker().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    controller.set(&"C_FindObjectsInit nth 1 times 1: forget-login".parse().unwrap());
    match rig.pool.find(&grant(), key.id, soon()).await {
        Ok(found) => assert_eq!((found.private.len(), found.public.len()), (1, 1)),
        Err(fault) => assert!(matches!(fault, Fault::Unavailable(_)), "{fault:?}"),
    }
    let found = served(async || rig.pool.find(&grant(), key.id, soon()).await).await;
    assert_eq!((found.private.len(), found.public.len()), (1, 1));
    assert_eq!(controller.fired(), 1);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destruction_without_login_does_not_pass_for_one() {
    let (rig, controller) = Rig::faulty_worker().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    controller.set(&"C_FindObjectsInit nth 1 times 1: forget-login".parse().unwrap());
    let unseen = rig.pool.destroy(&grant(), key.id, soon()).await;
    assert!(matches!(unseen, Err(Fault::Unavailable(_))), "{unseen:?}");
    // Whole, for a new worker.
    served(async || rig.sign(&key, soon()).await).await;
    rig.close().await;
}

/// Whether a call failed because its worker is gone. No other failure is to be expected.
fn is_unavailable<T: std::fmt::Debug>(result: Result<T, Fault>) -> bool {
    match result {
        Ok(_) => false,
        Err(fault) => {
            assert!(matches!(fault, Fault::Unavailable(_)), "{fault:?}");
            true
        }
    }
}

fn is_right(spki: &[u8], made: &[u8]) -> bool {
    signature::verifies(Algorithm::Es256, spki, &signature::input_of(Algorithm::Es256, b"m"), made)
}

fn new_pair() -> NewKeyPair {
    let id = CkaId::from_bytes(random());
    NewKeyPair { id, label: "test/faulty".to_owned(), spec: Algorithm::Es256.key_spec() }
}

fn logins(controller: &Controller) -> usize {
    controller.reports().iter().filter(|report| matches!(report.event, Event::Login { .. })).count()
}
