//! Keys that wrap: what callers can do to them, and what happens to them in the token.

use std::ops::Deref;

use futures::future::join_all;
use kms_core::{
    Algorithm, Hsm,
    algorithm::Modulus,
    hsm::{CkaId, Fault, KekRef, NewKey, SecretKeyRef, Usage},
    key_wrap,
};
use kms_envelope::SecretBytes;
use kms_pkcs11::{
    pool::{AAD_LEN_MAX, Config, PLAINTEXT_LEN_MAX},
    profile::{IvSource, Profile, SOFTHSM},
};
use kms_softhsm::{EphemeralToken, Token};

use crate::{
    profiles::profiled,
    support::{Rig, grant, kryoptic, random, soon},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_times_garbage_costs_no_worker_on_softhsm() {
    garbage_costs_no_worker(EphemeralToken::new().unwrap(), 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_times_garbage_costs_no_worker_on_kryoptic() {
    let Some(token) = kryoptic() else { return };
    garbage_costs_no_worker(token, 10_000).await;
}

async fn garbage_costs_no_worker<T: Deref<Target = Token>>(token: T, calls: usize) {
    let rig = Rig::on(token, |_| ()).await;
    let (key, before) = (rig.kek().await, rig.workers());
    let wrapped = rig.wrap(&key, &[5; 32]).await.unwrap();
    let (key, garbage) = (KekRef::Secret(key), garbage_of(&wrapped));
    for round in 0..calls.div_ceil(garbage.len()) {
        let opened = join_all(garbage.iter().map(|wrapped| rig.unwrap(&key, wrapped))).await;
        assert!(opened.iter().all(|opened| *opened == Err(Fault::NotOpened)), "round {round}: {opened:?}");
        assert_eq!(rig.unwrap(&key, &wrapped).await, Ok(vec![5; 32]), "round {round}");
    }
    assert_eq!((rig.workers(), rig.pool.health().respawns), (before, 0));
    rig.close().await;
}

/// Every bit of the IV, every eighth of the rest, and other lengths.
fn garbage_of(wrapped: &[u8]) -> Vec<Vec<u8>> {
    let places = (0..12 * 8).chain((12 * 8..wrapped.len() * 8).step_by(8));
    let flipped = places.map(|bit| {
        let mut wrapped = wrapped.to_vec();
        wrapped[bit / 8] ^= 1 << (bit % 8);
        wrapped
    });
    let lengths = [29, 40, wrapped.len() - 1, wrapped.len() + 1, 1052].map(|len| vec![0x5a; len]);
    flipped.chain(lengths).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_for_an_rsa_pair_costs_no_worker() {
    let Some(token) = kryoptic() else { return };
    let rig = Rig::on(token, |_| ()).await;
    let (pair, spki) = rig.key(Algorithm::RsaOaep256(Modulus::Bits2048)).await;
    let (pair, before) = (KekRef::Pair(pair), rig.workers());
    let wrapped = key_wrap::oaep_encrypt(&spki, &[5; 32], b"aad").unwrap();
    for byte in 0..wrapped.len() {
        let mut garbage = wrapped.clone();
        garbage[byte] ^= 0x80;
        assert_eq!(rig.unwrap(&pair, &garbage).await, Err(Fault::NotOpened), "byte {byte}");
    }
    let with_another_label = key_wrap::oaep_encrypt(&spki, &[5; 32], b"another").unwrap();
    for garbage in [vec![0; 256], vec![0xff; 256], vec![1; 384], with_another_label] {
        assert_eq!(rig.unwrap(&pair, &garbage).await, Err(Fault::NotOpened));
    }
    assert_eq!(rig.unwrap(&pair, &wrapped).await, Ok(vec![5; 32]));
    assert_eq!((rig.workers(), rig.pool.health().respawns), (before, 0));
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_destroyed_through_another_worker_is_gone_for_all() {
    destroyed_by_another(EphemeralToken::new().unwrap()).await;
    if let Some(token) = kryoptic() {
        destroyed_by_another(token).await;
    }
}

async fn destroyed_by_another(token: EphemeralToken) {
    let rig = Rig::on(token, |_| ()).await;
    let (key, before) = (rig.kek().await, rig.workers());
    let wrapped = rig.wrap(&key, &[5; 32]).await.unwrap();
    let kek = KekRef::Secret(key.clone());
    // Both workers know the handle.
    for opened in join_all((0..64).map(|_| rig.unwrap(&kek, &wrapped))).await {
        assert_eq!(opened, Ok(vec![5; 32]));
    }
    rig.pool.destroy(&grant(), key.id, soon()).await.unwrap();
    for opened in join_all((0..64).map(|_| rig.unwrap(&kek, &wrapped))).await {
        assert_eq!(opened, Err(Fault::KeyNotFound));
    }
    assert_eq!(rig.wrap(&key, &[5; 32]).await, Err(Fault::KeyNotFound));
    assert_eq!(rig.workers(), before);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_under_the_same_id_neither_wraps_nor_unwraps() {
    let rig = Rig::new().await;
    let key = rig.kek().await;
    let wrapped = rig.wrap(&key, &[5; 32]).await.unwrap();
    rig.pool.destroy(&grant(), key.id, soon()).await.unwrap();
    twin(&rig, &key).await;
    let other = rig.known(key.id).await;
    for round in 0..8 {
        is_mismatch(rig.wrap(&key, &[5; 32]).await);
        is_mismatch(rig.unwrap(&KekRef::Secret(key.clone()), &wrapped).await);
        // Its own answer knows it, and does not make it the one on record.
        rig.wrap(&other, &[5; 32]).await.unwrap_or_else(|fault| panic!("round {round}: {fault:?}"));
    }
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_keys_under_one_id_neither_wrap_nor_unwrap() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let key = rig.kek().await;
    let [worker] = rig.workers()[..] else { panic!("one worker") };
    let wrapped = rig.wrap(&key, &[5; 32]).await.unwrap();
    twin(&rig, &key).await;
    crate::support::signal(worker, rustix::process::Signal::KILL);
    let kek = KekRef::Secret(key.clone());
    is_mismatch(rig.unwrap(&kek, &wrapped).await);
    is_mismatch(rig.wrap(&key, &[5; 32]).await);
    is_mismatch(rig.wrap(&SecretKeyRef { id: key.id, known_answer: None }, &[5; 32]).await);
    let found = rig.pool.find(&grant(), key.id, soon()).await.unwrap();
    assert_eq!((found.private.len(), found.public.len(), found.secret.len()), (0, 0, 2));
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_a_wrap_is_refused_in_front() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let (key, before) = (rig.kek().await, rig.workers());
    for len in [0, PLAINTEXT_LEN_MAX + 1, 1 << 20] {
        let wrapped = rig.wrap(&key, &vec![0; len]).await;
        assert!(matches!(wrapped, Err(Fault::Failed(_))), "{len}: {wrapped:?}");
    }
    let (long, text) = (vec![0; AAD_LEN_MAX + 1], SecretBytes::new(vec![0; 32]));
    let wrapped = rig.pool.wrap_key(&grant(), &key, text, long.clone(), soon()).await.map(drop);
    assert!(matches!(wrapped, Err(Fault::Failed(_))), "{wrapped:?}");
    let kek = KekRef::Secret(key.clone());
    let opened = rig.pool.unwrap_key(&grant(), &kek, vec![0; 60], long, soon()).await.map(drop);
    assert_eq!(opened, Err(Fault::NotOpened));
    assert_eq!(rig.unwrap(&kek, &vec![0; 1 << 20]).await, Err(Fault::NotOpened));
    let most = vec![3; PLAINTEXT_LEN_MAX];
    let wrapped = rig.wrap(&key, &most).await.unwrap();
    assert_eq!(rig.unwrap(&kek, &wrapped).await, Ok(most));
    assert_eq!(rig.workers(), before);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_for_what_the_token_cannot_do_is_not_made() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let [aes, rsa] = [Algorithm::A256GcmKw, Algorithm::RsaOaep256(Modulus::Bits2048)];
    assert!(rig.pool.supports(aes) && !rig.pool.supports(rsa), "SoftHSM 2.6.1 has OAEP with SHA-1 alone");
    for (spec, usage) in [
        (rsa.key_spec(), Usage::Decrypt),
        (aes.key_spec(), Usage::Decrypt),
        (aes.key_spec(), Usage::Sign),
        (Algorithm::Es256.key_spec(), Usage::Decrypt),
    ] {
        let id = CkaId::from_bytes(random());
        let new = NewKey { id, label: String::new(), spec, usage };
        let fault = rig.pool.generate(&grant(), &new, soon()).await.unwrap_err();
        assert!(matches!(&fault, Fault::Unsupported(text) if text.contains("kms doctor")), "{fault:?}");
        let found = rig.pool.find(&grant(), id, soon()).await.unwrap();
        assert_eq!(found, kms_core::hsm::Found::default());
    }
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_that_is_wrong_about_the_iv_releases_no_wrap() {
    let token = EphemeralToken::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profile.toml");
    let profile = Profile { iv_source: Some(IvSource::Hsm), ..SOFTHSM };
    std::fs::write(&file, toml::to_string(&profile).unwrap()).unwrap();
    let config = Config { runtime_dir: dir.path().join("run"), ..Config::default() };
    let (pool, supervisor) = profiled(&token, dir.path(), file, config);
    pool.wait_ready().await.unwrap();
    let algorithm = Algorithm::A256GcmKw;
    let id = CkaId::from_bytes(random());
    let (spec, usage) = (algorithm.key_spec(), algorithm.usage());
    pool.generate(&grant(), &NewKey { id, label: String::new(), spec, usage }, soon()).await.unwrap();
    let key = SecretKeyRef { id, known_answer: None };
    let wrapped = pool.wrap_key(&grant(), &key, SecretBytes::new(vec![5; 32]), vec![], soon()).await;
    let fault = wrapped.map(drop).unwrap_err();
    assert!(matches!(&fault, Fault::Failed(text) if text.contains("an IV of zeros")), "{fault:?}");
    drop(pool);
    supervisor.await.unwrap();
}

/// Another key under the id of `key`.
async fn twin(rig: &Rig, key: &SecretKeyRef) {
    let algorithm = Algorithm::A256GcmKw;
    let (spec, usage) = (algorithm.key_spec(), algorithm.usage());
    let new = NewKey { id: key.id, label: "twin".to_owned(), spec, usage };
    rig.pool.generate(&grant(), &new, soon()).await.unwrap();
}

fn is_mismatch(result: Result<Vec<u8>, Fault>) {
    assert!(matches!(result, Err(Fault::KeyMismatch(_))), "{result:?}");
}
