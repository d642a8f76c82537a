//! The front process: everything that faces callers, and neither the PIN nor the vendor's module.
//!
//! It starts from the inside out (rows, book, token, service, listeners; before that only `/livez` is answered)
//! and ends from the outside in, so that whatever was accepted is finished, recorded and durable before the locks
//! are given up.

use std::{
    num::NonZeroU64,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use kms_audit::FileLog;
use kms_core::{
    Hsm as _, Kms,
    kms::{Ports, Settings},
    replica::ReplicaId,
    time::{Deadline, SignedDuration},
};
use kms_pkcs11::{
    Pool,
    pool::{self, PoolLatch, Status},
};
use kms_store::AnyStore;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::timeout,
};

use crate::{
    Service, addresses,
    clock::{SystemClock, entropy},
    config::Config,
    hygiene,
    pin_latch::DurableLatch,
    replicas,
    report::Reporter,
    running::{Certificates, Sockets, Starting},
    scheduler, storage, telemetry,
};

/// How long the HSM may take at the end to follow the store's epoch.
const FOLLOW_MAX: Duration = Duration::from_secs(2);
/// How long detached changes of state may take to finish at the end.
const DETACHED_MAX: Duration = Duration::from_secs(10);
/// Who holds the service when nothing is under way: the front, and its beats.
const HOLDERS_AT_REST: usize = 2;
/// How often we look whether detached work is over.
const DETACHED_POLL: Duration = Duration::from_millis(10);

/// Serves until SIGTERM, SIGINT or the end of the parent, whose control socket is standard input. The error of
/// a start that failed (a wrong PIN, a missing module, a store in use) says what to do.
pub fn run(config: &Config) -> anyhow::Result<()> {
    hygiene::establish()?;
    hygiene::raise_open_files()?;
    telemetry::install(&config.log)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(config))
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let end = End::new()?;
    // Bound before the token is touched: a port in use is known at once.
    let sockets = Sockets::bind(config).await?;
    let starting = Starting::listen(sockets, Certificates::load(config)?)?;
    let (store, audit) = storage::open(config).await?;
    addresses::File::remove_stale(config.state_dir())?;
    let replica = replica_id()?;
    let pin_generation = config.hsm.pin_generation.get();
    let latch =
        Arc::new(DurableLatch::new(store.clone(), pin_generation, &replica, config.hsm.startup_timeout)?);
    let pool = start_pool(config, PoolLatch(latch.clone()))?;
    let ended = serve_with(config, end, starting, store.clone(), &replica, &audit, &pool).await;
    replicas::leave(&store, &replica).await;
    // A server that ends in order leaves no try of the PIN behind in the latch.
    latch.close(config.hsm.startup_timeout).await;
    drop(pool);
    tokio::task::spawn_blocking(move || audit.flush_and_close()).await.context("the audit log's end")?;
    ended
}

async fn serve_with(
    config: &Config,
    mut end: End,
    starting: Starting,
    store: AnyStore,
    replica: &ReplicaId,
    audit: &Arc<FileLog>,
    pool: &Pool,
) -> anyhow::Result<()> {
    tokio::select! {
        ready = pool.wait_ready() => ready.context("the HSM cannot be used")?,
        signal = end.signal() => {
            tracing::info!(signal, "stopped before the HSM was ready");
            return Ok(());
        }
    }
    replicas::join(config, &store, replica, pool.token_serial()).await?;
    let ports = Ports {
        hsm: pool.clone(),
        store: store.clone(),
        audit: Arc::clone(audit),
        clock: SystemClock,
        replica: replica.clone(),
        entropy,
    };
    let service = tokio::select! {
        service = Kms::open(ports, settings(config)?) => Arc::new(service.context("the service cannot be opened")?),
        signal = end.signal() => {
            tracing::info!(signal, "stopped before the store was compared with the HSM");
            return Ok(());
        }
    };
    if !service.has_administrator() {
        tracing::warn!("there is no administrator; stop the server and run `kms bootstrap`");
    }
    // Beats on until the last change of state is done.
    let reporter = Reporter::new(audit);
    let mut heart = JoinSet::new();
    heart.spawn(scheduler::beat(Arc::clone(&service), reporter.clone()));
    // Once more, now that the heart keeps this server on record: the start may have taken so long that others did not
    // see it any more when they compared theirs.
    replicas::join(config, &store, replica, pool.token_serial()).await?;
    let running = starting.serve(config, &service, audit, reporter.leaving())?;
    let cause = tokio::select! {
        signal = end.signal() => Ok(signal),
        () = abandoned(pool) => Err("the parent process is gone"),
    };
    tracing::info!(cause = cause.unwrap_or_else(|gone| gone), "draining");
    running.drain(config.drain_delay()).await;
    follow_epoch(&service).await;
    finish(&service).await;
    service.write_uses().await;
    heart.shutdown().await;
    cause.map(drop).map_err(anyhow::Error::msg)
}

