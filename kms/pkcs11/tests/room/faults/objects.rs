//! Objects and logins that are lost, handles that mean another key, and errors that lie.

use kms_core::{
    Algorithm, Hsm,
    hsm::{CkaId, Fault, KeyRef, NewKey, Usage},
};
use rustix::process::Signal;

use super::{is_right, is_unavailable, logins};
use crate::support::{Rig, eventually, grant, random, served, signal, soon};

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
async fn a_listing_without_login_does_not_leave_private_keys_out() {
    for when in ["C_FindObjectsInit nth 1", "C_GetAttributeValue nth 1", "C_GetAttributeValue nth 5"] {
        let (rig, controller) = Rig::faulty_worker().await;
        rig.key(Algorithm::Es256).await;
        controller.set(&format!("{when} times 1: forget-login").parse().unwrap());
        match rig.pool.list(&grant(), None, soon()).await {
            Ok(page) => assert_eq!(page.objects.len(), 2, "{when}"),
            Err(fault) => assert!(matches!(fault, Fault::Unavailable(_)), "{when}: {fault:?}"),
        }
        let page = served(async || rig.pool.list(&grant(), None, soon()).await).await;
        assert_eq!((page.objects.len(), controller.fired()), (2, 1), "{when}");
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destruction_without_login_does_not_pass_for_one() {
    let (rig, controller) = Rig::faulty_worker().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    controller.set(&"C_FindObjectsInit nth 1 times 1: forget-login".parse().unwrap());
    match rig.pool.destroy(&grant(), key.id, soon()).await {
        // Somebody asked a new worker.
        Ok(()) => assert_eq!(rig.sign(&key, soon()).await, Err(Fault::KeyNotFound)),
        Err(fault) => {
            assert!(matches!(fault, Fault::Unavailable(_)), "{fault:?}");
            // Whole, for a new worker.
            served(async || rig.sign(&key, soon()).await).await;
        }
    }
    assert_eq!(controller.fired(), 1);
    rig.close().await;
}

fn new_pair() -> NewKey {
    let id = CkaId::from_bytes(random());
    NewKey { id, label: "test/faulty".to_owned(), spec: Algorithm::Es256.key_spec(), usage: Usage::Sign }
}
