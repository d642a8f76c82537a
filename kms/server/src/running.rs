//! What the front does between its start and its end: two listeners, the scheduler, certificates that are
//! followed. HTTP is answered from the start, so that a probe of liveness waits for nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use axum::Router;
use kms_audit::FileLog;
use kms_core::{Hsm as _, kms::Readiness, time::Deadline};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Service, addresses,
    authn::authorities::Authorities,
    clock::SystemClock,
    config::Config,
    grpc,
    jwt::Issuers,
    listen::{Listener, Protocol, Tls},
    metrics::{Levels, Metrics},
    notify, ops, scheduler,
    socket::{Socket, SocketFile},
    tls,
};

/// How long calls in flight may take to finish at the end.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// And, after them, requests of HTTP; a probe of readiness is the longest.
const HTTP_DRAIN_MAX: Duration = Duration::from_secs(3);
/// How long a probe of readiness waits for the HSM's canary.
const CANARY_MAX: Duration = Duration::from_secs(2);
/// How long it waits in all: the HSM's link keeps its deadline, so whatever lasts longer is the store's.
const PROBE_MAX: Duration = Duration::from_millis(2_500);

/// What listens while the token is not ready yet.
pub(crate) struct Starting {
    certificates: Certificates,
    grpc: Vec<Listener>,
    grpc_addr: SocketAddr,
    socket_file: Option<SocketFile>,
    http_addr: SocketAddr,
    http_router: Arc<OnceLock<Router>>,
    http_stop: CancellationToken,
    http_listener: JoinSet<()>,
}

/// What listens and works while we serve.
pub(crate) struct Running {
    addresses: addresses::File,
    socket_file: Option<SocketFile>,
    leaving: Arc<AtomicBool>,
    health: grpc::Health,
    grpc_stop: CancellationToken,
    grpc_listener: JoinSet<()>,
    http_stop: CancellationToken,
    http_listener: JoinSet<()>,
    background: JoinSet<()>,
}

impl Starting {
    /// Answers HTTP, for now with `/livez` alone; callers of gRPC wait in the kernel's queue.
    pub(crate) fn listen(sockets: Sockets, certificates: Certificates) -> anyhow::Result<Self> {
        let Sockets { grpc, grpc_addr, unix, http, http_addr } = sockets;
        let (unix, socket_file) = unix.unzip();
        let clients = Some(Arc::clone(&certificates.clients));
        let encrypted = Some(Tls::new(&certificates.grpc, Protocol::Http2, clients)?);
        let sockets = [(Socket::Tcp(grpc), encrypted)].into_iter().chain(unix.map(|unix| (unix, None)));
        let grpc = sockets.map(|(socket, tls)| Listener {
            tls,
            socket,
            protocol: Protocol::Http2,
            router: Router::new(),
        });
        let grpc = grpc.collect();
        let http_router = Arc::new(OnceLock::new());
        let plain_or_not = certificates.http.as_ref().map(|pair| Tls::new(pair, Protocol::Http1, None));
        let http = Listener {
            tls: plain_or_not.transpose()?,
            socket: Socket::Tcp(http),
            protocol: Protocol::Http1,
            router: ops::until_ready(Arc::clone(&http_router)),
        };
        let http_stop = CancellationToken::new();
        let mut http_listener = JoinSet::new();
        http_listener.spawn(http.serve(http_stop.clone(), HTTP_DRAIN_MAX));
        Ok(Self {
            certificates,
            grpc,
            grpc_addr,
            socket_file,
            http_addr,
            http_router,
            http_stop,
            http_listener,
        })
    }

    /// Serves everything from here on. `leaving` will say when that is over.
    pub(crate) fn serve(
        self,
        config: &Config,
        service: &Arc<Service>,
        audit: &Arc<FileLog>,
        leaving: Arc<AtomicBool>,
    ) -> anyhow::Result<Running> {
        let Self {
            certificates,
            grpc,
            grpc_addr,
            socket_file,
            http_addr,
            http_router,
            http_stop,
            http_listener,
        } = self;
        let metrics = Arc::new(metrics(config, service, audit, &certificates));
        let issuers = Issuers::new(&config.authn.jwt_issuer, Arc::new(SystemClock));
        let (router, health) = grpc::router(service, &config.grpc, issuers, Arc::clone(&metrics))?;
        let grpc_stop = CancellationToken::new();
        let mut grpc_listener = JoinSet::new();
        for listener in grpc {
            let listener = Listener { router: router.clone(), ..listener };
            grpc_listener.spawn(listener.serve(grpc_stop.clone(), DRAIN_MAX));
        }
        http_router.get_or_init(|| {
            kms_api_jwks::router(Arc::clone(service), config.http.issuer.as_str()).merge(ops::router(
                probe(service, audit),
                Arc::clone(&leaving),
                Arc::clone(&metrics),
            ))
        });
        let addresses = addresses::File::write(config.state_dir(), grpc_addr, http_addr)?;
        let mut background = JoinSet::new();
        background.spawn(scheduler::run(Arc::clone(service)));
        background.spawn(scheduler::write_uses(Arc::clone(service)));
        let period = config.keys.attribute_audit_period;
        background.spawn(scheduler::audit_attributes(Arc::clone(service), period));
        for (_, pair) in certificates.all() {
            let metrics = Arc::clone(&metrics);
            background.spawn(Arc::clone(pair).follow(move || metrics.count_reload_failure()));
        }
        if !certificates.clients.is_empty() {
            let metrics = Arc::clone(&metrics);
            let failed = move || metrics.count_reload_failure();
            background.spawn(Arc::clone(&certificates.clients).follow(failed));
        }
        tracing::info!(grpc = %grpc_addr, http = %http_addr, "serving");
        notify::ready();
        Ok(Running {
            addresses,
            socket_file,
            leaving,
            health,
            grpc_stop,
            grpc_listener,
            http_stop,
            http_listener,
            background,
        })
    }
}

