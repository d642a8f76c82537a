//! Every verb leaves its record, and no signature leaves without one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use kms_client::v1;
use kms_tests::{Load, Record, Service, records};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn denials_are_recorded_with_the_rule_that_denied() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let file = service.dir().join("bob");
    let file_name = file.display().to_string();
    let create = ["access-token", "create", "bob", "--role", "user", "--key", "another", "--out", &file_name];
    service.kms(create).await?.text()?;
    let bob = service.with_token_file(&file);
    let denied = bob.kms(["sign", "sample-jwt", "--in", "/dev/null"]).await?;
    ensure!(denied.code == Some(4), "{denied:?}");

    let records = records(&service.dir())?;
    let record = records.iter().find(|r| r["outcome"] == "denied").context("the denial is not recorded")?;
    ensure!(record["caller"] == "access-token:bob" && record["action"] == "sign_raw", "{record}");
    ensure!(record["key"] == "sample-jwt" && record["reason"] == "NO_RULE", "{record}");
    ensure!(!denied.stderr.contains("NO_RULE"), "a stranger is told the rule: {}", denied.stderr);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_leaves_its_record_and_a_change_also_its_intent() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let secret = service.dir().join("carol").display().to_string();
    let publisher = ["keys", "create", "publisher", "--algorithm", "ES256", "--purpose", "jwks-bundle"];
    service.kms(publisher).await?.text()?;
    let verbs: [(&str, bool, &[&str]); 19] = [
        ("create_key", true, &["keys", "create", "orders", "--algorithm", "ES256"]),
        ("get_key", false, &["keys", "get", "orders"]),
        ("list_keys", false, &["keys", "list"]),
        ("update_key", true, &["keys", "update", "orders", "--owner", "somebody"]),
        ("rotate_key", true, &["keys", "rotate", "orders"]),
        ("get_public_key", false, &["keys", "public", "orders"]),
        ("sign_raw", false, &["sign", "orders", "--in", "/dev/null"]),
        ("create_key", true, &["keys", "create", "bytes", "--algorithm", "ES256", "--purpose", "signature"]),
        ("sign", false, &["sign", "bytes", "--in", "/dev/null"]),
        ("sign_jwt", false, &["jwt", "sign", "orders", "--claims", "{}", "--ttl", "1m"]),
        ("sign_key_set_bundle", false, &["jwks", "bundle", "--key", "publisher", "--of", "orders"]),
        ("disable_key_version", true, &["keys", "disable", "orders", "--version", "2"]),
        ("enable_key_version", true, &["keys", "enable", "orders", "--version", "2"]),
        ("emergency_rotate_key", true, &["keys", "rotate", "orders", "--emergency"]),
        ("revoke_key_version", true, &["keys", "revoke", "orders", "--version", "1", "--reason", "r"]),
        ("list_key_classes", false, &["keys", "classes"]),
        ("update_key_class", true, &["keys", "class-update", "api", "--overlap", "2d"]),
        ("get_inventory", false, &["hsm", "inventory"]),
        (
            "create_access_token",
            true,
            &["access-token", "create", "carol", "--role", "user", "--all-keys", "--out", &secret],
        ),
    ];
    for (action, changes, command) in verbs {
        let before = records(&service.dir())?.len();
        service.kms(command.iter().copied()).await?.text()?;
        let new: Vec<_> = records(&service.dir())?.split_off(before);
        let phases: Vec<_> = new
            .iter()
            .filter(|record| record["action"] == action)
            .map(|r| (&r["phase"], &r["outcome"]))
            .collect();
        let outcome = (&json!("outcome"), &json!("succeeded"));
        let intent = (&json!("intent"), &json!("allowed"));
        let wanted = if changes { vec![intent, outcome] } else { vec![outcome] };
        ensure!(phases == wanted, "{action}: {new:#?}");
        let operations: BTreeSet<_> =
            new.iter().filter(|r| r["action"] == action).map(|r| r["operation"].to_string()).collect();
        ensure!(operations.len() == 1, "{action}: an intent and an outcome of two operations: {new:#?}");
    }
    let before = records(&service.dir())?.len();
    service.kms(["access-token", "revoke", "carol"]).await?.text()?;
    service.kms(["keys", "disable", "orders", "--version", "2"]).await?.text()?;
    let told: Vec<_> = records(&service.dir())?
        .split_off(before)
        .iter()
        .map(|r| (r["action"].clone(), r["target"].clone(), r["version"].clone()))
        .collect();
    let revoked = (json!("revoke_access_token"), json!("carol"), json!(null));
    let disabled = (json!("disable_key_version"), json!(null), json!(2));
    ensure!(told == [revoked.clone(), revoked, disabled.clone(), disabled], "{told:#?}");
    check_sequence(&records(&service.dir())?)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_released_signature_has_a_record_of_its_own() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    let name = "keys/sample-jwt".to_owned();

    let load = Load::start(&client, std::slice::from_ref(&name), 16, Duration::from_secs(30));
    let input = || Some(v1::sign_request::Input::Message(b"a message".to_vec()));
    let item = v1::SignRequest { name, input: input(), ..Default::default() };
    let mut batched = 0;
    while load.signed() < 500 {
        let batch = v1::BatchSignRequest { requests: vec![item.clone(); 16] };
        batched += client.batch_sign(batch).await?.results.len() as u64;
    }
    let report = load.stop().await;
    ensure!(report.refused.is_empty(), "{:?}", report.by_kind());

    let records = records(&service.dir())?;
    let signed = records.iter().filter(|r| r["action"] == "sign_raw" && r["outcome"] == "succeeded");
    ensure!(
        signed.clone().all(|r| r["key"] == "sample-jwt" && r["version"] == 1),
        "a record without its key"
    );
    let recorded = signed.count() as u64;
    let released = report.signed + batched;
    ensure!(recorded == released, "{released} signatures were released, {recorded} are recorded");
    check_sequence(&records)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_in_the_log_or_in_the_ledger() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let claims = json!({"sub": "canary-of-the-claims"}).to_string();
    let token = service.kms(["jwt", "sign", "sample-jwt", "--claims", &claims, "--ttl", "1m"]).await?;
    let token = token.text()?;
    let credential = fs::read_to_string(&service.token_file)?;
    let pin = fs::read_to_string(service.dir().join("pin"))?;
    let ledger: String = records(&service.dir())?.iter().map(Record::to_string).collect();
    let secrets = [
        ("claims", "canary-of-the-claims"),
        ("a token", token),
        ("a credential", &credential),
        ("PIN", &pin),
    ];
    for (what, secret) in secrets {
        ensure!(secret.trim().len() > 3, "{what} is empty");
        ensure!(!ledger.contains(secret.trim()), "the ledger has {what}");
        ensure!(!service.log().contains(secret.trim()), "the log has {what}");
    }
    Ok(())
}

/// Numbers count up without a gap, and every intent has one outcome.
fn check_sequence(records: &[Record]) -> anyhow::Result<()> {
    let mut open: BTreeMap<String, &Record> = BTreeMap::new();
    for (record, seq) in records.iter().zip(1_u64..) {
        ensure!(record["seq"] == seq, "record {seq} is {record}");
        let operation = record["operation"].to_string();
        if record["phase"] == "intent" {
            open.insert(operation, record);
        } else {
            open.remove(&operation);
        }
    }
    ensure!(open.is_empty(), "intents without an outcome: {open:#?}");
    Ok(())
}
