//! No key meets an IV twice (promise 14; SP 800-38D section 8): three servers on one PostgreSQL wrap, and a fourth on
//! a copy of their database, which is put back to what it was whenever that one dies. All share a token; workers and
//! servers are killed meanwhile. The fault shim before the token writes every use of a key down.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use kms_client::{Client, Error, Kind, v1};
use kms_envelope::WrappedKey;
use kms_softhsm::EphemeralToken;
use kms_test_postgres::Database;
use kms_tests::{Environment, Fleet, IvRecord, PATIENCE, Plan, Promise, Proxy, Seed, TestHsm, kill, until};
use rustix::process::Signal;
use tokio::{task::JoinSet, time::interval};
use tonic::Code;

/// The server over the copy. Those before it share the database that it is a copy of.
const COPY: usize = 3;
/// Callers of each server, each with one batch in flight.
const CALLERS: usize = 2;
/// Wraps in a batch, half of them of data keys that the service makes.
const BATCH_LEN: usize = 128;
/// At most one batch a caller in this time: a server that is away is not asked in a tight loop.
const PACE: Duration = Duration::from_millis(5);
/// Two versions of the first, one of the second.
const KEYS: [&str; 2] = ["keys/rotated", "keys/young"];

#[tokio::test(flavor = "multi_thread")]
async fn no_key_meets_an_iv_twice_over_kills_and_over_a_copy_of_the_state() -> anyhow::Result<()> {
    let mut promise = Promise::begin(14, "nonces")?;
    let (kills, wraps) = (Promise::count(6, 100), Promise::count(12_000, 10_000_000));
    let mut servers = Servers::start().await?;
    let mut callers = Callers::start(&servers)?;
    let mut killed = Killed::default();
    for round in 0..kills {
        Promise::progress("kills", round, kills);
        // Any moment of what callers do is the right one.
        let share = wraps / kills;
        callers.go_on(share / 2 + promise.seed.below(share)).await?;
        // Each kind at least once.
        let victim = match (round, promise.seed.below(5)) {
            (0, _) => Victim::Server(COPY),
            (1, _) => Victim::Server(0),
            (_, 0) => Victim::Server(promise.seed.below(COPY + 1)),
            _ => Victim::Worker(promise.seed.below(COPY + 1)),
        };
        servers.kill(victim, &mut promise.seed, &mut killed).await.with_context(|| format!("{victim:?}"))?;
    }
    callers.go_on(wraps.saturating_sub(callers.answered())).await?;
    let Answered { ivs, made } = callers.stop().await?;

    let (answered, record) = (ivs.len(), IvRecord::read(&servers.fleet.plan.token)?);
    record.is_without_repetition()?;
    record.has_all(ivs)?;
    ensure!(answered >= wraps && record.len() >= answered, "{} of {answered}", record.len());
    ensure!(record.keys() == 3, "{} keys wrapped", record.keys());
    servers.reserved_what_was_made(&made).await?;
    let Killed { workers, servers, restored } = killed;
    promise.kept(
        format!(
            "{workers} workers and {servers} servers killed while 3 servers on PostgreSQL, and one over a copy of \
             their database that was put back {restored} times, wrap with one SoftHSM token"
        ),
        format!(
            "{answered} wraps answered, {} pairs of key and IV at the shim: 0 twice; never more wraps than reserved",
            record.len()
        ),
    );
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Victim {
    Worker(usize),
    Server(usize),
}

#[derive(Debug, Default)]
struct Killed {
    workers: usize,
    servers: usize,
    /// How often the copy was put back.
    restored: usize,
}

/// The servers, each behind a door that stays where it is when the server comes back elsewhere.
struct Servers {
    doors: Vec<Proxy>,
    fleet: Fleet,
    /// Of the database, as the copy began. Nobody connects to it.
    snapshot: Database,
    copy: Database,
}

impl Servers {
    async fn start() -> anyhow::Result<Self> {
        let mut plan = Plan::on(TestHsm::recording(EphemeralToken::new()?))?;
        plan.more.push(("hsm", "workers = 1\nspare_workers = 1".into()));
        plan.more.push(("grpc", "drain_delay = \"1ms\"".into()));
        let mut fleet = Fleet::prepare(plan, COPY + 1).await?;
        fleet.start_replica(0).await?;
        make_keys(fleet.replicas[0].environment()?).await?;
        fleet.terminate_replica(0).await?;
        let (mut snapshot, mut copy) = (fleet.database.clone(), fleet.database.clone());
        (snapshot.name, copy.name) = ("snapshot".into(), "copy".into());
        let mut doors = Vec::new();
        for _ in &fleet.replicas {
            doors.push(Proxy::to(vec![]).await?);
        }
        let mut servers = Self { doors, fleet, snapshot, copy };
        servers.duplicate(&servers.fleet.database, &servers.snapshot)?;
        servers.duplicate(&servers.snapshot, &servers.copy)?;
        let replica = &servers.fleet.replicas[COPY];
        std::fs::write(replica.dir().join("url"), servers.copy.url_at(replica.link.addr()))?;
        for number in 0..=COPY {
            servers.start_one(number).await?;
        }
        Ok(servers)
    }

    /// All rows of `of`, to which nobody is connected, in place of those of `into`.
    fn duplicate(&self, of: &Database, into: &Database) -> anyhow::Result<()> {
        let Database { name, user, .. } = into;
        let text = format!(
            "DROP DATABASE IF EXISTS {name} WITH (FORCE);\nCREATE DATABASE {name} TEMPLATE {} OWNER {user};",
            of.name
        );
        self.fleet.cluster.sql("postgres", &text).map(drop)
    }

    async fn start_one(&mut self, number: usize) -> anyhow::Result<()> {
        self.fleet.start_replica(number).await?;
        let environment = self.fleet.replicas[number].environment()?;
        let addr = environment.addr.strip_prefix("https://").context("no address")?;
        self.doors[number].set_backends(vec![addr.parse::<SocketAddr>()?]);
        Ok(())
    }

    /// One of them through its door.
    fn there(&self, number: usize) -> anyhow::Result<Environment> {
        let http_addr = self.fleet.replicas[number].environment()?.http_addr.clone();
        Ok(self.fleet.plan.environment_at(format!("https://{}", self.doors[number].addr()), http_addr))
    }

    /// Kills it, and brings it back. No process dies in C_Login: SoftHSM 2.6.1 would lose the token.
    async fn kill(&mut self, victim: Victim, seed: &mut Seed, killed: &mut Killed) -> anyhow::Result<()> {
        let (Victim::Worker(number) | Victim::Server(number)) = victim;
        let replica = &self.fleet.replicas[number];
        replica.environment()?.all_workers_ready().await?;
        if let Victim::Worker(_) = victim {
            killed.workers += 1;
            let worker = seed.pick(&replica.running()?.tree()?.workers()).context("no worker")?;
            return Ok(kill(worker, Signal::KILL)?);
        }
        killed.servers += 1;
        self.doors[number].set_backends(vec![]);
        self.fleet.kill_replica(number).await?;
        if number == COPY {
            killed.restored += 1;
            self.duplicate(&self.snapshot, &self.copy)?;
        }
        self.start_one(number).await
    }

    /// What was taken out of the budget of each version is at least what callers were given. Of the copy nothing can be
    /// said: it does not know of the others.
    async fn reserved_what_was_made(&self, made: &BTreeMap<String, u64>) -> anyhow::Result<()> {
        let client = self.there(0)?.client().await?;
        let mut reserved = BTreeMap::new();
        for name in KEYS {
            let usage = client.get_key_usage(v1::GetKeyUsageRequest { name: name.into() }).await?;
            reserved.extend(usage.versions.into_iter().map(|version| (version.name, version.wraps_reserved)));
        }
        for (version, made) in made {
            let reserved = reserved.get(version).copied().unwrap_or_default();
            ensure!(*made > 0 && *made <= reserved, "{version} has made {made} wraps of {reserved} reserved");
        }
        ensure!(made.len() == KEYS.len(), "{made:?}");
        Ok(())
    }
}

/// The keys, one of them rotated, and wraps of each version: the copy begins in the middle of their budgets.
async fn make_keys(there: &Environment) -> anyhow::Result<()> {
    let client = there.client().await?;
    for name in KEYS {
        let key_id = name.trim_start_matches("keys/").to_owned();
        let key = Some(v1::Key { algorithm: "A256GCMKW".into(), ..Default::default() });
        client.create_key(v1::CreateKeyRequest { key_id, key, ..Default::default() }).await?;
    }
    wrap(&client).await?;
    // Without the time that others need to learn of it: there are none yet.
    let rotate = v1::RotateKeyRequest { name: KEYS[0].into(), emergency: true, ..Default::default() };
    client.rotate_key(rotate).await?;
    ensure!(wrap(&client).await?.iter().any(|(version, _)| version.ends_with("rotated/versions/2")));
    // A database whose changes the token does not know of yet would pass for another history.
    until("the token holds the epoch", PATIENCE, async || {
        Ok((there.metric("kms_epoch_pending").await? == 0.0).then_some(()))
    })
    .await
}

/// Callers at work.
struct Callers {
    stop: Arc<AtomicBool>,
    answered: Arc<Mutex<Answered>>,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// What they were given.
#[derive(Debug, Default)]
struct Answered {
    /// The IV of each wrap.
    ivs: Vec<u128>,
    /// How often each version has wrapped by the servers that share a database.
    made: BTreeMap<String, u64>,
}

impl Callers {
    fn start(servers: &Servers) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (answered, mut tasks) = (Arc::default(), JoinSet::new());
        for number in 0..=COPY {
            for _ in 0..CALLERS {
                let (there, stop) = (servers.there(number)?, Arc::clone(&stop));
                tasks.spawn(call(there, number == COPY, stop, Arc::clone(&answered)));
            }
        }
        Ok(Self { stop, answered, tasks })
    }

    fn answered(&self) -> usize {
        locked(&self.answered).ivs.len()
    }

    /// Waits for so many more wraps.
    async fn go_on(&mut self, more: usize) -> anyhow::Result<()> {
        let before = self.answered();
        // So many that a slow machine needs more than one share of patience.
        for step in (0..=more).step_by(50_000).chain([more]) {
            until("more is wrapped", PATIENCE, async || {
                if let Some(ended) = self.tasks.try_join_next() {
                    ended??;
                    bail!("a caller has ended");
                }
                Ok((self.answered() >= before + step).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    async fn stop(mut self) -> anyhow::Result<Answered> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(std::mem::take(&mut *locked(&self.answered)))
    }
}

async fn call(
    there: Environment,
    is_copy: bool,
    stop: Arc<AtomicBool>,
    answered: Arc<Mutex<Answered>>,
) -> anyhow::Result<()> {
    let client = there.client().await?;
    let mut tick = interval(PACE);
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let wraps = match wrap(&client).await {
            Ok(wraps) => wraps,
            Err(error) => match error.downcast_ref::<Error>().map(Error::kind) {
                // Its server was killed.
                Some(Kind::Unavailable | Kind::DeadlineExceeded) => continue,
                _ => return Err(error),
            },
        };
        let mut answered = locked(&answered);
        for (version, wrapped) in wraps {
            answered.ivs.push(IvRecord::iv(WrappedKey::parse(&wrapped)?.wrapped())?);
            if !is_copy {
                *answered.made.entry(version).or_default() += 1;
            }
        }
    }
    Ok(())
}

/// Two batches side by side, of both keys. Returns the name of the version and the wrapped key, for each that was made.
async fn wrap(client: &Client) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    use v1::{
        batch_generate_data_key_without_plaintext_result::Outcome as Generated,
        batch_wrap_key_result::Outcome as Wrapped,
    };
    let names = || KEYS.into_iter().cycle().take(BATCH_LEN / 2).map(str::to_owned);
    let wrap = |name| v1::WrapKeyRequest { name, plaintext: vec![0x5a; 32], ..Default::default() };
    let make = |name| v1::GenerateDataKeyRequest { name, ..Default::default() };
    let wrap = v1::BatchWrapKeyRequest { requests: names().map(wrap).collect() };
    let make = v1::BatchGenerateDataKeyRequest { requests: names().map(make).collect() };
    let (wrapped, made) = futures::try_join!(
        client.batch_wrap_key(wrap),
        client.batch_generate_data_key_without_plaintext(make)
    )?;
    let wrapped = wrapped.results.into_iter().map(|result| match result.outcome.context("no outcome")? {
        Wrapped::Response(response) => Ok(Some((response.name, response.wrapped_key))),
        Wrapped::Error(error) => item(error.code, &error.message),
    });
    let made = made.results.into_iter().map(|result| match result.outcome.context("no outcome")? {
        Generated::Response(response) => Ok(Some((response.name, response.wrapped_key))),
        Generated::Error(error) => item(error.code, &error.message),
    });
    wrapped.chain(made).filter_map(Result::transpose).collect()
}

/// An item that failed alone, because its worker was killed.
fn item(code: i32, message: &str) -> anyhow::Result<Option<(String, Vec<u8>)>> {
    match Code::from(code) {
        Code::Unavailable | Code::DeadlineExceeded => Ok(None),
        code => bail!("{code:?}: {message}"),
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
