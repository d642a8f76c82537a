//! Promise 27: one caller cannot starve another. One sends ten times what the HSM can do; who signs or wraps now and then
//! beside it waits little longer than alone, and who unseals is never refused.
//!
//! The HSM is slow on purpose, so that it is what everybody waits for, and not this machine.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_softhsm::EphemeralToken;
use kms_tests::{Environment, Plan, Promise, Server, TestHsm};
use tokio::{task::JoinSet, time::MissedTickBehavior};
use tonic::{Code, Request};

/// What a signature takes in the HSM; a wrap is two calls of half of that.
const CALL: Duration = Duration::from_millis(40);
/// Workers of a server, each with one session: they do this many calls at once.
const WORKERS: u32 = 4;
/// How many times as much as the HSM can do the flood asks for.
const FLOOD: u32 = 10;
/// Connections and items of a batch of the flood.
const CONNECTIONS: usize = 8;
const ITEMS: u32 = 16;
/// From one call to the next of who calls now and then.
const PACE: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(5);
/// How much longer than alone they wait at most, of 99 in 100,
const SLOWER_MAX: f64 = 2.0;
/// and on a machine that does other things too. In one queue they would wait for seconds, and for refusals.
const SLOWER_BUSY_MAX: f64 = 15.0;
const SIGN: &str = "keys/sign";
const KEK: &str = "keys/kek";

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_signatures_slows_others_that_sign_or_wrap_by_little() -> anyhow::Result<()> {
    let promise = Promise::begin(27, "fairness")?;
    let server = slow_server().await?;
    let count = Promise::count(100, 1_000);
    let signer = caller(&server, "signer", "raw-signer").await?.client().await?;
    let wrapper = caller(&server, "wrapper", "user").await?.client().await?;
    let sign_alone = paced(&signer, Work::Sign, count).await?;
    let wrap_alone = paced(&wrapper, Work::Wrap, count).await?;
    let flood = Flood::start(&server).await?;
    let (sign, wrap) = tokio::join!(paced(&signer, Work::Sign, count), paced(&wrapper, Work::Wrap, count));
    let (sign, wrap) = (sign?, wrap?);
    let flood = flood.stop().await?;
    ensure!(flood.refused > 0, "that was no flood: none of {flood:?} was refused");
    let (signs, wraps) = (sign.refused, wrap.refused);
    ensure!(
        signs + wraps == 0,
        "{signs} signatures and {wraps} wraps were refused, or late, beside the flood"
    );
    let slower =
        [("signs", &sign, &sign_alone), ("wraps", &wrap, &wrap_alone)].map(|(what, beside, alone)| {
            (what, beside.p99(), alone.p99(), beside.p99().as_secs_f64() / alone.p99().as_secs_f64())
        });
    for (what, beside, alone, ratio) in slower {
        let bound = if Promise::is_full() { SLOWER_MAX } else { SLOWER_BUSY_MAX };
        ensure!(ratio <= bound, "who {what} waits {ratio:.1} times as long: {beside:?}, alone {alone:?}");
    }
    let told = slower.map(|(what, beside, alone, ratio)| {
        format!("who {what} beside it, p99 {beside:.1?}, alone {alone:.1?} ({ratio:.2} times)")
    });
    promise.kept(
        format!(
            "{FLOOD} times what the HSM can do, {CONNECTIONS} connections, batches of {ITEMS}: {} signatures asked for",
            flood.asked
        ),
        format!("{}; 0 of {} refused; of the flood {}", told.join("; "), 2 * count, flood.refused),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unseal_is_never_refused_and_waits_for_one_call_at_most() -> anyhow::Result<()> {
    let promise = Promise::begin(27, "fairness")?;
    let server = slow_server().await?;
    let count = Promise::count(100, 1_000);
    let vault = caller(&server, "vault", "unsealer").await?.client().await?;
    let flood = Flood::start(&server).await?;
    let unsealed = paced(&vault, Work::Wrap, count).await?;
    let flood = flood.stop().await?;
    ensure!(flood.refused > 0, "that was no flood: none of {flood:?} was refused");
    ensure!(unsealed.refused == 0, "{} unseals were refused", unsealed.refused);
    // The call that a worker is at, and its own.
    Promise::within("an unseal, of 99 in 100,", unsealed.p99(), 3 * CALL)?;
    promise.kept(
        format!("{count} unseals beside {FLOOD} times what the HSM can do"),
        format!(
            "0 refused, p99 {:.1?} where a call takes {CALL:?}; of the flood {}",
            unsealed.p99(),
            flood.refused
        ),
    );
    Ok(())
}

/// What somebody does now and then.
#[derive(Debug, Clone, Copy)]
enum Work {
    Sign,
    Wrap,
}

/// How it went.
#[derive(Debug)]
struct Waits {
    took: Vec<Duration>,
    refused: usize,
}

/// Somebody who asks for far more than there is.
struct Flood {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    senders: JoinSet<anyhow::Result<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    asked: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Flooded {
    asked: u64,
    refused: u64,
}

/// A server whose HSM takes [`CALL`] for each call, with a key that signs and one that wraps.
async fn slow_server() -> anyhow::Result<Server> {
    let mut plan = Plan::on(TestHsm::faulty(EphemeralToken::new()?)?)?;
    plan.more.push(("hsm", format!("workers = {WORKERS}")));
    plan.bootstrap().await?;
    let server = plan.start().await?;
    server.all_workers_ready().await?;
    let client = server.client().await?;
    for (key_id, algorithm) in [("sign", "ES256"), ("kek", "A256GCMKW")] {
        let key = Some(v1::Key { algorithm: algorithm.into(), ..Default::default() });
        let request = v1::CreateKeyRequest { key_id: key_id.into(), key, ..Default::default() };
        client.create_key(request).await?;
    }
    let TestHsm::Faulty(_, faults) = &server.plan.token else { anyhow::bail!("no shim") };
    let script = format!(
        "C_Sign always: delay-ms {}\nC_Encrypt,C_Decrypt always: delay-ms {}",
        CALL.as_millis(),
        CALL.as_millis() / 2
    );
    faults.set(&script.parse()?);
    Ok(server)
}

/// Somebody of that name who may use both keys.
async fn caller(server: &Server, name: &str, role: &str) -> anyhow::Result<Environment> {
    let keys = vec![SIGN.into(), KEK.into()];
    let access_token = Some(v1::AccessToken { role: role.into(), keys, ..Default::default() });
    let request = v1::CreateAccessTokenRequest { access_token_id: name.into(), access_token, ttl: None };
    let made = server.client().await?.create_access_token(request).await?;
    let file = server.plan.dir().join(name);
    std::fs::write(&file, &made.secret)?;
    Ok(server.with_token_file(&file))
}

/// Makes a call every [`PACE`], `count` times, whether or not the one before was answered.
async fn paced(client: &Client, work: Work, count: usize) -> anyhow::Result<Waits> {
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut calls = JoinSet::new();
    // The first use of a key in each worker is another matter: it is searched for.
    for _ in 0..WORKERS {
        let (_, first) = tokio::join!(once(client, work), once(client, work));
        first?;
    }
    for done in 0..count {
        Promise::progress("calls", done, count);
        ticks.tick().await;
        let client = client.clone();
        calls.spawn(async move { once(&client, work).await });
    }
    let mut waits = Waits { took: Vec::new(), refused: 0 };
    while let Some(call) = calls.join_next().await {
        match call?? {
            Some(took) => waits.took.push(took),
            None => waits.refused += 1,
        }
    }
    waits.took.sort();
    ensure!(!waits.took.is_empty(), "all of {count} calls were refused");
    Ok(waits)
}

/// How long one call took; `None` when it was refused.
async fn once(client: &Client, work: Work) -> anyhow::Result<Option<Duration>> {
    let began = Instant::now();
    let outcome = match work {
        Work::Sign => client.crypto().sign(in_time(sign_request())).await.err(),
        Work::Wrap => {
            let request = v1::WrapKeyRequest {
                name: KEK.into(),
                plaintext: b"a key of thirty-two bytes, so it is".to_vec(),
                ..Default::default()
            };
            client.crypto().wrap_key(in_time(request)).await.err()
        }
    };
    match outcome {
        None => Ok(Some(began.elapsed())),
        // Its deadline passes here as it does there: the client then says that it was cancelled.
        Some(status)
            if matches!(
                status.code(),
                Code::ResourceExhausted | Code::DeadlineExceeded | Code::Cancelled
            ) =>
        {
            Ok(None)
        }
        Some(status) => Err(status).context("it is refused for another reason"),
    }
}

fn sign_request() -> v1::SignRequest {
    let input = Some(v1::sign_request::Input::Digest(vec![0x5a; 32]));
    v1::SignRequest { name: SIGN.into(), input, ..Default::default() }
}

fn in_time<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

impl Waits {
    fn p99(&self) -> Duration {
        self.took.get(self.took.len() * 99 / 100).or(self.took.last()).copied().unwrap_or_default()
    }
}

impl Flood {
    /// Sends batches at a steady rate over many connections of one caller, and waits for no answer.
    async fn start(server: &Server) -> anyhow::Result<Self> {
        let environment = caller(server, "flood", "raw-signer").await?;
        let (stop, counts) = (Arc::<AtomicBool>::default(), Arc::<Counts>::default());
        let mut senders = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (client, stop, counts) =
                (environment.client().await?, Arc::clone(&stop), Arc::clone(&counts));
            senders.spawn(async move { send(&client, &stop, &counts).await });
        }
        let flood = Self { stop, counts, senders };
        // It has filled its part of the queue.
        kms_tests::until("the flood is refused", kms_tests::PATIENCE, async || {
            Ok((flood.counts.refused.load(Ordering::Relaxed) > 0).then_some(()))
        })
        .await?;
        Ok(flood)
    }

    async fn stop(self) -> anyhow::Result<Flooded> {
        self.stop.store(true, Ordering::Relaxed);
        self.senders.join_all().await.into_iter().collect::<anyhow::Result<()>>()?;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Ok(Flooded { asked: count(&self.counts.asked), refused: count(&self.counts.refused) })
    }
}

/// One connection's part of the flood.
async fn send(client: &Client, stop: &AtomicBool, counts: &Arc<Counts>) -> anyhow::Result<()> {
    // What a batch takes the HSM, over all connections and times the flood.
    let every = CALL * ITEMS * u32::try_from(CONNECTIONS)? / WORKERS / FLOOD;
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut batches = JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let (mut client, counts) = (client.crypto(), Arc::clone(counts));
        batches.spawn(async move {
            let requests = (0..ITEMS).map(|_| sign_request()).collect();
            counts.asked.fetch_add(ITEMS.into(), Ordering::Relaxed);
            let refused = match client.batch_sign(in_time(v1::BatchSignRequest { requests })).await {
                Ok(response) => {
                    let results = response.into_inner().results.into_iter();
                    let is_refused = |result: &v1::BatchSignResult| {
                        !matches!(result.outcome, Some(v1::batch_sign_result::Outcome::Response(_)))
                    };
                    results.filter(is_refused).count() as u64
                }
                Err(_) => ITEMS.into(),
            };
            counts.refused.fetch_add(refused, Ordering::Relaxed);
        });
        while batches.try_join_next().is_some() {}
    }
    batches.join_all().await;
    Ok(())
}
