//! Our processes are killed at any moment while keys are made and rotated, over and over. No acknowledged version is
//! lost, none is served that the HSM cannot use, every orphan is reported and nothing is destroyed (promises 1, 2
//! and 3).
//!
//! SoftHSM loses a token when a process dies in C_Login, so here it lies behind p11-kit's server, which is not
//! killed; Kryoptic is killed at any moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use kms_client::{Client, v1};
use kms_softhsm::{EphemeralToken, unless_left_out};
use kms_tests::{Environment, PATIENCE, Plan, Process, Promise, Seed, Server, TestHsm, Tree, kill, until};
use rustix::process::{Pid, Signal};
use tokio::{task::JoinSet, time::sleep};
use tonic::{Code, Status};
use v1::{hsm_object, key_version::State};

/// Births and rotations under way when something is killed.
const AT_ONCE: usize = 4;
/// How long after their beginning it is killed, at the latest.
const KILLED_WITHIN_MS: usize = 400;
/// Versions that a key gets: more than eight unwithdrawn ones are refused.
const VERSIONS_MAX: u32 = 7;
/// How many of the older keys sign after each kill. After the last one all do.
const OLD_ONES_CHECKED: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_no_key_on_softhsm_behind_a_server() -> anyhow::Result<()> {
    let hsm = TestHsm::remote(EphemeralToken::new()?)?;
    kills("SoftHSM behind p11-kit's server", hsm, &["ES256", "ES384", "RS256"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_no_key_on_kryoptic() -> anyhow::Result<()> {
    let Some(token) = unless_left_out(EphemeralToken::kryoptic())? else { return Ok(()) };
    kills("Kryoptic", TestHsm::Local(token), &["ES256", "ES512", "PS256"]).await
}

/// What was acknowledged: how many versions each key has, and the uid by which it is known.
#[derive(Default)]
struct Acknowledged {
    keys: BTreeMap<String, (String, u32)>,
}

async fn kills(hsm_name: &str, hsm: TestHsm, algorithms: &[&str]) -> anyhow::Result<()> {
    let mut promise = Promise::begin(1, "kills")?;
    let plan = Plan::on(hsm)?;
    plan.bootstrap().await?;
    let mut server = plan.start().await?;
    let mut acknowledged = Acknowledged::default();
    let mut seen = BTreeSet::new();
    let kills = Promise::count(8, 1_000);
    for number in 1..=kills {
        server = one_kill(server, number, algorithms, &mut acknowledged, &mut promise.seed)
            .await
            .with_context(|| format!("kill {number}"))?;
        check_some(&server, &acknowledged, &mut promise.seed)
            .await
            .with_context(|| format!("kill {number}"))?;
        Promise::progress(&format!("kills on {hsm_name}"), number, kills);
        if number % 50 == 0 || number == kills {
            reconcile(&server, &mut seen).await.with_context(|| format!("after kill {number}"))?;
        }
    }
    for (name, (uid, versions)) in &acknowledged.keys {
        check(&server.client().await?, name, uid, *versions).await?;
    }
    let orphans = reconcile(&server, &mut seen).await?;
    let versions: u32 = acknowledged.keys.values().map(|(_, versions)| versions).sum();
    promise.kept(
        format!("{kills} kills while keys are made and rotated, {hsm_name}, SQLite (also 2 and 3)"),
        format!(
            "{versions} acknowledged versions of {} keys: 0 lost, 0 unusable; {} objects ever seen, 0 destroyed; \
             {orphans} orphans, all reported",
            acknowledged.keys.len(),
            seen.len()
        ),
    );
    Ok(())
}

/// Sets births and rotations off, kills something in the middle, and starts the service again if it is gone.
async fn one_kill(
    mut server: Server,
    number: usize,
    algorithms: &[&str],
    acknowledged: &mut Acknowledged,
    seed: &mut Seed,
) -> anyhow::Result<Server> {
    let client = server.client().await?;
    let mut work: JoinSet<Result<(String, String, u32), Status>> = JoinSet::new();
    let mut touched = BTreeSet::new();
    let rotatable: Vec<_> =
        acknowledged.keys.iter().filter(|(_, (_, versions))| *versions < VERSIONS_MAX).collect();
    for place in 0..AT_ONCE {
        match rotatable.get(seed.below(2 * rotatable.len().max(1))) {
            Some((name, (uid, _))) => {
                let (mut keys, name, uid) = (client.keys(), (*name).clone(), uid.clone());
                touched.insert(name.clone());
                work.spawn(async move {
                    let request = v1::RotateKeyRequest { name: name.clone(), ..Default::default() };
                    let version = keys.rotate_key(request).await?.into_inner();
                    Ok((name, uid, number_of(&version.name)))
                });
            }
            None => {
                let algorithm = seed.pick(algorithms).unwrap_or("ES256").to_owned();
                let (mut keys, key_id) = (client.keys(), format!("k{number}-{place}"));
                touched.insert(format!("keys/{key_id}"));
                work.spawn(async move {
                    let key = Some(v1::Key { algorithm, ..Default::default() });
                    let request = v1::CreateKeyRequest { key_id, key, ..Default::default() };
                    let key = keys.create_key(request).await?.into_inner();
                    Ok((key.name, key.uid, 1))
                });
            }
        }
    }
    // Any moment is the right one.
    sleep(Duration::from_millis(seed.below(KILLED_WITHIN_MS) as u64)).await;
    let tree = server.running.tree()?;
    let victim = victim(&tree, seed)?;
    kill(victim, Signal::KILL)?;
    let is_worker = tree.workers().contains(&victim);
    while let Some(done) = work.join_next().await {
        // What was refused, or cut off, may exist and was promised to nobody.
        if let Ok((name, uid, versions)) = done? {
            let entry = acknowledged.keys.entry(name).or_insert((uid, 0));
            entry.1 = entry.1.max(versions);
        }
    }
    if !is_worker {
        server.running.ended().await?;
        until("every process has gone", PATIENCE, async || {
            Ok((!tree.pids().into_iter().any(Process::runs)).then_some(()))
        })
        .await?;
        server = server.plan.start().await?;
    }
    until("no birth is left", PATIENCE, async || Ok((!is_pending(&server, &touched).await?).then_some(())))
        .await?;
    Ok(server)
}

/// The parent, the front, or a worker, each as likely as the next.
fn victim(tree: &Tree, seed: &mut Seed) -> anyhow::Result<Pid> {
    let worker = seed.pick(&tree.workers());
    let candidates: Vec<_> = [Some(tree.parent()), tree.front(), worker].into_iter().flatten().collect();
    seed.pick(&candidates).context("there is no process")
}

async fn check_some(server: &Server, acknowledged: &Acknowledged, seed: &mut Seed) -> anyhow::Result<()> {
    let client = server.client().await?;
    let all: Vec<_> = acknowledged.keys.iter().collect();
    for _ in 0..OLD_ONES_CHECKED.min(all.len()) {
        let (name, (uid, versions)) = all[seed.below(all.len())];
        check(&client, name, uid, *versions).await?;
    }
    Ok(())
}

/// The key is the one that was acknowledged, has its versions without a gap, each of them born, and signs.
async fn check(client: &Client, name: &str, uid: &str, versions: u32) -> anyhow::Result<()> {
    let key = client.get_key(v1::GetKeyRequest { name: name.to_owned() }).await?;
    ensure!(key.uid == uid, "{name} is another key");
    let request = v1::ListKeyVersionsRequest { parent: name.to_owned(), ..Default::default() };
    let found = client.list_key_versions(request).await?.key_versions;
    let numbers: Vec<_> = found.iter().map(|version| number_of(&version.name)).collect();
    let expected: Vec<_> = (1..=u32::try_from(found.len())?).collect();
    ensure!(numbers == expected && numbers.len() >= versions as usize, "{name}: {numbers:?} of {versions}");
    let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
    let request = v1::SignRequest { name: name.to_owned(), input, ..Default::default() };
    client.sign(request).await.with_context(|| format!("{name} does not sign"))?;
    Ok(())
}

/// Whether a birth of one of these keys is not over.
async fn is_pending(server: &Environment, names: &BTreeSet<String>) -> anyhow::Result<bool> {
    let keys = server.client().await?.keys();
    for parent in names {
        let request = v1::ListKeyVersionsRequest { parent: parent.clone(), ..Default::default() };
        match keys.clone().list_key_versions(request).await {
            Ok(found) => {
                let mut versions = found.into_inner().key_versions.into_iter();
                if versions.any(|version| version.state() == State::PendingCreation) {
                    return Ok(true);
                }
            }
            // Its birth had not begun.
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status.into()),
        }
    }
    Ok(false)
}

/// Compares the service's inventory with what a stock tool sees in the token: each object is told, each version that
/// is served has its own, and whatever was ever seen is still there. Returns the number of orphans.
async fn reconcile(server: &Server, seen: &mut BTreeSet<String>) -> anyhow::Result<usize> {
    let told = inventory(server).await?;
    for (id, object) in &told {
        if matches!(object, hsm_object::State::Dangling | hsm_object::State::Deviating) {
            bail!("{id} is {object:?}: a version is served that the HSM cannot use");
        }
    }
    let there: BTreeSet<String> = server.plan.token.private_key_ids()?.into_iter().collect();
    let untold: Vec<_> = there.iter().filter(|id| !told.contains_key(*id)).collect();
    ensure!(untold.is_empty(), "objects that the inventory does not tell: {untold:?}");
    let destroyed: Vec<_> = seen.difference(&there).collect();
    ensure!(destroyed.is_empty(), "objects were destroyed: {destroyed:?}");
    seen.extend(there);
    Ok(told.values().filter(|state| **state == hsm_object::State::Orphan).count())
}

async fn inventory(server: &Server) -> anyhow::Result<BTreeMap<String, hsm_object::State>> {
    let mut hsm = server.client().await?.hsm();
    let mut told = BTreeMap::new();
    let mut request = v1::GetInventoryRequest { page_size: 1_000, ..Default::default() };
    loop {
        let page = hsm.get_inventory(request.clone()).await?.into_inner();
        for object in page.objects {
            let id = object.cka_id.iter().map(|byte| format!("{byte:02x}")).collect();
            told.insert(id, object.state());
        }
        if page.next_page_token.is_empty() {
            return Ok(told);
        }
        request.page_token = page.next_page_token;
    }
}

fn number_of(version: &str) -> u32 {
    version.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}
