//! The database goes away, comes back, or is another one than before: what three servers do about it, and which servers
//! are not let in.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kms_client::v1;
use kms_softhsm::EphemeralToken;
use kms_tests::{Fleet, PATIENCE, Plan, Promise, Running, TestHsm, kill, refusal, refused, until};
use rustix::process::Signal;
use tonic::Code;

/// From the end of the database to the last signature that began: the fence.
const FENCED_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_dies_and_comes_back_stops_the_signing_and_heals_by_itself()
-> anyhow::Result<()> {
    let promise = Promise::begin(20, "fence")?;
    let mut fleet = Fleet::start(Plan::new()?, 2).await?;
    fleet.kms(["keys", "create", "orders", "--algorithm", "ES256"]).await?.text()?;
    let clients =
        [fleet.replicas[0].environment()?.client().await?, fleet.replicas[1].environment()?.client().await?];
    let sign = || {
        let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
        v1::SignRequest { name: "keys/orders".into(), input, ..Default::default() }
    };
    let unknown = fleet.plan.dir().join("unknown-credential");
    std::fs::write(&unknown, "kms_unknown")?;
    let (mut stopped, mut healed) = (Duration::ZERO, Duration::ZERO);
    for outage in ["hangs", "dies"] {
        let gone = Instant::now();
        if outage == "hangs" {
            fleet.cluster.stop_answering()?
        } else {
            fleet.cluster.kill()?
        }
        // Not at once: who has confirmed what it knows a moment ago may go on for a while. So no signature waits for the
        // database.
        for client in &clients {
            client.crypto().sign(sign()).await?;
        }
        let last = clients.each_ref().map(async |client| {
            let mut last = gone;
            until("it signs no more", PATIENCE, async || {
                let began = Instant::now();
                let signs = client.crypto().sign(sign()).await.is_ok();
                last = if signs { began } else { last };
                Ok((!signs).then_some(()))
            })
            .await?;
            anyhow::Ok(last)
        });
        for last in futures::future::try_join_all(last).await? {
            stopped = stopped.max(last - gone);
        }
        Promise::within("the stop of replicas without a database", stopped, FENCED_MAX)?;
        for (replica, client) in fleet.replicas.iter().zip(&clients) {
            replica.becomes("fence", "not ready", PATIENCE).await?;
            let refused = refusal(client.crypto().sign(sign()).await)?;
            ensure!((refused.code, refused.reason.as_str()) == (Code::Unavailable, "FENCED"), "{refused:?}");
            // Its credential may have been made a moment ago, elsewhere.
            let newcomer = replica.environment()?.with_token_file(&unknown).client().await?;
            let refused = refusal(newcomer.crypto().sign(sign()).await)?;
            ensure!((refused.code, refused.reason.as_str()) == (Code::Unavailable, "FENCED"), "{refused:?}");
            // Verifiers may go on with what a cache would have kept for them.
            ensure!(replica.environment()?.get("/.well-known/jwks.json").await?.status() == 200);
            ensure!(replica.environment()?.metric("kms_replica_fenced").await? == 1.0);
        }
        if outage == "hangs" {
            fleet.cluster.answer_again()?
        } else {
            fleet.cluster.start_again()?
        }
        let back = Instant::now();
        for (replica, client) in fleet.replicas.iter().zip(&clients) {
            replica.becomes("fence", "ok", PATIENCE).await?;
            replica.becomes("store", "ok", PATIENCE).await?;
            client.crypto().sign(sign()).await?;
        }
        healed = healed.max(back.elapsed());
        // And writes.
        let name = format!("after-it-{outage}");
        until("a key is made", PATIENCE, async || {
            Ok(fleet
                .kms(["keys", "create", &name, "--algorithm", "ES256"])
                .await?
                .text()
                .is_ok()
                .then_some(()))
        })
        .await?;
    }
    promise.kept(
        "the database of 2 replicas hung, then killed",
        format!("both stopped after at most {stopped:.1?} and signed again {healed:.1?} after it was back"),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_other_settings_or_another_token_is_refused_with_what_differs() -> anyhow::Result<()> {
    let mut fleet = Fleet::prepare(Plan::new()?, 2).await?;
    fleet.start_replica(0).await?;

    fleet.replicas[1].more = vec![("keys", "destroy_delay = \"40d\"".into())];
    let output = fleet.replicas[1].run(&fleet.plan, &["serve"]).await?;
    refused(&output, &["keys.destroy_delay", "may_differ"])?;
    fleet.replicas[1].more.push(("store", "may_differ = [\"keys.destroy_delay\"]".into()));
    fleet.start_replica(1).await?;
    fleet.terminate_replica(1).await?;

    let other = TestHsm::from(EphemeralToken::new()?);
    fleet.replicas[1].more.clear();
    let own = std::mem::replace(&mut fleet.plan.uri, other.uri()?);
    let token = std::mem::replace(&mut fleet.plan.token, other);
    let output = fleet.replicas[1].run(&fleet.plan, &["serve"]).await?;
    refused(&output, &["hsm.token"])?;
    fleet.plan.uri = own;
    drop(std::mem::replace(&mut fleet.plan.token, token));
    fleet.start_replica(1).await
}

/// The second start takes so long that the first one is not counted as alive when the other compares its settings.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_with_different_settings_that_start_slowly_together_one_is_refused() -> anyhow::Result<()> {
    let mut fleet = Fleet::prepare(Plan::new()?, 2).await?;
    // A worker that starts holds a lock, and this server will be stopped for a while.
    fleet.replicas[0].more =
        vec![("hsm", "workers = 1\nspare_workers = 0".into()), ("keys", "destroy_delay = \"40d\"".into())];
    let sql = |text: &str| fleet.cluster.sql(&fleet.database.name, text);
    // Right after it has compared its settings: its COMMIT takes long.
    sql("CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(3); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON replicas DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION wait()")?;
    let slow = &fleet.replicas[0];
    let mut running = Running::start(&mut slow.command(&fleet.plan, &["serve"])?, &slow.dir().join("log"))?;
    let commits = || sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
    until("it joins", PATIENCE, async || Ok((commits()? == "1").then_some(()))).await?;
    let front = running.tree()?.front().context("no front")?;
    kill(front, Signal::STOP)?;
    until("it has joined", PATIENCE, async || Ok((commits()? == "0").then_some(()))).await?;
    ensure!(!slow.dir().join("listening.json").exists(), "it was faster than the test");
    let silent = "UPDATE replicas SET seen_at_us = seen_at_us - 60000000";
    ensure!(sql(&format!("WITH silent AS ({silent} RETURNING 1) SELECT count(*) FROM silent"))? == "1");
    sql("DROP TRIGGER slow ON replicas")?;
    fleet.start_replica(1).await?;

    kill(front, Signal::CONT)?;
    let status = running.ended().await?;
    let log = fleet.replicas[0].log();
    ensure!(!status.success() && log.contains("keys.destroy_delay"), "{status}");
    ensure!(!fleet.replicas[0].dir().join("listening.json").exists(), "it served");
    fleet.kms(["keys", "create", "orders", "--algorithm", "ES256"]).await?.text()?;
    Ok(())
}
