//! `kms serve` with a configuration that the test writes, over a token of its own.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use kms_softhsm::EphemeralToken;
use rustix::process::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Environment, Output, PATIENCE, Running, TestHsm, kms};

/// All that a server needs, before it is started: what an operator has prepared.
///
/// Fields drop in order: the token goes before the directory.
#[derive(Debug)]
pub struct Plan {
    /// The HSM.
    pub token: TestHsm,
    /// RFC 7512 URI of the token, as the configuration names it.
    pub uri: String,
    /// The store's file.
    pub store: PathBuf,
    /// Lines to add to the configuration, section by section, e.g. `("keys", "allow_destroy = true")`.
    pub more: Vec<(&'static str, String)>,
    home: TempDir,
}

/// A running server.
///
/// Fields drop in order: the processes end before the token and the directory go.
#[derive(Debug)]
pub struct Server {
    /// Its processes and its log.
    pub running: Running,
    environment: Environment,
    /// What it was started with.
    pub plan: Plan,
}

impl Plan {
    /// A SoftHSM token, a certificate, and a configuration with nothing but what must be in it.
    pub fn new() -> anyhow::Result<Self> {
        Self::on(EphemeralToken::new()?)
    }

    /// The same with an HSM of the test's choice.
    pub fn on(hsm: impl Into<TestHsm>) -> anyhow::Result<Self> {
        let token = hsm.into();
        let home = tempfile::Builder::new().prefix("kms-story-").tempdir()?;
        make_certificate(home.path())?;
        fs::create_dir(home.path().join("store"))?;
        let store = home.path().join("store/kms.db");
        Ok(Self { uri: token.uri()?, store, token, more: Vec::new(), home })
    }

    /// The configuration's file.
    pub fn config_file(&self) -> PathBuf {
        self.home.path().join("kms.toml")
    }

    /// The directory that all files are in.
    pub fn dir(&self) -> &Path {
        self.home.path()
    }

    /// Writes the configuration.
    pub fn write(&self) -> anyhow::Result<()> {
        let store = format!("path = {}", Value::from(self.store.display().to_string()));
        Ok(fs::write(self.config_file(), self.configuration(self.home.path(), &store, &self.more))?)
    }

    /// The text of a configuration with the lines `store` about the store and `more`; the server's own files are in
    /// `dir`.
    pub fn configuration(&self, dir: &Path, store: &str, more: &[(&'static str, String)]) -> String {
        let path = |dir: &Path, name: &str| Value::from(dir.join(name).display().to_string());
        let (certificate, key) = (path(self.home.path(), "tls.crt"), path(self.home.path(), "tls.key"));
        let grpc = format!("addr = \"127.0.0.1:0\"\ntls_cert_file = {certificate}\ntls_key_file = {key}");
        let sections = [
            ("grpc", grpc),
            ("http", "addr = \"127.0.0.1:0\"\nissuer = \"https://kms.test\"".to_owned()),
            ("hsm", format!("uri = {}", Value::from(self.uri.as_str()))),
            ("store", store.to_owned()),
            ("audit", format!("dir = {}", path(dir, "audit"))),
            ("keys", String::new()),
            ("authn", String::new()),
        ];
        let mut text = String::new();
        for (section, lines) in sections {
            text += &format!("[{section}]\n{lines}\n");
            for (_, line) in more.iter().filter(|(of, _)| *of == section) {
                text += &format!("{line}\n");
            }
        }
        text
    }

    /// A `kms` command that is given the configuration and finds the token.
    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        self.write()?;
        let mut command = Command::new(kms()?);
        command.args(arguments).env("KMS_CONFIG", self.config_file()).envs(self.token.variables());
        Ok(command)
    }

    /// Runs such a command, which must end by itself.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let name = format!("kms {}", arguments.join(" "));
        let mut command = tokio::process::Command::from(self.command(arguments)?);
        let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await;
        Ok(Output::of(&name, output.with_context(|| format!("{name} does not end"))??))
    }

    /// Makes the first administrator, whose credential is then in [`Self::credential_file`].
    pub async fn bootstrap(&self) -> anyhow::Result<()> {
        self.write()?;
        self.bootstrap_with(&self.config_file()).await
    }

    /// The same, with another configuration.
    pub async fn bootstrap_with(&self, config_file: &Path) -> anyhow::Result<()> {
        let mut command = tokio::process::Command::new(kms()?);
        command.args(["bootstrap", "--out"]).arg(self.credential_file());
        command.env("KMS_CONFIG", config_file).envs(self.token.variables()).kill_on_drop(true);
        Output::of("kms bootstrap", command.output().await?).text()?;
        Ok(())
    }

    /// The file that [`Self::bootstrap`] writes.
    pub fn credential_file(&self) -> PathBuf {
        self.home.path().join("administrator")
    }

    /// Starts the server and waits until it serves.
    pub async fn start(self) -> anyhow::Result<Server> {
        let command = self.command(&["serve"])?;
        self.start_with(command, |path, _| path.to_owned()).await
    }

    /// Starts it by `command`. `seen` says where the test sees a file of a process, for a process that has its own
    /// view of the file system.
    pub async fn start_with(
        self,
        command: Command,
        seen: impl Fn(&Path, Pid) -> PathBuf,
    ) -> anyhow::Result<Server> {
        let (running, environment) = self.launch(command, seen).await?;
        Ok(Server { running, environment, plan: self })
    }

    /// The same, and leaves the plan to the test.
    pub async fn launch(
        &self,
        mut command: Command,
        seen: impl Fn(&Path, Pid) -> PathBuf,
    ) -> anyhow::Result<(Running, Environment)> {
        let listening = self.store.with_file_name("listening.json");
        if listening.exists() {
            fs::remove_file(&listening)?;
        }
        let mut running = Running::start(&mut command, &self.home.path().join("log"))?;
        let listening = seen(&listening, running.pid()?);
        running.ready_when(&listening).await?;
        Ok((running, self.environment(&listening)?))
    }

    /// Where the server that wrote `listening` is.
    pub fn environment(&self, listening: &Path) -> anyhow::Result<Environment> {
        let listening: Value = serde_json::from_slice(&fs::read(listening)?)?;
        let addr = |name: &str| {
            listening[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {listening}"))
        };
        Ok(self.environment_at(format!("https://{}", addr("grpc")?), format!("http://{}", addr("http")?)))
    }

    /// The service at these URLs, with the administrator's credential.
    pub fn environment_at(&self, addr: String, http_addr: String) -> Environment {
        let ca_file = self.home.path().join("tls.crt");
        Environment { addr, ca_file, token_file: self.credential_file(), http_addr }
    }
}

impl Deref for Server {
    type Target = Environment;

    fn deref(&self) -> &Environment {
        &self.environment
    }
}

/// A certificate for this machine that signed itself; its own trust anchor.
fn make_certificate(dir: &Path) -> anyhow::Result<()> {
    let config = dir.join("openssl.cnf");
    fs::write(
        &config,
        "[req]\ndistinguished_name = dn\nx509_extensions = ext\nprompt = no\n[dn]\nCN = kms test\n\
         [ext]\nbasicConstraints = critical, CA:FALSE\nextendedKeyUsage = serverAuth\n\
         subjectAltName = IP:127.0.0.1, DNS:localhost\n",
    )?;
    let output = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-noenc",
            "-days",
            "2",
        ])
        .arg("-config")
        .arg(config)
        .arg("-out")
        .arg(dir.join("tls.crt"))
        .arg("-keyout")
        .arg(dir.join("tls.key"))
        .output()
        .context("openssl")?;
    if !output.status.success() {
        bail!("openssl: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
