//! Promise 20: a disabled version signs nowhere any more, soon, on every replica; one that is cut off from the database
//! stops by itself.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_tests::{Fleet, PATIENCE, Plan, Promise, Refusal, refusal, until};
use tokio::task::JoinSet;
use tonic::{Code, Request};

/// From the call of the administrator to the last signature that began anywhere.
const EFFECTIVE_MAX: Duration = Duration::from_secs(5);
/// The same, of 99 in 100.
const EFFECTIVE_P99: Duration = Duration::from_secs(1);
/// From the cut to the last signature of a replica that is cut off: the fence.
const FENCED_MAX: Duration = Duration::from_secs(10);
const KEY: &str = "keys/flipped";
const VERSION: &str = "keys/flipped/versions/1";

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_version_signs_nowhere_and_a_replica_that_is_cut_off_stops() -> anyhow::Result<()> {
    let promise = Promise::begin(20, "disable_is_fast")?;
    let fleet = Fleet::start(Plan::new()?, 3).await?;
    let mut clients = Vec::new();
    for replica in &fleet.replicas {
        clients.push(replica.environment()?.client().await?);
    }
    let key = Some(v1::Key { algorithm: "ES256".into(), ..Default::default() });
    clients[0]
        .create_key(v1::CreateKeyRequest { key_id: "flipped".into(), key, ..Default::default() })
        .await?;
    let callers: Vec<_> = clients.iter().map(Caller::start).collect();
    all_sign(&callers).await?;

    let flips = Promise::count(30, 1_000);
    let mut effective = Vec::new();
    for flip in 0..flips {
        Promise::progress("flips", flip, flips);
        let administrator = &clients[flip % clients.len()];
        let asked = Instant::now();
        disable(administrator).await?;
        let acknowledged = Instant::now();
        // Each replica has refused a call that began after the answer.
        for caller in &callers {
            until("it is refused", PATIENCE, async || Ok(caller.refused_since(acknowledged))).await?;
            let last = caller.last_success();
            ensure!(last <= acknowledged, "signed by a call that began after the disabling was acknowledged");
            effective.push(last.saturating_duration_since(asked));
        }
        enable(administrator).await?;
        all_sign(&callers).await?;
    }
    effective.sort();
    let (p99, max) = (effective[effective.len() * 99 / 100], effective[effective.len() - 1]);
    Promise::within("99 of 100 disablings", p99, EFFECTIVE_P99)?;
    Promise::within("a disabling", max, EFFECTIVE_MAX)?;

    // The third is cut off, and nobody tells it.
    let cut = Instant::now();
    fleet.replicas[2].link.cut();
    disable(&clients[0]).await?;
    let acknowledged = Instant::now();
    ensure!(callers.iter().all(|caller| caller.last_success() <= acknowledged), "one still signs");
    until("it says that it is cut off", PATIENCE, async || {
        Ok(callers[2].last_refusal().filter(|refusal| refusal.reason == "FENCED"))
    })
    .await?;
    let stopped = callers[2].last_success().saturating_duration_since(cut);
    Promise::within("the stop of a replica that was cut off", stopped, FENCED_MAX)?;
    fleet.replicas[2].becomes("fence", "not ready", PATIENCE).await?;
    for caller in &callers {
        ensure!(caller.last_success() <= acknowledged, "signed after the disabling was acknowledged");
    }

    // It comes back by itself, and knows.
    fleet.replicas[2].link.mend();
    let mended = Instant::now();
    fleet.replicas[2].becomes("fence", "ok", PATIENCE).await?;
    let healed = mended.elapsed();
    until("it knows that the version is disabled", PATIENCE, async || {
        Ok(callers[2].last_refusal().filter(|refusal| refusal.code == Code::FailedPrecondition))
    })
    .await?;
    ensure!(callers[2].last_success() <= acknowledged, "it signed before it knew");
    enable(&clients[1]).await?;
    all_sign(&callers).await?;
    for caller in callers {
        caller.stop().await?;
    }
    promise.kept(
        format!("{flips} times disabled and enabled, 3 replicas signing without a pause; then one cut off"),
        format!(
            "no signature by a call that began after the answer; in effect after at most {max:.0?}, p99 {p99:.0?}; \
             the one cut off stopped after {stopped:.1?} and was back {healed:.1?} after the mending"
        ),
    );
    Ok(())
}

async fn disable(client: &Client) -> anyhow::Result<()> {
    let request = v1::DisableKeyVersionRequest { name: VERSION.into(), ..Default::default() };
    client.keys().disable_key_version(request).await?;
    Ok(())
}

async fn enable(client: &Client) -> anyhow::Result<()> {
    let request = v1::EnableKeyVersionRequest { name: VERSION.into(), ..Default::default() };
    client.keys().enable_key_version(request).await?;
    Ok(())
}

async fn all_sign(callers: &[Caller]) -> anyhow::Result<()> {
    let asked = Instant::now();
    for caller in callers {
        until("it signs", PATIENCE, async || Ok((caller.last_success() > asked).then_some(())))
            .await
            .with_context(|| format!("{:?}", caller.last_refusal()))?;
    }
    Ok(())
}

/// Signs at one replica without a pause.
struct Caller {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    task: JoinSet<anyhow::Result<()>>,
}

struct Seen {
    /// When the last call began that was answered with a signature.
    success: Instant,
    /// When the last call began that was refused, and why.
    refusal: Option<(Instant, Refusal)>,
}

impl Caller {
    fn start(client: &Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen { success: Instant::now(), refusal: None }));
        let mut task = JoinSet::new();
        let (client, stopped, shared) = (client.clone(), Arc::clone(&stop), Arc::clone(&seen));
        task.spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
                let mut request =
                    Request::new(v1::SignRequest { name: KEY.into(), input, ..Default::default() });
                request.set_timeout(PATIENCE);
                let began = Instant::now();
                let answer = client.crypto().sign(request).await;
                let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
                match answer {
                    Ok(_) => seen.success = began,
                    refused => seen.refusal = Some((began, refusal(refused)?)),
                }
            }
            Ok(())
        });
        Self { stop, seen, task }
    }

    fn last_success(&self) -> Instant {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).success
    }

    fn last_refusal(&self) -> Option<Refusal> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.refusal.as_ref().map(|(_, refusal)| refusal.clone())
    }

    fn refused_since(&self, at: Instant) -> Option<()> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.refusal.as_ref().filter(|(began, _)| *began > at).map(drop)
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.task.join_next().await {
            ended??;
        }
        Ok(())
    }
}
