//! A rotation, as stores see it: 100,000 envelopes, each with a data key of its own, are moved to the next version by
//! `BatchRewrapKey`, through the SDK. That the payloads are untouched is counted, byte by byte.

use std::{future::Future, time::Instant};

use anyhow::{Context as _, ensure};
use kms_client::{
    Client,
    envelope::{
        BATCH_ITEMS_MAX, EncryptionContext, EnvelopeContext, Envelopes, Policy, Purpose, SecretBytes,
        WrappedKey, key_version,
    },
    v1,
};
use kms_envelope::{DataKey, Envelope, SealHeader, seal};
use tokio::task::JoinSet;

use crate::{service::Bench, wraps};

const KEY: &str = "bench-rewraps";
const ENVELOPES: usize = 100_000;
const PAYLOAD_LEN: usize = 1024;
/// Batches at once.
const IN_FLIGHT: usize = 4;
/// Of so many envelopes one is opened afterwards.
const OPENED_OF: usize = 1_000;

type Batch = Vec<Vec<u8>>;

pub(crate) async fn run(bench: &Bench) -> anyhow::Result<()> {
    bench.create_key(KEY, "A256GCMKW").await?;
    let name = format!("keys/{KEY}");
    let client = |turn| bench.client(turn).clone();
    let sealed = side_by_side((0..ENVELOPES.div_ceil(BATCH_ITEMS_MAX)).map(|turn| {
        let count = BATCH_ITEMS_MAX.min(ENVELOPES - turn * BATCH_ITEMS_MAX);
        seal_batch(client(turn), name.clone(), count)
    }))
    .await?;
    let rotate = v1::RotateKeyRequest { name: name.clone(), emergency: true, ..Default::default() };
    bench.client(0).rotate_key(rotate).await?;
    let began = Instant::now();
    let moved = side_by_side(sealed.into_iter().enumerate().map(|(turn, batch)| {
        let envelopes = Envelopes::new(client(turn), name.clone(), Policy::default());
        async move {
            let moved = envelopes.rewrap_all(&batch).await?;
            let moved = moved.into_iter().map(|moved| moved?.context("it stayed where it was"));
            let moved = moved.collect::<anyhow::Result<Batch>>()?;
            anyhow::Ok((batch, moved))
        }
    }))
    .await?;
    let took = began.elapsed();
    let (mut count, mut changed) = (0, 0);
    let envelopes = Envelopes::new(client(0), name, Policy::default());
    let key_uid = envelopes.key_uid().await?;
    for (before, after) in moved.iter().flat_map(|(before, after)| before.iter().zip(after)) {
        let (before, parsed) = (Envelope::parse(before)?.payload(), Envelope::parse(after)?.payload());
        ensure!(before.len() == parsed.len(), "a payload has another length");
        changed += before.iter().zip(parsed).filter(|(before, after)| before != after).count();
        ensure!(key_version(after, &key_uid)? == Some(2), "an envelope stayed behind");
        if count % OPENED_OF == 0 {
            envelopes.open(&context()?, after).await?;
        }
        count += 1;
    }
    println!(
        "{count} envelopes moved in {:.1} s, {:.0} a second, {} calls of BatchRewrapKey, {changed} payload bytes changed",
        took.as_secs_f64(),
        count as f64 / took.as_secs_f64(),
        moved.len(),
    );
    Ok(())
}

/// Envelopes that share no data key.
async fn seal_batch(client: Client, name: String, count: usize) -> anyhow::Result<Batch> {
    let request = v1::GenerateDataKeyRequest { name, length: 32, encryption_context: wraps::context() };
    let requests = vec![request; count];
    let answer = client.batch_generate_data_key(v1::BatchGenerateDataKeyRequest { requests }).await?;
    let context = context()?;
    let mut envelopes = Batch::new();
    for made in wraps::made(answer)? {
        let wrapped = WrappedKey::parse(&made.wrapped_key)?;
        let data_key_id = wrapped.header().data_key_id;
        // The salt may be anything: no data key is used twice.
        let salt = |salt: &mut [u8]| {
            salt.fill(7);
            Ok(())
        };
        let data_key = DataKey::from_secret(SecretBytes::new(made.plaintext))?;
        let header = SealHeader { recipients: vec![wrapped], purpose: Purpose::Native, data_key_id };
        envelopes.push(seal(&data_key, header, &context, &[1; PAYLOAD_LEN], salt)?);
    }
    Ok(envelopes)
}

fn context() -> anyhow::Result<EnvelopeContext> {
    Ok(EnvelopeContext { key: EncryptionContext::new(wraps::context())?, ..Default::default() })
}

/// The results of all, in whatever order, [`IN_FLIGHT`] at once.
async fn side_by_side<T, F>(work: impl Iterator<Item = F>) -> anyhow::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let (mut running, mut results) = (JoinSet::new(), Vec::new());
    for one in work {
        if running.len() == IN_FLIGHT {
            results.push(running.join_next().await.context("one runs")???);
        }
        running.spawn(one);
    }
    while let Some(done) = running.join_next().await {
        results.push(done??);
    }
    Ok(results)
}
