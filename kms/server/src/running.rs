//! What the front does between its start and its end: two listeners, the scheduler, certificates that are
//! followed.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use kms_audit::FileLog;
use kms_core::{Hsm as _, kms::Readiness, time::Deadline};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Service, addresses,
    config::Config,
    grpc,
    listen::{Listener, Protocol},
    metrics::{Levels, Metrics},
    notify, ops, scheduler, tls,
};

/// How long requests in flight may take to finish at the end.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long a probe of readiness waits for store and HSM.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// What listens and works while we serve.
pub(crate) struct Running {
    addresses: addresses::File,
    health: grpc::Health,
    stop: CancellationToken,
    listeners: JoinSet<()>,
    background: JoinSet<()>,
}

impl Running {
    pub(crate) fn start(
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
    pub(crate) async fn drain(mut self) {
        notify::stopping();
        drop(self.addresses);
        self.health.leave().await;
        self.stop.cancel();
        while self.listeners.join_next().await.is_some() {}
        self.background.shutdown().await;
    }
}

/// Both listeners' sockets, and where they turned out to be.
pub(crate) struct Sockets {
    grpc: TcpListener,
    grpc_addr: SocketAddr,
    http: TcpListener,
    http_addr: SocketAddr,
}

impl Sockets {
    pub(crate) async fn bind(config: &Config) -> anyhow::Result<Self> {
        let (grpc, grpc_addr) = bind("grpc.addr", config.grpc.addr).await?;
        let (http, http_addr) = bind("http.addr", config.http.addr).await?;
        Ok(Self { grpc, grpc_addr, http, http_addr })
    }
}

/// The certificates of the listeners.
pub(crate) struct Certificates {
    grpc: Arc<tls::Pair>,
    http: Option<Arc<tls::Pair>>,
}

impl Certificates {
    pub(crate) fn load(config: &Config) -> anyhow::Result<Self> {
        let grpc = tls::Pair::load(&config.grpc.tls_cert_file, &config.grpc.tls_key_file).context("grpc")?;
        let http = config.http.tls_files().map(|(cert, key)| tls::Pair::load(cert, key)).transpose();
        Ok(Self { grpc: Arc::new(grpc), http: http.context("http")?.map(Arc::new) })
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

fn metrics(service: &Arc<Service>, audit: &Arc<FileLog>, certificates: &Certificates) -> Metrics {
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
