//! From SQLite to PostgreSQL: everything arrives, once, and the file is not served again.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use kms_client::v1;
use kms_tests::{Fleet, PATIENCE, Plan, Running, Server, kill, refused, until};
use rustix::process::Signal;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_moves_to_postgresql_with_all_that_it_has() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let server = plan.start().await?;
    for id in ["one", "two", "three"] {
        server.kms(["keys", "create", id, "--algorithm", "ES256"]).await?.text()?;
    }
    server.kms(["keys", "rotate", "two"]).await?.text()?;
    server.kms(["keys", "disable", "three", "--version", "1"]).await?.text()?;
    let create = v1::CreateKeyRequest {
        key_id: "remembered".into(),
        key: Some(v1::Key { algorithm: "ES256".into(), ..Default::default() }),
        request_id: "00000000-0000-4000-8000-000000000001".into(),
    };
    let created = server.client().await?.create_key(create.clone()).await?;
    let before = server.get_json("/.well-known/jwks.json").await?;
    let sqlite = server.plan.store.display().to_string();

    let Server { mut running, plan, .. } = server;
    let mut fleet = Fleet::without_administrator(plan, 2).await?;
    let migrate = ["migrate", "sqlite-to-postgres", "--from", sqlite.as_str()];
    let output = fleet.replicas[0].run(&fleet.plan, &migrate).await?;
    refused(&output, &["kms.lock", "stop it first"])?;
    running.terminate().await?;
    die_in_a_birth(&fleet.plan, "unborn").await?;
    let output = fleet.replicas[0].run(&fleet.plan, &migrate).await?;
    ensure!(output.stderr.contains("verifying: 100 %"), "{}", output.stderr);
    let counts = output.text()?;
    ensure!(counts.contains("key_versions"), "{counts}");

    fleet.start_replica(0).await?;
    fleet.start_replica(1).await?;
    // The credential, a retry of an earlier request, and the state of a version came along.
    for replica in &fleet.replicas {
        let there = replica.environment()?;
        let retried = there.client().await?.create_key(create.clone()).await?;
        ensure!(retried == created, "a second key: {retried:?}");
        for key in ["one", "two", "remembered"] {
            there.kms(["jwt", "sign", key, "--claims", "{}", "--ttl", "1m"]).await?.text()?;
        }
        let disabled = there.kms(["jwt", "sign", "three", "--claims", "{}", "--ttl", "1m"]).await?;
        refused(&disabled, &["three"])?;
        // What was in the making is finished by whoever does the background work.
        until("the birth is resumed", PATIENCE, async || {
            let signed = there.kms(["jwt", "sign", "unborn", "--claims", "{}", "--ttl", "1m"]).await?;
            Ok((signed.code == Some(0)).then_some(()))
        })
        .await?;
        // Of the same epoch as the token: neither an older copy nor another one's.
        ensure!(there.metric("kms_recovery_mode").await? == 0.0, "it takes the database for an older one");
    }
    let after = fleet.replicas[1].environment()?.get_json("/.well-known/jwks.json").await?;
    let (before, after) = (keys_of(&before)?, keys_of(&after)?);
    ensure!(before.iter().all(|key| after.contains(key)), "the key set has lost something");
    ensure!(after.len() == before.len() + 1, "not the unborn one alone is new: {after:?}");

    // There is one service now, not two.
    for command in [&["serve"][..], &["bootstrap"], &["config", "check"], &["doctor"]] {
        let output = fleet.plan.run(command).await?;
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(output.code.is_some_and(|code| code != 0), "{command:?} goes on: {output:?}");
        ensure!(said.contains(&format!("{sqlite}.migrated")) && said.contains("store.url"), "{said}");
    }
    ensure!(!Path::new(&sqlite).exists(), "an empty store was made");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_it_is_not_served_and_goes_on_when_it_is_run_again() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let mut server = plan.start().await?;
    for id in ["one", "two"] {
        server.kms(["keys", "create", id, "--algorithm", "ES256"]).await?.text()?;
    }
    server.running.terminate().await?;
    let Server { plan, .. } = server;
    let (sqlite, other) = (plan.store.clone(), plan.store.with_file_name("other.db"));
    let mut fleet = Fleet::without_administrator(plan, 1).await?;
    let from = sqlite.display().to_string();
    let migrate = ["migrate", "sqlite-to-postgres", "--from", from.as_str()];
    let url = fs::read_to_string(fleet.replicas[0].dir().join("url"))?;
    let database = url.rsplit('/').next().and_then(|end| end.split('?').next()).context("a database")?;
    fleet.cluster.sql(database, SLOW)?;

    let mut command = fleet.replicas[0].command(&fleet.plan, &migrate)?;
    let mut running = Running::start(&mut command, &fleet.plan.dir().join("migrate.log"))?;
    for (what, shown) in [
        ("there is a schema", "SELECT to_regclass('migrated_from') IS NOT NULL"),
        ("the keys are copied", "SELECT count(*) = 2 FROM keys"),
    ] {
        until(what, PATIENCE, async || Ok((fleet.cluster.sql(database, shown)? == "t").then_some(())))
            .await?;
    }
    kill(running.pid()?, Signal::KILL)?;
    ensure!(!running.ended().await?.success(), "it was through already");
    ensure!(sqlite.exists(), "the file must still be there");
    for command in [&["serve"][..], &["bootstrap"], &["doctor"]] {
        let output = fleet.replicas[0].run(&fleet.plan, command).await?;
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(output.code == Some(1), "{command:?} goes on: {output:?}");
        ensure!(said.contains(&format!("kms migrate sqlite-to-postgres --from {from}")), "{said}");
    }

    // What the killed attempt has under way ends first, and nothing of it stays.
    fleet.replicas[0].run(&fleet.plan, &migrate).await?.text()?;
    fleet.start_replica(0).await?;
    let there = fleet.replicas[0].environment()?;
    for key in ["one", "two"] {
        there.kms(["jwt", "sign", key, "--claims", "{}", "--ttl", "1m"]).await?.text()?;
    }
    fleet.terminate_replica(0).await?;

    // Another service's rows have no place there.
    fs::rename(format!("{from}.migrated"), &other)?;
    let migrate = ["migrate", "sqlite-to-postgres", "--from", &other.display().to_string()];
    let output = fleet.replicas[0].run(&fleet.plan, &migrate).await?;
    refused(&output, &["not empty", "2 rows in keys", "store.url"])?;
    ensure!(output.code == Some(5) && other.exists(), "{output:?}");
    Ok(())
}

