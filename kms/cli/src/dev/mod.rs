//! `kms dev`: everything that a developer needs, in one command and one directory. DEVELOPMENT ONLY.
//!
//! The directory is a whole installation in small: a SoftHSM token, TLS, a configuration, a store and an audit
//! log. It is served by an ordinary `kms serve`, so what a developer sees is what production runs. Each step
//! keeps what it finds: a directory that was used before is resumed.

mod address;
mod banner;
mod certificates;
mod config_file;
mod env_file;
mod files;
mod server;
mod signals;

use std::{
    env,
    fs::{self, DirBuilder, File, TryLockError},
    io::ErrorKind,
    net::SocketAddr,
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
        process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
};

use clap::Args;
use kms_client::{Client, Kind, Options, v1};
use kms_core::verbs;
use kms_server::addresses;
use kms_softhsm::DevToken;
use rustix::process::Signal;
use tempfile::TempDir;

use self::{
    address::reachable,
    config_file::Settings,
    env_file::{Environment, quoted},
    files::write_atomically,
    server::Server,
    signals::Signals,
};
use crate::{
    bootstrap, clock,
    configuration::{self, Overrides},
    failure::{Code, Failure},
    output,
};

/// Mode of the directory and those in it.
const PRIVATE: u32 = 0o700;

const LOCK_FILE: &str = "dev.lock";
const CONFIG_FILE: &str = "kms.toml";
const TOKEN_FILE: &str = "admin-token";
const ENV_FILE: &str = "env";
/// The key that the printed commands use.
const SAMPLE_KEY: &str = "sample-jwt";

/// Run everything on this machine, with a software token: DEVELOPMENT ONLY
#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// Keep everything in this directory, and resume what is there; without it a temporary one, removed at exit
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where gRPC listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8443", value_parser = address::parse)]
    grpc_addr: SocketAddr,
    /// Where HTTP (JWKS, health, metrics) listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = address::parse)]
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

impl Dev {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        // First of all: from here on a signal ends us in order, and a temporary directory goes with us.
        let mut signals = Signals::listen()?;
        let home = Home::open(self.dir.as_deref())?;
        let (config, token) = home.prepare(self.grpc_addr, self.http_addr).await?;

        progress("starting the server");
        let mut server = Server::spawn(&config, token.env())?;
        let failure = tokio::select! {
            failure = home.serve(&mut server, &token) => failure,
            signal = signals.next() => {
                progress("waiting for the server to finish what it began");
                return drain(server, signal, &mut signals).await;
            }
        };
        // What went wrong first is what matters.
        let _ = drain(server, Signal::TERM, &mut signals).await;
        Err(failure)
    }
}

