//! The front is killed at every durable step, one after another, and started again: what it acknowledged is there and
//! signs or unwraps, what it had begun is finished, numbers have no gap, and a row names each object in the token.
//!
//! The binary says which places there are and, in an unarmed run, how often each is passed. So a new place is visited
//! without anybody adding it here; one that no story leads to fails the test.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_tests::{Environment, Output, PATIENCE, Plan, Promise, Running, until};
use v1::key_version::State;

/// Servers that are killed at once: most of a visit is waiting.
const LANES: usize = 4;
/// An aborted front, as a shell and our parent process count it: 128 + SIGABRT.
const ABORTED: i32 = 128 + 6;

/// What the front is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Story {
    /// A key that signs: two versions, and the end of one.
    Signing,
    /// A key that wraps: two versions, each of which wraps.
    Wrapping,
}

/// Where the front is killed: a place, and how often it was passed before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Visit {
    story: Story,
    point: String,
    passed: usize,
    /// A birth is cut at this place first, so that the next start resumes it.
    after: Option<&'static str>,
}

/// What callers were told.
#[derive(Debug, Default)]
struct Acknowledged {
    uid: Option<String>,
    versions: BTreeSet<u32>,
    /// What they have wrapped.
    wrapped: Vec<Vec<u8>>,
    destruction: bool,
}

/// One server's directory and token, and the keys that were made there.
struct Lane {
    plan: Plan,
    keys: BTreeMap<String, (Story, Acknowledged)>,
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_wherever_the_front_is_killed() -> anyhow::Result<()> {
    let promise = Promise::begin(1, "failpoints")?;
    let (mut names, mut visits) = (BTreeSet::new(), Vec::new());
    for story in [Story::Signing, Story::Wrapping] {
        let scout = Lane::new().await?;
        names.extend(scout.plan.run(&["failpoints"]).await?.text()?.lines().map(str::to_owned));
        for (point, times) in scout.passes(story).await? {
            let visit = |passed| Visit { story, point: point.clone(), passed, after: None };
            visits.extend((0..times).map(visit));
        }
        // Places that only a birth which was cut short comes by.
        for (point, after) in
            [("birth-attempt-begun", "birth-generating"), ("birth-searched", "birth-generated")]
        {
            visits.push(Visit { story, point: point.to_owned(), passed: 0, after: Some(after) });
        }
    }
    let visited: BTreeSet<String> = visits.iter().map(|visit| visit.point.clone()).collect();
    ensure!(visited == names, "places are not visited, or unknown: {:?}", &visited ^ &names);

    // The long ones first.
    visits.sort_by_key(|visit| !visit.point.starts_with("destruction"));
    let killed = visits.len();
    let visits = RefCell::new(visits.into_iter().rev().collect::<Vec<_>>());
    let lanes = (0..LANES).map(async |number| {
        let mut lane = Lane::new().await?;
        for turn in 0.. {
            let Some(visit) = visits.borrow_mut().pop() else { break };
            let told = lane.visit(&visit, &format!("k{number}-{turn}")).await;
            println!("killed at {visit}: {}", told.with_context(|| visit.to_string())?);
        }
        anyhow::Ok(())
    });
    futures::future::try_join_all(lanes).await?;
    let what =
        format!("SIGABRT of the front at {} failpoints, {killed} visits, SoftHSM, SQLite", names.len());
    promise.kept(what, "0 lost, 0 pending, 0 unnamed objects");
    Ok(())
}

impl Lane {
    async fn new() -> anyhow::Result<Self> {
        let mut plan = Plan::new()?;
        plan.more.push(("hsm", "workers = 1\nspare_workers = 0".into()));
        plan.more.push(("keys", "allow_destroy = true\ndestroy_delay = \"1ms\"".into()));
        plan.bootstrap().await?;
        let lane = Self { plan, keys: BTreeMap::new() };
        // The PIN is proven, as on any server but a new one: tests/pin_latch.rs has the other case.
        let (mut running, _) = lane.start(&[]).await?;
        ensure!(running.terminate().await?.success());
        Ok(lane)
    }

