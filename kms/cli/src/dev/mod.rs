//! `kms dev`: everything that a developer needs, in one command and one directory. DEVELOPMENT ONLY.
//!
//! The directory is a whole installation in small: a SoftHSM token, TLS, a configuration, a store and an audit
//! log. It is served by an ordinary `kms serve`, so what a developer sees is what production runs. Each step
//! keeps what it finds: a directory that was used before is resumed.

mod certificates;
mod config_file;
mod env_file;
mod files;
mod server;

use std::{
    env,
    fs::{self, DirBuilder, File, TryLockError},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use clap::Args;
use kms_client::{Client, Kind, Options, v1};
use kms_server::addresses;
use kms_softhsm::DevToken;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    config_file::Settings,
    env_file::{Environment, quoted},
    files::write_atomically,
    server::{Listening, Server},
};
use crate::{
    bootstrap, clock,
    configuration::{self, Overrides},
    failure::{Code, Failure},
    output,
};

const LOCK_FILE: &str = "dev.lock";
const CONFIG_FILE: &str = "kms.toml";
const TOKEN_FILE: &str = "admin-token";
const ENV_FILE: &str = "env";
/// The key that the printed commands use.
const SAMPLE_KEY: &str = "sample-jwt";

const WARNING: &str = "  \
  ****************************************************************
  *                                                              *
  *   DEVELOPMENT ONLY: a software token, its PIN in a file,     *
  *   self-made certificates. Not for keys that matter.          *
  *                                                              *
  ****************************************************************";

/// Run everything on this machine, with a software token: DEVELOPMENT ONLY
#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// Keep everything in this directory, and resume what is there; without it a temporary one, removed at exit
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where gRPC listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8443", value_parser = parse_addr)]
    grpc_addr: SocketAddr,
    /// Where HTTP (JWKS, health, metrics) listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = parse_addr)]
    http_addr: SocketAddr,
}

/// The directory, held by this process alone.
struct Home {
    dir: PathBuf,
    /// Removes the directory at exit, when nobody asked to keep it.
    temporary: Option<TempDir>,
    /// Lets go of the directory when it is closed.
    _lock: File,
}

/// What ended the work.
enum End {
    Signal(Signal),
    Server(std::process::ExitStatus),
}

impl Dev {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        // First of all: from here on a signal ends us in order, and a temporary directory goes with us.
        let mut signals = Signals::listen()?;
        let home = Home::open(self.dir.as_deref())?;
        let (config, token) = home.prepare(self.grpc_addr, self.http_addr).await?;

        progress("starting the server");
        let mut server = Server::spawn(&config, token.env())?;
        let outcome = tokio::select! {
            outcome = home.present(&mut server, &token) => outcome.map(|()| None),
            signal = signals.next() => Ok(Some(End::Signal(signal))),
        };
        let end = match outcome {
            Ok(Some(end)) => end,
            Ok(None) => tokio::select! {
                status = server.ended() => End::Server(status?),
                signal = signals.next() => End::Signal(signal),
            },
            Err(failure) => {
                server.signal(Signal::TERM);
                server.ended().await?;
                return Err(failure);
            }
        };
        match end {
            End::Server(status) => Err(server::ended(status)),
            End::Signal(signal) => drain(server, signal, &mut signals).await,
        }
    }
}

/// Passes `signal` and any that follow to the server, and waits for its end.
async fn drain(mut server: Server, signal: Signal, signals: &mut Signals) -> Result<(), Failure> {
    server.signal(signal);
    progress("waiting for the server to finish what it began");
    loop {
        tokio::select! {
            status = server.ended() => {
                let status = status?;
                return if status.success() { Ok(()) } else { Err(server::ended(status)) };
            }
            signal = signals.next() => server.signal(signal),
        }
    }
}

