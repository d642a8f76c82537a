//! One server and its data: what PostgreSQL calls a cluster.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

use crate::{
    Database,
    certificate::Certificate,
    postmaster::Postmaster,
    programs::{Programs, text_of},
    secret::{self, Secret},
};

/// The role that may do everything.
const SUPERUSER: &str = "postgres";
/// Ports below those that Linux gives to connections by itself (`ip_local_port_range` begins at 32,768): while the
/// server is down nobody else is given its port, and no connection to it meets itself.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// How often another port is tried.
const ATTEMPTS_MAX: usize = 20;
/// What a test may change.
const SETTINGS: [(&str, &str); 5] = [
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("max_connections", "200"),
    ("shared_buffers", "16MB"),
    // In the data directory, so that nothing is left in /dev/shm after a kill.
    ("dynamic_shared_memory_type", "mmap"),
];

/// A PostgreSQL server in a temporary directory. Dropped, it is killed and the directory is removed; when the process
/// ends without that, the server is killed all the same.
#[derive(Debug)]
pub struct Cluster {
    postmaster: Option<Postmaster>,
    addr: SocketAddr,
    settings: Vec<(String, String)>,
    password: Secret,
    certificate: Certificate,
    programs: Programs,
    home: TempDir,
}

impl Cluster {
    /// Makes one, starts it, and waits until it accepts connections.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&[])
    }

    /// The same with settings of `postgresql.conf`, e.g. `("max_connections", "20")`.
    pub fn start_with(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let programs = Programs::find()?;
        let home = tempfile::Builder::new().prefix("kms-postgres-").tempdir()?;
        let password = Secret::draw()?;
        initdb(home.path(), &programs, &password)?;
        let certificate = Certificate::make(home.path(), &programs)?;
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let settings = SETTINGS.iter().chain(settings).map(owned).collect();
        let addr = free_address()?;
        let mut cluster = Self { postmaster: None, addr, settings, password, certificate, programs, home };
        for _ in 1..ATTEMPTS_MAX {
            match cluster.start_again() {
                // Another test was quicker.
                Err(error) if format!("{error:#}").contains("Address already in use") => {
                    cluster.addr = free_address()?;
                }
                result => return result.map(|()| cluster),
            }
        }
        bail!("no port of {PORTS:?} is free for PostgreSQL")
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The file of its certificate, which signed itself.
    pub fn ca_file(&self) -> &Path {
        &self.certificate.file
    }

    /// Makes an empty database, owned by a role of its own.
    pub fn create_database(&self) -> anyhow::Result<Database> {
        let (name, user, password) = (secret::name("db")?, secret::name("role")?, Secret::draw()?);
        let role = format!("CREATE ROLE {user} LOGIN PASSWORD '{}'", password.reveal());
        self.sql("postgres", &format!("{role};\nCREATE DATABASE {name} OWNER {user};"))?;
        Ok(Database { name, user, password })
    }

    /// Runs statements in `database` as the superuser, until one fails. Returns the rows: a line each, without the
    /// last line's end, columns parted by `|`.
    pub fn sql(&self, database: &str, text: &str) -> anyhow::Result<String> {
        let mut input = tempfile::tempfile()?;
        input.write_all(text.as_bytes())?;
        input.rewind()?;
        let mut psql = self.psql(database);
        psql.env("PGHOST", self.home.path()).env("PGPORT", self.addr.port().to_string());
        psql.env("PGUSER", SUPERUSER).env("PGPASSWORD", self.password.reveal());
        text_of(psql.args(["-f", "-"]).stdin(input))
    }

    /// `psql` for a database's URL or name, with nobody's settings: it prints rows only, fails when a statement fails,
    /// and never asks for a password (it takes `PGPASSWORD`).
    pub fn psql(&self, database: &str) -> Command {
        let mut psql = self.programs.client_side("psql");
        psql.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-d", database]);
        psql.env("PGCONNECT_TIMEOUT", "20").stdin(Stdio::null());
        psql
    }

    /// Stops all its processes where they are: connections stay open, new ones are taken by the kernel, and nobody
    /// answers.
    pub fn stop_answering(&self) -> anyhow::Result<()> {
        self.running()?.freeze()
    }

    /// Lets them go on.
    pub fn answer_again(&self) -> anyhow::Result<()> {
        self.running()?.thaw()
    }

    /// Kills all its processes, and waits until they are gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.postmaster.take().context("PostgreSQL does not run")?.kill()
    }

    /// Shuts it down in order: everybody is disconnected.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.answer_again()?;
        self.postmaster.take().context("PostgreSQL does not run")?.shut_down()
    }

    /// Starts it after [`Self::kill`] or [`Self::stop`], at the same address with the same data, and waits until it
    /// accepts connections.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        ensure!(self.postmaster.is_none(), "PostgreSQL runs already");
        let mut log =
            File::options().read(true).append(true).create(true).open(self.home.path().join("log"))?;
        let said_before = log.metadata()?.len();
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        let postmaster = self.postmaster.insert(Postmaster::start(command)?);
        let (pid, pid_file) = (postmaster.pid().as_raw_nonzero().to_string(), pid_file(self.home.path()));
        let ready = postmaster.until("it accepts connections", || Ok(is_ready(&pid_file, &pid)));
        if ready.is_err() {
            self.kill()?;
            let mut said = String::new();
            log.seek(std::io::SeekFrom::Start(said_before))?;
            log.read_to_string(&mut said)?;
            return ready.context(said);
        }
        Ok(())
    }

    fn running(&self) -> anyhow::Result<&Postmaster> {
        self.postmaster.as_ref().context("PostgreSQL does not run")
    }

    fn command(&self) -> Command {
        let path = |path: &Path| path.display().to_string();
        let own = [
            ("listen_addresses", self.addr.ip().to_string()),
            ("port", self.addr.port().to_string()),
            ("unix_socket_directories", path(self.home.path())),
            ("ssl", "on".to_owned()),
            ("ssl_cert_file", path(&self.certificate.file)),
            ("ssl_key_file", path(&self.certificate.key_file)),
        ];
        let mut command = self.programs.server_side("postgres");
        command.arg("-D").arg(data(self.home.path()));
        for (name, value) in &own {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // The last of a name counts.
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nobody is there to hear of an error.
        if let Some(postmaster) = self.postmaster.take() {
            let _ = postmaster.kill();
        }
        remove_shared_memory(&pid_file(self.home.path()));
    }
}

