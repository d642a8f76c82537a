//! Three servers, one PostgreSQL, one token, a plain TCP balancer in front: replicas and workers die one after another,
//! or are replaced in order, while callers sign and strangers verify.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use kms_client::{Client, v1};
use kms_tests::{Environment, Fleet, PATIENCE, Plan, Promise, Refusal, kill, until};
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};
use tonic::Request;

/// One request a caller in this time.
const PACE: Duration = Duration::from_millis(50);
const CALLERS: usize = 4;
/// After a replica was killed callers may see their connections break for so long.
const ANNOUNCED: Duration = Duration::from_secs(3);
/// Each call's deadline: a debug build on a busy machine is slow.
const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn replicas_and_workers_die_one_after_another_and_nothing_acknowledged_is_lost() -> anyhow::Result<()> {
    let mut promise = Promise::begin(1, "replicas")?;
    let mut fleet = Fleet::start(Plan::new()?, 3).await?;
    let admin = fleet.client().await?;
    let mut acknowledged = vec![create(&admin, "steady").await?];
    let traffic = Traffic::start(&fleet, "keys/steady").await?;
    traffic.goes_on(40).await?;

    let mut announced = Vec::new();
    let rounds = Promise::count(3, 30);
    for round in 0..rounds {
        Promise::progress("replicas killed", round, rounds);
        // A worker of one: nobody may notice.
        let worked_on = promise.seed.below(3);
        let replica = &fleet.replicas[worked_on];
        replica.environment()?.all_workers_ready().await?;
        kill(replica.running()?.tree()?.workers().first().copied().context("no worker")?, Signal::KILL)?;
        traffic.goes_on(20).await?;

        // A whole replica.
        for replica in &fleet.replicas {
            replica.environment()?.all_workers_ready().await?;
        }
        announced.push(Instant::now());
        fleet.kill_replica(round % 3).await?;
        traffic.goes_on(40).await?;
        // Changes go on too; they wait until the dead one would have stopped by itself.
        acknowledged.push(create_patiently(&fleet, &format!("without-{round}")).await?);
        signs(&fleet.client().await?, acknowledged.last().context("a key")?).await?;
        fleet.start_replica(round % 3).await?;
        acknowledged.push(create_patiently(&fleet, &format!("again-{round}")).await?);
        traffic.goes_on(40).await?;
    }

    let report = traffic.stop().await?;
    let outside = report.refused_outside(&announced, ANNOUNCED);
    ensure!(outside.is_empty(), "refused outside the announced seconds: {outside:#?}");
    ensure!(report.verified > 300, "only {} tokens were verified", report.verified);
    for replica in &fleet.replicas {
        let client = replica.environment()?.client().await?;
        for name in &acknowledged {
            signs(&client, name).await?;
        }
    }
    same_key_sets(&fleet).await?;
    promise.kept(
        format!("{rounds} replicas and {rounds} workers of 3 replicas killed under traffic, PostgreSQL"),
        format!(
            "{} acknowledged keys: 0 lost; 0 of {} tokens refused by verifiers; 0 failed requests outside {} s after \
             a replica was killed",
            acknowledged.len(),
            report.verified,
            ANNOUNCED.as_secs()
        ),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_replaced_one_after_another_without_a_failed_request() -> anyhow::Result<()> {
    let mut plan = Plan::new()?;
    plan.more.push(("grpc", "drain_delay = \"2s\"".into()));
    let mut fleet = Fleet::start(plan, 3).await?;
    create(&fleet.client().await?, "steady").await?;
    let traffic = Traffic::start(&fleet, "keys/steady").await?;
    traffic.goes_on(40).await?;
    for number in 0..3 {
        fleet.terminate_replica(number).await?;
        fleet.start_replica(number).await?;
        traffic.goes_on(40).await?;
    }
    let report = traffic.stop().await?;
    ensure!(report.refused.is_empty(), "{:#?}", report.refused);
    // Nobody waits for one that left in order.
    let began = Instant::now();
    fleet.terminate_replica(0).await?;
    create(&fleet.client().await?, "after-one-left").await?;
    ensure!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    Ok(())
}

/// The bytes and the entity tag are the same everywhere.
async fn same_key_sets(fleet: &Fleet) -> anyhow::Result<()> {
    let mut sets = Vec::new();
    for replica in &fleet.replicas {
        let answer = replica.environment()?.get("/.well-known/jwks.json").await?.error_for_status()?;
        let etag = answer.headers().get("etag").context("no ETag")?.to_str()?.to_owned();
        sets.push((etag, answer.bytes().await?));
    }
    ensure!(sets.windows(2).all(|pair| pair[0] == pair[1]), "replicas publish different sets: {sets:?}");
    Ok(())
}

async fn create(client: &Client, id: &str) -> anyhow::Result<String> {
    let key = Some(v1::Key { algorithm: "ES256".into(), ..Default::default() });
    let request = v1::CreateKeyRequest { key_id: id.into(), key, ..Default::default() };
    Ok(client.create_key(request).await?.name)
}

/// As a careful caller does: with a request_id, again after an error.
async fn create_patiently(fleet: &Fleet, id: &str) -> anyhow::Result<String> {
    let request_id = format!(
        "00000000-0000-4000-8000-{:012x}",
        id.bytes().fold(0_u64, |sum, byte| { (sum * 31 + u64::from(byte)) & 0xffff_ffff_ffff })
    );
    until(&format!("{id} is made"), PATIENCE, async || {
        let Ok(client) = fleet.client().await else { return Ok(None) };
        let key = Some(v1::Key { algorithm: "ES256".into(), ..Default::default() });
        let request = v1::CreateKeyRequest { key_id: id.into(), key, request_id: request_id.clone() };
        Ok(client.create_key(request).await.ok().map(|key| key.name))
    })
    .await
}

async fn sign(client: &Client, name: &str) -> Result<String, Refusal> {
    let mut request = Request::new(v1::SignJwtRequest { name: name.to_owned(), ..claims() });
    request.set_timeout(DEADLINE);
    let mut crypto = client.crypto();
    match crypto.sign_jwt(request).await {
        Err(status) if was_never_sent(&status) => {
            let again = v1::SignJwtRequest { name: name.to_owned(), ..claims() };
            Ok(crypto.sign_jwt(again).await?.into_inner().token)
        }
        outcome => Ok(outcome?.into_inner().token),
    }
}

fn claims() -> v1::SignJwtRequest {
    v1::SignJwtRequest {
        claims_json: br#"{"aud":"here"}"#.to_vec(),
        ttl: Some(prost_types::Duration { seconds: 900, nanos: 0 }),
        ..Default::default()
    }
}

/// The generated client of Rust gives a request to a connection that the server is just closing in order, and fails it
/// unsent. Others, and our SDK, repeat that by themselves (gRPC calls it a transparent retry); here it is done by hand,
/// because the SDK would also repeat what must not fail.
fn was_never_sent(status: &tonic::Status) -> bool {
    let canceled = status.code() == tonic::Code::Cancelled && status.message() == "operation was canceled";
    // What h2 says of a stream behind the last one that a GOAWAY without an error names (RFC 9113 section 6.8).
    canceled || status.message().contains("not a result of an error")
}

async fn signs(client: &Client, name: &str) -> anyhow::Result<()> {
    sign(client, name).await.map(drop).map_err(|refusal| anyhow::anyhow!("{name} does not sign: {refusal:?}"))
}

/// Callers that sign at a steady pace, each over a connection of its own, and a verifier that keeps the key set as it
/// is told to.
struct Traffic {
    stop: Arc<AtomicBool>,
    verified: Arc<AtomicU64>,
    refused: Arc<Mutex<Vec<Failed>>>,
    callers: JoinSet<()>,
    verifier: JoinHandle<anyhow::Result<()>>,
}

struct Report {
    verified: u64,
    refused: Vec<Failed>,
}

/// A call that was refused, or that broke.
#[derive(Debug)]
struct Failed {
    began: Instant,
    ended: Instant,
    #[expect(dead_code, reason = "shown when it fails the test")]
    why: Refusal,
}

impl Traffic {
    async fn start(there: &Environment, name: &str) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let refused: Arc<Mutex<Vec<_>>> = Arc::default();
        let (tokens, to_verify) = tokio::sync::mpsc::unbounded_channel();
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (client, name) = (there.client().await?, name.to_owned());
            let (stop, refused, tokens) = (Arc::clone(&stop), Arc::clone(&refused), tokens.clone());
            callers.spawn(async move {
                let mut tick = interval(PACE);
                tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !stop.load(Ordering::Relaxed) {
                    tick.tick().await;
                    let began = Instant::now();
                    match sign(&client, &name).await {
                        Ok(token) => _ = tokens.send(token),
                        Err(why) => {
                            let failed = Failed { began, ended: Instant::now(), why };
                            refused.lock().unwrap_or_else(PoisonError::into_inner).push(failed);
                        }
                    }
                }
            });
        }
        let verified = Arc::new(AtomicU64::new(0));
        let verifier = tokio::spawn(verify(there.clone(), to_verify, Arc::clone(&verified)));
        Ok(Self { stop, verified, refused, callers, verifier })
    }

    /// Waits until so many more tokens were signed and verified.
    async fn goes_on(&self, more: u64) -> anyhow::Result<()> {
        let before = self.verified.load(Ordering::Relaxed);
        until("more tokens are verified", PATIENCE, async || {
            ensure!(!self.verifier.is_finished(), "the verifier has stopped");
            Ok((self.verified.load(Ordering::Relaxed) >= before + more).then_some(()))
        })
        .await
    }

    async fn stop(self) -> anyhow::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.join_all().await;
        self.verifier.await??;
        let refused = std::mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Report { verified: self.verified.load(Ordering::Relaxed), refused })
    }
}