impl Home {
    /// Opens or makes the directory, and takes its lock.
    fn open(named: Option<&Path>) -> Result<Self, Failure> {
        let (dir, temporary) = match named {
            Some(dir) => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
                made.map_err(Failure::about(dir.display()))?;
                (dir.canonicalize().map_err(Failure::about(dir.display()))?, None)
            }
            None => {
                let temporary = tempfile::Builder::new()
                    .prefix("kms-dev-")
                    .permissions(fs::Permissions::from_mode(0o700))
                    .tempdir()
                    .map_err(Failure::about(env::temp_dir().display()))?;
                (
                    temporary.path().canonicalize().map_err(Failure::about("temporary directory"))?,
                    Some(temporary),
                )
            }
        };
        let mode = fs::metadata(&dir).map_err(Failure::about(dir.display()))?.mode();
        if mode & 0o077 != 0 {
            return Err(Failure::usage(format!(
                "{} is open to other users (mode {:o})",
                dir.display(),
                mode & 0o777
            ))
            .hint(format!(
                "PINs and a credential will lie in it: chmod 700 {}",
                quoted(&dir.to_string_lossy())
            )));
        }
        let lock = File::create(dir.join(LOCK_FILE)).map_err(Failure::about(dir.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir, temporary, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let message = format!("another `kms dev` uses {}", dir.display());
                Err(Failure::new(Code::Precondition, message).hint("end it first, or name another --dir"))
            }
            Err(TryLockError::Error(error)) => Err(Failure::about(dir.display())(error)),
        }
    }

    /// Makes what is missing: token, certificates, configuration, administrator.
    async fn prepare(
        &self,
        grpc_addr: SocketAddr,
        http_addr: SocketAddr,
    ) -> Result<(PathBuf, DevToken), Failure> {
        progress(&format!("preparing {}", self.dir.display()));
        let token = DevToken::open_or_create(&self.dir).map_err(|error| Failure::other(error.to_string()))?;
        certificates::ensure(&self.dir, clock::now())?;

        // The issuer's URL holds the port, so a free one is chosen here and not by the server.
        let http_addr = with_port(http_addr).map_err(Failure::about(format!("--http-addr {http_addr}")))?;
        let issuer = format!("http://{}", reachable(http_addr));
        let hsm_uri = token.uri();
        let settings = Settings { grpc_addr, http_addr, issuer: &issuer, hsm_uri: &hsm_uri };
        let config = self.dir.join(CONFIG_FILE);
        write_atomically(&config, settings.to_toml()?.as_bytes(), 0o600)?;
        for directory in config_file::directories(&self.dir) {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(Failure::about(directory.display()))?;
        }
        // That of the last server would name its ports.
        for directory in config_file::directories(&self.dir) {
            let _ = fs::remove_file(directory.join(addresses::FILE_NAME));
        }

        let credential = self.dir.join(TOKEN_FILE);
        // Empty when an earlier start was cut off before it had made the administrator.
        if fs::metadata(&credential).is_ok_and(|found| found.len() == 0) {
            fs::remove_file(&credential).map_err(Failure::about(credential.display()))?;
        }
        if !credential.exists() {
            let made =
                bootstrap::to_file(&configuration::load(&config, &Overrides::default())?, &credential).await;
            made.map_err(|failure| failure.hint(format!("to begin anew, remove {}", self.dir.display())))?;
        }
        Ok((config, token))
    }

    /// Waits until the server is ready, makes the sample key, writes `env`, and says so.
    async fn present(&self, server: &mut Server, token: &DevToken) -> Result<(), Failure> {
        let [store_dir, _] = config_file::directories(&self.dir);
        let listening = server.ready(&store_dir.join(addresses::FILE_NAME)).await?;
        let addr = format!("https://{}", reachable(listening.grpc));
        let http_addr = format!("http://{}", reachable(listening.http));
        let cacert = self.dir.join(certificates::CA_FILE);
        let token_file = self.dir.join(TOKEN_FILE);
        make_sample_key(&addr, &cacert, &token_file).await?;

        let program = env::current_exe().map_err(Failure::about("cannot find this executable"))?;
        let environment = Environment {
            addr: &addr,
            cacert: &cacert,
            token_file: &token_file,
            http_addr: &http_addr,
            config: &self.dir.join(CONFIG_FILE),
            softhsm_conf: token.conf(),
            bin_dir: program.parent().unwrap_or(Path::new("/")),
        };
        let text = environment
            .to_shell()
            .ok_or_else(|| Failure::usage("the directory's or this executable's path is not UTF-8"))?;
        let env_file = self.dir.join(ENV_FILE);
        write_atomically(&env_file, text.as_bytes(), 0o600)?;
        output::print_text(&self.banner(listening, &env_file))
    }

    fn banner(&self, listening: Listening, env_file: &Path) -> String {
        let warning = output::painted(WARNING, "1;33", output::to_terminal());
        let dir = self.dir.display();
        let fate = if self.temporary.is_some() { "removed at exit; keep it with --dir" } else { "kept" };
        let env_file = quoted(&env_file.to_string_lossy());
        format!(
            "
{warning}

  gRPC    https://{grpc}
  HTTP    http://{http}
  files   {dir} ({fate})

  In another terminal:

    . {env_file}
    kms jwt sign {SAMPLE_KEY} --claims '{{\"sub\":\"alice\"}}' --ttl 15m
    curl -s $KMS_HTTP_ADDR/.well-known/jwks.json

  Ctrl-C ends it.
",
            grpc = reachable(listening.grpc),
            http = reachable(listening.http),
        )
    }
}