fn initdb(home: &Path, programs: &Programs, password: &Secret) -> anyhow::Result<()> {
    programs.give(home)?;
    let password_file = home.join("password");
    fs::write(&password_file, password.reveal())?;
    programs.give(&password_file)?;
    let mut initdb = programs.server_side("initdb");
    initdb.args([
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
        "--username",
        SUPERUSER,
    ]);
    initdb.arg("--pwfile").arg(&password_file).arg("--pgdata").arg(data(home)).stdin(Stdio::null());
    text_of(&mut initdb).context("initdb (by setpriv, of Debian's util-linux)")?;
    Ok(fs::remove_file(password_file)?)
}

fn free_address() -> anyhow::Result<SocketAddr> {
    for _ in 0..ATTEMPTS_MAX {
        let port = PORTS.start + secret::below(PORTS.end - PORTS.start)?;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(listener.local_addr()?);
        }
    }
    bail!("no port of {PORTS:?} is free")
}

fn data(home: &Path) -> PathBuf {
    home.join("data")
}

/// Its lines are listed in PostgreSQL's `src/include/utils/pidfile.h`.
fn pid_file(home: &Path) -> PathBuf {
    data(home).join("postmaster.pid")
}

/// As `pg_ctl --wait` finds out: the first line has the process, the eighth its state.
fn is_ready(pid_file: &Path, pid: &str) -> bool {
    let text = fs::read_to_string(pid_file).unwrap_or_default();
    let line = |number: usize| text.lines().nth(number - 1).map(str::trim);
    line(1) == Some(pid) && line(8) == Some("ready")
}

/// A killed server leaves a small segment of System V shared memory, of which a machine has 4,096. The seventh line
/// has its key and its id.
fn remove_shared_memory(pid_file: &Path) {
    let text = fs::read_to_string(pid_file).unwrap_or_default();
    if let Some(id) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
        let _ = Command::new("ipcrm").args(["-m", id]).output();
    }
}
