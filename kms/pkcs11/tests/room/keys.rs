//! Keys over the life and death of workers, and as stock tools see them.

use std::{process::Command, time::Duration};

use futures::future::join_all;
use kms_core::{
    Algorithm, Hsm,
    algorithm::{KeySpec, Modulus},
    hsm::{CkaId, Fault, NewKey, SignInput, Usage},
    signature,
};
use kms_pkcs11::pool::Config;
use kms_softhsm::EphemeralToken;

use crate::support::{self, Rig, grant, kryoptic, random, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_destroyed_through_another_worker_is_gone_for_all() {
    let rig = Rig::new().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    // Both workers know the handle.
    let both = (0..64).map(|_| rig.sign(&key, soon()));
    for signed in join_all(both).await {
        signed.unwrap();
    }
    rig.pool.destroy(&grant(), key.id, soon()).await.unwrap();
    let gone = (0..64).map(|_| rig.sign(&key, soon()));
    for signed in join_all(gone).await {
        assert_eq!(signed, Err(Fault::KeyNotFound));
    }
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_under_the_same_id_does_not_sign() {
    let rig = Rig::new().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    rig.sign(&key, soon()).await.unwrap();
    rig.pool.destroy(&grant(), key.id, soon()).await.unwrap();
    let new = NewKey {
        id: key.id,
        label: "changeling".to_owned(),
        spec: Algorithm::Es256.key_spec(),
        usage: Usage::Sign,
    };
    rig.pool.generate(&grant(), &new, soon()).await.unwrap();
    let signed = rig.sign(&key, soon()).await;
    assert!(matches!(signed, Err(Fault::KeyMismatch(_))), "{signed:?}");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pairs_under_one_id_do_not_sign() {
    let rig = Rig::new().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let new = NewKey {
        id: key.id,
        label: "twin".to_owned(),
        spec: Algorithm::Es256.key_spec(),
        usage: Usage::Sign,
    };
    rig.pool.generate(&grant(), &new, soon()).await.unwrap();
    let signed = rig.sign(&key, soon()).await;
    assert!(matches!(signed, Err(Fault::KeyMismatch(_))), "{signed:?}");
    let found = rig.pool.find(&grant(), key.id, soon()).await.unwrap();
    assert_eq!((found.private.len(), found.public.len()), (2, 2));
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_long_for_the_wire_is_refused_in_front() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let workers = rig.workers();
    let (key, _) = rig.key(Algorithm::Ed25519).await;
    let long = SignInput::Message(vec![0; 1 << 20]);
    let signed = rig.pool.sign(&grant(), &key, Algorithm::Ed25519, long, soon()).await;
    assert!(matches!(signed, Err(Fault::Failed(_))), "{signed:?}");
    let label = "x".repeat(1 << 20);
    let new = NewKey { id: CkaId::from_bytes(random()), label, spec: KeySpec::Ed25519, usage: Usage::Sign };
    assert!(matches!(rig.pool.generate(&grant(), &new, soon()).await, Err(Fault::Unsupported(_))));
    assert_eq!(rig.workers(), workers);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_made_before_a_restart_sign_after_it() {
    let rig = Rig::new().await;
    let algorithm = Algorithm::Ps256(Modulus::Bits2048);
    let (key, spki) = rig.key(algorithm).await;
    let token = rig.close().await;
    let dir = tempfile::tempdir().unwrap();
    let config = Config { runtime_dir: dir.path().join("run"), ..Config::default() };
    let (pool, supervisor) = support::link(&token, &token.uri(), dir.path(), config);
    pool.wait_ready().await.unwrap();
    assert_eq!(pool.token_serial(), token.serial());
    let input = signature::input_of(algorithm, b"m");
    let signed = pool.sign(&grant(), &key, algorithm, input.clone(), soon()).await.unwrap();
    assert!(signature::verifies(algorithm, &spki, &input, &signed.open_for_conformance()));
    drop(pool);
    supervisor.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generating_beside_searches_of_another_worker_never_fails() {
    births_beside_searches(EphemeralToken::new().unwrap()).await;
    if let Some(token) = kryoptic() {
        births_beside_searches(token).await;
    }
}

async fn births_beside_searches(token: EphemeralToken) {
    let rig = Rig::on(token, |config| config.call_timeout = Duration::from_secs(20)).await;
    let births = async {
        for _ in 0..20 {
            rig.key(Algorithm::Es256).await;
        }
    };
    let searches = async {
        for _ in 0..200 {
            let id = CkaId::from_bytes(random());
            assert_eq!(rig.pool.find(&grant(), id, soon()).await.unwrap().private, []);
        }
    };
    tokio::join!(births, searches);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_pkcs11_tool_sees_a_key_that_is_sensitive_local_and_never_extractable() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let (name, conf) = rig.token.env();
    let output = Command::new("pkcs11-tool")
        .env(name, conf)
        .arg("--module")
        .arg(rig.token.module())
        .args(["--token-label", rig.token.label(), "--login", "--list-objects", "--pin"])
        .arg(std::fs::read_to_string(rig.token.pin_file()).unwrap().trim_end())
        .output()
        .expect("opensc's pkcs11-tool is needed: apt-get install opensc");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&key.id.to_string()) && text.contains("test/ES256"), "{text}");
    assert!(text.contains("sensitive, always sensitive, never extractable, local"), "{text}");
    assert!(text.contains("Allowed mechanisms: ECDSA"), "{text}");
    rig.close().await;
}
