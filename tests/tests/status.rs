//! `kms status`: every replica, and what is wrong with it, also when the one that is asked cannot work.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kms_tests::{Environment, Fleet, PATIENCE, Plan, kill, records, until};
use rustix::process::Signal;
use serde_json::Value;

/// A replica that was killed is shown for so long (12 s), and a little for the beats and for us.
const SHOWN_MAX: Duration = Duration::from_secs(15);

async fn status(there: &Environment) -> anyhow::Result<Value> {
    there.kms(["status", "-o", "json"]).await?.json()
}

fn replicas(status: &Value) -> anyhow::Result<&Vec<Value>> {
    status["replicas"].as_array().context("no replicas")
}

async fn shows(there: &Environment, count: usize, within: Duration) -> anyhow::Result<Value> {
    until(&format!("{count} replicas are shown"), within, async || {
        let status = status(there).await?;
        Ok((replicas(&status)?.len() == count).then_some(status))
    })
    .await
}

/// Waits until nothing is wrong.
async fn all_is_well(there: &Environment) -> anyhow::Result<()> {
    until("nothing is wrong", PATIENCE, async || {
        let output = there.kms(["status"]).await?;
        output.text()?;
        Ok(output.stderr.is_empty().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_every_replica_until_it_has_left_or_is_known_to_be_gone() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(Plan::new()?, 3).await?;
    let all = shows(fleet.replicas[0].environment()?, 3, PATIENCE).await?;
    let holder = &all["lease"]["holder"];
    let leading: Vec<_> = replicas(&all)?.iter().filter(|replica| replica["leads"] == true).collect();
    ensure!(leading.len() == 1 && leading[0]["id"] == *holder, "{all}");
    all_is_well(fleet.replicas[2].environment()?).await?;

    fleet.kill_replica(1).await?;
    shows(fleet.replicas[0].environment()?, 2, SHOWN_MAX).await?;
    fleet.terminate_replica(2).await?;
    let left = shows(fleet.replicas[0].environment()?, 1, Duration::from_secs(5)).await?;
    ensure!(replicas(&left)?[0]["id"] == left["replica"], "{left}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_shows_at_every_replica() -> anyhow::Result<()> {
    let mut plan = Plan::new()?;
    plan.more.push(("hsm", "keep_alive = \"1s\"\ncall_timeout = \"2s\"".into()));
    let fleet = Fleet::start(plan, 2).await?;
    let (here, there) = (fleet.replicas[0].environment()?, &fleet.replicas[1]);
    there.environment()?.all_workers_ready().await?;
    let id = status(there.environment()?).await?["replica"].clone();
    let worker = there.running()?.tree()?.workers().first().copied().context("no worker")?;
    kill(worker, Signal::STOP)?;
    until("it is shown", PATIENCE, async || {
        let status = status(here).await?;
        // It may not have been heard of yet.
        let Some(shown) = replicas(&status)?.iter().find(|replica| replica["id"] == id) else {
            return Ok(None);
        };
        Ok(shown["hsm"]["workers_replaced"].as_u64().filter(|count| *count > 0))
    })
    .await?;
    all_is_well(here).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_fenced_says_so_and_what_to_do_with_its_record() -> anyhow::Result<()> {
    let fleet = Fleet::start(Plan::new()?, 2).await?;
    let replica = &fleet.replicas[0];
    let there = replica.environment()?;
    all_is_well(there).await?;
    fleet.cluster.stop_answering()?;
    replica.becomes("fence", "not ready", PATIENCE).await?;

    let output = there.kms(["status"]).await?;
    ensure!(output.text()?.contains("fenced"), "{output:?}");
    for part in ["the database has not confirmed", "last heard of the database"] {
        ensure!(output.stderr.contains(part), "{part}: {output:?}");
    }
    let status = status(there).await?;
    let own = replicas(&status)?.iter().find(|shown| shown["id"] == status["replica"]);
    ensure!(own.context("not itself")?["state"] == "fenced", "{status}");
    let age = there.metric("kms_generation_confirmed_age_seconds").await?;
    ensure!(age >= 10.0, "{age}");
    let asked = records(&replica.dir().join("audit"))?;
    let asked = asked.iter().filter(|record| record["action"] == "get_status");
    let answered = asked.filter(|record| record["outcome"] == "succeeded").count();
    ensure!(answered >= 3, "{answered}");

    fleet.cluster.answer_again()?;
    all_is_well(there).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_alone_shows_itself_as_the_holder_and_names_no_file() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let server = plan.start().await?;
    all_is_well(&server).await?;
    let output = server.kms(["status", "-o", "json"]).await?;
    let status = output.json()?;
    let [own] = &replicas(&status)?[..] else { anyhow::bail!("{status}") };
    ensure!(own["id"] == status["replica"] && own["id"] == status["lease"]["holder"], "{status}");
    ensure!(own["state"] == "serving" && own["lag"] == 0 && own["recovery_mode"] == false, "{status}");
    ensure!(own["hsm"]["state"] == "ready" && own["audit_records_waiting"].is_u64(), "{status}");
    let dir = server.plan.dir().display().to_string();
    ensure!(!output.stdout.contains(&dir), "{}", output.stdout);
    ensure!(server.metric("kms_clock_skew_seconds").await?.abs() < 1.0);
    ensure!(server.metric("kms_generation_confirmed_age_seconds").await? < 10.0);

    let file = server.plan.dir().join("user");
    let make = ["access-token", "create", "user", "--role", "user", "--all-keys", "--out"];
    server.kms(make.into_iter().chain([file.to_str().context("a path")?])).await?.text()?;
    let refused = server.with_token_file(&file).kms(["status"]).await?;
    ensure!(refused.code == Some(4), "{refused:?}");
    Ok(())
}