impl Report {
    /// Those that were not on their way at any moment of an announced span.
    fn refused_outside(&self, announced: &[Instant], span: Duration) -> Vec<&Failed> {
        let inside = |call: &Failed| announced.iter().any(|at| call.ended > *at && call.began < *at + span);
        self.refused.iter().filter(|call| !inside(call)).collect()
    }
}

/// jsonwebtoken, with a key set that is fetched through the balancer and kept until it is too old or lacks a key.
async fn verify(
    there: Environment,
    mut tokens: tokio::sync::mpsc::UnboundedReceiver<String>,
    verified: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let mut kept: Option<(JwkSet, Instant)> = None;
    while let Some(token) = tokens.recv().await {
        let header = decode_header(&token)?;
        let kid = header.kid.context("no kid")?;
        let fresh = |kept: &Option<(JwkSet, Instant)>| {
            kept.as_ref().is_some_and(|(set, until)| *until > Instant::now() && set.find(&kid).is_some())
        };
        if !fresh(&kept) {
            kept = Some(fetch(&there).await?);
        }
        let jwk = kept.as_ref().and_then(|(set, _)| set.find(&kid)).context("the kid is not published")?;
        let mut validation = Validation::new(header.alg);
        validation.set_audience(&["here"]);
        decode::<Value>(&token, &DecodingKey::from_jwk(jwk)?, &validation)?;
        verified.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// A verifier tries again when its connection breaks.
async fn fetch(there: &Environment) -> anyhow::Result<(JwkSet, Instant)> {
    let began = Instant::now();
    let mut tick = interval(PACE);
    while began.elapsed() < PATIENCE {
        tick.tick().await;
        let Ok(answer) = there.get("/.well-known/jwks.json").await else { continue };
        let cached = answer.headers().get("cache-control").context("no Cache-Control")?.to_str()?.to_owned();
        let max_age =
            cached.split("max-age=").nth(1).and_then(|rest| rest.split(',').next()?.trim().parse().ok());
        let until = Instant::now() + Duration::from_secs(max_age.context("no max-age")?);
        if let Ok(body) = answer.bytes().await {
            return Ok((serde_json::from_slice(&body)?, until));
        }
    }
    anyhow::bail!("the key set was not to be had")
}
