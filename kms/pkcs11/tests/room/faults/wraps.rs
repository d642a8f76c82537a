//! Keys that wrap, in a token that lies: nothing wrong is released, and no IV is used twice.

use std::collections::HashSet;

use futures::future::join_all;
use kms_core::{
    Algorithm, Hsm,
    hsm::{CkaId, Fault, KekRef, NewKey, SecretKeyRef},
};
use kms_softhsm::faults::{Controller, Event};
use rustix::process::Signal;

use super::is_unavailable;
use crate::support::{Rig, eventually, grant, random, served, signal, soon};

/// Wraps of each kind of fault, and the least number of faults that all of them meet (promise 10).
const WRAPS: u32 = 1500;
const FAULTS_MIN: u32 = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wrap_is_released_that_was_spoilt_or_that_another_key_made() {
    let mut faults = 0;
    for script in [
        "C_Encrypt chance 500000 seed 1: flip-bit 77",
        "C_Encrypt chance 250000 seed 2: flip-bit 383\nC_Decrypt chance 250000 seed 3: flip-bit 5",
        "C_EncryptInit chance 500000 seed 4: swap-handles",
        "C_DecryptInit chance 500000 seed 5: swap-handles",
        "C_EncryptInit chance 400000 seed 6: swap-handles\nC_Encrypt chance 400000 seed 7: flip-bit 1",
        "C_Encrypt,C_Decrypt chance 300000 seed 8: shorten",
    ] {
        let (rig, controller) = Rig::faulty_worker().await;
        let keys = [rig.kek().await, rig.kek().await];
        controller.set(&script.parse().unwrap());
        let mut released = Vec::new();
        for n in 0..WRAPS {
            let key = &keys[usize::from(n % 2 == 0)];
            match rig.wrap(key, &n.to_be_bytes()).await {
                Ok(wrapped) => released.push((KekRef::Secret(key.clone()), n, wrapped)),
                Err(fault) => {
                    assert!(matches!(fault, Fault::Failed(_) | Fault::KeyMismatch(_)), "{script}: {fault:?}")
                }
            }
        }
        let fired = controller.fired();
        controller.clear();
        assert!(fired > WRAPS / 4 && released.len() > 100, "{script}: {fired}, {}", released.len());
        for (key, n, wrapped) in released {
            assert_eq!(rig.unwrap(&key, &wrapped).await, Ok(n.to_be_bytes().to_vec()), "{script}");
        }
        assert_eq!(rig.pool.health().respawns, 0, "{script}");
        faults += fired;
        rig.close().await;
    }
    assert!(faults >= FAULTS_MIN, "{faults} faults");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_that_has_come_to_mean_another_key_releases_nothing() {
    // From each place in the row of calls on: encrypt, decrypt, and open the known answer.
    for swapped in [
        "C_EncryptInit,C_DecryptInit always",
        "C_EncryptInit always",
        "C_DecryptInit always",
        "C_DecryptInit nth 2 times 1",
        "C_FindObjects,C_EncryptInit,C_DecryptInit always",
    ] {
        let (rig, controller) = Rig::faulty_worker().await;
        let keys = [rig.kek().await, rig.kek().await];
        for key in &keys {
            rig.wrap(key, &[5; 32]).await.unwrap();
        }
        controller.set(&format!("{swapped}: swap-handles").parse().unwrap());
        let wrapped = rig.wrap(&keys[0], &[5; 32]).await;
        let fired = controller.fired();
        controller.clear();
        match wrapped {
            Ok(wrapped) => {
                assert_eq!(rig.unwrap(&KekRef::Secret(keys[0].clone()), &wrapped).await, Ok(vec![5; 32]))
            }
            Err(fault) => assert!(matches!(fault, Fault::KeyMismatch(_) | Fault::Failed(_)), "{fault:?}"),
        }
        assert!(fired > 0, "{swapped}");
        rig.wrap(&keys[0], &[5; 32]).await.unwrap();
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_that_are_swapped_after_a_reconnect_neither_wrap_nor_unwrap() {
    let (rig, controller) = Rig::faulty_worker().await;
    let keys = [rig.kek().await, rig.kek().await];
    let wrapped = rig.wrap(&keys[0], &[5; 32]).await.unwrap();
    controller.set(&"C_FindObjects always: swap-handles".parse().unwrap());
    replace_worker(&rig).await;
    for key in &keys {
        let made = rig.wrap(key, &[5; 32]).await;
        assert!(matches!(made, Err(Fault::KeyMismatch(_))), "{made:?}");
        let opened = rig.unwrap(&KekRef::Secret(key.clone()), &wrapped).await;
        assert!(matches!(opened, Err(Fault::KeyMismatch(_))), "{opened:?}");
    }
    controller.clear();
    assert_eq!(rig.unwrap(&KekRef::Secret(keys[0].clone()), &wrapped).await, Ok(vec![5; 32]));
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_says_nothing_does_not_pass_for_a_ciphertext_that_does_not_open() {
    let (rig, controller) = Rig::faulty_worker().await;
    let key = rig.kek().await;
    let wrapped = rig.wrap(&key, &[5; 32]).await.unwrap();
    let (kek, before) = (KekRef::Secret(key.clone()), rig.workers());
    for code in ["CKR_GENERAL_ERROR", "CKR_FUNCTION_FAILED", "CKR_KEY_HANDLE_INVALID"] {
        for times in 1..=2 {
            controller.set(&format!("C_Decrypt always times {times}: return {code}").parse().unwrap());
            assert_eq!(rig.unwrap(&kek, &wrapped).await, Ok(vec![5; 32]), "{code}, {times} times");
            assert_eq!(controller.fired(), times, "{code}");
        }
    }
    assert_eq!(rig.workers(), before);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_ignores_the_iv_releases_nothing() {
    let (rig, controller) = Rig::faulty_worker().await;
    controller.set(&"C_EncryptInit,C_DecryptInit always: fixed-iv".parse().unwrap());
    // Its known answer opens, and so would all else.
    let key = rig.kek().await;
    for len in [16, 32, 1024] {
        let wrapped = rig.wrap(&key, &vec![5; len]).await;
        assert!(
            matches!(&wrapped, Err(Fault::Failed(text)) if text.contains("ignored the IV")),
            "{wrapped:?}"
        );
    }
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_that_need_not_be_about_the_ciphertext_is_tried_twice() {
    let (rig, controller) = Rig::faulty_worker().await;
    let key = rig.kek().await;
    let wrapped = rig.wrap(&key, &[5; 32]).await.unwrap();
    let (kek, before) = (KekRef::Secret(key), rig.workers());
    for code in ["CKR_FUNCTION_CANCELED", "CKR_OPERATION_ACTIVE", "CKR_BUFFER_TOO_SMALL", "CKR_DEVICE_ERROR"]
    {
        for function in ["C_DecryptInit", "C_Decrypt"] {
            controller.set(&format!("{function} always times 1: return {code}").parse().unwrap());
            assert_eq!(rig.unwrap(&kek, &wrapped).await, Ok(vec![5; 32]), "{function}: {code}");
            assert_eq!(controller.fired(), 1, "{function}: {code}");
        }
    }
    controller.set(&"C_Decrypt always times 1: return CKR_ENCRYPTED_DATA_INVALID".parse().unwrap());
    assert_eq!(
        rig.unwrap(&kek, &wrapped).await,
        Err(Fault::NotOpened),
        "this one cannot be about anything else"
    );
    assert_eq!(rig.workers(), before);
    rig.close().await;
}

/// As Kryoptic says it of OAEP, and some token of AES-GCM perhaps: here SoftHSM, which says CKR_GENERAL_ERROR.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_that_looks_like_a_lost_device_costs_no_worker() {
    let (rig, controller) = Rig::faulty_worker().await;
    let key = rig.kek().await;
    let mut garbage = rig.wrap(&key, &[5; 32]).await.unwrap();
    garbage[20] ^= 1;
    let (kek, before) = (KekRef::Secret(key), rig.workers());
    for round in 0..20 {
        // The second call opens the known answer.
        let script = "C_Decrypt nth 1: return CKR_DEVICE_ERROR\nC_Decrypt nth 3: return CKR_DEVICE_ERROR";
        controller.set(&script.parse().unwrap());
        assert_eq!(rig.unwrap(&kek, &garbage).await, Err(Fault::NotOpened), "round {round}");
        assert_eq!(controller.fired(), 2, "round {round}");
    }
    assert_eq!((rig.workers(), rig.pool.health().respawns), (before, 0));
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_on_which_nothing_decrypts_does_not_make_a_key_another() {
    for code in ["CKR_GENERAL_ERROR", "CKR_MECHANISM_INVALID"] {
        let (rig, controller) = Rig::faulty_worker().await;
        let key = rig.kek().await;
        let wrapped = rig.wrap(&key, &[5; 32]).await.unwrap();
        replace_worker(&rig).await;
        controller.set(&format!("C_Decrypt always: return {code}").parse().unwrap());
        let made = rig.wrap(&key, &[5; 32]).await;
        assert!(matches!(made, Err(Fault::Failed(_) | Fault::Unsupported(_))), "{code}: {made:?}");
        let opened = rig.unwrap(&KekRef::Secret(key.clone()), &wrapped).await;
        assert!(matches!(opened, Err(Fault::Failed(_) | Fault::Unsupported(_))), "{code}: {opened:?}");
        controller.clear();
        assert_eq!(rig.unwrap(&KekRef::Secret(key), &wrapped).await, Ok(vec![5; 32]), "{code}");
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hiccup_while_a_key_is_resolved_does_not_make_it_another() {
    for fault in ["return CKR_GENERAL_ERROR", "return CKR_ENCRYPTED_DATA_INVALID", "flip-bit 3"] {
        let (rig, controller) = Rig::faulty_worker().await;
        let key = rig.kek().await;
        replace_worker(&rig).await;
        controller.set(&format!("C_Decrypt always times 1: {fault}").parse().unwrap());
        rig.wrap(&key, &[5; 32]).await.unwrap_or_else(|error| panic!("{fault}: {error:?}"));
        assert_eq!(controller.fired(), 1);
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_link_costs_the_worker_and_the_call_is_made_again() {
    // What C_Decrypt says to a ciphertext may be about that; what it says to the known answer is not.
    for lost in ["C_Encrypt nth 1", "C_Decrypt nth 2", "C_DecryptInit nth 2"] {
        let (rig, controller) = Rig::faulty_worker().await;
        let key = rig.kek().await;
        let wrapped = rig.wrap(&key, &[5; 32]).await.unwrap();
        let before = rig.workers();
        controller.set(&format!("{lost} times 1: return CKR_DEVICE_REMOVED").parse().unwrap());
        let again = rig.wrap(&key, &[5; 32]).await.unwrap();
        eventually("it is replaced", || matches!(rig.workers()[..], [now] if now != before[0])).await;
        for wrapped in [wrapped, again] {
            assert_eq!(rig.unwrap(&KekRef::Secret(key.clone()), &wrapped).await, Ok(vec![5; 32]), "{lost}");
        }
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_the_token_forgot_heals_by_a_new_worker_and_loses_no_key() {
    for when in ["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt", "C_FindObjectsInit"] {
        for known in [true, false] {
            let (rig, controller) = Rig::faulty_worker().await;
            let key = rig.kek().await;
            let wrapped = rig.wrap(&key, &[5; 32]).await.unwrap();
            if !known {
                replace_worker(&rig).await;
            }
            let kek = KekRef::Secret(key.clone());
            controller.set(&format!("{when} nth 1 times 1: forget-login").parse().unwrap());
            is_unavailable(rig.wrap(&key, &[5; 32]).await);
            assert_eq!(served(async || rig.unwrap(&kek, &wrapped).await).await, [5; 32], "{when}, {known}");
            served(async || rig.wrap(&key, &[5; 32]).await).await;
            assert!(controller.fired() == 1 || (when == "C_FindObjectsInit" && known), "{when}, {known}");
            rig.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_key_that_was_made_before_an_error_was_reported_is_found() {
    let (rig, controller) = Rig::faulty_worker().await;
    let (id, algorithm) = (CkaId::from_bytes(random()), Algorithm::A256GcmKw);
    let (spec, usage) = (algorithm.key_spec(), algorithm.usage());
    controller.set(&"C_GenerateKey always times 1: call-then-return CKR_GENERAL_ERROR".parse().unwrap());
    let new = NewKey { id, label: String::new(), spec, usage };
    let made = rig.pool.generate(&grant(), &new, soon()).await;
    assert!(matches!(made, Err(Fault::Failed(_))), "{made:?}");
    let found = rig.pool.find(&grant(), id, soon()).await.unwrap();
    assert_eq!((found.private.len(), found.public.len(), found.secret.len()), (0, 0, 1));
    let key = rig.known(id).await;
    rig.wrap(&key, &[5; 32]).await.unwrap();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_lost_without_saying_so_does_not_pass_for_a_ciphertext_that_does_not_open() {
    let (rig, controller) = Rig::faulty_worker().await;
    let key = rig.kek().await;
    let wrapped = rig.wrap(&key, &[5; 32]).await.unwrap();
    let before = rig.workers();
    let all = "C_Decrypt,C_Encrypt,C_FindObjectsInit,C_GenerateRandom";
    controller.set(&format!("{all} always times 4: return CKR_GENERAL_ERROR").parse().unwrap());
    is_unavailable(rig.unwrap(&KekRef::Secret(key.clone()), &wrapped).await);
    eventually("it is replaced", || matches!(rig.workers()[..], [now] if now != before[0])).await;
    assert_eq!(rig.unwrap(&KekRef::Secret(key), &wrapped).await, Ok(vec![5; 32]));
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_meets_an_iv_twice_over_retries_faults_and_workers_that_are_killed() {
    // Without the token's generator too (CKR_RANDOM_NO_RNG).
    for random in ["", "\nC_GenerateRandom always: return 0x121"] {
        let (rig, controller) = Rig::faulty("", |config| (config.workers, config.spare_workers) = (2, 1));
        rig.pool.wait_ready().await.unwrap();
        let key = rig.kek().await;
        let script = "C_EncryptInit always: record-iv\n\
                      C_Encrypt chance 200000 seed 1: flip-bit 9\n\
                      C_Encrypt chance 10000 seed 2: crash";
        controller.set(&format!("{script}{random}").parse().unwrap());
        let mut made = 0;
        for round in 0..10 {
            let wraps = join_all((0..40).map(|_| rig.wrap(&key, &[1; 32]))).await;
            made += wraps.iter().filter(|wrapped| wrapped.is_ok()).count();
            if round % 3 == 0
                && let Some(worker) = rig.workers().first()
            {
                signal(*worker, Signal::KILL);
            }
        }
        let ivs = ivs_of(&controller, &key);
        assert!(made > 200 && ivs.len() > made, "{made} wraps, {} IVs", ivs.len());
        assert_eq!(ivs.iter().collect::<HashSet<_>>().len(), ivs.len(), "an IV came twice");
        assert!(ivs.iter().all(|iv| iv.len() == 12 && *iv != [0; 12]));
        rig.close().await;
    }
}

fn ivs_of(controller: &Controller, key: &SecretKeyRef) -> Vec<Vec<u8>> {
    let of = |event| match event {
        Event::Iv(used) if used.cka_id.as_deref() == Some(key.id.as_bytes()) => Some(used.iv),
        _ => None,
    };
    controller.reports().into_iter().filter_map(|report| of(report.event)).collect()
}

/// The next one knows no handle.
async fn replace_worker(rig: &Rig) {
    let before = rig.workers()[0];
    signal(before, Signal::KILL);
    eventually("it is replaced", || matches!(rig.workers()[..], [now] if now != before)).await;
}