    async fn start(&self, variables: &[(&str, String)]) -> anyhow::Result<(Running, Environment)> {
        let mut command = self.plan.command(&["serve"])?;
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        self.plan.launch(command, |path, _| path.to_owned()).await
    }

    /// How often a whole story passes each place.
    async fn passes(&self, story: Story) -> anyhow::Result<BTreeMap<String, usize>> {
        let trace = ("KMS_LOG__LEVEL", "warn,failpoint=trace".to_owned());
        let (mut running, environment) = self.start(&[trace]).await?;
        story.tell(&environment, "scout", &mut Acknowledged::default()).await?;
        running.terminate().await?;
        let log = running.log();
        let mut passes = BTreeMap::new();
        for line in log.lines().filter(|line| line.contains("failpoint: reached ")) {
            let (_, point) = line.rsplit_once("reached ").context("a name")?;
            *passes.entry(point.trim_end_matches('.').to_owned()).or_default() += 1;
        }
        Ok(passes)
    }

    /// Kills the front there, starts it again, and looks at everything. Returns what the callers had been told.
    async fn visit(&mut self, visit: &Visit, key: &str) -> anyhow::Result<String> {
        let mut acknowledged = Acknowledged::default();
        if let Some(after) = visit.after {
            self.killed(&format!("{after}=return"), visit.story, key, &mut acknowledged).await?;
        }
        let armed = format!("{}={}*off->return", visit.point, visit.passed);
        let armed = if visit.passed == 0 { format!("{}=return", visit.point) } else { armed };
        self.killed(&armed, visit.story, key, &mut acknowledged).await?;
        let told = acknowledged.to_string();
        self.keys.insert(key.to_owned(), (visit.story, acknowledged));

        let (mut running, environment) = self.start(&[]).await.context("the start after it")?;
        let client = environment.client().await?;
        for (key, (story, acknowledged)) in &self.keys {
            check(&client, key, *story, acknowledged).await.with_context(|| key.clone())?;
        }
        ensure!(running.terminate().await?.success(), "it does not end in order");
        self.check_token().context("the token")?;
        Ok(told)
    }

    /// Starts the front armed, tells it the story of `key`, and sees it die of that.
    async fn killed(
        &self,
        armed: &str,
        story: Story,
        key: &str,
        acknowledged: &mut Acknowledged,
    ) -> anyhow::Result<()> {
        let log = self.plan.dir().join("log");
        let mut command = self.plan.command(&["serve"])?;
        command.env("FAILPOINTS", armed);
        let listening = self.plan.store.with_file_name("listening.json");
        if listening.exists() {
            fs::remove_file(&listening)?;
        }
        let mut running = Running::start(&mut command, &log)?;
        let served = running.ready_when(&listening).await.is_ok();
        if served {
            let environment = self.plan.environment(&listening)?;
            // It is cut short, unless the place is passed behind the last answer.
            let _ = story.tell(&environment, key, acknowledged).await;
        }
        let status = running.ended().await.with_context(|| format!("{armed} was not passed"))?;
        ensure!(status.code() == Some(ABORTED), "it ended with {status} and not by {armed}");
        Ok(())
    }

