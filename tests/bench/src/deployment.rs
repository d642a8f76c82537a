//! Servers over a token of their own, with rows in PostgreSQL or SQLite.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use kms_client::{Client, v1};
use kms_tests::{Environment, Fleet, PATIENCE, Plan, Running, until};
use rustix::process::Pid;

/// Connections to all servers together: as many callers' tasks on either side, however many servers there are.
const CONNECTIONS: usize = 2;
/// Keys with objects in the token.
pub(crate) const KEYS: usize = 10;

/// Running servers with [`KEYS`] keys.
pub(crate) struct Deployment {
    pub(crate) name: &'static str,
    servers: Servers,
    clients: Vec<Client>,
}

enum Servers {
    Postgres(Box<Fleet>),
    Sqlite(Box<Sqlite>),
}

/// Fields drop in order: the processes end before the token and the directory go.
struct Sqlite {
    serves: Option<(Running, Environment)>,
    plan: Plan,
}

impl Deployment {
    /// `replicas` servers with `workers` workers each, on PostgreSQL.
    pub(crate) async fn on_postgres(
        name: &'static str,
        replicas: usize,
        workers: usize,
    ) -> anyhow::Result<Self> {
        let mut plan = Plan::new()?;
        plan.more.push(("hsm", format!("workers = {workers}")));
        let fleet = Fleet::prepare(plan, replicas).await?;
        for replica in &fleet.replicas {
            // The network that tests can cut is a task of this program: it is not to be measured with the rest.
            let file = replica.dir().join("url");
            let direct = |url: String| {
                url.replace(&replica.link.addr().to_string(), &fleet.cluster.addr().to_string())
            };
            fs::write(&file, direct(fs::read_to_string(&file)?))?;
        }
        Self { name, servers: Servers::Postgres(Box::new(fleet)), clients: Vec::new() }.filled().await
    }

    /// One server with `workers` workers, on SQLite.
    pub(crate) async fn on_sqlite(name: &'static str, workers: usize) -> anyhow::Result<Self> {
        let mut plan = Plan::new()?;
        plan.more.push(("hsm", format!("workers = {workers}")));
        plan.bootstrap().await?;
        let servers = Servers::Sqlite(Box::new(Sqlite { serves: None, plan }));
        Self { name, servers, clients: Vec::new() }.filled().await
    }

    async fn filled(mut self) -> anyhow::Result<Self> {
        self.start().await?;
        for number in 0..KEYS {
            let key = v1::Key { algorithm: "ES256".to_owned(), ..Default::default() };
            let key_id = key_id(number);
            let request = v1::CreateKeyRequest { key_id, key: Some(key), ..Default::default() };
            self.client(0).keys().create_key(request).await?;
        }
        Ok(self)
    }

    /// Ends the servers and starts them again, one after another; returns how long that took until they served.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<Duration> {
        match &mut self.servers {
            Servers::Postgres(fleet) => {
                for replica in &mut fleet.replicas {
                    replica.terminate().await?;
                }
            }
            Servers::Sqlite(sqlite) => {
                sqlite.serving_mut()?.0.terminate().await?;
            }
        }
        self.start().await
    }

    async fn start(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        match &mut self.servers {
            // Not by the fleet: its balancer would ask them five times a second whether they are ready.
            Servers::Postgres(fleet) => {
                let Fleet { replicas, plan, .. } = &mut **fleet;
                for replica in replicas {
                    replica.start(plan).await?;
                }
            }
            Servers::Sqlite(sqlite) => {
                let command = sqlite.plan.command(&["serve"])?;
                sqlite.serves = Some(sqlite.plan.launch(command, |path, _| path.to_owned()).await?);
            }
        }
        let took = began.elapsed();
        let environments = self.environments()?;
        let mut clients = Vec::new();
        for environment in environments.iter().cycle().take(CONNECTIONS) {
            environment.all_workers_ready().await?;
            clients.push(environment.client().await?);
        }
        self.clients = clients;
        Ok(took)
    }

    /// A client, by turns: of one server after the other.
    pub(crate) fn client(&self, turn: usize) -> &Client {
        &self.clients[turn % self.clients.len()]
    }

    /// The processes of one server.
    pub(crate) fn pids_of(&self, server: usize) -> anyhow::Result<Vec<Pid>> {
        let running = match &self.servers {
            Servers::Postgres(fleet) => fleet.replicas[server].running()?,
            Servers::Sqlite(sqlite) => &sqlite.serving()?.0,
        };
        Ok(running.tree()?.pids())
    }

    /// The processes of all servers.
    pub(crate) fn pids(&self) -> anyhow::Result<Vec<Pid>> {
        let each = (0..self.environments()?.len()).map(|server| self.pids_of(server));
        Ok(each.collect::<anyhow::Result<Vec<_>>>()?.concat())
    }

    /// Adds `count` rows of keys that the token knows nothing of, under a generation of their own, and waits until
    /// every server works with them.
    pub(crate) async fn add_rows(&self, count: usize) -> anyhow::Result<()> {
        let generation = self.sql(&format!(
            "BEGIN;
             UPDATE generation SET value = value + 1;
             INSERT INTO keys SELECT 'row-' || n, decode(md5('uid' || n), 'hex'), algorithm, owner, labels,
                 rotation_period_us, publish_lead_us, max_token_ttl_us, tokens_until_us, created_at_us, updated_at_us,
                 revision, value
             FROM keys, generation, generate_series(1, {count}) n WHERE id = '{id}';
             INSERT INTO key_versions SELECT 'row-' || n, number, decode(md5('cka' || n), 'hex'), earlier_attempts,
                 token_serial, created_at_us, maker, spki, kid, published_at_us, activates_at_us, retires_at_us,
                 withdrawn_at_us, destroys_at_us, suspended, compromised_at_us, destroyed_at_us
             FROM key_versions, generate_series(1, {count}) n WHERE key_id = '{id}';
             COMMIT;
             ANALYZE;
             SELECT value FROM generation;",
            id = key_id(0),
        ))?;
        let generation: f64 = generation.parse()?;
        for environment in self.environments()? {
            until("the server has the rows", PATIENCE, async || {
                let known = environment.metric("kms_store_generation").await?;
                Ok((known >= generation).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Runs statements in its PostgreSQL.
    pub(crate) fn sql(&self, text: &str) -> anyhow::Result<String> {
        match &self.servers {
            Servers::Postgres(fleet) => fleet.cluster.sql(&fleet.database.name, text),
            Servers::Sqlite(_) => anyhow::bail!("{} is not on PostgreSQL", self.name),
        }
    }

    fn environments(&self) -> anyhow::Result<Vec<Environment>> {
        match &self.servers {
            Servers::Postgres(fleet) => {
                fleet.replicas.iter().map(|replica| Ok(replica.environment()?.clone())).collect()
            }
            Servers::Sqlite(sqlite) => Ok(vec![sqlite.serving()?.1.clone()]),
        }
    }
}

impl Sqlite {
    fn serving(&self) -> anyhow::Result<&(Running, Environment)> {
        self.serves.as_ref().context("it does not run")
    }

    fn serving_mut(&mut self) -> anyhow::Result<&mut (Running, Environment)> {
        self.serves.as_mut().context("it does not run")
    }
}

/// The name of a key that the token has.
pub(crate) fn key_id(number: usize) -> String {
    format!("bench-{number}")
}
