//! A token that is replaced, or initialised anew, under workers that are logged in to it.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use kms_core::{Algorithm, Hsm, hsm::Fault};
use kms_pkcs11::pool::Status;
use kms_softhsm::{EphemeralToken, Token};
use rustix::process::Signal;

use crate::support::{Rig, eventually, grant, kryoptic, signal, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_canary_ends_a_worker_whose_token_was_replaced_by_another() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let other = EphemeralToken::new().unwrap();
    fs::copy(token_object(&other), token_object(&rig.token)).unwrap();
    let told = rig.pool.check(&grant(), soon()).await;
    assert!(matches!(told, Err(Fault::Unavailable(_))), "{told:?}");
    // Its successors do not find the token that hsm.uri names.
    assert_absent(&rig).await;
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_kryoptic_token_that_was_initialised_anew_are_not_found_and_its_successor_is_another_token()
{
    let Some(token) = kryoptic() else { return };
    let rig = Rig::on(token, |config| config.workers = 1).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    rig.sign(&key, soon()).await.unwrap();
    initialise_anew(&rig.token);
    // A process that has loaded Kryoptic goes on to see the serial number that it read at its start.
    assert_eq!(rig.sign(&key, soon()).await, Err(Fault::KeyNotFound));
    signal(rig.workers()[0], Signal::KILL);
    assert_absent(&rig).await;
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_softhsm_token_that_was_initialised_anew_are_not_found() {
    let rig = Rig::with(|config| config.workers = 1).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    rig.sign(&key, soon()).await.unwrap();
    // It keeps its serial number.
    initialise_anew(&rig.token);
    assert_eq!(rig.sign(&key, soon()).await, Err(Fault::KeyNotFound));
    rig.close().await;
}

async fn assert_absent(rig: &Rig) {
    let status = rig.pool.status();
    eventually("the pool says which token is absent", || match &*status.borrow() {
        Status::Failing { refusal, .. } => {
            refusal.text.contains("HSM absent") && refusal.text.contains(rig.token.serial())
        }
        _ => false,
    })
    .await;
}

/// The file in which SoftHSM keeps a token's label, serial number and PINs.
fn token_object(token: &Token) -> PathBuf {
    let tokens = token.conf().with_file_name("tokens");
    fs::read_dir(tokens).unwrap().next().unwrap().unwrap().path().join("token.object")
}

/// As an operator with the SO PIN may do it, by mistake.
fn initialise_anew(token: &Token) {
    let (name, value) = token.env();
    let so_pin = fs::read_to_string(token.conf().with_file_name("so-pin")).unwrap();
    let status = Command::new("pkcs11-tool")
        .env(name, value)
        .env("TEST_SO_PIN", so_pin)
        .arg("--module")
        .arg(token.module())
        .args(["--init-token", "--slot-index", "0", "--label", token.label(), "--so-pin", "env:TEST_SO_PIN"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}