/// Whoever makes a backup of a server that was stopped in order gets one that a later change outdates: moves that the
/// HSM was not there for are not left to the next start.
async fn follow_epoch(service: &Service) {
    let deadline = Deadline::at(Instant::now() + FOLLOW_MAX);
    let followed = timeout(FOLLOW_MAX, service.follow_epoch(deadline)).await;
    if !matches!(followed, Ok(Ok(()))) {
        tracing::warn!(
            pending = service.epoch_pending(),
            "the HSM does not hold the database's epoch yet; it will at the next start"
        );
    }
}

/// Changes of state run detached from their calls, each with a hold on the service: waits for them.
async fn finish(service: &Arc<Service>) {
    let idle = async {
        while Arc::strong_count(service) > HOLDERS_AT_REST {
            tokio::time::sleep(DETACHED_POLL).await;
        }
    };
    if timeout(DETACHED_MAX, idle).await.is_err() {
        tracing::warn!("changes of state are cut off; they are resumed at the next start");
    }
}

/// Readable, and of one run only.
fn replica_id() -> anyhow::Result<ReplicaId> {
    let mut unique = [0; 4];
    entropy(&mut unique)?;
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(ReplicaId::new(format!("{name}/{}/{:08x}", std::process::id(), u32::from_be_bytes(unique))))
}

fn start_pool(config: &Config, latch: PoolLatch) -> anyhow::Result<Pool> {
    let Some(runtime_dir) = config.runtime.dir.clone() else {
        bail!("runtime.dir is not set: the front is started by `kms serve`, not by hand");
    };
    let control = pool::control_from_stdin().context(
        "standard input is not the parent's socket: the front is started by `kms serve`, not by hand",
    )?;
    let settings = pool::Config {
        workers: config.hsm.workers.get(),
        spare_workers: config.hsm.spare_workers,
        keep_alive: config.hsm.keep_alive,
        worker_operations_max: NonZeroU64::new(config.hsm.worker_operations_max),
        worker_memory_bytes_max: NonZeroU64::new(config.hsm.worker_memory_bytes_max),
        sessions_per_worker: config.hsm.sessions_per_worker.get(),
        call_timeout: config.hsm.call_timeout,
        startup_timeout: config.hsm.startup_timeout,
        queue_max: config.hsm.queue_max.get().into(),
        runtime_dir,
        latch,
        ..pool::Config::default()
    };
    Pool::start(settings, control).context("cannot start the HSM pool")
}

fn settings(config: &Config) -> anyhow::Result<Settings> {
    Ok(Settings {
        verify_before_release: config.keys.verify_before_release,
        allow_destroy: config.keys.allow_destroy,
        jwks_max_age: SignedDuration::try_from(config.keys.jwks_max_age).context("keys.jwks_max_age")?,
        destroy_delay: SignedDuration::try_from(config.keys.destroy_delay).context("keys.destroy_delay")?,
        unwrap_quiet_period: SignedDuration::try_from(config.keys.unwrap_quiet_period)
            .context("keys.unwrap_quiet_period")?,
        issuer: config.http.issuer.as_str().to_owned(),
        bundle_ttl_max: SignedDuration::try_from(config.keys.bundle_ttl_max)
            .context("keys.bundle_ttl_max")?,
        limits: config.limits.rules(),
        ..Settings::default()
    })
}

async fn abandoned(pool: &Pool) {
    let mut status = pool.status();
    // The pool lives as long as we look.
    let _ = status.wait_for(|status| *status == Status::Abandoned).await;
}

/// The signals that ask us to end.
struct End {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl End {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot wait for signals");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hang_up: on(SignalKind::hangup())?,
        })
    }

    async fn signal(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}
