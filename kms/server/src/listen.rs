//! Accept loops: how many connections, from whom, and how a listener ends.
//!
//! The end has an order, so that no request is lost that could have been answered. Who has connected is taken in, also
//! from the kernel's queue; the socket is closed; and only then are connections told to go elsewhere, so that who
//! is told does not come back here.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use crate::connection::{Protocol, Tls};
use crate::{
    connection::Server,
    peers::Peers,
    socket::{Socket, Stream},
};

/// Most connections of one listener; more wait in the kernel's queue until one ends.
const CONNECTIONS_MAX: usize = 4096;
/// Most connections of one listener from one peer; more are closed at once.
const PEER_CONNECTIONS_MAX: usize = 256;
/// After an error of `accept` that is not the client's (no file descriptors left), we wait before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket with what is to be served on it.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: Socket,
    /// HTTP/1.1 or HTTP/2.
    pub protocol: Protocol,
    /// TLS, or plain. A unix socket is always plain.
    pub tls: Option<Tls>,
    /// Where requests go.
    pub router: Router,
}

impl Listener {
    /// Serves until `stop`; then no connection is accepted, open ones are told to end, and the requests in
    /// flight have `drain_max` to finish.
    pub async fn serve(self, stop: CancellationToken, drain_max: Duration) {
        let Self { socket, protocol, tls, router } = self;
        let house = House {
            server: Arc::new(Server::new(protocol, tls, router)),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            peers: Peers::default(),
            connections: TaskTracker::new(),
            leave: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        stop.run_until_cancelled(house.accept(&socket)).await;
        house.accept_waiting(socket);
        // The socket is closed by now: who connects is refused, and a load balancer goes elsewhere.
        house.leave.cancel();
        let House { connections, cut, .. } = house;
        connections.close();
        if timeout(drain_max, connections.wait()).await.is_err() {
            tracing::warn!(open = connections.len(), "connections cut: they did not end in time");
            cut.cancel();
            connections.wait().await;
        }
    }
}

/// The connections of a listener, and what they share.
struct House {
    server: Arc<Server>,
    places: Arc<Semaphore>,
    peers: Peers,
    connections: TaskTracker,
    /// Tells connections to end in order.
    leave: CancellationToken,
    /// Ends them.
    cut: CancellationToken,
}

impl House {
    async fn accept(&self, socket: &Socket) {
        loop {
            // The semaphore is never closed, so a place is always given at last.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
            match socket.accept().await {
                Ok(stream) => self.take_in(stream, place),
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections; trying again");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes in those for whom the kernel has accepted already, who would see their connections reset, and closes the
    /// socket.
    fn accept_waiting(&self, socket: Socket) {
        let Ok(waiting) = socket.into_waiting() else { return };
        // Bounded, as more may come while we do this.
        for _ in 0..CONNECTIONS_MAX {
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return };
            match waiting.accept() {
                Ok(stream) => self.take_in(stream, place),
                Err(error) if is_of_the_client(&error) => {}
                // Nobody waits any more.
                Err(_) => return,
            }
        }
    }

    fn take_in(&self, stream: Stream, place: OwnedSemaphorePermit) {
        let origin = stream.origin();
        let Some(peer) = self.peers.admit(origin, PEER_CONNECTIONS_MAX) else {
            tracing::debug!(?origin, "connection refused: this peer has too many");
            return;
        };
        let (server, leave, cut) = (Arc::clone(&self.server), self.leave.clone(), self.cut.clone());
        self.connections.spawn(async move {
            let _places = (place, peer);
            cut.run_until_cancelled(server.serve(stream, &leave)).await;
        });
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
        io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
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

    async fn serve(router: Router, protocol: Protocol, tls: Option<Tls>, drain: Duration) -> Served {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = socket.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let listener = Listener { socket: Socket::Tcp(socket), protocol, tls, router };
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
    async fn who_is_in_the_kernels_queue_when_we_stop_is_answered() {
        let router = Router::new().route("/slow", get(async || "done"));
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = socket.local_addr().expect("an address");
        let mut waiting = Vec::new();
        for _ in 0..20 {
            let mut socket = TcpStream::connect(addr).await.expect("the kernel takes it");
            socket
                .write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .await
                .expect("sent");
            waiting.push(socket);
        }
        let stop = CancellationToken::new();
        stop.cancel();
        let listener = Listener { socket: Socket::Tcp(socket), protocol: Protocol::Http1, tls: None, router };
        let task = tokio::spawn(listener.serve(stop, Duration::from_secs(60)));
        for mut socket in waiting {
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.expect("no reset");
            assert!(answer.ends_with("done"), "{answer}");
        }
        task.await.expect("drained");
    }

    #[tokio::test]
    async fn who_has_just_connected_when_we_stop_may_shake_hands_and_ask() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        test_certificate::write(1, &cert, &key);
        let pair = Arc::new(Pair::load(&cert, &key).expect("a pair"));
        let tls = Tls::new(&pair, Protocol::Http1, None).expect("TLS");
        let router = Router::new().route("/slow", get(async || "done"));
        let served = serve(router, Protocol::Http1, Some(tls), Duration::from_secs(60)).await;
        let socket = TcpStream::connect(served.addr).await.expect("a connection");
        served.stop.cancel();
        while TcpStream::connect(served.addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
        let mut stream = test_certificate::connect(socket, b"http/1.1").await.expect("a handshake");
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.ends_with("done"), "{answer}");
        served.task.await.expect("drained");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_is_told_to_go_finds_the_socket_closed() {
        for _ in 0..2 {
            let router = Router::new().route("/slow", get(async || "done"));
            let served = serve(router, Protocol::Http1, None, Duration::from_secs(60)).await;
            let mut told = Vec::new();
            for _ in 0..64 {
                let mut socket = TcpStream::connect(served.addr).await.expect("a connection");
                socket.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
                told.push(tokio::spawn(async move {
                    let _ = socket.read_to_string(&mut String::new()).await;
                    TcpStream::connect(served.addr).await.is_ok()
                }));
            }
            served.stop.cancel();
            for told in told {
                assert!(!told.await.expect("told"), "it could come back");
            }
            served.task.await.expect("drained");
        }
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
        let tls = Tls::new(&pair, Protocol::Http2, None).expect("TLS");
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
        let tls = Tls::new(&pair, Protocol::Http2, None).expect("TLS");
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
