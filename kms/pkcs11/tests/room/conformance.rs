//! The suite that every [`kms_core::Hsm`] must pass, through real workers, on every token that we have.

use std::{ops::Deref, time::Duration};

use kms_core::{
    Algorithm,
    algorithm::{KeySpec, Modulus},
    conformance,
};
use kms_softhsm::{EphemeralToken, Token};

use crate::support::{Rig, kryoptic, remote, within};

/// Generating three RSA pairs of 4096 bits may take long on a busy machine.
const SUITE_TIME_MAX: Duration = Duration::from_secs(600);

/// What a token is declared to be able to do. The pool must report exactly that.
struct Capabilities {
    token: &'static str,
    /// Algorithms that it lacks, and why.
    lacks: &'static [(Algorithm, &'static str)],
    /// Whether each RSA algorithm runs with every modulus, or with 2048 bits alone: generating takes long.
    every_modulus: bool,
}

const NO_OPENSSL_3_2: &str = "Kryoptic has EdDSA only with OpenSSL 3.2 or later";
const NOT_PASSED_ON: &str = "p11-kit 0.24.1 does not pass CKM_EDDSA on";

const NO_OAEP_SHA_256: &str = "SoftHSM 2.6.1 has RSA-OAEP with SHA-1 alone";
const NOT_MEASURED: &str = "nothing is known of the OAEP of a module without a profile";
const GCM_NOT_PASSED_ON: &str = "p11-kit 0.24.1 does not pass CKM_AES_GCM on";

const fn oaep_256(modulus: Modulus, why: &'static str) -> (Algorithm, &'static str) {
    (Algorithm::RsaOaep256(modulus), why)
}

const NOT_BEHIND_A_SERVER: &[(Algorithm, &str)] = &[
    (Algorithm::Ed25519, NOT_PASSED_ON),
    (Algorithm::EdDsa, NOT_PASSED_ON),
    (Algorithm::A256GcmKw, GCM_NOT_PASSED_ON),
    oaep_256(Modulus::Bits2048, NOT_MEASURED),
    oaep_256(Modulus::Bits3072, NOT_MEASURED),
    oaep_256(Modulus::Bits4096, NOT_MEASURED),
];

const SOFTHSM: Capabilities = Capabilities {
    token: "SoftHSM",
    lacks: &[
        oaep_256(Modulus::Bits2048, NO_OAEP_SHA_256),
        oaep_256(Modulus::Bits3072, NO_OAEP_SHA_256),
        oaep_256(Modulus::Bits4096, NO_OAEP_SHA_256),
    ],
    every_modulus: true,
};
const KRYOPTIC: Capabilities = Capabilities {
    token: "Kryoptic",
    lacks: &[(Algorithm::Ed25519, NO_OPENSSL_3_2), (Algorithm::EdDsa, NO_OPENSSL_3_2)],
    every_modulus: false,
};
const SOFTHSM_REMOTE: Capabilities =
    Capabilities { token: "SoftHSM behind p11-kit", lacks: NOT_BEHIND_A_SERVER, every_modulus: false };
const KRYOPTIC_REMOTE: Capabilities =
    Capabilities { token: "Kryoptic behind p11-kit", lacks: NOT_BEHIND_A_SERVER, every_modulus: false };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_does_on_softhsm_what_every_hsm_must_do() {
    conforms(EphemeralToken::new().unwrap(), &SOFTHSM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_does_on_kryoptic_what_every_hsm_must_do() {
    let Some(token) = kryoptic() else { return };
    conforms(token, &KRYOPTIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_does_on_softhsm_behind_a_server_what_every_hsm_must_do() {
    let Some(token) = remote(EphemeralToken::new().unwrap()) else { return };
    conforms(token, &SOFTHSM_REMOTE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_does_on_kryoptic_behind_a_server_what_every_hsm_must_do() {
    let Some(token) = kryoptic().and_then(remote) else { return };
    conforms(token, &KRYOPTIC_REMOTE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_sessions_of_one_worker_do_the_same() {
    let several = |config: &mut kms_pkcs11::pool::Config| {
        (config.workers, config.sessions_per_worker) = (1, 4);
    };
    let rig = Rig::with(several).await;
    conformance::hsm::run(
        &rig.pool,
        &[Algorithm::Es256, Algorithm::Ed25519, Algorithm::A256GcmKw],
        within(SUITE_TIME_MAX),
    )
    .await;
    rig.close().await;
    let Some(token) = kryoptic() else { return };
    let rig = Rig::on(token, several).await;
    conformance::hsm::run(&rig.pool, &[Algorithm::Es256, Algorithm::A256GcmKw], within(SUITE_TIME_MAX)).await;
    rig.close().await;
}

async fn conforms<T: Deref<Target = Token>>(token: T, declared: &Capabilities) {
    let rig = Rig::on(token, |config| config.call_timeout = Duration::from_secs(30)).await;
    let lacks = |algorithm: Algorithm| declared.lacks.iter().find(|(lacking, _)| *lacking == algorithm);
    let has: Vec<Algorithm> =
        Algorithm::ALL.into_iter().filter(|algorithm| lacks(*algorithm).is_none()).collect();
    assert_eq!(rig.pool.token().unwrap().algorithms, has, "{}", declared.token);
    for (algorithm, why) in declared.lacks {
        println!("LEFT OUT on {}: {algorithm}: {why}", declared.token);
    }
    let quick = |algorithm: &Algorithm| match algorithm.key_spec() {
        KeySpec::Rsa(modulus) => declared.every_modulus || modulus == Modulus::Bits2048,
        KeySpec::Ec(_) | KeySpec::Ed25519 | KeySpec::Aes256 => true,
    };
    let (run, slow): (Vec<Algorithm>, Vec<Algorithm>) = has.into_iter().partition(quick);
    for algorithm in slow {
        println!("LEFT OUT on {}: {algorithm}: slow, and run on SoftHSM", declared.token);
    }
    conformance::hsm::run(&rig.pool, &run, within(SUITE_TIME_MAX)).await;
    rig.close().await;
}
