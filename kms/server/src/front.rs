//! The front process: everything that faces callers, and neither the PIN nor the vendor's module.
//!
//! It starts from the inside out (book, rows, token, service, listeners) and ends from the outside in, so that
//! whatever was accepted is finished, recorded and durable before the locks are given up.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use kms_audit::FileLog;
use kms_core::{
    Kms,
    kms::{Ports, Readiness, Settings},
    time::{Deadline, SignedDuration},
};
use kms_pkcs11::{
    Pool,
    pool::{self, Status},
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Service, addresses,
    clock::{SystemClock, entropy},
    config::Config,
    grpc, hygiene,
    listen::{Listener, Protocol},
    metrics::{Levels, Metrics},
    notify, ops, scheduler, storage, telemetry, tls,
};

/// How long requests in flight, and then detached changes of state, may take to finish at the end.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long a probe of readiness waits for store and HSM.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// How often we look whether detached work is over.
const DETACHED_POLL: Duration = Duration::from_millis(10);

/// Serves until SIGTERM, SIGINT or the end of the parent, whose control socket is standard input. The error of
/// a start that failed (a wrong PIN, a missing module, a store in use) says what to do.
pub fn run(config: &Config) -> anyhow::Result<()> {
    hygiene::establish()?;
    telemetry::install(&config.log)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(config))
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let mut end = End::new()?;
    // Bound before the token is touched: a port in use is known at once.
    let sockets = Sockets::bind(config).await?;
    let certificates = Certificates::load(config)?;
    let (store, audit) = storage::open(config).await?;
    addresses::File::remove_stale(config.store_dir())?;
    let pool = start_pool(config)?;
    tokio::select! {
        ready = pool.wait_ready() => ready.context("the HSM cannot be used")?,
        signal = end.signal() => {
            tracing::info!(signal, "stopped before the HSM was ready");
            return Ok(());
        }
    }
    let ports = Ports { hsm: pool.clone(), store, audit: Arc::clone(&audit), clock: SystemClock, entropy };
    let service = Arc::new(Kms::open(ports, settings(config)?).await.context("the store cannot be read")?);
    if !service.has_administrator() {
        tracing::warn!("there is no administrator; stop the server and run `kms bootstrap`");
    }
    let running = Running::start(config, sockets, certificates, &service, &audit)?;
    let cause = tokio::select! {
        signal = end.signal() => Ok(signal),
        () = abandoned(&pool) => Err("the parent process is gone"),
    };
    tracing::info!(cause = cause.unwrap_or_else(|gone| gone), "draining");
    running.drain().await;
    finish(service).await;
    drop(pool);
    tokio::task::spawn_blocking(move || audit.flush_and_close()).await.context("the audit log's end")?;
    cause.map(drop).map_err(anyhow::Error::msg)
}

/// What listens and works while we serve.
struct Running {
    addresses: addresses::File,
    health: grpc::Health,
    stop: CancellationToken,
    listeners: JoinSet<()>,
    background: JoinSet<()>,
}

impl Running {
    fn start(
        config: &Config,
        sockets: Sockets,
        certificates: Certificates,
        service: &Arc<Service>,
        audit: &Arc<FileLog>,
    ) -> anyhow::Result<Self> {
        let metrics = Arc::new(metrics(service, audit, &certificates));
        let (grpc_router, health) = grpc::router(service, &config.grpc, Arc::clone(&metrics))?;
        let http_router = kms_api_jwks::router(Arc::clone(service), config.http.issuer.as_str())
            .merge(ops::router(probe(service), Arc::clone(&metrics)));
        let tls = |pair: &Arc<tls::Pair>, protocol: Protocol| pair.server_config(&[protocol.alpn()]);
        let addresses = addresses::File::write(config.store_dir(), sockets.grpc_addr, sockets.http_addr)?;
        let grpc = Listener {
            tls: Some(tls(&certificates.grpc, Protocol::Http2)?),
            socket: sockets.grpc,
            protocol: Protocol::Http2,
            router: grpc_router,
        };
        let http = Listener {
            tls: certificates.http.as_ref().map(|pair| tls(pair, Protocol::Http1)).transpose()?,
            socket: sockets.http,
            protocol: Protocol::Http1,
            router: http_router,
        };
        let stop = CancellationToken::new();
        let mut listeners = JoinSet::new();
        listeners.spawn(grpc.serve(stop.clone(), DRAIN_MAX));
        listeners.spawn(http.serve(stop.clone(), DRAIN_MAX));
        let mut background = JoinSet::new();
        background.spawn(scheduler::run(Arc::clone(service)));
        for (_, pair) in certificates.all() {
            let metrics = Arc::clone(&metrics);
            background.spawn(Arc::clone(pair).follow(move || metrics.count_reload_failure()));
        }
        tracing::info!(grpc = %sockets.grpc_addr, http = %sockets.http_addr, "serving");
        notify::ready();
        Ok(Self { addresses, health, stop, listeners, background })
    }

