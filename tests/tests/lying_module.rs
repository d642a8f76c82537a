//! A vendor's module that lies, crashes or is short of sessions, made so by the fault shim at the C ABI. No key is
//! acknowledged that cannot sign (promise 2), no wrong result gets out (10), a crash costs at most one request (26),
//! few sessions cost none (25).

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_softhsm::{EphemeralToken, faults::Controller};
use kms_tests::{PATIENCE, Plan, Promise, Refusal, Server, Signer, TestHsm, until};
use tokio::task::JoinSet;
use tonic::Code;
use v1::batch_wrap_key_result::Outcome;

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_acknowledged_that_the_module_loses_or_that_cannot_sign() -> anyhow::Result<()> {
    let promise = Promise::begin(2, "lying_module")?;
    let server = faulty_server("").await?;
    let client = server.client().await?;
    let lies = [
        "C_Sign always: flip-bit 7",
        "C_Sign always: shorten",
        "C_GenerateKeyPair always: lose-object 0",
        "C_GenerateKeyPair always: return CKR_DEVICE_MEMORY",
        // It was made, and somebody must find it.
        "C_GenerateKeyPair always times 1: call-then-return CKR_GENERAL_ERROR",
    ];
    for (number, lie) in lies.iter().enumerate() {
        controller(&server)?.set(&lie.parse()?);
        let key = Some(v1::Key { algorithm: "ES256".into(), ..Default::default() });
        let key_id = format!("born-{number}");
        let request = v1::CreateKeyRequest { key_id, key, ..Default::default() };
        let made = client.keys().create_key(request).await;
        ensure!(made.is_err(), "{lie}: {made:?} was acknowledged");
        ensure!(controller(&server)?.fired() > 0, "{lie}: it did not come to that");
    }
    controller(&server)?.clear();
    // What was begun is finished, once the module tells the truth.
    for number in 0..lies.len() {
        let name = format!("keys/born-{number}");
        let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
        until(&format!("{name} signs"), PATIENCE, async || {
            let request = v1::SignRequest { name: name.clone(), input: input.clone(), ..Default::default() };
            Ok(client.crypto().sign(request).await.ok())
        })
        .await?;
    }
    promise.kept(
        format!("{} ways to be lied to while a key is born", lies.len()),
        "0 keys acknowledged; every birth was finished by itself",
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_signature_of_a_lying_module_is_released() -> anyhow::Result<()> {
    let promise = Promise::begin(10, "lying_module")?;
    let server = faulty_server("").await?;
    let signer = Signer::with_new_keys(&server.client().await?, 4).await?;
    let (faults, seed) = (Promise::count(200, 10_000), promise.seed.initial());
    // Both in turn: bits flipped anywhere, and the handle of another key.
    let mut fired = 0;
    let mut refused = Vec::new();
    for script in [
        format!("C_Sign chance 300000 seed {seed}: flip-bit 5"),
        format!("C_Sign chance 300000 seed {seed}: flip-bit 400"),
        format!("C_SignInit chance 300000 seed {seed}: swap-handles"),
    ] {
        controller(&server)?.set(&script.parse()?);
        let goal = u32::try_from(faults.div_ceil(3))?;
        while controller(&server)?.fired() < goal {
            let calls = callers(&signer, 8, 50).await?;
            refused.extend(calls);
        }
        fired += controller(&server)?.fired();
    }
    controller(&server)?.clear();
    signer.check()?;
    ensure!(!refused.is_empty(), "no lie was noticed");
    let odd: Vec<_> = refused.iter().filter(|refusal| refusal.code != Code::Internal).take(5).collect();
    ensure!(odd.is_empty(), "a lie was told as something else: {odd:#?}");
    // A module that tells the truth again is believed again.
    signer.sign(DEADLINE).await.map_err(told)?;
    promise.kept(
        format!("{fired} flipped bits and swapped handles below C_Sign"),
        format!("0 released; {} requests failed with INTERNAL", refused.len()),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_wrap_of_a_lying_module_is_released() -> anyhow::Result<()> {
    let promise = Promise::begin(10, "lying_module")?;
    let server = faulty_server("").await?;
    let client = server.client().await?;
    for number in 0..2 {
        let key = Some(v1::Key { algorithm: "A256GCMKW".into(), ..Default::default() });
        let request = v1::CreateKeyRequest { key_id: format!("kek-{number}"), key, ..Default::default() };
        client.create_key(request).await?;
    }
    let (faults, seed) = (Promise::count(200, 10_000), promise.seed.initial());
    let (mut fired, mut refused, mut released) = (0, 0, Vec::new());
    // What it encrypted is spoilt, or another key encrypted it, or is asked whether it was right.
    for script in [
        format!("C_Encrypt chance 300000 seed {seed}: flip-bit 77"),
        format!("C_EncryptInit chance 300000 seed {seed}: swap-handles"),
        format!("C_DecryptInit chance 300000 seed {seed}: swap-handles"),
    ] {
        controller(&server)?.set(&script.parse()?);
        while controller(&server)?.fired() < u32::try_from(faults.div_ceil(3))? {
            for (name, outcome) in wraps(&client).await? {
                match outcome {
                    Outcome::Response(wrapped) => released.push((name, wrapped.wrapped_key)),
                    Outcome::Error(error) => {
                        ensure!(error.code == Code::Internal as i32, "{script}: {}", error.message);
                        refused += 1;
                    }
                }
            }
        }
        fired += controller(&server)?.fired();
    }
    controller(&server)?.clear();
    for (name, wrapped_key) in &released {
        let request = v1::UnwrapKeyRequest {
            name: name.clone(),
            wrapped_key: wrapped_key.clone(),
            ..Default::default()
        };
        let opened = client.unwrap_key(request).await.context("a wrap was released that does not open")?;
        ensure!(opened.plaintext == [0x5a; 32], "it opens as another key");
    }
    ensure!(refused > 0 && !released.is_empty(), "{refused} refused, {} released", released.len());
    promise.kept(
        format!(
            "{fired} flipped bits and swapped handles below C_Encrypt and C_Decrypt while keys are wrapped"
        ),
        format!("{} wraps released: all open; {refused} requests failed with INTERNAL", released.len()),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_crashes_again_and_again_costs_at_most_a_request_each_time() -> anyhow::Result<()> {
    let promise = Promise::begin(26, "lying_module")?;
    let server = faulty_server("").await?;
    server.all_workers_ready().await?;
    let signer = Signer::with_new_keys(&server.client().await?, 2).await?;
    controller(&server)?.set(&"C_Sign every 1000: crash".parse()?);
    let crashes = u32::try_from(Promise::count(5, 200))?;
    let mut refused = Vec::new();
    let mut slowest = Duration::ZERO;
    while controller(&server)?.fired() < crashes {
        let before = controller(&server)?.fired();
        refused.extend(callers(&signer, 8, 100).await?);
        if controller(&server)?.fired() > before {
            let since = Instant::now();
            server.all_workers_ready().await?;
            slowest = slowest.max(since.elapsed());
        }
    }
    let crashes = controller(&server)?.fired();
    signer.check()?;
    ensure!(
        refused.len() <= usize::try_from(crashes)?,
        "{} requests failed in {crashes} crashes: {:#?}",
        refused.len(),
        refused.iter().take(5).collect::<Vec<_>>()
    );
    Promise::within("a new worker", slowest, Duration::from_millis(500))?;
    promise.kept(
        format!("{crashes} crashes of the module, one every 1,000 calls"),
        format!("{} failed requests; all workers back within {slowest:.0?}", refused.len()),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_replaced_for_their_age_without_a_failed_request() -> anyhow::Result<()> {
    let promise = Promise::begin(26, "lying_module")?;
    let mut plan = Plan::new()?;
    plan.more.push(("hsm", "worker_operations_max = 500".to_owned()));
    let server = started(plan).await?;
    let signer = Signer::with_new_keys(&server.client().await?, 2).await?;
    let replaced = Promise::count(5, 200) as f64;
    let mut calls = 0;
    while server.metric("kms_hsm_recycled_total").await? < replaced {
        let refused = callers(&signer, 8, 50).await?;
        ensure!(refused.is_empty(), "{refused:#?}");
        calls += 8 * 50;
    }
    signer.check()?;
    promise
        .kept(format!("{replaced} workers replaced for their age"), format!("0 of {calls} requests failed"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_four_sessions_serves_a_thousand_callers() -> anyhow::Result<()> {
    let promise = Promise::begin(25, "lying_module")?;
    // Two workers take them all; the spare one finds no room.
    let server = faulty_server("C_OpenSession always: session-cap 4").await?;
    until("two workers serve", PATIENCE, async || {
        Ok((server.metric("kms_hsm_workers_ready").await? == 2.0).then_some(()))
    })
    .await?;
    let signer = Signer::with_new_keys(&server.client().await?, 2).await?;
    let rounds = Promise::count(1, 20);
    for _ in 0..rounds {
        let refused = callers(&signer, 1_000, 1).await?;
        ensure!(refused.is_empty(), "{} of 1,000 failed: {:#?}", refused.len(), refused.first());
    }
    signer.check()?;
    let sessions: u32 = controller(&server)?.processes().iter().map(|process| process.sessions).sum();
    ensure!(sessions <= 4, "{sessions} sessions are open");
    promise.kept(
        format!("a token of 4 sessions, {rounds} times 1,000 calls at once"),
        format!("0 errors, {sessions} sessions open"),
    );
    Ok(())
}

/// A batch of wraps by two keys in turn: the key, and what became of it.
async fn wraps(client: &Client) -> anyhow::Result<Vec<(String, Outcome)>> {
    let names: Vec<_> = (0..64).map(|number| format!("keys/kek-{}", number % 2)).collect();
    let request = |name: &String| v1::WrapKeyRequest {
        name: name.clone(),
        plaintext: vec![0x5a; 32],
        ..Default::default()
    };
    let requests = names.iter().map(request).collect();
    let results = client.batch_wrap_key(v1::BatchWrapKeyRequest { requests }).await?.results;
    ensure!(results.len() == names.len(), "{} results", results.len());
    let outcomes = results.into_iter().map(|result| result.outcome.context("no outcome"));
    names.into_iter().zip(outcomes).map(|(name, outcome)| Ok((name, outcome?))).collect()
}

/// A server on SoftHSM behind the shim, which obeys `script` from the first C call on.
async fn faulty_server(script: &str) -> anyhow::Result<Server> {
    let hsm = TestHsm::faulty(EphemeralToken::new()?)?;
    let TestHsm::Faulty(_, faults) = &hsm else { anyhow::bail!("no shim") };
    faults.set(&script.parse()?);
    started(Plan::on(hsm)?).await
}

async fn started(plan: Plan) -> anyhow::Result<Server> {
    plan.bootstrap().await?;
    plan.start().await
}

fn controller(server: &Server) -> anyhow::Result<&Controller> {
    match &server.plan.token {
        TestHsm::Faulty(_, controller) => Ok(controller),
        _ => anyhow::bail!("no shim"),
    }
}

/// Lets `count` callers sign `each` times, all at once. Returns the refusals.
async fn callers(signer: &Signer, count: usize, each: usize) -> anyhow::Result<Vec<Refusal>> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let signer = signer.clone();
        tasks.spawn(async move {
            let mut refused = Vec::new();
            for _ in 0..each {
                refused.extend(signer.sign(DEADLINE).await.err());
            }
            refused
        });
    }
    let refused = tokio::time::timeout(PATIENCE * 5, tasks.join_all()).await.context("calls never end")?;
    Ok(refused.into_iter().flatten().collect())
}

fn told(refusal: Refusal) -> anyhow::Error {
    anyhow::anyhow!("{refusal:?}")
}
