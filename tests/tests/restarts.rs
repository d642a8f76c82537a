//! However the service ends, what it acknowledged is there when it starts again on the same directory, and what
//! it had begun is finished. `KMS_RESTARTS` says how often it is killed in the middle of births (3).

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_tests::{Environment, PATIENCE, Seed, Service, until};
use tokio::task::JoinSet;
use tonic::Code;
use v1::key_version::State;

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
async fn births_cut_by_sigkill_are_finished_and_no_acknowledged_key_is_lost() -> anyhow::Result<()> {
    const AT_ONCE: usize = 12;
    let rounds: usize =
        std::env::var("KMS_RESTARTS").map_or(Ok(3), |text| text.parse()).context("KMS_RESTARTS")?;
    let mut seed = Seed::announced("restarts")?;
    let mut service = Service::start().await?;
    let mut acknowledged = BTreeMap::new();
    for round in 0..rounds {
        let client = service.client().await?;
        service.all_workers_ready().await?;
        let mut births = JoinSet::new();
        for number in 0..AT_ONCE {
            // Without the SDK's repetitions: each answer is of one try.
            let mut keys = client.keys();
            births.spawn(async move { keys.create_key(request(&format!("k{round}-{number}"))).await });
        }
        // After some answers, in the middle of the other births.
        let wanted = acknowledged.len() + 1 + seed.below(AT_ONCE / 2);
        while acknowledged.len() < wanted {
            let key = births.join_next().await.context("no birth is left")???.into_inner();
            acknowledged.insert(key.name, key.uid);
        }
        service.kill(|tree| tree.front()).await?;
        // Those that were answered before the end count too.
        while let Some(birth) = births.join_next().await {
            if let Ok(key) = birth? {
                let key = key.into_inner();
                acknowledged.insert(key.name, key.uid);
            }
        }
        service.start_again().await?;
        check_all_sign(&service, &acknowledged).await.with_context(|| format!("round {round}"))?;
        check_none_pending(&service).await.with_context(|| format!("round {round}"))?;
    }
    Ok(())
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
    let recorded = records.iter().filter(|r| r["action"] == "sign" && r["outcome"] == "succeeded").count();
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

/// Births that were cut are resumed without a request.
async fn check_none_pending(service: &Environment) -> anyhow::Result<()> {
    let client = service.client().await?;
    until("no version is pending", PATIENCE, async || {
        for key in
            client.list_keys(v1::ListKeysRequest { page_size: 1_000, ..Default::default() }).await?.keys
        {
            let request = v1::ListKeyVersionsRequest { parent: key.name, ..Default::default() };
            let versions = client.list_key_versions(request).await?.key_versions;
            if versions.iter().any(|version| version.state() == State::PendingCreation) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}