/// Whoever inserts versions waits, once keys are there.
const SLOW: &str = "
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(5); RETURN NULL; END $$;
    CREATE FUNCTION make_slow() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        IF to_regclass('public.key_versions') IS NOT NULL
            AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'slow')
        THEN
            CREATE TRIGGER slow BEFORE INSERT ON public.key_versions FOR EACH STATEMENT EXECUTE FUNCTION slow();
        END IF;
    END $$;
    CREATE EVENT TRIGGER make_slow ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION make_slow();
    GRANT EXECUTE ON FUNCTION slow() TO PUBLIC;";

/// Kills the SQLite server in the middle of a key's birth.
async fn die_in_a_birth(plan: &Plan, key: &str) -> anyhow::Result<()> {
    let mut command = plan.command(&["serve"])?;
    command.env("FAILPOINTS", "birth-generated=return");
    let (mut running, environment) = plan.launch(command, |path, _| path.to_owned()).await?;
    let create = environment.kms(["keys", "create", key, "--algorithm", "ES256", "--timeout", "10s"]).await?;
    ensure!(create.code != Some(0), "it was born");
    running.ended().await?;
    Ok(())
}

fn keys_of(jwks: &serde_json::Value) -> anyhow::Result<Vec<serde_json::Value>> {
    jwks["keys"].as_array().cloned().context("no keys")
}
