//! Clients cannot break the HSM link with bad input (promise 9): whatever they send, no worker is replaced, and
//! those who send what is right wait little longer than beside as many good callers.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_softhsm::{EphemeralToken, unless_left_out};
use kms_tests::{Plan, Promise, Refusal, Seed, Server, Signer, TestHsm};
use tokio::task::JoinSet;
use tonic::Code;
use v1::{sign_request::Input, verify_request};

/// The key whose wraps are spoilt.
const KEK: &str = "keys/kek";
/// Callers that send garbage at the same time.
const SENDERS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn garbage_costs_no_worker_on_softhsm() -> anyhow::Result<()> {
    garbage("SoftHSM", EphemeralToken::new()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_costs_no_worker_on_kryoptic() -> anyhow::Result<()> {
    let Some(token) = unless_left_out(EphemeralToken::kryoptic())? else { return Ok(()) };
    garbage("Kryoptic", token).await
}

async fn garbage(token_name: &str, token: EphemeralToken) -> anyhow::Result<()> {
    let mut promise = Promise::begin(9, "garbage")?;
    let plan = Plan::on(TestHsm::Local(token))?;
    plan.bootstrap().await?;
    let server = plan.start().await?;
    server.all_workers_ready().await?;
    let client = server.client().await?;
    let signer = Signer::with_new_keys(&client, 1).await?;
    let rsa = v1::Key { algorithm: "RS256".into(), ..Default::default() };
    let request = v1::CreateKeyRequest { key_id: "rsa".into(), key: Some(rsa), ..Default::default() };
    client.create_key(request).await?;
    let wrapped = wrapped_by_a_new_key(&client).await?;
    let respawns = server.metric("kms_hsm_respawns_total").await?;

    let beside_good = {
        let mut others = JoinSet::new();
        for _ in 0..SENDERS {
            let signer = signer.over(&server.client().await?);
            others.spawn(async move {
                while signer.sign(Duration::from_secs(30)).await.is_ok() {
                    tokio::task::yield_now().await;
                }
            });
        }
        p99(&signer, 200).await?
    };
    let count = Promise::count(2_000, 1_000_000);
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let seed = promise.seed.fork();
        let client = server.client().await?;
        senders.spawn(send(client, wrapped.clone(), seed, count / SENDERS));
    }
    let beside_garbage = p99(&signer, 200).await?;
    let mut odd = Vec::new();
    while let Some(refused) = senders.join_next().await {
        odd.extend(refused??);
    }
    ensure!(odd.is_empty(), "garbage was answered with something that no client can act on: {odd:#?}");
    ensure!(server.metric("kms_hsm_respawns_total").await? == respawns, "garbage cost a worker");
    signer.check()?;
    still_signs(&server, &signer).await?;
    client.unwrap_key(to_unwrap(wrapped)).await.context("what was wrapped does not open any more")?;
    let ratio = beside_garbage.as_secs_f64() / beside_good.as_secs_f64();
    ensure!(!Promise::is_full() || ratio <= 2.0, "good callers wait {ratio:.1} times as long");
    promise.kept(
        format!("{count} garbage calls of sign, verify, JWT and unwrap on {token_name}"),
        format!(
            "0 workers replaced; p99 of a good caller {beside_garbage:.1?}, beside {SENDERS} good callers \
             {beside_good:.1?} ({ratio:.1} times)"
        ),
    );
    Ok(())
}

/// Sends garbage; returns what was answered with a code that blames the service.
async fn send(
    client: Client,
    wrapped: Vec<u8>,
    mut seed: Seed,
    count: usize,
) -> anyhow::Result<Vec<Refusal>> {
    let mut odd = Vec::new();
    for _ in 0..count {
        let outcome = match seed.below(4) {
            0 => client.crypto().sign(sign(&mut seed)).await.err(),
            1 => client.crypto().verify(verify(&mut seed)).await.err(),
            2 => client.crypto().unwrap_key(unwrap(&wrapped, &mut seed)).await.err(),
            _ => client.crypto().sign_jwt(jwt(&mut seed)).await.err(),
        };
        let refusal: Option<Refusal> = outcome.map(Into::into);
        odd.extend(refusal.filter(|refusal| !is_the_callers(refusal)));
        ensure!(odd.len() < 10, "{odd:#?}");
    }
    Ok(odd)
}

fn is_the_callers(refusal: &Refusal) -> bool {
    // Another server may have made it a moment ago.
    let is_not_known = refusal.reason == "VERSION_NOT_KNOWN";
    is_not_known
        || matches!(
            refusal.code,
            Code::InvalidArgument | Code::PermissionDenied | Code::NotFound | Code::FailedPrecondition
        )
}

fn name(seed: &mut Seed) -> String {
    const NAMES: [&str; 7] =
        ["keys/signer-0", "keys/rsa", "keys/absent", "keys/signer-0/versions/9", "", "keys/", "\u{0}"];
    seed.pick(&NAMES).unwrap_or_default().to_owned()
}

fn sign(seed: &mut Seed) -> v1::SignRequest {
    let input = match seed.below(4) {
        0 => None,
        1 => Some(Input::Message(bytes(seed, 70_000))),
        2 => Some(Input::Digest(bytes(seed, 100))),
        // A digest of the right length is right, whatever it holds.
        _ => Some(Input::Digest(bytes_of(seed, 32))),
    };
    let signature_format = i32::try_from(seed.below(5)).unwrap_or_default();
    v1::SignRequest { name: name(seed), input, signature_format }
}

fn verify(seed: &mut Seed) -> v1::VerifyRequest {
    let input = match seed.below(3) {
        0 => None,
        1 => Some(verify_request::Input::Message(bytes(seed, 1_000))),
        _ => Some(verify_request::Input::Digest(bytes_of(seed, 32))),
    };
    let signature = match seed.below(3) {
        0 => bytes(seed, 3_000),
        1 => bytes_of(seed, 64),
        // The beginning of a DER sequence, and lies about its length.
        _ => [&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x02][..], &bytes(seed, 80)].concat(),
    };
    let signature_format = i32::try_from(seed.below(5)).unwrap_or_default();
    v1::VerifyRequest { name: name(seed), input, signature, signature_format }
}

