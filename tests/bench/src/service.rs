//! The service under measurement: `kms dev` from `KMS_BIN`, which should be the release build.

use std::{
    fmt,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use kms_client::{Client, v1};
use kms_tests::{Environment, Running, kms};
use rustix::process::Pid;
use tempfile::TempDir;

use crate::{
    call::{self, Call},
    cpu,
    load::{self, Shape},
    report::Row,
};

/// Connections that the callers share: one HTTP/2 connection is one task on either side.
const CONNECTIONS: usize = 2;

/// A key that is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Algorithm {
    Es256,
    Rs256,
}

/// A running service with one key of each kind.
pub(crate) struct Bench {
    running: Running,
    clients: Vec<Client>,
    home: TempDir,
}

impl Algorithm {
    pub(crate) const ALL: [Self; 2] = [Self::Es256, Self::Rs256];

    /// The key's name.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Es256 => "bench-es256",
            Self::Rs256 => "bench-rs256",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256-2048",
        })
    }
}

impl Bench {
    /// Starts one with these variables in its environment, and makes its keys.
    pub(crate) async fn start(variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("kms-bench-").tempdir()?;
        let (running, environment) = launch(home.path(), variables).await?;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(environment.client().await?);
        }
        let bench = Self { running, clients, home };
        for algorithm in Algorithm::ALL {
            bench.create_key(algorithm.key(), &algorithm.to_string()).await?;
        }
        Ok(bench)
    }

    /// Ends it and starts it again on the same directory; returns how long it took until it served.
    pub(crate) async fn restart(mut self) -> anyhow::Result<(Self, Duration)> {
        self.running.terminate().await?;
        std::fs::remove_file(self.dir().join("env"))?;
        let began = Instant::now();
        let (running, environment) = launch(self.home.path(), &[]).await?;
        let took = began.elapsed();
        let clients = vec![environment.client().await?, environment.client().await?];
        Ok((Self { running, clients, home: self.home }, took))
    }

    /// The directory given to `kms dev --dir`.
    pub(crate) fn dir(&self) -> PathBuf {
        dev_dir(self.home.path())
    }

    /// All its processes.
    pub(crate) fn pids(&self) -> anyhow::Result<Vec<Pid>> {
        Ok(self.running.tree()?.pids())
    }

    /// A client, by turns.
    pub(crate) fn client(&self, turn: usize) -> &Client {
        &self.clients[turn % self.clients.len()]
    }

    /// Makes a key.
    pub(crate) async fn create_key(&self, name: &str, algorithm: &str) -> anyhow::Result<()> {
        let key = v1::Key { algorithm: algorithm.to_owned(), ..Default::default() };
        let request = v1::CreateKeyRequest { key_id: name.to_owned(), key: Some(key), ..Default::default() };
        self.client(0).create_key(request).await?;
        Ok(())
    }

    /// Signs for `span`.
    pub(crate) async fn measure(
        &self,
        algorithm: Algorithm,
        shape: Shape,
        span: Duration,
    ) -> anyhow::Result<Row> {
        let name = format!("keys/{}", algorithm.key());
        match shape {
            Shape::Unary(_) => self.drive(shape, span, |client| call::sign(client, name.clone())).await,
            Shape::Batch { items, .. } => {
                self.drive(shape, span, |client| call::batch(client, name.clone(), items)).await
            }
        }
    }

    /// Calls the standard health service: gRPC and TLS, and nothing behind them.
    pub(crate) async fn measure_empty(&self, in_flight: usize, span: Duration) -> anyhow::Result<Row> {
        self.drive(Shape::Unary(in_flight), span, call::health).await
    }

    /// Makes calls for `span`: `caller` gives one caller's call.
    pub(crate) async fn drive<'a, C: FnMut() -> Call + Send + 'static>(
        &'a self,
        shape: Shape,
        span: Duration,
        caller: impl Fn(&'a Client) -> C,
    ) -> anyhow::Result<Row> {
        let server = self.running.tree()?.pids();
        let before = cpu::used(&server);
        let outcome = load::run(shape.in_flight(), span, |turn| caller(self.client(turn))).await?;
        // The warm-up is a tenth of the span: its CPU time is taken off in proportion.
        let used = (cpu::used(&server) - before).mul_f64(10.0 / 11.0);
        Ok(Row::new(&outcome, shape.items(), used))
    }
}

/// What one durable record costs on this disk, with nothing else in the way.
pub(crate) fn fdatasync_latency(dir: PathBuf) -> anyhow::Result<Row> {
    const RECORDS: u32 = 500;
    let path = dir.join("fdatasync-probe");
    let mut file = File::create(&path)?;
    let mut latencies_us = hdrhistogram::Histogram::<u64>::new(3)?;
    let began = Instant::now();
    for _ in 0..RECORDS {
        let one = Instant::now();
        file.write_all(&[b'x'; 256])?;
        file.sync_data()?;
        latencies_us.record(u64::try_from(one.elapsed().as_micros())?)?;
    }
    let outcome = load::Outcome { calls: RECORDS.into(), elapsed: began.elapsed(), latencies_us };
    std::fs::remove_file(path)?;
    Ok(Row::new(&outcome, 1, Duration::ZERO))
}

async fn launch(home: &Path, variables: &[(&str, &str)]) -> anyhow::Result<(Running, Environment)> {
    let dir = dev_dir(home);
    let mut command = Command::new(kms()?);
    command.args(["dev", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--dir"]).arg(&dir);
    command.envs(variables.iter().copied());
    let mut running = Running::start(&mut command, &home.join("log"))?;
    running.ready_when(&dir.join("env")).await?;
    let environment = Environment::read(&dir.join("env"))?;
    environment.all_workers_ready().await?;
    Ok((running, environment))
}

fn dev_dir(home: &Path) -> PathBuf {
    home.join("dev")
}
