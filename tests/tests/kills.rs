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
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kms_client::{Client, v1};
use kms_softhsm::{EphemeralToken, unless_left_out};
use kms_tests::{PATIENCE, Plan, Process, Promise, Seed, Server, TestHsm, Tree, kill, until};
use rustix::process::{Pid, Signal};
use tokio::{task::JoinSet, time::sleep};
use tonic::{Code, Status};
use v1::{hsm_object, key_version::State};

/// Births and rotations under way when something is killed.
const AT_ONCE: usize = 4;
/// How long after their beginning it is killed, at the latest.
const KILLED_WITHIN_MS: usize = 400;
/// Services at work at once: the listing of a token gets slow with the objects that a long run leaves in it, so there
/// are more services than that, each with fewer kills.
const LANES_AT_ONCE: usize = 4;
/// Versions that a key gets: more than eight unwithdrawn ones are refused.
const VERSIONS_MAX: u32 = 7;
/// What keys are made for that wrap.
const WRAPS: &str = "A256GCMKW";
/// How many of the older keys sign or unwrap after each kill. After the last one all do.
const OLD_ONES_CHECKED: usize = 10;

/// Creations and rotations under way: name and uid of the key, number of the version.
type Work = JoinSet<Result<(String, String, u32), Status>>;

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_no_key_on_softhsm_behind_a_server() -> anyhow::Result<()> {
    // Without keys that wrap: p11-kit 0.24.1 passes no AES-GCM on.
    let hsm = || TestHsm::remote(EphemeralToken::new()?);
    kills("SoftHSM behind p11-kit's server", hsm, &["ES256", "ES384", "RS256"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_no_key_on_kryoptic() -> anyhow::Result<()> {
    if unless_left_out(EphemeralToken::kryoptic())?.is_none() {
        return Ok(());
    }
    let hsm = || Ok(TestHsm::Local(EphemeralToken::kryoptic()?));
    kills("Kryoptic", hsm, &["ES256", "ES512", "PS256", WRAPS]).await
}

/// Several services side by side, each with a token of its own: most of the time after a kill is waiting.
async fn kills(
    hsm_name: &str,
    hsm: impl Fn() -> anyhow::Result<TestHsm>,
    algorithms: &[&str],
) -> anyhow::Result<()> {
    let mut promise = Promise::begin(1, "kills")?;
    let (lanes, kills) = (Promise::count(2, 12), Promise::count(8, 1_008));
    let mut services = Vec::new();
    for _ in 0..lanes {
        let (plan, seed) = (Plan::on(hsm()?)?, promise.seed.fork());
        services.push(async move {
            plan.bootstrap().await?;
            let server = plan.start().await?;
            let (mut acknowledged, mut wrapped) = (BTreeMap::new(), BTreeMap::new());
            if algorithms.contains(&WRAPS) {
                // However little a short run acknowledges, this key has wrapped before the first kill.
                let key = Some(v1::Key { algorithm: WRAPS.into(), ..Default::default() });
                let create = v1::CreateKeyRequest { key_id: "first".into(), key, ..Default::default() };
                let first = server.client().await?.create_key(create).await?;
                unwraps(&server.client().await?, &first.name, &mut wrapped).await?;
                acknowledged.insert(first.name, (first.uid, 1));
            }
            let lane = Lane { server: Some(server), acknowledged, wrapped, seen: BTreeSet::new(), seed };
            lane.run(kills / lanes, hsm_name, algorithms).await
        });
    }
    let ends: Vec<_> = stream::iter(services).buffer_unordered(LANES_AT_ONCE).try_collect().await?;
    let sum = |count: fn(&End) -> usize| ends.iter().map(count).sum::<usize>();
    let versions = sum(|end| end.versions);
    ensure!(versions > 0, "nothing was acknowledged");
    promise.kept(
        format!("{kills} kills while keys are made and rotated, {hsm_name}, SQLite (also 2 and 3)"),
        format!(
            "{versions} acknowledged versions of {} keys: 0 lost, 0 unusable; {} versions open what they \
             wrapped; {} keys ever seen in the token, 0 destroyed; {} orphans, all reported",
            sum(|end| end.keys),
            sum(|end| end.unwrapped),
            sum(|end| end.seen),
            sum(|end| end.orphans),
        ),
    );
    Ok(())
}

/// One service, and what it has promised.
struct Lane {
    /// Gone only while it is started again.
    server: Option<Server>,
    /// Names of keys, with their uid and their highest acknowledged version.
    acknowledged: BTreeMap<String, (String, u32)>,
    /// What each version of a key that wraps has wrapped, by the version's name.
    wrapped: BTreeMap<String, Vec<u8>>,
    /// CKA_IDs of all private and secret keys that were ever seen in the token.
    seen: BTreeSet<String>,
    seed: Seed,
}

/// How a lane ended.
struct End {
    keys: usize,
    versions: usize,
    unwrapped: usize,
    seen: usize,
    orphans: usize,
}

impl Lane {
    async fn run(mut self, kills: usize, hsm_name: &str, algorithms: &[&str]) -> anyhow::Result<End> {
        for number in 1..=kills {
            let context = || format!("kill {number} of {kills} on {hsm_name}");
            self.one_kill(number, algorithms).await.with_context(context)?;
            self.check_some().await.with_context(context)?;
            Promise::progress(&format!("kills on {hsm_name}, one of several services"), number, kills);
            if number % 50 == 0 || number == kills {
                self.reconcile().await.with_context(context)?;
            }
        }
        let client = self.server()?.client().await?;
        for (name, (uid, versions)) in &self.acknowledged {
            check(&client, name, uid, *versions, &mut self.wrapped).await?;
        }
        Ok(End {
            unwrapped: self.wrapped.len(),
            keys: self.acknowledged.len(),
            versions: self.acknowledged.values().map(|(_, versions)| *versions as usize).sum(),
            orphans: self.reconcile().await?,
            seen: self.seen.len(),
        })
    }

    fn server(&self) -> anyhow::Result<&Server> {
        self.server.as_ref().context("it does not run")
    }

    /// Sets births and rotations off, kills something in the middle, and starts the service again if it is gone.
    async fn one_kill(&mut self, number: usize, algorithms: &[&str]) -> anyhow::Result<()> {
        let client = self.server()?.client().await?;
        let (mut work, touched) = self.set_to_work(&client, number, algorithms);
        // Any moment is the right one.
        sleep(Duration::from_millis(self.seed.below(KILLED_WITHIN_MS) as u64)).await;
        let tree = self.server()?.running.tree()?;
        let victim = victim(&tree, &mut self.seed)?;
        kill(victim, Signal::KILL)?;
        while let Some(done) = work.join_next().await {
            // What was refused, or cut off, may exist and was promised to nobody.
            if let Ok((name, uid, versions)) = done? {
                let entry = self.acknowledged.entry(name).or_insert((uid, 0));
                entry.1 = entry.1.max(versions);
            }
        }
        if !tree.workers().contains(&victim) {
            let mut server = self.server.take().context("it does not run")?;
            server.running.ended().await?;
            until("every process has gone", PATIENCE, async || {
                Ok((!tree.pids().into_iter().any(Process::runs)).then_some(()))
            })
            .await?;
            self.server = Some(server.plan.start().await?);
        }
        let client = self.server()?.client().await?;
        until(
            "no birth is left",
            PATIENCE,
            async || Ok((!is_pending(&client, &touched).await?).then_some(())),
        )
        .await
    }

    /// Creations and rotations, and the names of their keys.
    fn set_to_work(
        &mut self,
        client: &Client,
        number: usize,
        algorithms: &[&str],
    ) -> (Work, BTreeSet<String>) {
        let (mut work, mut touched) = (Work::new(), BTreeSet::new());
        let rotatable: Vec<_> =
            self.acknowledged.iter().filter(|(_, (_, versions))| *versions < VERSIONS_MAX).collect();
        for place in 0..AT_ONCE {
            let mut keys = client.keys();
            match rotatable.get(self.seed.below(2 * rotatable.len().max(1))) {
                Some((name, (uid, _))) => {
                    let (name, uid) = ((*name).clone(), uid.clone());
                    touched.insert(name.clone());
                    work.spawn(async move {
                        let request = v1::RotateKeyRequest { name: name.clone(), ..Default::default() };
                        let version = keys.rotate_key(request).await?.into_inner();
                        Ok((name, uid, version.number))
                    });
                }
                None => {
                    let algorithm = self.seed.pick(algorithms).unwrap_or("ES256").to_owned();
                    let key_id = format!("k{number}-{place}");
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
        (work, touched)
    }

    async fn check_some(&mut self) -> anyhow::Result<()> {
        let client = self.server()?.client().await?;
        let all: Vec<_> = self.acknowledged.iter().collect();
        for _ in 0..OLD_ONES_CHECKED.min(all.len()) {
            let (name, (uid, versions)) = all[self.seed.below(all.len())];
            check(&client, name, uid, *versions, &mut self.wrapped).await?;
        }
        Ok(())
    }

    /// Compares the service's inventory with what a stock tool sees in the token: each object is told, each version
    /// that is served has its own, and whatever was ever seen is still there. Returns the number of orphans.
    async fn reconcile(&mut self) -> anyhow::Result<usize> {
        let server = self.server()?;
        let told = inventory(server).await?;
        for (id, state) in &told {
            if matches!(state, hsm_object::State::Dangling | hsm_object::State::Deviating) {
                bail!("{id} is {state:?}: a version is served that the HSM cannot use");
            }
        }
        let there: BTreeSet<String> = server.plan.token.key_ids()?.into_iter().collect();
        let untold: Vec<_> = there.iter().filter(|id| !told.contains_key(*id)).collect();
        ensure!(untold.is_empty(), "objects that the inventory does not tell: {untold:?}");
        let destroyed: Vec<_> = self.seen.difference(&there).collect();
        ensure!(destroyed.is_empty(), "objects were destroyed: {destroyed:?}");
        self.seen.extend(there);
        Ok(told.values().filter(|state| **state == hsm_object::State::Orphan).count())
    }
}

/// The parent, the front, or a worker, each as likely as the next.
fn victim(tree: &Tree, seed: &mut Seed) -> anyhow::Result<Pid> {
    let worker = seed.pick(&tree.workers());
    let candidates: Vec<_> = [Some(tree.parent()), tree.front(), worker].into_iter().flatten().collect();
    seed.pick(&candidates).context("there is no process")
}

/// The key is the one that was acknowledged, has its versions without a gap, each of them born, and signs; or it opens
/// what any of its versions has wrapped.
async fn check(
    client: &Client,
    name: &str,
    uid: &str,
    versions: u32,
    wrapped: &mut BTreeMap<String, Vec<u8>>,
) -> anyhow::Result<()> {
    let key = client.get_key(v1::GetKeyRequest { name: name.to_owned() }).await?;
    ensure!(key.uid == uid, "{name} is another key");
    let request = v1::ListKeyVersionsRequest { parent: name.to_owned(), ..Default::default() };
    let found = client.list_key_versions(request).await?.key_versions;
    let numbers: Vec<_> = found.iter().map(|version| version.number).collect();
    let expected: Vec<_> = (1..=u32::try_from(found.len())?).collect();
    ensure!(numbers == expected && numbers.len() >= versions as usize, "{name}: {numbers:?} of {versions}");
    if key.algorithm == WRAPS {
        return unwraps(client, name, wrapped)
            .await
            .with_context(|| format!("{name} does not open its wraps"));
    }
    let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
    let request = v1::SignRequest { name: name.to_owned(), input, ..Default::default() };
    client.sign(request).await.with_context(|| format!("{name} does not sign"))?;
    Ok(())
}

/// The version that wraps now has wrapped, and each opens what it wrapped.
async fn unwraps(client: &Client, name: &str, wrapped: &mut BTreeMap<String, Vec<u8>>) -> anyhow::Result<()> {
    let request = v1::WrapKeyRequest { name: name.into(), plaintext: vec![5; 32], ..Default::default() };
    let fresh = client.wrap_key(request).await?;
    wrapped.entry(fresh.name).or_insert(fresh.wrapped_key);
    for (version, wrapped_key) in wrapped.iter().filter(|(of, _)| of.starts_with(&format!("{name}/"))) {
        let wrapped_key = wrapped_key.clone();
        let request = v1::UnwrapKeyRequest { name: name.into(), wrapped_key, ..Default::default() };
        let opened = client.unwrap_key(request).await?;
        ensure!(
            opened.plaintext == [5; 32] && opened.name == *version,
            "{version} opened as {}",
            opened.name
        );
    }
    Ok(())
}

/// Whether a birth of one of these keys is not over.
async fn is_pending(client: &Client, names: &BTreeSet<String>) -> anyhow::Result<bool> {
    for parent in names {
        let request = v1::ListKeyVersionsRequest { parent: parent.clone(), ..Default::default() };
        match client.keys().list_key_versions(request).await {
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

/// What the service tells of each CKA_ID.
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
