//! One connection: its handshake, its requests, its end.
//!
//! hyper serves it, so that certificates can change while we run, and so that every limit stands here, in one place.
//! gRPC is HTTP/2 over TLS; JWKS, health and metrics are HTTP/1.1, with TLS when it is configured.

use std::{fmt, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use kms_core::{Clock as _, principal::Principal};
use rustls::server::danger::ClientCertVerifier;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::util::MapRequest;

use crate::{
    authn::{Peer, authorities::Authorities, certificate::Shown},
    clock::SystemClock,
    guarded::Guarded,
    socket::Stream,
    tls::Pair,
};

/// A TLS handshake takes at most this long, and what follows begins within as long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the client preface, with which HTTP/2 begins (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;
/// A client that reads nothing of what we write is left after this time.
const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// The head of an HTTP/1.1 request arrives within this time; an idle connection is closed after it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an HTTP/1.1 request's head and of the buffers around it.
const HEADER_BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Bytes of the header list of an HTTP/2 request (RFC 9113 §6.5.2).
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Requests that one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 256;
/// Streams that a client may open and reset before we look away (CVE-2023-44487).
const RESET_STREAMS_MAX: usize = 64;
/// HTTP/2 flow control: what a client may send ahead on one stream and on all of them, in bytes.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// A silent HTTP/2 connection is asked whether it lives, and closed when it does not answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Who has only just come when we leave still has this long for the handshake, and then for the first request. A load
/// balancer that has not noticed yet sends such connections, and what they want is answered.
const NEWCOMER_GRACE: Duration = Duration::from_secs(1);

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 only: gRPC.
    Http2,
    /// HTTP/1.1 only: everything that a browser, a probe or a scraper fetches.
    Http1,
}

/// How connections are encrypted, and who may show a client certificate.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    clients: Option<Arc<Authorities>>,
}

impl Tls {
    /// With `pair`; certificates of clients are asked for when there is an authority of theirs.
    pub fn new(
        pair: &Arc<Pair>,
        protocol: Protocol,
        clients: Option<Arc<Authorities>>,
    ) -> Result<Self, rustls::Error> {
        let clients = clients.filter(|authorities| !authorities.is_empty());
        let verifier = clients.clone().map(|authorities| authorities as Arc<dyn ClientCertVerifier>);
        let config = pair.server_config(&[protocol.alpn()], verifier)?;
        Ok(Self { acceptor: config.into(), clients })
    }

    /// Who has shown a certificate.
    fn peer(&self, stream: &TlsStream<TcpStream>) -> Option<Peer> {
        let authorities = Arc::clone(self.clients.as_ref()?);
        let chain = stream.get_ref().1.peer_certificates()?;
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Some(Peer::Certificate(Arc::new(Shown::new(chain, authorities, SystemClock.now()))))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("clients", &self.clients).finish_non_exhaustive()
    }
}

/// How the connections of a listener are served.
pub(crate) struct Server {
    http: auto::Builder<TokioExecutor>,
    tls: Option<Tls>,
    opening_bytes: usize,
    router: Router,
}

impl Server {
    pub(crate) fn new(protocol: Protocol, tls: Option<Tls>, router: Router) -> Self {
        let (http, opening_bytes) = (protocol.builder(), protocol.opening_bytes());
        Self { http, tls, opening_bytes, router }
    }

    /// Serves until the peer has enough, or until `leave`: then requests in flight are finished, and it ends.
    pub(crate) async fn serve(&self, stream: Stream, leave: &CancellationToken) {
        match stream {
            Stream::Tcp(stream, _) => self.serve_tcp(stream, leave).await,
            Stream::Unix(stream, uid) => {
                self.requests(stream, Some(Peer::Process(Principal::of_uid(uid))), leave).await;
            }
        }
    }

    async fn serve_tcp(&self, stream: TcpStream, leave: &CancellationToken) {
        // Small answers leave at once; a socket that refuses the option works nevertheless.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return self.requests(stream, None, leave).await };
        tokio::select! {
            shaken = timeout(HANDSHAKE_TIMEOUT, tls.acceptor.accept(stream)) => match shaken {
                Ok(Ok(stream)) => {
                    let peer = tls.peer(&stream);
                    self.requests(stream, peer, leave).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake took too long"),
            },
            () = is_over(leave.clone()) => {}
        }
    }

    async fn requests<IO>(&self, stream: IO, peer: Option<Peer>, leave: &CancellationToken)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Who has said nothing by then has nothing in flight that is worth a drain.
        let over = is_over(leave.clone());
        let too_late = async {
            tokio::select! {
                () = sleep(HANDSHAKE_TIMEOUT) => {}
                () = over => {}
            }
        };
        let stream = Guarded::new(stream, self.opening_bytes, too_late, WRITE_STALL_MAX);
        let with_peer = move |mut request: Request<Incoming>| {
            if let Some(peer) = &peer {
                request.extensions_mut().insert(peer.clone());
            }
            request
        };
        let service = TowerToHyperService::new(MapRequest::new(self.router.clone(), with_peer));
        let mut connection = std::pin::pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = is_over(leave.clone()) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended early");
        }
    }
}

/// We leave, and who comes now is no newcomer any more.
fn is_over(leave: CancellationToken) -> impl Future<Output = ()> + Send {
    let settled = Instant::now() + NEWCOMER_GRACE;
    async move {
        leave.cancelled().await;
        sleep_until(settled).await;
    }
}

impl Protocol {
    /// The protocol's name in a TLS handshake (RFC 7301).
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http2 => b"h2",
            Self::Http1 => b"http/1.1",
        }
    }

    /// What a client sends at once when it has something to say.
    fn opening_bytes(self) -> usize {
        match self {
            Self::Http2 => PREFACE_BYTES,
            // The rest of the head has a timer of its own.
            Self::Http1 => 1,
        }
    }

    fn builder(self) -> auto::Builder<TokioExecutor> {
        let mut server = match self {
            Self::Http2 => auto::Builder::new(TokioExecutor::new()).http2_only(),
            Self::Http1 => auto::Builder::new(TokioExecutor::new()).http1_only(),
        };
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BUFFER_BYTES_MAX);
        server
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        server
    }
}
