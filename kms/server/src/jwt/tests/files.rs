//! Key sets in files.

use std::time::Duration;

use super::{super::check, *};

#[tokio::test]
async fn a_file_that_changes_is_read_again_within_five_seconds_of_use() {
    let cluster = Cluster::new(Signer::es256("k1"));
    assert_eq!(cluster.said_of(&service_account()).await, Ok(AUTH.to_owned()));
    // The old key is taken away at once, under the same id: no token asks for a key that is not there.
    let new = Signer::es256("k1");
    fs::write(&cluster.keys, json!({"keys": [new.jwk()]}).to_string()).expect("written");
    cluster.clock.elapse(Duration::from_millis(4_999));
    assert_eq!(cluster.said_of(&service_account()).await, Ok(AUTH.to_owned()), "not looked at yet");
    cluster.clock.elapse(Duration::from_millis(1));
    assert_eq!(cluster.said_of(&service_account()).await, Err(Refusal::Signature));
    assert_eq!(cluster.said(&new.token(&service_account())).await, Ok(AUTH.to_owned()));
}

#[tokio::test]
async fn a_file_that_is_away_or_broken_leaves_the_last_good_keys() {
    let cluster = Cluster::new(Signer::es256("k1"));
    fs::remove_file(&cluster.keys).expect("removed");
    assert_eq!(cluster.said_of(&service_account()).await, Err(Refusal::NoKeySet));
    let good = json!({"keys": [cluster.signer.jwk()]}).to_string();
    fs::write(&cluster.keys, &good).expect("written");
    assert_eq!(cluster.said_of(&service_account()).await, Err(Refusal::NoKeySet), "not looked at yet");
    cluster.clock.elapse(Duration::from_secs(5));
    assert_eq!(cluster.said_of(&service_account()).await, Ok(AUTH.to_owned()));
    for bad in ["", "{\"keys\":[]}", "<html>", &" ".repeat((1 << 20) + 1)] {
        fs::write(&cluster.keys, bad).expect("written");
        cluster.clock.elapse(Duration::from_secs(5));
        assert_eq!(cluster.said_of(&service_account()).await, Ok(AUTH.to_owned()), "{:.20}", bad);
    }
    fs::remove_file(&cluster.keys).expect("removed");
    cluster.clock.elapse(Duration::from_secs(600));
    assert_eq!(cluster.said_of(&service_account()).await, Ok(AUTH.to_owned()));
}

#[tokio::test]
async fn a_file_that_hangs_holds_nobody_for_long_whose_key_is_known() {
    let Cluster { clock, signer, keys, _dir, .. } = Cluster::new(Signer::es256("k1"));
    let limits = Limits { wait_max: Duration::from_millis(200), ..Limits::STANDARD };
    let issuers = Issuers::with_limits(&rules(&format!("jwks_file = {keys:?}")), clock.clone(), limits);
    let token = signer.token(&service_account());
    assert_eq!(issuers.decide(&token).await.1.map(drop), Ok(()));
    fs::remove_file(&keys).expect("removed");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &keys, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
    clock.elapse(Duration::from_secs(5));
    let said = issuers.decide(&token).await.1.map(drop);
    // Whoever writes lets the reader go, who would hold the end of the test.
    drop(fs::OpenOptions::new().write(true).open(&keys).expect("a reader"));
    assert_eq!(said, Ok(()));
}

#[test]
fn what_cannot_be_used_is_told_before_a_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    let as_keys = rules(&format!("jwks_file = {file:?}")).remove(0);
    let as_ca = rules(&format!("jwks_url = \"https://idp.example.com/keys\"\nca_file = {file:?}")).remove(0);
    for issuer in [&as_keys, &as_ca] {
        let why = format!("{:#}", check(issuer).expect_err("no file"));
        assert!(why.contains("cannot read") && why.contains("file"), "{why}");
    }
    fs::write(&file, json!({"keys": [{"kty": "oct", "k": "AAAA"}]}).to_string()).expect("written");
    let why = format!("{:#}", check(&as_keys).expect_err("no key"));
    assert!(why.contains("none of its keys verifies signatures"), "{why}");
    let why = format!("{:#}", check(&as_ca).expect_err("no certificate"));
    assert!(why.contains("holds no certificate"), "{why}");
    fs::write(&file, json!({"keys": [Signer::es256("k1").jwk()]}).to_string()).expect("written");
    check(&as_keys).expect("a key set");
    let set = fs::read_to_string(&file).expect("the set");
    let padded = |len: usize| format!("{set}{}", " ".repeat(len - set.len()));
    fs::write(&file, padded(1 << 20)).expect("written");
    check(&as_keys).expect("a key set of 1 MiB");
    fs::write(&file, padded((1 << 20) + 1)).expect("written");
    let why = format!("{:#}", check(&as_keys).expect_err("too large"));
    assert!(why.contains("is larger than 1048576 bytes"), "{why}");
    crate::test_certificate::write(1, &file, &dir.path().join("key"));
    check(&as_ca).expect("a certificate");
}