/// Passes `signal` and any that follow to the server, and waits for its end.
async fn drain(mut server: Server, signal: Signal, signals: &mut Signals) -> Result<(), Failure> {
    server.signal(signal);
    loop {
        tokio::select! {
            status = server.ended() => {
                let status = status?;
                // A server that had only just begun has no handler yet, and dies of the signal.
                let as_asked = status.success() || status.signal() == Some(signal.as_raw());
                return if as_asked { Ok(()) } else { Err(server::ended(status)) };
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
                let made = DirBuilder::new().recursive(true).mode(PRIVATE).create(dir);
                made.map_err(Failure::about(dir.display()))?;
                (dir.to_owned(), None)
            }
            None => {
                let permissions = fs::Permissions::from_mode(PRIVATE);
                let made = tempfile::Builder::new().prefix("kms-dev-").permissions(permissions).tempdir();
                let temporary = made.map_err(Failure::about(env::temp_dir().display()))?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let dir = dir.canonicalize().map_err(Failure::about(dir.display()))?;
        refuse_not_private(&dir)?;
        let lock = take_lock(&dir)?;
        Ok(Self { dir, temporary, _lock: lock })
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
        let http_addr =
            address::with_port(http_addr).map_err(Failure::about(format!("--http-addr {http_addr}")))?;
        let issuer = format!("http://{}", reachable(http_addr));
        let hsm_uri = token.uri();
        let settings = Settings { grpc_addr, http_addr, issuer: &issuer, hsm_uri: &hsm_uri };
        let config = self.dir.join(CONFIG_FILE);
        write_atomically(&config, settings.to_toml()?.as_bytes(), 0o600)?;
        let [store_dir, audit_dir] = config_file::directories(&self.dir);
        for directory in [&store_dir, &audit_dir] {
            let made = DirBuilder::new().recursive(true).mode(PRIVATE).create(directory);
            made.map_err(Failure::about(directory.display()))?;
        }
        // A server that was killed left its own behind, with its ports.
        remove_if_present(&store_dir.join(addresses::FILE_NAME))?;

        self.bootstrap(&config).await?;
        Ok((config, token))
    }

    /// Makes the administrator, unless an earlier start did.
    async fn bootstrap(&self, config: &Path) -> Result<(), Failure> {
        let credential = self.dir.join(TOKEN_FILE);
        match fs::metadata(&credential) {
            Ok(found) if found.len() > 0 => return Ok(()),
            // An earlier start was cut off before it had made the administrator.
            _ => remove_if_present(&credential)?,
        }
        let config = configuration::load(config, &Overrides::default())?;
        let made = bootstrap::to_file(&config, verbs::Bootstrap::First, &credential).await;
        made.map_err(|failure| failure.hint(format!("to begin anew, remove {}", self.dir.display())))
    }

    /// Presents the server and watches it; returns only when something went wrong.
    async fn serve(&self, server: &mut Server, token: &DevToken) -> Failure {
        if let Err(failure) = self.present(server, token).await {
            return failure;
        }
        match server.ended().await {
            Ok(status) => server::ended(status),
            Err(failure) => failure,
        }
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
        banner::Banner {
            addr: &addr,
            http_addr: &http_addr,
            dir: &self.dir,
            temporary: self.temporary.is_some(),
            env_file: &env_file,
        }
        .print()
    }
}

/// PINs and a credential will lie in the directory.
fn refuse_not_private(dir: &Path) -> Result<(), Failure> {
    let found = fs::metadata(dir).map_err(Failure::about(dir.display()))?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(Failure::usage(format!("{} is not a directory of this user", dir.display())).hint(
            "PINs and a credential will lie in it: name one that is, or one that is still to be made",
        ));
    }
    let mode = found.mode() & 0o777;
    if mode & !PRIVATE == 0 {
        return Ok(());
    }
    Err(Failure::usage(format!("{} is open to other users (mode {mode:o})", dir.display()))
        .hint(format!("PINs and a credential will lie in it: chmod 700 {}", quoted(&dir.to_string_lossy()))))
}

/// One `kms dev` at a time.
fn take_lock(dir: &Path) -> Result<File, Failure> {
    let lock = File::create(dir.join(LOCK_FILE)).map_err(Failure::about(dir.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let message = format!("another `kms dev` uses {}", dir.display());
            Err(Failure::new(Code::Precondition, message).hint("end it first, or name another --dir"))
        }
        Err(TryLockError::Error(error)) => Err(Failure::about(dir.display())(error)),
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

fn remove_if_present(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::about(path.display())(error)),
        _ => Ok(()),
    }
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
    fn a_directory_of_another_user_is_refused() {
        // What is not ours: the root's, or, when we are root, one that is given away.
        let given = tempfile::tempdir().expect("a directory");
        let root = rustix::process::geteuid().is_root();
        let dir = if root { given.path() } else { Path::new("/") };
        if root {
            std::os::unix::fs::chown(dir, Some(65_534), None).expect("root may");
        }
        let refused = Home::open(Some(dir)).err().expect("it is not ours");
        assert_eq!(refused.code(), Code::Usage);
        assert!(refused.message().contains("not a directory of this user"), "{}", refused.message());
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
