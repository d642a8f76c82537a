//! The far side of a network HSM dies, comes back, or stops answering: p11-kit's server in front of Kryoptic. Nobody
//! restarts anything of ours, no wrong result gets out, and nobody waits longer than asked (promises 6 and 7).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use kms_client::v1;
use kms_softhsm::{EphemeralToken, unless_left_out};
use kms_tests::{PATIENCE, Plan, Process, Promise, Refusal, Server, Signer, TestHsm, kill, raw_calls, until};
use rustix::process::Signal;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tonic::Code;

/// 200 requests a second.
const PACE: Duration = Duration::from_millis(5);
/// Promise 6: the first success after the HSM side answers again.
const HEALS_WITHIN: Duration = Duration::from_secs(2);
/// Promise 7: how much later than its deadline a caller may get its error.
const GRACE: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_hsm_is_found_again_and_nothing_wrong_gets_out() -> anyhow::Result<()> {
    let mut promise = Promise::begin(6, "hsm_comes_and_goes")?;
    let Some(server) = remote_server().await? else { return Ok(()) };
    let remote = remote(&server)?;
    let parents = [server.running.pid()?, server.running.tree()?.front().context("no front")?];
    let signer = Signer::with_new_keys(&server.client().await?, 2).await?;
    let load = Paced::start(&signer);

    let cycles = Promise::count(4, 500);
    let mut slowest = Duration::ZERO;
    for cycle in 1..=cycles {
        Promise::progress("restarts of the HSM side", cycle, cycles);
        remote.kill()?;
        // The outage: short enough for a blink, long enough to give up hope.
        sleep(Duration::from_millis(promise.seed.below(1_500) as u64)).await;
        let signed = load.signed();
        remote.restart()?;
        let back = Instant::now();
        signs_again(&load, signed).await.with_context(|| format!("after restart {cycle}"))?;
        slowest = slowest.max(back.elapsed());
        Promise::within("the first signature", back.elapsed(), HEALS_WITHIN)
            .with_context(|| format!("after restart {cycle}"))?;
        signs_again(&load, signed + 100).await.with_context(|| format!("after restart {cycle}"))?;
    }
    let (signed, refused) = load.stop().await?;
    signer.check()?;
    ensure!(parents.into_iter().all(Process::runs), "somebody restarted the service");
    let odd: Vec<_> = refused.iter().filter(|refusal| !is_outage(refusal.code)).take(5).collect();
    ensure!(odd.is_empty(), "callers were told something else than that the HSM is away: {odd:#?}");
    promise.kept(
        format!("{cycles} kills and restarts of the HSM side under 200 requests/s"),
        format!(
            "0 wrong results of {signed} signatures, 0 service restarts, first success after at most {slowest:.1?}, \
             {} requests refused meanwhile",
            refused.len()
        ),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_hsm_keeps_no_caller_beyond_its_deadline_and_heals_by_itself() -> anyhow::Result<()> {
    let promise = Promise::begin(7, "hsm_comes_and_goes")?;
    let Some(server) = remote_server().await? else { return Ok(()) };
    let remote = remote(&server)?;
    let signer = Signer::with_new_keys(&server.client().await?, 1).await?;
    signer.sign(PATIENCE).await.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;

    let stopped_for = Duration::from_secs(Promise::count(12, 60) as u64);
    remote.stop()?;
    let began = Instant::now();
    let (mut calls, mut latest) = (0, Duration::ZERO);
    while began.elapsed() < stopped_for {
        let deadline = Duration::from_millis(500);
        for answer in raw_calls(&server, "kms.v1.CryptoService/Sign", &request(), "500m", 16).await? {
            ensure!(answer.status != 0, "a stopped HSM signed");
            latest = latest.max(answer.elapsed.saturating_sub(deadline));
            calls += 1;
        }
    }
    Promise::within("an answer after its deadline", latest, GRACE)?;
    remote.resume()?;
    let back = Instant::now();
    until("it signs again", PATIENCE, async || Ok(signer.sign(Duration::from_secs(1)).await.ok())).await?;
    let healed = back.elapsed();
    signer.check()?;
    promise.kept(
        format!("the HSM side stopped for {stopped_for:?}"),
        format!(
            "{calls} calls, the latest error {latest:.0?} after its deadline; signs again after {healed:.1?}"
        ),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hung_worker_costs_the_others_no_throughput() -> anyhow::Result<()> {
    let promise = Promise::begin(7, "hsm_comes_and_goes")?;
    let mut plan = Plan::new()?;
    // Not replaced meanwhile: the others must carry it alone.
    plan.more.push(("hsm", "call_timeout = \"60s\"".to_owned()));
    let server = started(plan).await?;
    server.all_workers_ready().await?;
    let signer = Signer::with_new_keys(&server.client().await?, 2).await?;
    let spell = Duration::from_secs(Promise::count(1, 5) as u64);
    let mut ratios = Vec::new();
    for worker in server.running.tree()?.workers() {
        let before = throughput(&signer, spell).await?;
        kill(worker, Signal::STOP)?;
        // The calls that it has die at their deadlines; the rest do not notice.
        let during = throughput(&signer, spell).await?;
        kill(worker, Signal::CONT)?;
        let after = throughput(&signer, spell).await?;
        ratios.push(during / before.midpoint(after));
    }
    signer.check()?;
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    ensure!(
        !Promise::is_full() || median >= 0.9,
        "the others do only {median:.2} of what all do: {ratios:.2?}"
    );
    promise.kept("one worker hung", format!("the others do {median:.2} of what all do ({ratios:.2?})"));
    Ok(())
}

/// A server whose HSM is behind p11-kit's server, unless the software for that is not installed.
async fn remote_server() -> anyhow::Result<Option<Server>> {
    let Some(token) = unless_left_out(EphemeralToken::kryoptic())? else { return Ok(None) };
    Ok(Some(started(Plan::on(TestHsm::remote(token)?)?).await?))
}

async fn started(plan: Plan) -> anyhow::Result<Server> {
    plan.bootstrap().await?;
    plan.start().await
}

fn remote(server: &Server) -> anyhow::Result<&kms_softhsm::RemoteToken> {
    match &server.plan.token {
        TestHsm::Remote(remote) => Ok(remote),
        _ => anyhow::bail!("the HSM is not remote"),
    }
}

fn request() -> v1::SignRequest {
    let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
    v1::SignRequest { name: "keys/signer-0".into(), input, ..Default::default() }
}

async fn signs_again(load: &Paced, signed: u64) -> anyhow::Result<()> {
    until("it signs again", PATIENCE, async || Ok((load.signed() > signed).then_some(())))
        .await
        .with_context(|| format!("{:?}", load.last_refusal()))
}

/// What a caller may be told while the HSM is away.
fn is_outage(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted)
}

/// Signatures a second by 16 callers during `spell`.
async fn throughput(signer: &Signer, spell: Duration) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let signer = signer.clone();
        callers.spawn(async move {
            let mut signed = 0_u32;
            while began.elapsed() < spell {
                signed += u32::from(signer.sign(Duration::from_millis(300)).await.is_ok());
            }
            signed
        });
    }
    let signed: u32 = callers.join_all().await.into_iter().sum();
    ensure!(signed > 0, "nothing was signed");
    Ok(f64::from(signed) / began.elapsed().as_secs_f64())
}

/// One request every [`PACE`], whether or not the ones before it were answered.
struct Paced {
    stop: Arc<AtomicBool>,
    signed: Arc<AtomicU64>,
    refused: Arc<std::sync::Mutex<Vec<Refusal>>>,
    source: tokio::task::JoinHandle<JoinSet<()>>,
}

impl Paced {
    fn start(signer: &Signer) -> Self {
        let (stop, signed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let refused: Arc<std::sync::Mutex<Vec<Refusal>>> = Arc::default();
        let source = tokio::spawn({
            let (signer, stop, signed, refused) =
                (signer.clone(), Arc::clone(&stop), Arc::clone(&signed), Arc::clone(&refused));
            async move {
                let mut calls = JoinSet::new();
                let mut pace = interval(PACE);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !stop.load(Ordering::Relaxed) {
                    pace.tick().await;
                    while calls.try_join_next().is_some() {}
                    let (signer, signed, refused) =
                        (signer.clone(), Arc::clone(&signed), Arc::clone(&refused));
                    calls.spawn(async move {
                        match signer.sign(Duration::from_secs(5)).await {
                            Ok(()) => _ = signed.fetch_add(1, Ordering::Relaxed),
                            Err(refusal) => {
                                refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(refusal);
                            }
                        }
                    });
                }
                calls
            }
        });
        Self { stop, signed, refused, source }
    }

    fn signed(&self) -> u64 {
        self.signed.load(Ordering::Relaxed)
    }

    fn last_refusal(&self) -> Option<Refusal> {
        self.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).last().cloned()
    }

    /// What was signed, and every refusal.
    async fn stop(self) -> anyhow::Result<(u64, Vec<Refusal>)> {
        self.stop.store(true, Ordering::Relaxed);
        let calls = self.source.await?;
        timeout(PATIENCE, calls.join_all()).await.context("calls that never end")?;
        let refused = self.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        Ok((self.signed.load(Ordering::Relaxed), refused))
    }
}
