//! Destruction is delayed, and it is real: asked for by hand or by a key's `destroy_after`, it comes when it is due and
//! not before, it can be called off until shortly before that, and then the objects are gone from the token.

use std::{
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_tests::{Environment, Fleet, Output, PATIENCE, Plan, Promise, Server, python, refused, until};

/// `keys.destroy_delay`: what is left of it when a destruction can no longer be called off is 10 s.
const DELAY: Duration = Duration::from_secs(25);
/// How far time is moved: beyond the withdrawal of everything that has retired.
const A_DAY_US: &str = "86400000000";

/// A version, and when it is to be destroyed, in time since the epoch.
struct Doomed {
    name: String,
    cka_id: String,
    at: Duration,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destruction_comes_when_it_is_due_unless_it_is_called_off_and_leaves_nothing() -> anyhow::Result<()>
{
    let mut promise = Promise::begin(23, "destruction")?;
    let Some(python) = python()? else { return Ok(()) };
    let mut plan = Plan::new()?;
    let keys = format!("allow_destroy = true\ndestroy_delay = \"{}s\"", DELAY.as_secs());
    plan.more.push(("keys", keys));
    plan.bootstrap().await?;
    let mut server = plan.start().await?;
    let count = Promise::count(2, 20);
    make_keys(&server.client().await?, count).await?;
    server.running.terminate().await?;

    // A day passes: the first versions of the aged keys have left the JWKS.
    let Server { plan, .. } = server;
    pass_a_day(&python, &plan)?;
    let began = now();
    let server = plan.start().await?;
    server.all_workers_ready().await?;
    let client = server.client().await?;
    let scheduled = until("destructions are scheduled by age", PATIENCE, async || {
        let mut scheduled = vec![];
        for number in 0..count {
            let version = version(&client, "aged", number).await?;
            scheduled.extend(version.destroy_time.is_some().then_some(version));
        }
        Ok((scheduled.len() == count).then_some(scheduled))
    })
    .await?;
    let mut all: Vec<(v1::KeyVersion, Duration)> =
        scheduled.into_iter().map(|version| (version, began)).collect();
    for number in 0..count {
        let asked = now();
        all.push((destroy(&server, &client, number).await?, asked));
    }

    // Of either kind the first is called off, of the others some.
    let (mut doomed, mut called_off) = (vec![], vec![]);
    for (place, (version, asked)) in all.into_iter().enumerate() {
        let cka_id = cka_id(&server, &version.name).await?;
        let at = since_epoch(version.destroy_time)?;
        ensure!(at >= asked + DELAY, "{}: it is due {:?} after it was asked for", version.name, at - asked);
        ensure!(version.state() == v1::key_version::State::Suspended, "{version:?}");
        if place % count == 0 || (place % count > 1 && promise.seed.below(2) == 0) {
            let request = v1::RestoreKeyVersionRequest { name: version.name.clone(), ..Default::default() };
            let restored = client.restore_key_version(request).await?;
            ensure!(restored.destroy_time.is_none(), "{restored:?}");
            called_off.push(Doomed { name: version.name, cka_id, at });
        } else {
            doomed.push(Doomed { name: version.name, cka_id, at });
        }
    }
    let latest = watch(&server, &server.plan, &doomed).await?;

    let left = server.plan.token.private_key_ids()?;
    for version in &called_off {
        ensure!(left.contains(&version.cka_id), "{} was called off and is gone", version.name);
        ensure!(now() > version.at, "the last one to be called off was due first");
    }
    let listing = kms_tests::pkcs11_tool(&server.plan.token, &["--list-objects"])?;
    for Doomed { name, cka_id, .. } in &doomed {
        ensure!(!listing.text()?.contains(cka_id.as_str()), "{name} has left something:\n{}", listing.stdout);
        let restore = ["keys", "restore", key_of(name), "--version", "1"];
        let output = server.kms(restore).await?;
        refused(&output, &["destroyed; nothing can bring it back"])?;
        ensure!(output.code == Some(5), "{output:?}");
    }
    // What was called off is whole.
    server.kms(["keys", "enable", "by-hand-0", "--version", "1"]).await?.text()?;
    server.kms(["jwt", "sign", "by-hand-0", "--claims", "{}", "--ttl", "10s"]).await?.text()?;
    promise.kept(
        format!("{count} destructions by hand and {count} by age, SQLite, a delay of {} s", DELAY.as_secs()),
        format!(
            "{} destroyed, the latest {latest:.1?} after it was due: 0 early, 0 objects left in the token; {} called \
             off: 0 destroyed",
            doomed.len(),
            called_off.len()
        ),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destruction_is_as_delayed_and_as_real_when_the_replica_dies_that_would_do_it() -> anyhow::Result<()>
{
    let promise = Promise::begin(23, "destruction")?;
    let mut plan = Plan::new()?;
    plan.more.push(("keys", format!("allow_destroy = true\ndestroy_delay = \"{}s\"", DELAY.as_secs())));
    let mut fleet = Fleet::start(plan, 3).await?;
    let (mut doomed, mut called_off) = (vec![], vec![]);
    for number in 0..4 {
        let there = fleet.replicas[number % 3].environment()?;
        let client = there.client().await?;
        let key = Some(v1::Key { algorithm: "ES256".into(), ..Default::default() });
        let key_id = format!("by-hand-{number}");
        client.create_key(v1::CreateKeyRequest { key_id, key, ..Default::default() }).await?;
        let asked = now();
        let version = destroy(there, &client, number).await?;
        let at = since_epoch(version.destroy_time)?;
        ensure!(at >= asked + DELAY, "it is due {:?} after it was asked for", at - asked);
        let cka_id = cka_id(there, &version.name).await?;
        let list = if number % 2 == 0 { &mut doomed } else { &mut called_off };
        list.push(Doomed { name: version.name, cka_id, at });
    }
    for Doomed { name, .. } in &called_off {
        let elsewhere = fleet.replicas[2].environment()?;
        elsewhere.kms(["keys", "restore", key_of(name), "--version", "1"]).await?.text()?;
    }
    let leads = until("one leads", PATIENCE, async || {
        for (number, replica) in fleet.replicas.iter().enumerate() {
            if replica.environment()?.metric("kms_lease_held").await? == 1.0 {
                return Ok(Some(number));
            }
        }
        Ok(None)
    })
    .await?;
    fleet.kill_replica(leads).await?;
    let left = fleet.replicas[(leads + 1) % 3].environment()?.clone();
    let latest = watch(&left, &fleet.plan, &doomed).await?;
    let ids = fleet.plan.token.private_key_ids()?;
    for version in &called_off {
        ensure!(ids.contains(&version.cka_id), "{} was called off and is gone", version.name);
        ensure!(now() > version.at, "the last one to be called off was due first");
        left.kms(["keys", "enable", key_of(&version.name), "--version", "1"]).await?.text()?;
    }
    promise.kept(
        format!(
            "4 destructions at 3 replicas, PostgreSQL, a delay of {} s; the one that leads killed",
            DELAY.as_secs()
        ),
        format!(
            "{} destroyed, the latest {latest:.1?} after it was due: 0 early; {} called off: 0 destroyed",
            doomed.len(),
            called_off.len()
        ),
    );
    Ok(())
}

/// Keys for destruction by hand, and keys that have retired versions and a `destroy_after`.
async fn make_keys(client: &Client, count: usize) -> anyhow::Result<()> {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    for number in 0..count {
        let key = v1::Key { algorithm: "ES256".into(), ..Default::default() };
        let aged = v1::Key { destroy_after: seconds(60), rotation_period: seconds(0), ..key.clone() };
        for (kind, key) in [("by-hand", key), ("aged", aged)] {
            let request = v1::CreateKeyRequest {
                key_id: format!("{kind}-{number}"),
                key: Some(key),
                ..Default::default()
            };
            client.create_key(request).await?;
        }
        let name = format!("keys/aged-{number}");
        client.rotate_key(v1::RotateKeyRequest { name, emergency: true, ..Default::default() }).await?;
    }
    Ok(())
}

fn pass_a_day(python: &std::path::Path, plan: &Plan) -> anyhow::Result<()> {
    let script = "import sqlite3, sys\n\
                  times = ['published', 'activates', 'retires', 'withdrawn']\n\
                  moved = ', '.join(f'{time}_at_us = {time}_at_us - {sys.argv[2]}' for time in times)\n\
                  db = sqlite3.connect(sys.argv[1])\n\
                  db.execute(f\"UPDATE key_versions SET {moved} WHERE key_id LIKE 'aged-%'\")\n\
                  db.commit()\n";
    let output = Command::new(python).args(["-c", script]).arg(&plan.store).arg(A_DAY_US).output()?;
    Output::of("sqlite3", output).text()?;
    Ok(())
}

/// Schedules the destruction of the version of a key of its own, by hand.
async fn destroy(server: &Environment, client: &Client, number: usize) -> anyhow::Result<v1::KeyVersion> {
    let name = version(client, "by-hand", number).await?.name;
    let confirm = |confirm: &str| v1::DestroyKeyVersionRequest {
        name: name.clone(),
        confirm: confirm.to_owned(),
        ..Default::default()
    };
    let key = key_of(&name);
    let in_use = server.kms(["keys", "destroy", key, "--version", "1", "--confirm", &name]).await?;
    refused(&in_use, &["in use", "disable"])?;
    client
        .disable_key_version(v1::DisableKeyVersionRequest { name: name.clone(), ..Default::default() })
        .await?;
    let unconfirmed = client.destroy_key_version(confirm("yes")).await;
    ensure!(unconfirmed.is_err(), "destroyed without its name");
    let alone = client.destroy_key_version(confirm(&name)).await;
    let refusal = alone.map(drop).err().context("one alone destroys")?;
    ensure!(refusal.reason() == Some("APPROVAL_REQUIRED"), "{refusal:?}");
    ensure!(version(client, "by-hand", number).await?.destroy_time.is_none(), "it is scheduled already");
    server.consent(refusal.message()).await?;
    version(client, "by-hand", number).await
}

/// Looks at the token until all of them are gone; returns how long after it was due the latest was. None is ever gone
/// before.
async fn watch(server: &Environment, plan: &Plan, doomed: &[Doomed]) -> anyhow::Result<Duration> {
    let mut latest = Duration::ZERO;
    let mut gone = vec![false; doomed.len()];
    until("all that is due is destroyed", PATIENCE, async || {
        let ids = plan.token.private_key_ids()?;
        let seen = now();
        for (doomed, gone) in doomed.iter().zip(&mut gone).filter(|(doomed, _)| !ids.contains(&doomed.cka_id))
        {
            ensure!(seen >= doomed.at, "{} is gone {:?} before it is due", doomed.name, doomed.at - seen);
            if !std::mem::replace(gone, true) {
                latest = latest.max(seen - doomed.at);
            }
        }
        Ok(gone.iter().all(|gone| *gone).then_some(()))
    })
    .await?;
    until("the rows say so", PATIENCE, async || {
        for doomed in doomed {
            let output =
                server.kms(["keys", "versions", key_of(&doomed.name), "-o", "json"]).await?.json()?;
            if output[0]["state"] != "destroyed" {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await?;
    Ok(latest)
}

async fn version(client: &Client, kind: &str, number: usize) -> anyhow::Result<v1::KeyVersion> {
    let parent = format!("keys/{kind}-{number}");
    let request = v1::ListKeyVersionsRequest { parent, ..Default::default() };
    let versions = client.list_key_versions(request).await?.key_versions;
    versions.into_iter().next().context("a key without a version")
}

async fn cka_id(server: &Environment, version: &str) -> anyhow::Result<String> {
    let inventory = server.kms(["hsm", "inventory", "-o", "json"]).await?.json()?;
    let objects = inventory.as_array().context("a list")?;
    let object = objects.iter().find(|object| object["key_version"] == version);
    Ok(object.and_then(|object| object["cka_id"].as_str()).context("it is not in the token")?.to_owned())
}

/// `NAME` of `keys/NAME/versions/1`.
fn key_of(version: &str) -> &str {
    version.split('/').nth(1).unwrap_or_default()
}

fn since_epoch(time: Option<prost_types::Timestamp>) -> anyhow::Result<Duration> {
    let time = time.context("no time")?;
    Ok(Duration::new(u64::try_from(time.seconds)?, u32::try_from(time.nanos)?))
}

#[expect(clippy::disallowed_methods, reason = "what is early or late is a question to the same clock")]
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