    /// Each private or secret key in the token is named by a row, and each version that lives has its own.
    fn check_token(&self) -> anyhow::Result<()> {
        let script = "import sqlite3, sys\n\
                      db = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True)\n\
                      for row in db.execute('SELECT lower(hex(cka_id)), lower(hex(earlier_attempts)), \
                      published_at_us IS NOT NULL AND destroyed_at_us IS NULL FROM key_versions'): \
                      print(*row, sep=',')\n";
        let output =
            Command::new("python3").args(["-c", script]).arg(&self.plan.store).output().context("python3")?;
        let rows = Output::of("sqlite3", output);
        let objects = BTreeSet::from_iter(self.plan.token.key_ids()?);
        let mut named = BTreeSet::new();
        for row in rows.text()?.lines() {
            let mut cells = row.split(',');
            let mut cell = || cells.next().context("a cell");
            let (id, earlier, lives) = (cell()?, cell()?, cell()? == "1");
            ensure!(
                objects.contains(id) == lives,
                "{id} {} in the token",
                if lives { "is not" } else { "is" }
            );
            named.insert(id.to_owned());
            named.extend(earlier.as_bytes().chunks(32).map(|id| String::from_utf8_lossy(id).into_owned()));
        }
        let unknown: Vec<_> = objects.difference(&named).collect();
        ensure!(unknown.is_empty(), "no row names {unknown:?}");
        Ok(())
    }
}

impl Acknowledged {
    fn destroyed(&self) -> Option<u32> {
        self.destruction.then_some(2)
    }
}

impl fmt::Display for Acknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let destruction = if self.destruction { ", and a destruction" } else { "" };
        write!(f, "{} versions were acknowledged{destruction}", self.versions.len())
    }
}

impl fmt::Display for Visit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}, pass {}", self.story, self.point, self.passed + 1)?;
        self.after.map_or(Ok(()), |after| write!(f, ", resuming a birth that was cut at {after}"))
    }
}

impl Story {
    async fn tell(
        self,
        service: &Environment,
        key: &str,
        acknowledged: &mut Acknowledged,
    ) -> anyhow::Result<()> {
        match self {
            Self::Signing => tell_of_signing(service, key, acknowledged).await,
            Self::Wrapping => tell_of_wrapping(service, key, acknowledged).await,
        }
    }
}

/// A key, and its second version, which wraps at once. Both have wrapped.
async fn tell_of_wrapping(
    service: &Environment,
    key: &str,
    acknowledged: &mut Acknowledged,
) -> anyhow::Result<()> {
    let client = service.client().await?;
    let (mut keys, name) = (client.keys(), format!("keys/{key}"));
    let new = v1::Key { algorithm: "A256GCMKW".into(), ..Default::default() };
    let create = v1::CreateKeyRequest { key_id: key.into(), key: Some(new), ..Default::default() };
    let made = keys.create_key(create).await?.into_inner();
    acknowledged.uid = Some(made.uid);
    acknowledged.versions.insert(1);
    acknowledged.wrapped.push(wrap(&client, &name).await?);
    let rotate = v1::RotateKeyRequest { name: name.clone(), emergency: true, ..Default::default() };
    acknowledged.versions.insert(keys.rotate_key(rotate).await?.into_inner().number);
    acknowledged.wrapped.push(wrap(&client, &name).await?);
    Ok(())
}

async fn wrap(client: &Client, name: &str) -> anyhow::Result<Vec<u8>> {
    let request = v1::WrapKeyRequest { name: name.into(), plaintext: vec![0x5a; 32], ..Default::default() };
    Ok(client.crypto().wrap_key(request).await?.into_inner().wrapped_key)
}

async fn unwraps(client: &Client, name: &str, wrapped_key: &[u8]) -> anyhow::Result<()> {
    let wrapped_key = wrapped_key.to_vec();
    let request = v1::UnwrapKeyRequest { name: name.into(), wrapped_key, ..Default::default() };
    ensure!(client.unwrap_key(request).await?.plaintext == [0x5a; 32], "another key came out");
    Ok(())
}

