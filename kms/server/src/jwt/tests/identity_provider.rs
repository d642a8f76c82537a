//! An identity provider on a port of this host, which answers as a test wants and counts how often it was asked.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Response, StatusCode, header},
    serve::Listener,
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::authority;

/// How it answers.
#[derive(Clone)]
pub(super) enum Answer {
    /// With status, content type and text.
    Text(u16, &'static str, String),
    /// Nothing, ever.
    Never,
    /// The head of an answer, and then nothing.
    HeadAlone,
    /// A text without an end.
    Endless,
    /// What another path says: the keys.
    Redirect(Value),
}

pub(super) struct IdentityProvider {
    pub(super) url: String,
    answer: Arc<Mutex<Answer>>,
    asked: watch::Sender<usize>,
    server: JoinHandle<()>,
}

impl Answer {
    /// A key set.
    pub(super) fn keys(keys: &Value) -> Self {
        Self::Text(200, "application/json", json!({"keys": keys}).to_string())
    }

    async fn response(self, path: &str) -> Response<Body> {
        let answer = Response::builder();
        let endless = || futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 65_536]));
        let response = match self {
            Self::Text(status, content_type, text) => {
                let status = StatusCode::from_u16(status).expect("a status");
                answer.status(status).header(header::CONTENT_TYPE, content_type).body(Body::from(text))
            }
            Self::Never => std::future::pending().await,
            Self::HeadAlone => answer
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>())),
            Self::Endless => {
                answer.header(header::CONTENT_TYPE, "application/json").body(Body::from_stream(endless()))
            }
            Self::Redirect(keys) if path == "/elsewhere" => answer
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(json!({"keys": keys}).to_string())),
            Self::Redirect(_) => {
                answer.status(StatusCode::FOUND).header(header::LOCATION, "/elsewhere").body(Body::empty())
            }
        };
        response.expect("a response")
    }
}

impl IdentityProvider {
    pub(super) async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        Self::serve(answer, url, listener)
    }

    /// Over TLS, as `localhost`; the authority's certificate is `ca.crt` in `dir`.
    pub(super) async fn start_tls(answer: Answer, dir: &Path) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://localhost:{}/keys", socket.local_addr().expect("an address").port());
        Self::serve(answer, url, TlsListener { socket, acceptor: authority::acceptor(dir) })
    }

    fn serve<L>(answer: Answer, url: String, listener: L) -> Self
    where
        L: Listener,
        L::Addr: std::fmt::Debug,
    {
        let (answer, asked) = (Arc::new(Mutex::new(answer)), watch::Sender::new(0));
        let (answers, counts) = (Arc::clone(&answer), asked.clone());
        let router = Router::new().fallback(move |request: axum::extract::Request| {
            counts.send_modify(|count| *count += 1);
            let answer = answers.lock().expect("an answer").clone();
            async move { answer.response(request.uri().path()).await }
        });
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("served") });
        Self { url, answer, asked, server }
    }

    /// Answers like this from now on.
    pub(super) fn answers(&self, answer: Answer) {
        *self.answer.lock().expect("an answer") = answer;
    }

    /// How often it was asked.
    pub(super) fn asked(&self) -> usize {
        *self.asked.borrow()
    }

    /// Waits until it was asked so often.
    pub(super) async fn was_asked(&self, count: usize) {
        let mut asked = self.asked.subscribe();
        let enough = asked.wait_for(|asked| *asked >= count);
        tokio::time::timeout(Duration::from_secs(20), enough).await.expect("in time").expect("it counts");
    }
}

struct TlsListener {
    socket: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (socket, peer) = self.socket.accept().await.expect("a caller");
            if let Ok(stream) = self.acceptor.accept(socket).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Drop for IdentityProvider {
    fn drop(&mut self) {
        self.server.abort();
    }
}
