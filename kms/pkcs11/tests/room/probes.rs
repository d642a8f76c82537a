//! `kms hsm probe` on tokens that we know: what it measures is what their profiles say, and a rig starts with it.

use std::process::Command;

use kms_core::{Algorithm, Hsm};
use kms_pkcs11::{
    pool::Config,
    profile::{EdwardsParams, IvSource, KRYOPTIC, OaepHash, Profile, SOFTHSM},
};
use kms_softhsm::{EphemeralToken, Token, faults::Controller};

use crate::{
    admin,
    profiles::profiled,
    support::{self, grant, kryoptic, random, remote, soon},
};

#[test]
fn a_probe_refuses_a_token_that_remembers_a_wrong_pin() {
    let token = EphemeralToken::new().unwrap();
    let pin = std::fs::read_to_string(token.pin_file()).unwrap();
    std::fs::write(token.pin_file(), "a-wrong-pin-of-mine").unwrap();
    let refused = |expected: &str| {
        let output = admin::command("probed", &token, &token.uri()).output().unwrap();
        let text = format!("{output:?}");
        assert!(!output.status.success() && text.contains(expected), "{text}");
    };
    refused("PinRefused");
    std::fs::write(token.pin_file(), pin).unwrap();
    refused("PinCountLow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_probe_measures_on_softhsm_is_what_its_profile_says() {
    let token = EphemeralToken::new().unwrap();
    let profile = probed_and_served(&token).await;
    assert_eq!(
        Profile { name: SOFTHSM.name, measured_on: SOFTHSM.measured_on, ..profile },
        SOFTHSM,
        "nothing else differs"
    );
    assert_eq!(profile_fields(&SOFTHSM), (Some(EdwardsParams::Name), Some(IvSource::Caller), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_probe_measures_on_kryoptic_is_what_its_profile_says() {
    let Some(token) = kryoptic() else { return };
    let profile = probed_and_served(&token).await;
    assert_eq!(Profile { name: KRYOPTIC.name, measured_on: KRYOPTIC.measured_on, ..profile }, KRYOPTIC);
    assert_eq!(profile_fields(&KRYOPTIC), (None, Some(IvSource::Caller), 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_of_a_module_that_nobody_has_measured_yields_a_profile_that_serves() {
    let Some(token) = remote(EphemeralToken::new().unwrap()) else { return };
    let profile = probed_and_served(&token).await;
    assert!(!profile.may_die_starting && profile.changes_exclude_finds);
    assert_eq!(profile_fields(&profile), (None, None, 1));
    assert_eq!(profile.oaep_hashes[..], [OaepHash::Sha1]);
}

/// Behind p11-kit nobody knows Kryoptic, whose CKR_DEVICE_ERROR for what OAEP does not open would end a worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_that_elsewhere_means_a_lost_hsm_is_ambiguous_where_a_tampered_ciphertext_gives_it() {
    let Some(token) = kryoptic().and_then(remote) else { return };
    let profile = probed_and_served(&token).await;
    assert_eq!(format!("{:?}", profile.errors), r#"{"CKR_DEVICE_ERROR": Ambiguous}"#);
}

#[test]
fn a_probe_says_of_a_module_that_ignores_iv_or_aad_that_nobody_may_wrap_with_it() {
    for (fault, told) in [
        ("fixed-iv", &["IGNORES THE IV", "OPENS WITH ANOTHER IV"][..]),
        ("no-aad", &["OPENS WITH ANOTHER AAD"]),
    ] {
        let token = EphemeralToken::new().unwrap();
        let controller = Controller::start(token.conf().parent().unwrap()).unwrap();
        controller.set(&format!("C_EncryptInit,C_DecryptInit always: {fault}").parse().unwrap());
        let output = admin::command("probed", &token, &support::shim_uri(&token))
            .envs(controller.env(token.module()))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let shouted: Vec<_> = text.lines().filter(|line| line.contains("wrap with no key of it")).collect();
        assert_eq!(shouted.len(), told.len(), "{fault}: {text}");
        assert!(shouted.iter().zip(told).all(|(line, told)| line.contains(told)), "{fault}: {text}");
    }
}

fn profile_fields(profile: &Profile) -> (Option<EdwardsParams>, Option<IvSource>, usize) {
    (profile.edwards_params, profile.iv_source, profile.oaep_hashes.len())
}

/// Probes the token, sees that nothing was left in it, and serves with the profile.
async fn probed_and_served(token: &Token) -> Profile {
    let text = admin::probe(token);
    let profile: Profile = text.parse().unwrap();
    assert_eq!(objects(token), "");
    assert_eq!(admin::user_pin(token), "Fine");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profile.toml");
    std::fs::write(&file, text).unwrap();
    let config = Config { runtime_dir: dir.path().join("run"), ..Config::default() };
    let (pool, supervisor) = profiled(token, dir.path(), file, config);
    pool.wait_ready().await.unwrap();
    let id = kms_core::hsm::CkaId::from_bytes(random());
    let spec = Algorithm::Es256.key_spec();
    let new =
        kms_core::hsm::NewKey { id, label: "probed".to_owned(), spec, usage: kms_core::hsm::Usage::Sign };
    pool.generate(&grant(), &new, soon()).await.unwrap();
    assert_eq!(pool.find(&grant(), id, soon()).await.unwrap().private.len(), 1);
    support::eventually("both serve", || pool.health().workers_ready == 2).await;
    drop(pool);
    supervisor.await.unwrap();
    profile
}

/// All keys and data in the token, as a stock tool lists them.
fn objects(token: &Token) -> String {
    let (name, value) = token.env();
    let mut objects = String::new();
    for kind in ["privkey", "pubkey", "secrkey", "data"] {
        let output = Command::new("pkcs11-tool")
            .env(name, value)
            .env("TEST_PIN", std::fs::read_to_string(token.pin_file()).unwrap())
            .arg("--module")
            .arg(token.module())
            .args(["--token-label", token.label(), "--login", "--pin", "env:TEST_PIN", "--list-objects"])
            .args(["--type", kind])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        objects.push_str(&String::from_utf8(output.stdout).unwrap());
    }
    objects
}
