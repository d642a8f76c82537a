//! Workers hold the vendor's library, so they may crash or hang at any moment. The service does not: requests that
//! were in the dead worker go to another one, at most one of them fails (with UNAVAILABLE), and nobody restarts
//! anything.
//! (A part of promise 26.)

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_tests::{Answer, Load, PATIENCE, Process, Promise, Service, kill, raw_calls, until};
use rustix::process::Signal;
use tonic::Code;

const SAMPLE: &str = "keys/sample-jwt";
/// Callers at work during the kills.
const CALLERS: usize = 16;
/// How much later than its deadline a caller may get its answer.
const GRACE: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_cost_at_most_one_request_each_and_no_key() -> anyhow::Result<()> {
    let mut promise = Promise::begin(26, "workers_die")?;
    let kills = Promise::count(50, 1_000);
    let service = Service::start().await?;
    let client = service.client().await?;
    let names = keys(&service).await?;
    let parents = [service.tree()?.parent(), service.tree()?.front().context("there is no front")?];

    let load = Load::start(&client, &names, CALLERS, Duration::from_secs(30));
    for number in 1..=kills {
        service.all_workers_ready().await?;
        // Work is under way when it dies.
        let before = load.signed();
        let some_more = before + 1 + promise.seed.below(50) as u64;
        until("more is signed", PATIENCE, async || Ok((load.signed() >= some_more).then_some(())))
            .await
            .with_context(|| format!("after kill {} of {kills}", number - 1))?;
        let victim = promise.seed.pick(&service.tree()?.workers()).context("there are no workers")?;
        kill(victim, Signal::KILL)?;
        until("the dead worker is gone", PATIENCE, async || Ok((!Process::runs(victim)).then_some(())))
            .await?;
    }
    service.all_workers_ready().await?;
    let report = load.stop().await;

    let other: Vec<_> = report.refused.iter().filter(|refusal| refusal.code != Code::Unavailable).collect();
    ensure!(other.is_empty(), "callers were told something else than UNAVAILABLE: {other:#?}");
    ensure!(
        report.refused.len() <= kills,
        "{} requests failed, more than workers were killed: {:#?}",
        report.refused.len(),
        report.by_kind()
    );
    ensure!(parents.into_iter().all(Process::runs), "more than the workers died");
    for name in &names {
        sign(&client, name).await.with_context(|| format!("{name} is lost"))?;
    }
    promise.kept(
        format!("{kills} workers killed while {CALLERS} callers sign"),
        format!("{} failed requests of {}; every key signs", report.refused.len(), report.signed),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_worker_keeps_its_callers_to_their_deadlines_and_the_others_work_on() -> anyhow::Result<()> {
    let service = ready_service().await?;
    let workers = service.tree()?.workers();
    ensure!(workers.len() >= 2, "there is no other worker: {workers:?}");
    kill(workers[0], Signal::STOP)?;
    let answers = answers_within(&service, Duration::from_secs(1)).await?;
    let signed = answers.iter().filter(|answer| answer.status == 0).count();
    ensure!(signed >= CALLERS / 2, "the other worker signed only {signed} of {CALLERS}: {answers:#?}");

    // Nobody wakes it: it is replaced.
    until("the hung worker is replaced", PATIENCE, async || Ok((!Process::runs(workers[0])).then_some(())))
        .await?;
    service.all_workers_ready().await?;
    let after = answers_within(&service, Duration::from_secs(10)).await?;
    ensure!(after.iter().all(|answer| answer.status == 0), "{after:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_worker_hangs_each_caller_still_gets_an_answer_in_time() -> anyhow::Result<()> {
    let service = ready_service().await?;
    for worker in service.tree()?.workers() {
        kill(worker, Signal::STOP)?;
    }
    let answers = answers_within(&service, Duration::from_millis(500)).await?;
    ensure!(answers.iter().all(|answer| answer.status != 0), "a hung HSM signed: {answers:#?}");
    let client = service.client().await?;
    until("the service has healed itself", PATIENCE, async || Ok(sign(&client, SAMPLE).await.ok())).await
}

async fn ready_service() -> anyhow::Result<Service> {
    let service = Service::start().await?;
    service.all_workers_ready().await?;
    // Both workers have used the key.
    answers_within(&service, Duration::from_secs(10)).await?;
    Ok(service)
}

/// What [`CALLERS`] at once are answered, each in time, with a signature or with an error that says that it is late.
async fn answers_within(service: &Service, deadline: Duration) -> anyhow::Result<Vec<Answer>> {
    let timeout = format!("{}m", deadline.as_millis());
    let request = request(SAMPLE);
    let answers = raw_calls(service, "kms.v1.CryptoService/Sign", &request, &timeout, CALLERS).await?;
    for answer in &answers {
        ensure!(answer.elapsed <= deadline + GRACE, "not within {deadline:?}: {answer:?}");
        let known = [0, Code::DeadlineExceeded as i32, Code::Unavailable as i32];
        ensure!(known.contains(&answer.status), "{answer:?}");
    }
    Ok(answers)
}

/// Keys to sign with: the sample and three more.
async fn keys(service: &Service) -> anyhow::Result<Vec<String>> {
    let mut names = vec![SAMPLE.to_owned()];
    for (name, algorithm) in [("ec", "ES384"), ("rsa", "RS256"), ("edwards", "Ed25519")] {
        service.kms(["keys", "create", name, "--algorithm", algorithm, "--timeout", "60s"]).await?.text()?;
        names.push(format!("keys/{name}"));
    }
    Ok(names)
}

async fn sign(client: &Client, name: &str) -> anyhow::Result<()> {
    client.crypto().sign(request(name)).await?;
    Ok(())
}

fn request(name: &str) -> v1::SignRequest {
    let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
    v1::SignRequest { name: name.into(), input, ..Default::default() }
}
