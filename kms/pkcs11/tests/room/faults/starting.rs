//! Modules that are not what they announce, absent HSMs, spent PINs and sessions.

use std::path::Path;

use kms_core::{Algorithm, Hsm};
use kms_pkcs11::pool::StartError;
use kms_softhsm::{
    EphemeralToken,
    faults::{Controller, environment},
};
use rustix::process::Signal;

use super::logins;
use crate::support::{self, Rig, eventually, signal, soon};

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
async fn a_login_whose_answer_was_lost_may_have_spent_a_try_and_is_not_simply_tried_again() {
    let (rig, controller) = Rig::faulty("C_Login always: call-then-return CKR_DEVICE_ERROR", |_| ());
    let error = rig.pool.wait_ready().await.unwrap_err();
    assert!(
        matches!(&error, StartError::Pin(text) if text.contains("may have spent a PIN try")),
        "{error:?}"
    );
    assert_eq!(logins(&controller), 1);
    rig.close().await;
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
async fn a_start_that_finds_no_session_left_says_so() {
    let (rig, _controller) = Rig::faulty("C_OpenSession always: session-cap 1", |config| config.workers = 1);
    let text = rig.pool.wait_ready().await.unwrap_err().to_string();
    assert!(text.contains("no room for another session (CKR_SESSION_COUNT)"), "{text}");
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
    rig.sign(&key, soon()).await.unwrap();
    rig.close().await;
}
