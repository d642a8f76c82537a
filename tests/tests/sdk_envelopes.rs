//! The SDK's envelopes against a service: what one seals the other opens, and a rotation moves versions and no payload.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use kms_client::{
    Client, Kind,
    envelope::{Column, EnvelopeContext, Envelopes, Error, Policy, inspect, key_version},
    v1,
};
use kms_tests::Service;

const KEY: &str = "keys/patients";
const ROWS: usize = 500;

#[tokio::test(flavor = "multi_thread")]
async fn rows_move_to_the_next_version_without_their_payloads_and_open_as_before() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    create(&client).await?;
    let envelopes = envelopes(&client);
    let diagnosis = Column::new("patients", "diagnosis");
    let mut rows = Vec::new();
    for id in 0..ROWS {
        rows.push(envelopes.seal_field(&diagnosis, id, &text(id)).await?);
    }
    let payloads: Vec<Vec<u8>> = rows.iter().map(|row| payload(row)).collect::<Result<_, _>>()?;

    client
        .rotate_key(v1::RotateKeyRequest { name: KEY.into(), emergency: true, ..Default::default() })
        .await?;
    ensure!(envelopes.primary_version().await? == 2, "an emergency rotation does not wait");
    let moved = envelopes.rewrap_all(&rows).await?;
    for (row, moved) in rows.iter_mut().zip(moved) {
        *row = moved?.context("it was on version 1")?;
    }
    for moved in envelopes.rewrap_all(&rows).await? {
        ensure!(moved?.is_none(), "a row was moved twice");
    }
    let key_uid = envelopes.key_uid().await?;
    for (id, row) in rows.iter().enumerate() {
        let version = key_version(row, &key_uid)?;
        ensure!(version == Some(2), "row {id} is on version {version:?}");
        ensure!(payload(row)? == payloads[id], "the payload of row {id} was touched");
        ensure!(envelopes.open_field(&diagnosis, id, row).await?.expose_secret() == text(id), "row {id}");
    }

    let counts = BTreeMap::from([(2, ROWS as u64)]);
    let report =
        v1::ReportUsageRequest { name: KEY.into(), consumer: "patients-db".into(), envelopes: counts };
    let usage = client.report_usage(report).await?;
    let held: Vec<(u32, u64)> = usage.versions.iter().map(|each| (each.number, each.envelopes)).collect();
    ensure!(held == [(1, 0), (2, ROWS as u64)], "{held:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_opens_what_the_sdk_seals_and_the_sdk_what_the_service_seals() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    create(&client).await?;
    let envelopes = envelopes(&client);
    let context = Column::new("patients", "diagnosis").row(7)?;

    let ciphertext = envelopes.seal(&context, b"ours").await?;
    let (encryption_context, payload_context) = pairs(&context);
    let request = v1::DecryptRequest {
        name: KEY.into(),
        ciphertext,
        encryption_context: encryption_context.clone(),
        payload_context: payload_context.clone(),
        ..Default::default()
    };
    ensure!(client.decrypt(request).await?.plaintext == b"ours");

    let request = v1::EncryptRequest {
        name: KEY.into(),
        plaintext: b"theirs".to_vec(),
        encryption_context,
        payload_context,
        ..Default::default()
    };
    let ciphertext = client.encrypt(request).await?.ciphertext;
    ensure!(envelopes.open(&context, &ciphertext).await?.expose_secret() == b"theirs");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_lacks_what_the_key_requires_seals_nothing() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    create(&client).await?;
    let error = envelopes(&client).seal(&EnvelopeContext::default(), b"x").await.err();
    let kind = error.as_ref().and_then(Error::as_kms).map(|error| error.kind());
    ensure!(kind == Some(Kind::InvalidArgument), "{error:?}");
    Ok(())
}

/// With a data key for every ten messages, so that many are moved.
fn envelopes(client: &Client) -> Envelopes {
    Envelopes::new(client.clone(), KEY, Policy { messages_max: 10, ..Policy::default() })
}

async fn create(client: &Client) -> anyhow::Result<()> {
    let key = v1::Key {
        algorithm: "A256GCMKW".into(),
        purpose: "wrap".into(),
        required_context: vec!["table".into()],
        ..Default::default()
    };
    let request = v1::CreateKeyRequest { key_id: "patients".into(), key: Some(key), ..Default::default() };
    client.create_key(request).await?;
    Ok(())
}

fn text(id: usize) -> Vec<u8> {
    format!("diagnosis of {id}").into_bytes()
}

/// What follows the header.
fn payload(envelope: &[u8]) -> anyhow::Result<Vec<u8>> {
    Ok(envelope[inspect(envelope)?.to_bytes().len()..].to_vec())
}

type Pairs = BTreeMap<String, String>;

/// The key context and the local one, as the API takes them.
fn pairs(context: &EnvelopeContext) -> (Pairs, Pairs) {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    (context.key.pairs().map(owned).collect(), context.local.pairs().map(owned).collect())
}
