//! Several servers that share one PostgreSQL and one token, behind a plain TCP balancer.

use std::{
    fs,
    net::SocketAddr,
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use kms_test_postgres::{Cluster, Database};
use reqwest::StatusCode;
use rustix::process::Signal;
use tokio::{sync::watch, task::JoinSet, time::interval};

use crate::{Environment, Output, PATIENCE, Plan, Process, Proxy, Running, kill, kms, until};

/// How often the balancer asks who is ready.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);

/// Replicas, and what they share.
///
/// Fields drop in order: the processes end before the database, the token and the directories go.
#[derive(Debug)]
pub struct Fleet {
    /// The replicas, running or not.
    pub replicas: Vec<Replica>,
    grpc: Arc<Proxy>,
    probed: watch::Sender<Vec<Environment>>,
    environment: Environment,
    _probes: JoinSet<()>,
    /// The database.
    pub database: Database,
    /// The database server.
    pub cluster: Cluster,
    /// The token, the certificate, the administrator's credential.
    pub plan: Plan,
}

/// One server.
#[derive(Debug)]
pub struct Replica {
    /// Its processes, while it runs.
    pub running: Option<Running>,
    environment: Option<Environment>,
    /// The network between it and the database.
    pub link: Proxy,
    dir: PathBuf,
    /// Lines to add to its own configuration.
    pub more: Vec<(&'static str, String)>,
}

impl Fleet {
    /// Prepares `count` replicas over `plan`'s token and an empty database, with an administrator. None runs yet.
    pub async fn prepare(plan: Plan, count: usize) -> anyhow::Result<Self> {
        let fleet = Self::without_administrator(plan, count).await?;
        let first = fleet.replicas.first().context("a fleet of nobody")?;
        fleet.plan.bootstrap_with(&first.config_file()).await?;
        Ok(fleet)
    }

    /// Prepares them, and leaves the database empty.
    pub async fn without_administrator(plan: Plan, count: usize) -> anyhow::Result<Self> {
        let cluster = Cluster::start()?;
        let database = cluster.create_database()?;
        let mut replicas = Vec::new();
        for number in 0..count {
            replicas.push(Replica::prepare(&plan, &cluster, &database, number).await?);
        }
        let grpc = Arc::new(Proxy::to(Vec::new()).await?);
        let http = Proxy::to(Vec::new()).await?;
        let environment =
            plan.environment_at(format!("https://{}", grpc.addr()), format!("http://{}", http.addr()));
        let probed = watch::Sender::new(Vec::new());
        let mut probes = JoinSet::new();
        probes.spawn(probe(probed.subscribe(), Arc::clone(&grpc), http));
        Ok(Self { replicas, grpc, probed, environment, _probes: probes, database, cluster, plan })
    }

    /// Prepares and starts them.
    pub async fn start(plan: Plan, count: usize) -> anyhow::Result<Self> {
        let mut fleet = Self::prepare(plan, count).await?;
        for number in 0..count {
            fleet.start_replica(number).await?;
        }
        Ok(fleet)
    }

    /// Starts one and waits until it serves.
    pub async fn start_replica(&mut self, number: usize) -> anyhow::Result<()> {
        let replica = &mut self.replicas[number];
        replica.start(&self.plan).await?;
        self.balance();
        Ok(())
    }

    /// Asks one to end, and waits until it has.
    pub async fn terminate_replica(&mut self, number: usize) -> anyhow::Result<()> {
        self.replicas[number].terminate().await?;
        self.balance();
        Ok(())
    }

    /// Kills all processes of one and waits until they are gone. Its workers must be ready: SoftHSM 2.6.1 loses a
    /// token when a process dies in C_Login.
    pub async fn kill_replica(&mut self, number: usize) -> anyhow::Result<()> {
        self.replicas[number].kill().await?;
        self.balance();
        Ok(())
    }

    /// Tells the balancer who runs.
    fn balance(&self) {
        let there = self.replicas.iter().filter_map(|replica| replica.environment.clone());
        self.probed.send_replace(there.collect());
    }

    /// The network before the gRPC listeners.
    pub fn grpc_proxy(&self) -> &Proxy {
        &self.grpc
    }
}

impl Deref for Fleet {
    type Target = Environment;

    /// All of them, through the balancer.
    fn deref(&self) -> &Environment {
        &self.environment
    }
}

impl Replica {
    async fn prepare(
        plan: &Plan,
        cluster: &Cluster,
        database: &Database,
        number: usize,
    ) -> anyhow::Result<Self> {
        let dir = plan.dir().join(format!("replica-{number}"));
        fs::create_dir(&dir)?;
        let link = Proxy::to(vec![cluster.addr()]).await?;
        let replica = Self { running: None, environment: None, link, dir, more: Vec::new() };
        fs::write(replica.dir.join("password"), database.password())?;
        private(&replica.dir.join("password"))?;
        let url = database.url_at(replica.link.addr());
        fs::write(replica.dir.join("url"), url)?;
        replica.write(plan)?;
        Ok(replica)
    }

    fn write(&self, plan: &Plan) -> anyhow::Result<()> {
        let url = fs::read_to_string(self.dir.join("url"))?;
        let store = format!(
            "url = {}\npassword_file = {}",
            serde_json::Value::from(url),
            serde_json::Value::from(self.dir.join("password").display().to_string())
        );
        let mut more = plan.more.clone();
        more.extend(self.more.iter().cloned());
        if !more.iter().any(|(_, line)| line.starts_with("lock_dir")) {
            let dir = serde_json::Value::from(plan.dir().display().to_string());
            more.push(("hsm", format!("lock_dir = {dir}")));
        }
        Ok(fs::write(self.config_file(), plan.configuration(&self.dir, &store, &more))?)
    }

    /// Its configuration.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("kms.toml")
    }

    /// A `kms` command with its configuration.
    pub fn command(&self, plan: &Plan, arguments: &[&str]) -> anyhow::Result<Command> {
        self.write(plan)?;
        let mut command = Command::new(kms()?);
        command.args(arguments).env("KMS_CONFIG", self.config_file()).envs(plan.token.variables());
        Ok(command)
    }

    /// Runs such a command, which must end by itself.
    pub async fn run(&self, plan: &Plan, arguments: &[&str]) -> anyhow::Result<Output> {
        let name = format!("kms {}", arguments.join(" "));
        let mut command = tokio::process::Command::from(self.command(plan, arguments)?);
        let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await;
        Ok(Output::of(&name, output.with_context(|| format!("{name} does not end"))??))
    }

    /// Starts it and waits until it serves.
    pub async fn start(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let listening = self.dir.join("listening.json");
        if listening.exists() {
            fs::remove_file(&listening)?;
        }
        let mut command = self.command(plan, &["serve"])?;
        let mut running = Running::start(&mut command, &self.dir.join("log"))?;
        running.ready_when(&listening).await?;
        self.environment = Some(plan.environment(&listening)?);
        self.running = Some(running);
        Ok(())
    }

    /// Where it is, past the balancer.
    pub fn environment(&self) -> anyhow::Result<&Environment> {
        self.environment.as_ref().context("it does not run")
    }

    /// Its processes, which run.
    pub fn running(&self) -> anyhow::Result<&Running> {
        self.running.as_ref().context("it does not run")
    }

    /// What it has written to standard error since it was first started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The directory of its own files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Asks it to end, and waits until it has.
    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        let mut running = self.running.take().context("it does not run")?;
        let status = running.terminate().await?;
        self.environment = None;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        let mut running = self.running.take().context("it does not run")?;
        let pids = running.tree()?.pids();
        for pid in &pids {
            kill(*pid, Signal::KILL)?;
        }
        running.ended().await?;
        self.environment = None;
        until("every process has gone", PATIENCE, async || {
            Ok((!pids.iter().any(|pid| Process::runs(*pid))).then_some(()))
        })
        .await
    }

    /// Waits until `/readyz` says `part` is as `wanted`.
    pub async fn becomes(&self, part: &str, wanted: &str, within: Duration) -> anyhow::Result<()> {
        let there = self.environment()?;
        until(&format!("{part} is {wanted}"), within.min(PATIENCE), async || {
            let answer = there.get("/readyz").await?;
            let fits = matches!(answer.status(), StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE);
            ensure!(fits, "{}", answer.status());
            let body: serde_json::Value = serde_json::from_slice(&answer.bytes().await?)?;
            Ok((body[part] == wanted).then_some(()))
        })
        .await
    }
}

/// The balancer's health checks: who says that it is not ready gets no new connection. Whoever says nothing is left to
/// the attempt to connect.
async fn probe(mut probed: watch::Receiver<Vec<Environment>>, grpc: Arc<Proxy>, http: Proxy) {
    let addr = |url: &str| url.rsplit_once('/').and_then(|(_, addr)| addr.parse::<SocketAddr>().ok());
    let mut tick = interval(PROBE_INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            changed = probed.changed() => if changed.is_err() { return },
        }
        let there = probed.borrow_and_update().clone();
        let answers = join_all(there.iter().map(|replica| replica.get("/readyz"))).await;
        let refuses = |answer: &anyhow::Result<reqwest::Response>| {
            answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::SERVICE_UNAVAILABLE)
        };
        let ready =
            || there.iter().zip(&answers).filter(|(_, answer)| !refuses(answer)).map(|(there, _)| there);
        grpc.set_backends(ready().filter_map(|there| addr(&there.addr)).collect());
        http.set_backends(ready().filter_map(|there| addr(&there.http_addr)).collect());
    }
}

fn private(file: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o600))?)
}
