//! The operator's functions, each in a process of its own as in real life: this test program starts itself again with
//! the name of one ignored test, and the token's configuration in the environment.

use std::process::Command;

use kms_core::Algorithm;
use kms_pkcs11::{
    TokenError,
    token::{self, Preparation},
};
use kms_softhsm::{EphemeralToken, Token};

use rustix::process::Signal;

use crate::support::{Rig, grant, signal, soon};

/// What `examine` says of the token's user PIN.
pub(crate) fn user_pin(token: &Token) -> String {
    let output = inner("examined", token, &token.uri());
    output.lines().find_map(|line| line.strip_prefix("user_pin=")).unwrap().to_owned()
}

/// Logs in once.
pub(crate) fn login(token: &Token) {
    let output = inner("logged_in", token, &token.uri());
    assert!(output.contains("login=Ok") && output.contains("outlived=3"), "{output}");
}

#[test]
fn examining_lists_token_pin_and_mechanisms_without_a_try() {
    let token = EphemeralToken::new().unwrap();
    let output = inner("examined", &token, &token.uri());
    let lacking = [2048, 3072, 4096]
        .map(|bits| format!("(RsaOaep256(Bits{bits}), [\"CKM_RSA_PKCS_OAEP with SHA-256\"])"));
    let lacking = format!("lacking=[{}]", lacking.join(", "));
    for expected in
        ["profile=SoftHSM", "user_pin=Fine", &lacking, &format!("chosen=Ok({:?})", token.serial())]
    {
        assert!(output.contains(expected), "{expected} is not in {output}");
    }
}

#[test]
fn a_missing_module_is_an_error_of_its_own() {
    let uri = "pkcs11:token=a?module-path=/nonexistent/module.so".parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = token::examine(&uri, dir.path(), None).unwrap_err();
    assert!(matches!(error, TokenError::ModuleMissing { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blank_token_is_prepared_once_and_then_serves() {
    use kms_core::Hsm;

    let token = EphemeralToken::new().unwrap();
    let output = inner("prepared", &token, &token.uri());
    assert!(output.contains("again=") && output.contains("is there already"), "{output}");
    assert!(output.contains("taken=") && output.contains("never erases"), "{output}");
    assert!(output.contains("short=") && output.contains("PINs of"), "{output}");
    let uri = output.lines().find_map(|line| line.strip_prefix("uri=")).unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let config = kms_pkcs11::pool::Config { runtime_dir: dir.path().join("run"), ..Default::default() };
    let (pool, supervisor) = crate::support::link(&token, &uri, dir.path(), config);
    pool.wait_ready().await.unwrap();
    pool.check(&grant(), soon()).await.unwrap();
    assert_ne!(pool.token_serial(), token.serial());
    drop(pool);
    supervisor.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn examining_beside_a_serving_pool_disturbs_nothing() {
    use kms_core::Hsm;

    let rig = Rig::new().await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    assert_eq!(user_pin(&rig.token), "Fine");
    rig.sign(&key, soon()).await.unwrap();
    assert_eq!(rig.pool.health().respawns, 0);
    rig.close().await;
}

/// The profile that a probe of the token writes.
pub(crate) fn probe(token: &Token) -> String {
    let output = inner("probed", token, &token.uri());
    let (_, profile) = output.split_once("profile:\n").unwrap();
    let (profile, steps) = profile.split_once("steps:").unwrap();
    assert!(steps.contains("logging in, which spends a PIN try"), "{steps}");
    profile.to_owned()
}

/// Runs an ignored test of this file in a process of its own and returns what it printed.
fn inner(name: &str, token: &Token, uri: &str) -> String {
    let output = command(name, token, uri).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// This program, as the process of an ignored test of this file.
pub(crate) fn command(name: &str, token: &Token, uri: &str) -> Command {
    let (variable, value) = token.env();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("admin::{name}"), "--ignored", "--nocapture"])
        .env(variable, value)
        .env("TEST_URI", uri)
        .env("TEST_DIR", token.conf().parent().unwrap());
    command
}

fn uri() -> kms_pkcs11::Uri {
    std::env::var("TEST_URI").unwrap().parse().unwrap()
}

fn dir() -> std::path::PathBuf {
    std::env::var_os("TEST_DIR").unwrap().into()
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn examined() {
    let uri = uri();
    let report = token::examine(&uri, &dir().join("lock"), None).unwrap();
    let token = report.tokens.iter().find(|token| Some(&token.serial) == uri.serial.as_ref()).unwrap();
    let lacking: Vec<_> = token.algorithms.iter().filter(|(_, lacking)| !lacking.is_empty()).collect();
    println!(
        "\nprofile={}\nuser_pin={:?}\nlacking={lacking:?}\nchosen={:?}",
        report.profile.name, token.user_pin, report.chosen
    );
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn logged_in() {
    println!("\nlogin={:?}", token::Login::prepare(&uri(), &dir().join("lock")).and_then(token::Login::run));
    // What would be deadly in the middle of C_Login.
    for kind in [Signal::TERM, Signal::INT, Signal::HUP] {
        signal(std::process::id(), kind);
    }
    println!("\noutlived=3");
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn probed() {
    let mut steps = Vec::new();
    let login = token::Login::prepare(&uri(), &dir().join("lock")).unwrap();
    let measured = login.probe(|step| steps.push(step.to_owned()));
    println!("\nprofile:\n{}\nsteps:{steps:?}", measured.unwrap());
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn prepared() {
    let (dir, uri) = (dir(), uri());
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let preparation = Preparation {
        module_path: uri.module_path.clone(),
        serial: None,
        label: "prepared by kms".to_owned(),
        so_pin_file: file("new-so-pin", "so-pin-of-the-test\n"),
        user_pin_file: file("new-pin", "user-pin-of-the-test\n"),
        lock_dir: dir.join("lock"),
    };
    let short = Preparation { user_pin_file: file("short-pin", "1"), ..preparation.clone() };
    let taken = Preparation { serial: uri.serial.clone(), ..preparation.clone() };
    print_error("short", &short);
    print_error("taken", &taken);
    println!("\nuri={}", token::prepare(&preparation).unwrap());
    print_error("again", &preparation);
}

fn print_error(name: &str, preparation: &Preparation) {
    println!("\n{name}={}", token::prepare(preparation).unwrap_err());
}