/// A key, its second version, and the destruction of that one. The first signs throughout.
async fn tell_of_signing(
    service: &Environment,
    key: &str,
    acknowledged: &mut Acknowledged,
) -> anyhow::Result<()> {
    let client = service.client().await?;
    // Without the SDK's repetitions: each answer is of one try.
    let mut keys = client.keys();
    let name = format!("keys/{key}");
    let version = format!("{name}/versions/2");
    // A class that asks nobody for consent: each pass makes the same steps.
    let class = "development".into();
    let new = v1::Key { algorithm: "ES256".into(), class, ..Default::default() };
    let create = v1::CreateKeyRequest { key_id: key.into(), key: Some(new), ..Default::default() };
    let made = keys.create_key(create).await?.into_inner();
    acknowledged.uid = Some(made.uid);
    acknowledged.versions.insert(1);
    let rotate = v1::RotateKeyRequest { name: name.clone(), ..Default::default() };
    let made = keys.rotate_key(rotate).await?.into_inner();
    acknowledged.versions.insert(made.number);
    let disable = v1::DisableKeyVersionRequest { name: version.clone(), ..Default::default() };
    keys.disable_key_version(disable).await?;
    let destroy =
        v1::DestroyKeyVersionRequest { name: version.clone(), confirm: version, ..Default::default() };
    keys.destroy_key_version(destroy).await?;
    acknowledged.destruction = true;
    until("the version is destroyed", PATIENCE, async || {
        let versions = versions(&client, key).await?;
        Ok((versions.get(&2) == Some(&State::Destroyed)).then_some(()))
    })
    .await?;
    // The row says so before the epoch has reached the token, which is the last step.
    until("the token holds the epoch", PATIENCE, async || {
        Ok((service.metric("kms_epoch_pending").await? == 0.0).then_some(()))
    })
    .await
}

/// What was acknowledged is there; what was begun is finished; the key signs, or opens what its versions have wrapped.
async fn check(client: &Client, key: &str, story: Story, acknowledged: &Acknowledged) -> anyhow::Result<()> {
    let name = format!("keys/{key}");
    let found = client.get_key(v1::GetKeyRequest { name: name.clone() }).await;
    let found = match (found, &acknowledged.uid) {
        (Ok(found), Some(uid)) => {
            ensure!(found.uid == *uid, "it is another key");
            found
        }
        (Ok(found), None) => found,
        (Err(status), Some(_)) => return Err(status).context("it was acknowledged and is lost"),
        (Err(_), None) => return Ok(()),
    };
    let versions = until("births and destructions are over", Duration::from_secs(20), async || {
        let versions = versions(client, key).await?;
        let pending = versions.values().any(|state| *state == State::PendingCreation);
        let undestroyed =
            acknowledged.destroyed().is_some_and(|number| versions.get(&number) != Some(&State::Destroyed));
        Ok((!pending && !undestroyed).then_some(versions))
    })
    .await?;
    let numbers: Vec<u32> = versions.keys().copied().collect();
    ensure!(numbers == (1..=u32::try_from(numbers.len())?).collect::<Vec<_>>(), "a gap: {numbers:?}");
    ensure!(acknowledged.versions.iter().all(|number| versions.contains_key(number)), "lost: {numbers:?}");
    if story == Story::Wrapping {
        for wrapped in &acknowledged.wrapped {
            unwraps(client, &found.name, wrapped).await.context("what it wrapped")?;
        }
        return unwraps(client, &found.name, &wrap(client, &found.name).await?).await.context("it wraps");
    }
    let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
    client
        .sign(v1::SignRequest { name: found.name, input, ..Default::default() })
        .await
        .context("it signs")?;
    Ok(())
}

async fn versions(client: &Client, key: &str) -> anyhow::Result<BTreeMap<u32, State>> {
    let request = v1::ListKeyVersionsRequest { parent: format!("keys/{key}"), ..Default::default() };
    // One answer of a server that may be dying.
    let listed = client.keys().list_key_versions(request).await?.into_inner().key_versions;
    let states: BTreeMap<_, _> = listed.iter().map(|version| (version.number, version.state())).collect();
    ensure!(states.len() == listed.len(), "a number is there twice: {listed:?}");
    Ok(states)
}