/// The only garbage that gets as far as the token: what looks like a wrapped key is for C_Decrypt to judge.
fn unwrap(wrapped: &[u8], seed: &mut Seed) -> v1::UnwrapKeyRequest {
    let mut wrapped = wrapped.to_vec();
    match seed.below(3) {
        0 => wrapped = bytes(seed, 5_000),
        1 => wrapped.truncate(seed.below(wrapped.len())),
        _ => {
            let place = seed.below(wrapped.len());
            wrapped[place] ^= 1 << seed.below(8);
        }
    }
    v1::UnwrapKeyRequest {
        name: if seed.below(4) == 0 { name(seed) } else { KEK.into() },
        ..to_unwrap(wrapped)
    }
}

fn to_unwrap(wrapped_key: Vec<u8>) -> v1::UnwrapKeyRequest {
    v1::UnwrapKeyRequest { name: KEK.into(), wrapped_key, ..Default::default() }
}

async fn wrapped_by_a_new_key(client: &Client) -> anyhow::Result<Vec<u8>> {
    let key = Some(v1::Key { algorithm: "A256GCMKW".into(), ..Default::default() });
    client.create_key(v1::CreateKeyRequest { key_id: "kek".into(), key, ..Default::default() }).await?;
    let request = v1::WrapKeyRequest { name: KEK.into(), plaintext: vec![5; 32], ..Default::default() };
    Ok(client.wrap_key(request).await?.wrapped_key)
}

fn jwt(seed: &mut Seed) -> v1::SignJwtRequest {
    const CLAIMS: [&[u8]; 8] = [
        b"",
        b"{",
        b"[]",
        b"{\"exp\":1}",
        b"{\"exp\":\"x\"}",
        b"{\"a\":1,\"a\":2}",
        b"\xff\xfe",
        b"{\"exp\":1e400}",
    ];
    let claims_json = match seed.below(2) {
        0 => seed.pick(&CLAIMS).unwrap_or_default().to_vec(),
        _ => bytes(seed, 70_000),
    };
    let ttl = (seed.below(2) == 0).then(|| prost_types::Duration {
        seconds: seed.below(usize::MAX) as i64 - (1 << 40),
        nanos: seed.below(usize::MAX) as i32,
    });
    v1::SignJwtRequest { name: name(seed), claims_json, ttl, r#type: "\u{7f}".repeat(seed.below(80)) }
}

fn bytes(seed: &mut Seed, len_max: usize) -> Vec<u8> {
    let len = seed.below(len_max);
    bytes_of(seed, len)
}

fn bytes_of(seed: &mut Seed, len: usize) -> Vec<u8> {
    let word = seed.below(usize::MAX).to_le_bytes();
    (0..len).map(|at| word[at % word.len()].wrapping_mul(at as u8 | 1)).collect()
}

/// The 99th percentile of `count` good calls, one after another.
async fn p99(signer: &Signer, count: usize) -> anyhow::Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        signer.sign(Duration::from_secs(30)).await.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    took.get(count * 99 / 100).copied().context("no calls")
}

async fn still_signs(server: &Server, signer: &Signer) -> anyhow::Result<()> {
    server.all_workers_ready().await?;
    signer.sign(Duration::from_secs(30)).await.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))
}
