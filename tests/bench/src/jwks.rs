//! `--jwks`: the key set over plain HTTP, beside a static answer: the same head and body from an axum handler that
//! knows nothing else, in a process of its own with as many threads as the service's front. Each round measures one
//! right after the other, in turns who is first.
//!
//! The caller is as cheap as one can be, because what it burns is missing to the server: kept-alive connections, a
//! request that is written once, an answer of known length that is compared with the first one.

use std::{
    io::Read as _,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use axum::{
    Router,
    body::Bytes,
    http::{HeaderName, HeaderValue, Uri},
    routing::get,
};
use kms_tests::Environment;
use rustix::process::Pid;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Mutex,
};

use crate::{
    cpu, load,
    report::{Report, Row},
    service::Bench,
};

/// The subcommand by which this program starts itself as the static server. What it answers comes by its standard
/// input, as HTTP/1.1 writes it; its address goes to its standard output.
pub(crate) const SUBCOMMAND: &str = "static-answer";

/// What its rows are compared with.
pub(crate) const SHARE_OF: &str = "the static answer";

const PATH: &str = "/.well-known/jwks.json";
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const IN_FLIGHT: [usize; 2] = [1, 32];

/// The key set, and the static answer right before or after it, in each round.
pub(crate) async fn run(rounds: usize, span: Duration) -> anyhow::Result<Report> {
    let bench = Bench::start(&[]).await?;
    let host = host(&Environment::read(&bench.dir().join("env"))?.http_addr)?;
    let mut report = Report::default();
    let answer = Connection::open(&host).await?.whole_answer().await?;
    let fixed = Fixed::start(&answer)?;
    ensure!(
        sorted(&Connection::open(&fixed.host).await?.whole_answer().await?) == sorted(&answer),
        "the static answer is not the service's"
    );
    println!("{} bytes, head included", answer.len());
    for round in 0..rounds {
        println!("JWKS round {} of {rounds}", round + 1);
        for in_flight in IN_FLIGHT {
            let (mut served, mut fixed_row) = (None, None);
            for turn in 0..2 {
                if (turn + round) % 2 == 0 {
                    served = Some(measure(&host, &answer, &bench.pids()?, in_flight, span).await?);
                } else {
                    fixed_row = Some(measure(&fixed.host, &answer, &[fixed.pid()?], in_flight, span).await?);
                }
            }
            let (served, fixed_row) = (served.context("measured")?, fixed_row.context("measured")?);
            report.add(&format!("GET of a static answer, {in_flight} connection(s)"), fixed_row);
            report.add(&format!("GET of the key set, {in_flight} connection(s)"), served.beside(&fixed_row));
        }
    }
    Ok(report)
}

/// The server itself.
pub(crate) fn child() -> anyhow::Result<()> {
    let mut answer = Vec::new();
    std::io::stdin().read_to_end(&mut answer)?;
    let text = String::from_utf8(answer)?;
    let (head, body) = text.split_once("\r\n\r\n").context("a head ends with an empty line")?;
    let headers = head.lines().skip(1).filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        // hyper writes these two.
        (!["content-length", "date"].contains(&name)).then_some((name, value))
    });
    let headers: Vec<(HeaderName, HeaderValue)> =
        headers.map(|(name, value)| anyhow::Ok((name.parse()?, value.parse()?))).collect::<Result<_, _>>()?;
    let body = Bytes::from(body.to_owned());
    let handler = async move || {
        let mut response = axum::response::Response::new(axum::body::Body::from(body.clone()));
        response.headers_mut().extend(headers.iter().cloned());
        response
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", socket.local_addr()?);
        let socket = axum::serve::ListenerExt::tap_io(socket, |stream| {
            let _ = stream.set_nodelay(true);
        });
        Ok(axum::serve(socket, Router::new().route(PATH, get(handler))).await?)
    })
}

/// The static server, until it is dropped.
struct Fixed {
    child: Child,
    host: String,
}

impl Fixed {
    fn start(answer: &[u8]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(SUBCOMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("stdin")?;
        std::io::Write::write_all(&mut stdin, answer)?;
        drop(stdin);
        let mut host = String::new();
        let stdout = child.stdout.take().context("stdout")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut host)?;
        Ok(Self { child, host: host.trim().to_owned() })
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        Pid::from_raw(i32::try_from(self.child.id())?).context("a process id")
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn measure(
    host: &str,
    answer: &[u8],
    server: &[Pid],
    in_flight: usize,
    span: Duration,
) -> anyhow::Result<Row> {
    let mut connections = Vec::new();
    for _ in 0..in_flight {
        connections.push(Arc::new(Mutex::new(Connection::open(host).await?)));
    }
    let len = answer.len();
    let before = cpu::used(server);
    let outcome = load::run(in_flight, span, |number| {
        let connection = Arc::clone(&connections[number]);
        move || {
            let connection = Arc::clone(&connection);
            async move { connection.lock().await.get(len).await }
        }
    })
    .await?;
    // The warm-up is a tenth of the span: its CPU time is taken off in proportion.
    let used = (cpu::used(server) - before).mul_f64(10.0 / 11.0);
    Ok(Row::new(&outcome, 1, used))
}

struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(host: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        let request = format!("GET {PATH} HTTP/1.1\r\nhost: {host}\r\naccept: */*\r\n\r\n").into_bytes();
        Ok(Self { stream, request, buffer: vec![0; ANSWER_BYTES_MAX] })
    }

    /// One request, and `len` bytes of a 200.
    async fn get(&mut self, len: usize) -> anyhow::Result<()> {
        self.stream.write_all(&self.request).await?;
        let answer = self.buffer.get_mut(..len).context("the answer is too long")?;
        self.stream.read_exact(answer).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(answer));
        Ok(())
    }

    /// One request, and its answer, of whatever length.
    async fn whole_answer(&mut self) -> anyhow::Result<Vec<u8>> {
        self.stream.write_all(&self.request).await?;
        let mut len = 0;
        while !self.buffer[..len].ends_with(b"]}") {
            match self.stream.read(&mut self.buffer[len..]).await? {
                0 => bail!("an answer ended early: {}", String::from_utf8_lossy(&self.buffer[..len])),
                more => len += more,
            }
        }
        Ok(self.buffer[..len].to_vec())
    }
}

/// The lines of an answer but its date: headers may come in any order.
fn sorted(answer: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(answer);
    let mut lines: Vec<_> =
        text.lines().filter(|line| !line.starts_with("date: ")).map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

fn host(url: &str) -> anyhow::Result<String> {
    let host: Uri = url.parse()?;
    Ok(host.authority().context("an address")?.to_string())
}