impl Running {
    /// Says that it is not ready any more, serves for another `delay`, then accepts nothing more and waits for the
    /// requests in flight, within bounds. HTTP goes last: a balancer that asks there whether to send calls here hears
    /// "no" for as long as one could come, and not a silence that it would have to interpret.
    pub(crate) async fn drain(mut self, delay: Duration) {
        notify::stopping();
        drop(self.addresses);
        self.leaving.store(true, Ordering::Relaxed);
        self.health.leave().await;
        sleep(delay).await;
        self.grpc_stop.cancel();
        while self.grpc_listener.join_next().await.is_some() {}
        drop(self.socket_file);
        self.http_stop.cancel();
        while self.http_listener.join_next().await.is_some() {}
        self.background.shutdown().await;
    }
}

/// All listeners' sockets, and where they turned out to be.
pub(crate) struct Sockets {
    grpc: TcpListener,
    grpc_addr: SocketAddr,
    unix: Option<(Socket, SocketFile)>,
    http: TcpListener,
    http_addr: SocketAddr,
}

impl Sockets {
    pub(crate) async fn bind(config: &Config) -> anyhow::Result<Self> {
        let (grpc, grpc_addr) = bind("grpc.addr", config.grpc.addr).await?;
        let (http, http_addr) = bind("http.addr", config.http.addr).await?;
        let unix = match &config.grpc.unix_socket {
            Some(path) => Some(SocketFile::bind(path).await.context("grpc.unix_socket")?),
            None => None,
        };
        Ok(Self { grpc, grpc_addr, unix, http, http_addr })
    }
}

/// The certificates of the listeners, and the authorities of those of their clients.
pub(crate) struct Certificates {
    grpc: Arc<tls::Pair>,
    http: Option<Arc<tls::Pair>>,
    clients: Arc<Authorities>,
}

impl Certificates {
    pub(crate) fn load(config: &Config) -> anyhow::Result<Self> {
        let grpc = tls::Pair::load(&config.grpc.tls_cert_file, &config.grpc.tls_key_file).context("grpc")?;
        let http = config.http.tls_files().map(|(cert, key)| tls::Pair::load(cert, key)).transpose();
        let clients = Authorities::load(&config.authn.client_ca).map_err(|errors| {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("authn.client_ca: {}", errors.join("; "))
        })?;
        Ok(Self {
            grpc: Arc::new(grpc),
            http: http.context("http")?.map(Arc::new),
            clients: Arc::new(clients),
        })
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &Arc<tls::Pair>)> {
        std::iter::once(("grpc", &self.grpc)).chain(self.http.iter().map(|pair| ("http", pair)))
    }
}

async fn bind(field: &str, addr: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let socket = TcpListener::bind(addr)
        .await
        .with_context(|| format!("{field}: cannot listen on {addr}; is another server running?"))?;
    let addr = socket.local_addr().with_context(|| field.to_owned())?;
    Ok((socket, addr))
}

fn metrics(
    config: &Config,
    service: &Arc<Service>,
    audit: &Arc<FileLog>,
    certificates: &Certificates,
) -> Metrics {
    let (service, audit) = (Arc::clone(service), Arc::clone(audit));
    let keys_max = usize::try_from(config.http.metrics_keys_max).unwrap_or(usize::MAX);
    let rotations = Arc::clone(&service);
    let pairs: Vec<_> = certificates.all().map(|(name, pair)| (name, Arc::clone(pair))).collect();
    let levels = move || Levels {
        hsm: service.hsm().health(),
        audit: audit.health(),
        attribute_audits: service.attribute_audits(),
        store_generation: service.generation().0,
        replicas: service.last_pulse().map_or(0, |pulse| pulse.replicas.len()),
        fenced: service.fenced().is_some(),
        leads: service.lease().is_some(),
        clock_skew: service.clock_skew(),
        confirmed_age: service.confirmed_age(),
        recovery_mode: service.recovery().is_some(),
        epoch_pending: service.epoch_pending(),
        refusals: service.refusals(),
        certificates_expire: pairs.iter().map(|(name, pair)| (*name, pair.expires_at())).collect(),
    };
    Metrics::new(levels, move || rotations.rotations(keys_max))
}

fn probe(service: &Arc<Service>, audit: &Arc<FileLog>) -> ops::Probe {
    let (service, audit) = (Arc::clone(service), Arc::clone(audit));
    Box::new(move || {
        let (service, audit) = (Arc::clone(&service), Arc::clone(&audit));
        Box::pin(async move {
            let checked = timeout(PROBE_MAX, service.check(Deadline::at(Instant::now() + CANARY_MAX))).await;
            let Readiness { hsm, store, epoch, fence } = checked.unwrap_or_else(|_| Readiness {
                hsm: Err(format!("not known: the store gave no answer within {PROBE_MAX:?}")),
                store: Err(format!("no answer within {PROBE_MAX:?}")),
                epoch: Ok(()),
                fence: service.fenced().map_or(Ok(()), |fenced| Err(fenced.to_string())),
            });
            let audit = audit.health().refusal.map_or(Ok(()), Err);
            [("hsm", hsm), ("store", store), ("audit", audit), (ops::EPOCH, epoch), ("fence", fence)]
        })
    })
}
