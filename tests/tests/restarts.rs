//! However the service ends, what it acknowledged is there when it starts again on the same directory. (Kills in the
//! middle of births: `kills.rs` and `failpoints.rs`.)

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_tests::{Environment, PATIENCE, Service, until};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn keys_survive_sigterm_and_sigkill_of_every_process() -> anyhow::Result<()> {
    let mut service = Service::start().await?;
    let mut keys = BTreeMap::new();
    create(&service.client().await?, "first", &mut keys).await?;

    let status = service.terminate().await?;
    ensure!(status.success(), "SIGTERM is an orderly end, and not {status}");
    service.start_again().await?;
    check_all_sign(&service, &keys).await?;

    create(&service.client().await?, "second", &mut keys).await?;
    service.all_workers_ready().await?;
    service.kill(|tree| tree.front()).await.context("the front")?;
    service.start_again().await?;
    check_all_sign(&service, &keys).await?;

    create(&service.client().await?, "third", &mut keys).await?;
    service.all_workers_ready().await?;
    service.kill(|tree| Some(tree.parent())).await.context("the parent")?;
    service.start_again().await?;
    check_all_sign(&service, &keys).await?;

    create(&service.client().await?, "fourth", &mut keys).await?;
    service.all_workers_ready().await?;
    service.kill(|tree| Some(tree.root)).await.context("kms dev")?;
    service.start_again().await?;
    check_all_sign(&service, &keys).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_request_gets_the_same_key_after_a_restart() -> anyhow::Result<()> {
    let mut service = Service::start().await?;
    let request = v1::CreateKeyRequest {
        request_id: "6d4e5f1a-0c8b-4b52-9d3e-2f7a1c0b9e88".into(),
        ..request("orders")
    };
    let first = service.client().await?.create_key(request.clone()).await?;
    service.terminate().await?;
    service.start_again().await?;
    let again = service.client().await?.create_key(request).await?;
    ensure!(first.uid == again.uid && first.primary == again.primary, "{first:?} and {again:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_was_accepted_is_finished_when_the_service_is_asked_to_end() -> anyhow::Result<()> {
    let mut service = Service::start().await?;
    let client = service.client().await?;
    service.all_workers_ready().await?;
    let load = kms_tests::Load::start(&client, &["keys/sample-jwt".to_owned()], 8, Duration::from_secs(30));
    until("it signs", PATIENCE, async || Ok((load.signed() > 50).then_some(()))).await?;
    let status = service.terminate().await?;
    let report = load.stop().await;
    ensure!(status.success(), "{status}");
    let records = kms_tests::records(&service.dir())?;
    let recorded =
        records.iter().filter(|r| r["action"] == "sign_raw" && r["outcome"] == "succeeded").count();
    // An answer may be lost on its way; a signature without its record may not be.
    ensure!(recorded as u64 >= report.signed, "{} signatures, {recorded} records", report.signed);
    // Every status of ours has a reason. One without is what tonic's own client makes of a connection that has
    // ended, CANCELLED or INTERNAL by the moment.
    let other: Vec<_> =
        report.refused.iter().filter(|r| r.code != Code::Unavailable && !r.reason.is_empty()).collect();
    ensure!(other.is_empty(), "callers are told something else than UNAVAILABLE: {other:#?}");
    Ok(())
}

fn request(key_id: &str) -> v1::CreateKeyRequest {
    let key = Some(v1::Key { algorithm: "ES256".into(), ..Default::default() });
    v1::CreateKeyRequest { key_id: key_id.into(), key, ..Default::default() }
}

async fn create(client: &Client, key_id: &str, keys: &mut BTreeMap<String, String>) -> anyhow::Result<()> {
    let key = client.create_key(request(key_id)).await?;
    keys.insert(key.name, key.uid);
    Ok(())
}

/// Each key is the one that was acknowledged, and signs.
async fn check_all_sign(service: &Environment, keys: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let client = service.client().await?;
    for (name, uid) in keys {
        let key = client.get_key(v1::GetKeyRequest { name: name.clone() }).await?;
        ensure!(key.uid == *uid, "{name} is another key");
        let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
        let request = v1::SignRequest { name: name.clone(), input, ..Default::default() };
        client.sign(request).await.with_context(|| format!("{name} does not sign"))?;
    }
    Ok(())
}
