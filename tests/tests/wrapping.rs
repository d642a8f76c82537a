//! Keys that wrap, over the wire: made in the HSM, rotated, moved, revoked, restarted, and shared by three servers on
//! PostgreSQL. The service is asked as an SDK asks it; what it answers is judged by its bytes.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use kms_client::{Client, Error, v1};
use kms_envelope::WrappedKey;
use kms_tests::{Fleet, PATIENCE, Plan, Promise, Service, until};

const SECRET: [u8; 32] = [0x5a; 32];
const KEY: &str = "keys/orders";

fn context(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn tenant() -> BTreeMap<String, String> {
    context(&[("tenant", "acme"), ("table", "orders")])
}

async fn create(client: &Client, id: &str) -> anyhow::Result<()> {
    let key = Some(v1::Key { algorithm: "A256GCMKW".into(), ..Default::default() });
    let made =
        client.create_key(v1::CreateKeyRequest { key_id: id.into(), key, ..Default::default() }).await?;
    ensure!(made.purpose == "wrap" && !made.primary.is_empty(), "{made:?}");
    Ok(())
}

async fn wrap(client: &Client) -> Result<v1::WrapKeyResponse, Error> {
    let request = v1::WrapKeyRequest {
        name: KEY.into(),
        plaintext: SECRET.to_vec(),
        encryption_context: tenant(),
        ..Default::default()
    };
    client.wrap_key(request).await
}

async fn unwrap(client: &Client, wrapped_key: &[u8]) -> Result<v1::UnwrapKeyResponse, Error> {
    let request = v1::UnwrapKeyRequest {
        name: KEY.into(),
        wrapped_key: wrapped_key.to_vec(),
        encryption_context: tenant(),
        ..Default::default()
    };
    client.unwrap_key(request).await
}

async fn rotate(client: &Client, to: u32) -> anyhow::Result<()> {
    client.rotate_key(v1::RotateKeyRequest { name: KEY.into(), ..Default::default() }).await?;
    until("the next version wraps", PATIENCE, async || {
        Ok((client.get_key(v1::GetKeyRequest { name: KEY.into() }).await?.primary
            == format!("{KEY}/versions/{to}"))
        .then_some(()))
    })
    .await
}

fn reason<T>(result: Result<T, Error>) -> Option<String> {
    result.err().and_then(|error| error.reason().map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_wraps_is_rotated_and_everything_opens_before_and_after_a_restart() -> anyhow::Result<()> {
    let mut service = Service::start().await?;
    let client = service.client().await?;
    create(&client, "orders").await?;
    let old = wrap(&client).await?;
    ensure!(old.name == format!("{KEY}/versions/1"), "{old:?}");
    ensure!(old.wrapped_key.starts_with(b"KMSW"), "it names its format");
    ensure!(!old.wrapped_key.windows(8).any(|part| part == [0x5a; 8]), "the key lies open in its wrap");
    let opened = unwrap(&client, &old.wrapped_key).await?;
    ensure!(opened.plaintext == SECRET && opened.primary, "another key came out");

    rotate(&client, 2).await?;
    let opened = unwrap(&client, &old.wrapped_key).await?;
    ensure!(opened.plaintext == SECRET && !opened.primary, "{opened:?}");
    let request =
        v1::RewrapKeyRequest { name: KEY.into(), wrapped_key: old.wrapped_key.clone(), ..Default::default() };
    let moved = client.rewrap_key(request).await?;
    ensure!(moved.name.ends_with("/2") && moved.source_name.ends_with("/1"), "{moved:?}");

    service.terminate().await?;
    service.start_again().await?;
    let client = service.client().await?;
    for wrapped in [&old.wrapped_key, &moved.wrapped_key] {
        ensure!(unwrap(&client, wrapped).await?.plaintext == SECRET);
    }
    // The older version goes on opening for those who may recover, and for nobody else.
    let revoke = v1::RevokeKeyVersionRequest {
        name: format!("{KEY}/versions/1"),
        reason: "a drill".into(),
        ..Default::default()
    };
    client.revoke_key_version(revoke).await?;
    let make = v1::CreateAccessTokenRequest {
        access_token_id: "reader".into(),
        access_token: Some(v1::AccessToken {
            role: "user".into(),
            keys: vec![KEY.into()],
            ..Default::default()
        }),
        ttl: None,
    };
    let reader = client.create_access_token(make).await?;
    let file = service.dir().join("reader.token");
    std::fs::write(&file, &reader.secret)?;
    let reader = service.with_token_file(&file).client().await?;
    ensure!(reason(unwrap(&reader, &old.wrapped_key).await).as_deref() == Some("PERMISSION_DENIED"));
    ensure!(unwrap(&reader, &moved.wrapped_key).await?.plaintext == SECRET);
    ensure!(unwrap(&client, &old.wrapped_key).await?.plaintext == SECRET, "an administrator may recover");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_does_not_fit_has_one_reason_and_harms_nothing() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    create(&client, "orders").await?;
    create(&client, "other").await?;
    let wrapped = wrap(&client).await?.wrapped_key;
    let before = service.metric("kms_hsm_respawns_total").await?;
    let ask = |name: &str, wrapped_key: Vec<u8>, encryption_context| v1::UnwrapKeyRequest {
        name: name.into(),
        wrapped_key,
        encryption_context,
        wrapped_key_crc32c: None,
    };
    let mut requests = vec![
        ask("keys/other", wrapped.clone(), tenant()),
        ask(KEY, wrapped.clone(), context(&[])),
        ask(KEY, wrapped.clone(), context(&[("tenant", "acme")])),
        ask(KEY, wrapped.clone(), context(&[("tenant", "evil"), ("table", "orders")])),
    ];
    // Of the header the uid, the data key's id and the digest; of the wrap IV, ciphertext and tag.
    for place in [8, 23, 28, 43, 44, 75, 78, 89, 90, 121, 122, 137] {
        let mut flipped = wrapped.clone();
        flipped[place] ^= 1;
        requests.push(ask(KEY, flipped, tenant()));
    }
    let mut said = std::collections::BTreeSet::new();
    for request in requests {
        let error = client.unwrap_key(request).await.err().context("it opened")?;
        said.insert((error.reason().map(str::to_owned), error.message().to_owned()));
    }
    ensure!(
        said.len() == 1 && said.iter().all(|(reason, _)| reason.as_deref() == Some("NOT_OPENED")),
        "{said:?}"
    );
    for cut in [0, 4, 77, 137] {
        let refused = client.unwrap_key(ask(KEY, wrapped[..cut].to_vec(), tenant())).await;
        ensure!(reason(refused).as_deref() == Some("INVALID_ARGUMENT"), "cut at {cut}");
    }
    let checked = v1::UnwrapKeyRequest { wrapped_key_crc32c: Some(1), ..ask(KEY, wrapped.clone(), tenant()) };
    let refused = client.unwrap_key(checked).await.err().context("a wrong checksum was taken")?;
    ensure!(
        refused.field_violations().iter().any(|wrong| wrong.field == "wrapped_key_crc32c"),
        "{refused:?}"
    );
    ensure!(unwrap(&client, &wrapped).await?.plaintext == SECRET);
    ensure!(service.metric("kms_hsm_respawns_total").await? == before, "garbage cost a worker");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_header_opens_what_stands_behind_another() -> anyhow::Result<()> {
    const BATCH_LEN: usize = 128;
    let promise = Promise::begin(13, "wrapping")?;
    let service = Service::start().await?;
    let client = service.client().await?;
    create(&client, "orders").await?;
    create(&client, "other").await?;
    let count = Promise::count(32, 1_000);
    let mut made = Vec::new();
    for number in 0..count {
        // Two keys, and contexts that several have; what is wrapped tells them apart.
        let name = ["keys/other", KEY][number % 2].to_owned();
        let encryption_context = context(&[("tenant", ["acme", "umbrella", ""][number % 3])]);
        let plaintext = number.to_be_bytes().repeat(4);
        let request =
            v1::WrapKeyRequest { name: name.clone(), plaintext, encryption_context, ..Default::default() };
        let context = request.encryption_context.clone();
        let wrapped = WrappedKey::parse(&client.wrap_key(request).await?.wrapped_key)?;
        made.push((name, context, wrapped));
    }
    let pairs: Vec<_> = (0..count).flat_map(|of| (0..count).map(move |behind| (of, behind))).collect();
    let mut opened = 0;
    for (batch, pairs) in pairs.chunks(BATCH_LEN).enumerate() {
        Promise::progress("batches of pairs", batch, (count * count).div_ceil(BATCH_LEN));
        let ask = |(of, behind): &(usize, usize)| {
            let (name, context, header) = &made[*of];
            let swapped = WrappedKey::new(*header.header(), made[*behind].2.wrapped().to_vec())?;
            anyhow::Ok(v1::UnwrapKeyRequest {
                name: name.clone(),
                wrapped_key: swapped.to_bytes(),
                encryption_context: context.clone(),
                ..Default::default()
            })
        };
        let requests = pairs.iter().map(ask).collect::<anyhow::Result<_>>()?;
        let results = client.batch_unwrap_key(v1::BatchUnwrapKeyRequest { requests }).await?.results;
        ensure!(results.len() == pairs.len(), "{} results", results.len());
        for (&(of, behind), result) in pairs.iter().zip(results) {
            match result.outcome.context("no outcome")? {
                v1::batch_unwrap_key_result::Outcome::Response(response) => {
                    ensure!(of == behind, "the header of {of} opened {behind}");
                    ensure!(response.plaintext == of.to_be_bytes().repeat(4), "{of} is another key");
                    opened += 1;
                }
                v1::batch_unwrap_key_result::Outcome::Error(error) => {
                    ensure!(of != behind, "{of} does not open: {}", error.message);
                    ensure!(error.code == tonic::Code::InvalidArgument as i32, "{}", error.message);
                }
            }
        }
    }
    ensure!(opened == count);
    ensure!(service.metric("kms_hsm_respawns_total").await? == 0.0, "a swap cost a worker");
    promise.kept(
        format!(
            "{count} wrapped keys of 2 keys and 3 contexts, every header with every other's wrap, through a \
             service"
        ),
        format!("{} pairs: 0 opened; 0 workers replaced", count * (count - 1)),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_a_status_for_each_item_and_envelopes_of_small_payloads_come_back() -> anyhow::Result<()>
{
    let service = Service::start().await?;
    let client = service.client().await?;
    create(&client, "orders").await?;
    let ask = |name: &str| v1::GenerateDataKeyRequest { name: name.into(), ..Default::default() };
    let requests = vec![ask(KEY), ask("keys/absent"), ask("odd"), ask(KEY)];
    let batch = client.batch_generate_data_key(v1::BatchGenerateDataKeyRequest { requests }).await?;
    let made: Vec<_> = batch
        .results
        .iter()
        .map(|result| match &result.outcome {
            Some(v1::batch_generate_data_key_result::Outcome::Response(made)) => Ok(made.plaintext.len()),
            Some(v1::batch_generate_data_key_result::Outcome::Error(error)) => Err(error.code),
            None => Err(-1),
        })
        .collect();
    ensure!(made == [Ok(32), Err(5), Err(3), Ok(32)], "{made:?}");

    for len in [0, 1, 65_536] {
        let plaintext = vec![7; len];
        let request = v1::EncryptRequest {
            name: KEY.into(),
            plaintext: plaintext.clone(),
            encryption_context: tenant(),
            payload_context: context(&[("row", "7")]),
            plaintext_crc32c: None,
        };
        let sealed = client.encrypt(request).await?;
        let ask = |payload_context| v1::DecryptRequest {
            name: KEY.into(),
            ciphertext: sealed.ciphertext.clone(),
            encryption_context: tenant(),
            payload_context,
            ciphertext_crc32c: Some(sealed.ciphertext_crc32c),
        };
        ensure!(client.decrypt(ask(context(&[("row", "7")]))).await?.plaintext == plaintext, "{len} bytes");
        ensure!(reason(client.decrypt(ask(context(&[("row", "8")]))).await).as_deref() == Some("NOT_OPENED"));
    }
    let long = v1::EncryptRequest { name: KEY.into(), plaintext: vec![7; 65_537], ..Default::default() };
    ensure!(client.encrypt(long).await.is_err(), "too long a payload was taken");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_wraps_every_other_opens_and_all_count_the_same_budget() -> anyhow::Result<()> {
    let fleet = Fleet::start(Plan::new()?, 3).await?;
    let mut clients = Vec::new();
    for replica in &fleet.replicas {
        clients.push(replica.environment()?.client().await?);
    }
    create(&clients[0], "orders").await?;
    let mut wrapped = Vec::new();
    for client in &clients {
        wrapped.push(wrap(client).await?.wrapped_key);
    }
    rotate(&clients[1], 2).await?;
    for client in &clients {
        for wrapped in &wrapped {
            ensure!(unwrap(client, wrapped).await?.plaintext == SECRET);
        }
    }
    // An emergency leaves no time to tell the others: whoever does not know the version yet says so, and learns it.
    let emergency = v1::RotateKeyRequest { name: KEY.into(), emergency: true, ..Default::default() };
    clients[0].rotate_key(emergency).await?;
    let newest = wrap(&clients[0]).await?;
    ensure!(newest.name.ends_with("/3"), "{newest:?}");
    for client in &clients {
        ensure!(unwrap(client, &newest.wrapped_key).await?.plaintext == SECRET);
    }
    let usage = clients[2].get_key_usage(v1::GetKeyUsageRequest { name: KEY.into() }).await?;
    let reserved: Vec<_> = usage.versions.iter().map(|version| version.wraps_reserved).collect();
    ensure!(reserved == [3 * 65_536, 0, 65_536], "a block for each server that wrapped: {reserved:?}");
    Ok(())
}