/// Makes the sample key, unless it is there from an earlier time.
async fn make_sample_key(addr: &str, cacert: &Path, token_file: &Path) -> Result<(), Failure> {
    let token = fs::read_to_string(token_file).map_err(Failure::about(token_file.display()))?;
    let mut options = Options::new(addr, token.trim().to_owned().into());
    options.ca_pem = Some(fs::read(cacert).map_err(Failure::about(cacert.display()))?);
    let client = Client::connect(options).await?;
    let key = v1::Key { algorithm: "ES256".to_owned(), owner: "kms dev".to_owned(), ..Default::default() };
    let request =
        v1::CreateKeyRequest { key_id: SAMPLE_KEY.to_owned(), key: Some(key), ..Default::default() };
    match client.create_key(request).await {
        Err(error) if error.kind() != Kind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

/// The signals that end us in order.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::about("cannot listen for signals"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The next one, as the server is to get it: a terminal that went away is a request to end.
    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::TERM,
        }
    }
}

/// An address that the certificate can cover: this machine's own, or all interfaces.
fn parse_addr(text: &str) -> Result<SocketAddr, &'static str> {
    const HELP: &str =
        "a development server listens on 127.0.0.1:PORT, [::1]:PORT, or 0.0.0.0:PORT or [::]:PORT";
    let addr: SocketAddr = text.parse().map_err(|_| HELP)?;
    let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    if own.contains(&reachable(addr).ip()) { Ok(addr) } else { Err(HELP) }
}

/// The same address with a free port when it asks for any.
fn with_port(addr: SocketAddr) -> std::io::Result<SocketAddr> {
    if addr.port() == 0 { TcpListener::bind(addr)?.local_addr() } else { Ok(addr) }
}

/// An address that reaches a listener on this machine: one on all interfaces is reached through the loopback,
/// for which the certificate is made.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, addr.port())
}

fn progress(text: &str) {
    if output::watched() {
        output::note(&format!("kms dev: {text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_the_certificate_cannot_cover_are_refused() {
        for bad in ["192.0.2.1:8443", "127.0.0.2:8443", "localhost:8443", "127.0.0.1", ":8443"] {
            assert!(parse_addr(bad).is_err(), "{bad:?} was taken");
        }
        for good in ["127.0.0.1:0", "[::1]:8443", "0.0.0.0:8443", "[::]:1"] {
            assert!(parse_addr(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_directory_that_others_can_enter_or_that_is_in_use_is_refused() {
        let parent = tempfile::tempdir().expect("a directory");
        let open = parent.path().join("open");
        DirBuilder::new().mode(0o755).create(&open).expect("make");
        assert!(Home::open(Some(&open)).err().expect("open to others").hint_text().is_some());

        let dir = parent.path().join("new/dir");
        let home = Home::open(Some(&dir)).expect("the first");
        let second = Home::open(Some(&dir)).err().expect("the second");
        assert_eq!(second.code(), Code::Precondition);
        drop(home);
        assert!(Home::open(Some(&dir)).is_ok());
    }

    #[test]
    fn a_temporary_directory_goes_with_us_and_a_named_one_stays() {
        let temporary = Home::open(None).expect("open");
        let path = temporary.dir.clone();
        drop(temporary);
        assert!(!path.exists());

        let parent = tempfile::tempdir().expect("a directory");
        drop(Home::open(Some(&parent.path().join("kept"))).expect("open"));
        assert!(parent.path().join("kept").exists());
    }
}
