//! Accept loops: how many connections, how long a handshake may take, how a connection ends.
//!
//! hyper serves the connections, so that certificates can change while we run, and so that every limit stands
//! here, in one place. gRPC is HTTP/2 over TLS; JWKS, health and metrics are HTTP/1.1, with TLS when it is
//! configured.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{guarded::Guarded, peers::Peers};

/// Most connections of one listener; more wait in the kernel's queue until one ends.
const CONNECTIONS_MAX: usize = 4096;
/// Most connections of one listener from one peer; more are closed at once.
const PEER_CONNECTIONS_MAX: usize = 256;
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
/// After an error of `accept` that is not the client's (no file descriptors left), we wait before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 only: gRPC.
    Http2,
    /// HTTP/1.1 only: everything that a browser, a probe or a scraper fetches.
    Http1,
}

/// A bound socket with what is to be served on it.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// HTTP/1.1 or HTTP/2.
    pub protocol: Protocol,
    /// TLS, or plain.
    pub tls: Option<Arc<ServerConfig>>,
    /// Where requests go.
    pub router: Router,
}

impl Listener {
    /// Serves until `stop`; then no connection is accepted, open ones are told to end, and the requests in
    /// flight have `drain_max` to finish.
    pub async fn serve(self, stop: CancellationToken, drain_max: Duration) {
        let connections = TaskTracker::new();
        let cut = CancellationToken::new();
        stop.clone().run_until_cancelled(self.accept(&connections, &stop, &cut)).await;
        // The socket is closed by now: who connects is refused, and a load balancer goes elsewhere.
        connections.close();
        if timeout(drain_max, connections.wait()).await.is_err() {
            tracing::warn!(open = connections.len(), "connections cut: they did not end in time");
            cut.cancel();
            connections.wait().await;
        }
    }

    async fn accept(self, connections: &TaskTracker, stop: &CancellationToken, cut: &CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let peers = Peers::default();
        let server = Arc::new(self.protocol.server());
        let opening_bytes = self.protocol.opening_bytes();
        let tls = self.tls.map(TlsAcceptor::from);
        loop {
            // The semaphore is never closed, so a place is always given at last.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (socket, addr) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_of_the_client(&error) => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections; trying again");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(peer) = peers.admit(addr.ip(), PEER_CONNECTIONS_MAX) else {
                tracing::debug!(peer = %addr.ip(), "connection refused: this peer has too many");
                continue;
            };
            let (server, tls) = (Arc::clone(&server), tls.clone());
            let (router, stop, cut) = (self.router.clone(), stop.clone(), cut.clone());
            connections.spawn(async move {
                let _places = (place, peer);
                cut.run_until_cancelled(connection(socket, tls, opening_bytes, &server, router, &stop)).await;
            });
        }
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

    fn server(self) -> auto::Builder<TokioExecutor> {
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

async fn connection(
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    opening_bytes: usize,
    server: &auto::Builder<TokioExecutor>,
    router: Router,
    stop: &CancellationToken,
) {
    // Small answers leave at once; a socket that refuses the option works nevertheless.
    let _ = socket.set_nodelay(true);
    match tls {
        None => requests(socket, opening_bytes, server, router, stop).await,
        Some(tls) => match stop.run_until_cancelled(timeout(HANDSHAKE_TIMEOUT, tls.accept(socket))).await {
            Some(Ok(Ok(stream))) => requests(stream, opening_bytes, server, router, stop).await,
            Some(Ok(Err(error))) => tracing::debug!(%error, "TLS handshake failed"),
            Some(Err(_)) => tracing::debug!("TLS handshake took too long"),
            None => {}
        },
    }
}

async fn requests<IO>(
    stream: IO,
    opening_bytes: usize,
    server: &auto::Builder<TokioExecutor>,
    router: Router,
    stop: &CancellationToken,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Who has said nothing when we stop has nothing in flight that is worth a drain.
    let opening = stop.clone().run_until_cancelled_owned(sleep(HANDSHAKE_TIMEOUT));
    let stream = Guarded::new(
        stream,
        opening_bytes,
        async {
            opening.await;
        },
        WRITE_STALL_MAX,
    );
    let service = TowerToHyperService::new(router);
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}

/// Errors that tell of one client and not of us: the next `accept` is not affected.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::{Notify, mpsc},
        task::JoinHandle,
    };

    use super::*;
    use crate::{test_certificate, tls::Pair};

    struct Served {
        addr: SocketAddr,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    async fn serve(
        router: Router,
        protocol: Protocol,
        tls: Option<Arc<ServerConfig>>,
        drain: Duration,
    ) -> Served {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = socket.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let listener = Listener { socket, protocol, tls, router };
        let task = tokio::spawn(listener.serve(stop.clone(), drain));
        Served { addr, stop, task }
    }