    /// Accepts nothing more and waits for the requests in flight, within bounds.
    async fn drain(mut self) {
        notify::stopping();
        drop(self.addresses);
        self.health.leave().await;
        self.stop.cancel();
        while self.listeners.join_next().await.is_some() {}
        self.background.shutdown().await;
    }
}

/// Changes of state run detached from their calls, each with a hold on the service: waits for them.
async fn finish(service: Arc<Service>) {
    let idle = async {
        while Arc::strong_count(&service) > 1 {
            tokio::time::sleep(DETACHED_POLL).await;
        }
    };
    if timeout(DRAIN_MAX, idle).await.is_err() {
        tracing::warn!("changes of state are cut off; they are resumed at the next start");
    }
}

fn start_pool(config: &Config) -> anyhow::Result<Pool> {
    let Some(runtime_dir) = config.runtime.dir.clone() else {
        bail!("runtime.dir is not set: the front is started by `kms serve`, not by hand");
    };
    let control = pool::control_from_stdin().context(
        "standard input is not the parent's socket: the front is started by `kms serve`, not by hand",
    )?;
    let settings = pool::Config {
        workers: config.hsm.workers.get(),
        sessions_per_worker: config.hsm.sessions_per_worker.get(),
        call_timeout: config.hsm.call_timeout,
        startup_timeout: config.hsm.startup_timeout,
        queue_max: config.hsm.queue_max.get().into(),
        runtime_dir,
        ..pool::Config::default()
    };
    Pool::start(settings, control).context("cannot start the HSM pool")
}

fn settings(config: &Config) -> anyhow::Result<Settings> {
    Ok(Settings {
        verify_before_release: config.keys.verify_before_release,
        allow_destroy: config.keys.allow_destroy,
        destroy_delay: SignedDuration::try_from(config.keys.destroy_delay).context("keys.destroy_delay")?,
        ..Settings::default()
    })
}

fn metrics(service: &Arc<Service>, audit: &Arc<FileLog>, certificates: &Certificates) -> Metrics {
    use kms_core::Hsm as _;
    let (service, audit) = (Arc::clone(service), Arc::clone(audit));
    let pairs: Vec<_> = certificates.all().map(|(name, pair)| (name, Arc::clone(pair))).collect();
    Metrics::new(move || Levels {
        hsm: service.hsm().health(),
        audit: audit.health(),
        store_generation: service.generation().0,
        certificates_expire: pairs.iter().map(|(name, pair)| (*name, pair.expires_at())).collect(),
    })
}

fn probe(service: &Arc<Service>) -> ops::Probe {
    let service = Arc::clone(service);
    Box::new(move || {
        let service = Arc::clone(&service);
        Box::pin(async move {
            let silent = || Err(format!("no answer within {PROBE_MAX:?}"));
            timeout(PROBE_MAX, service.check(Deadline::at(Instant::now() + PROBE_MAX)))
                .await
                .unwrap_or_else(|_| Readiness { hsm: silent(), store: silent() })
        })
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
}

impl End {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot wait for signals");
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    async fn signal(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Both listeners' sockets, and where they turned out to be.
struct Sockets {
    grpc: TcpListener,
    grpc_addr: SocketAddr,
    http: TcpListener,
    http_addr: SocketAddr,
}

impl Sockets {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        let (grpc, grpc_addr) = bind("grpc.addr", config.grpc.addr).await?;
        let (http, http_addr) = bind("http.addr", config.http.addr).await?;
        Ok(Self { grpc, grpc_addr, http, http_addr })
    }
}

async fn bind(field: &str, addr: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let socket = TcpListener::bind(addr)
        .await
        .with_context(|| format!("{field}: cannot listen on {addr}; is another server running?"))?;
    let addr = socket.local_addr().with_context(|| field.to_owned())?;
    Ok((socket, addr))
}

/// The certificates of the listeners.
struct Certificates {
    grpc: Arc<tls::Pair>,
    http: Option<Arc<tls::Pair>>,
}

impl Certificates {
    fn load(config: &Config) -> anyhow::Result<Self> {
        let grpc = tls::Pair::load(&config.grpc.tls_cert_file, &config.grpc.tls_key_file).context("grpc")?;
        let http = config.http.tls_files().map(|(cert, key)| tls::Pair::load(cert, key)).transpose();
        Ok(Self { grpc: Arc::new(grpc), http: http.context("http")?.map(Arc::new) })
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &Arc<tls::Pair>)> {
        std::iter::once(("grpc", &self.grpc)).chain(self.http.iter().map(|pair| ("http", pair)))
    }
}