    /// A route that says when it is entered and answers when it is told to.
    fn slow() -> (Router, mpsc::UnboundedReceiver<()>, Arc<Notify>) {
        let (entered, is_entered) = mpsc::unbounded_channel();
        let go = Arc::new(Notify::new());
        let gate = Arc::clone(&go);
        let handler = move || async move {
            entered.send(()).expect("the test listens");
            gate.notified().await;
            "done"
        };
        (Router::new().route("/slow", get(handler)), is_entered, go)
    }

    async fn get_slow(addr: SocketAddr) -> String {
        let mut socket = TcpStream::connect(addr).await.expect("a connection");
        socket.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn a_request_in_flight_is_answered_while_new_connections_are_refused() {
        let (router, mut entered, go) = slow();
        let served = serve(router, Protocol::Http1, None, Duration::from_secs(30)).await;
        let answer = tokio::spawn(get_slow(served.addr));
        entered.recv().await.expect("entered");
        served.stop.cancel();
        while TcpStream::connect(served.addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        assert!(answer.await.expect("an answer").ends_with("done"));
        served.task.await.expect("drained");
    }

    #[tokio::test]
    async fn a_request_that_does_not_end_is_cut_when_the_drain_is_over() {
        let (router, mut entered, _go) = slow();
        let served = serve(router, Protocol::Http1, None, Duration::from_millis(20)).await;
        let answer = tokio::spawn(get_slow(served.addr));
        entered.recv().await.expect("entered");
        served.stop.cancel();
        served.task.await.expect("the drain ends");
        assert_eq!(answer.await.expect("an end"), "");
    }

    #[tokio::test]
    async fn a_client_that_has_said_nothing_is_not_waited_for_at_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        test_certificate::write(1, &cert, &key);
        let pair = Arc::new(Pair::load(&cert, &key).expect("a pair"));
        let tls = pair.server_config(&[Protocol::Http2.alpn()]).expect("TLS");
        for (protocol, tls) in [(Protocol::Http2, Some(tls)), (Protocol::Http1, None)] {
            let encrypted = tls.is_some();
            let served = serve(Router::new(), protocol, tls, Duration::from_secs(3_600)).await;
            let socket = TcpStream::connect(served.addr).await.expect("a connection");
            let mut silent: Box<dyn AsyncRead + Unpin> = if encrypted {
                let mut stream = test_certificate::connect(socket, b"h2").await.expect("a handshake");
                stream.write_all(b"PRI * HTTP/2.0").await.expect("half a preface");
                Box::new(stream)
            } else {
                Box::new(socket)
            };
            served.stop.cancel();
            timeout(Duration::from_secs(60), served.task).await.expect("no drain").expect("drained");
            // What our end still said before it closed: HTTP/2 begins with our settings.
            let _ = silent.read_to_end(&mut Vec::new()).await;
        }
    }

    #[tokio::test]
    async fn one_peer_cannot_take_all_the_places() {
        let served = serve(Router::new(), Protocol::Http1, None, Duration::from_secs(30)).await;
        let mut open = Vec::new();
        for _ in 0..PEER_CONNECTIONS_MAX {
            open.push(TcpStream::connect(served.addr).await.expect("a connection"));
        }
        let mut refused = TcpStream::connect(served.addr).await.expect("the kernel takes it");
        assert!(matches!(refused.read(&mut [0]).await, Ok(0) | Err(_)), "closed without an answer");
        drop(open);
        served.stop.cancel();
        served.task.await.expect("drained");
    }

    #[tokio::test]
    async fn tls_shows_the_certificate_of_now_and_speaks_only_what_it_offers() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let first = test_certificate::write(1, &cert, &key);
        let pair = Arc::new(Pair::load(&cert, &key).expect("a pair"));
        let tls = pair.server_config(&[Protocol::Http2.alpn()]).expect("TLS");
        let served = serve(Router::new(), Protocol::Http2, Some(tls), Duration::from_secs(30)).await;
        let connect = async |alpn: &[u8]| {
            let socket = TcpStream::connect(served.addr).await.expect("a connection");
            test_certificate::connect(socket, alpn).await
        };
        assert!(connect(b"http/1.1").await.is_err(), "only h2 is offered");
        assert_eq!(test_certificate::shown(&connect(b"h2").await.expect("a handshake")), first);
        let second = test_certificate::write(2, &cert, &key);
        assert!(pair.reload().expect("a whole pair"));
        assert_eq!(test_certificate::shown(&connect(b"h2").await.expect("a handshake")), second);
        served.stop.cancel();
        served.task.await.expect("drained");
    }
}
