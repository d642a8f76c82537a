//! A folder in which somebody works with `kms` at the command line, against a service of its own.

use std::{
    fs,
    io::Write as _,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Environment, Output, PATIENCE, Service, kms, until};

/// A service, a folder, and a key that wraps, `files`.
#[derive(Debug)]
pub struct Desk {
    /// The service.
    pub service: Service,
    folder: TempDir,
}

impl Desk {
    /// Starts a service and makes the key.
    pub async fn new() -> anyhow::Result<Self> {
        let service = Service::start().await?;
        let folder = tempfile::Builder::new().prefix("kms-desk-").tempdir()?;
        let desk = Self { service, folder };
        desk.run("keys create files --algorithm A256GCMKW")?.text()?;
        Ok(desk)
    }

    /// The path of a name in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let path = self.path(name);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        Ok(fs::write(path, bytes)?)
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        fs::read(self.path(name)).with_context(|| name.to_owned())
    }

    /// The names in the folder, or one below it, in order.
    pub fn names(&self, folder: &str) -> anyhow::Result<Vec<String>> {
        let names = fs::read_dir(self.path(folder))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names: Vec<String> = names.collect::<std::io::Result<_>>()?;
        names.sort_unstable();
        Ok(names)
    }

    /// Runs `kms` in the folder, with arguments that spaces part, as the service's administrator.
    pub fn run(&self, line: &str) -> anyhow::Result<Output> {
        self.run_as(&self.service, line, b"")
    }

    /// The same with something on standard input.
    pub fn pipe(&self, line: &str, input: &[u8]) -> anyhow::Result<Output> {
        self.run_as(&self.service, line, input)
    }

    /// The same as somebody else.
    pub fn run_as(&self, there: &Environment, line: &str, input: &[u8]) -> anyhow::Result<Output> {
        let (output, _) = self.bytes_as(there, line, input)?;
        Ok(output)
    }

    /// The same, and standard output as bytes.
    pub fn bytes(&self, line: &str, input: &[u8]) -> anyhow::Result<(Output, Vec<u8>)> {
        self.bytes_as(&self.service, line, input)
    }

    /// What `-o json` says.
    pub fn json(&self, line: &str) -> anyhow::Result<Value> {
        self.run(&format!("{line} -o json"))?.json()
    }

    /// `kms` in the folder, ready to be started.
    pub fn command(&self, line: &str) -> anyhow::Result<Command> {
        self.command_of(kms()?, &self.service, line)
    }

    /// A program in the folder, with the variables that lead to the service.
    pub fn command_of(&self, program: &Path, there: &Environment, line: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(program);
        command
            .args(line.split(' '))
            .current_dir(self.folder.path())
            .env("KMS_ADDR", &there.addr)
            .env("KMS_CACERT", &there.ca_file)
            .env("KMS_TOKEN_FILE", &there.token_file)
            .env("KMS_KEY", "files")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// A credential of this role for the key.
    pub fn with_role(&self, role: &str) -> anyhow::Result<Environment> {
        let line = format!("access-token create {role} --role {role} --key files --out {role}");
        self.run(&line)?.text()?;
        Ok(self.service.with_token_file(self.path(role)))
    }

    /// Rotates the key, without the usual wait, and waits until the next version wraps; its number.
    pub async fn rotate(&self) -> anyhow::Result<u32> {
        let next = self.json("keys rotate files --emergency")?["number"].as_u64().context("a number")?;
        let primary = Value::from(format!("keys/files/versions/{next}"));
        until("the next version wraps", PATIENCE, async || {
            Ok((self.json("keys get files")?["primary"] == primary).then_some(()))
        })
        .await?;
        Ok(u32::try_from(next)?)
    }

    fn bytes_as(&self, there: &Environment, line: &str, input: &[u8]) -> anyhow::Result<(Output, Vec<u8>)> {
        let mut child = self.command_of(kms()?, there, line)?.spawn()?;
        let mut stdin = child.stdin.take().context("a pipe")?;
        let input = input.to_vec();
        // It may end without having read all of it.
        let feeding = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output()?;
        let fed = feeding.join().map_err(|_| anyhow::anyhow!("the feeder panicked"))?;
        ensure!(fed.is_ok() || !output.status.success(), "{line}: it took {fed:?} and succeeded");
        let stdout = output.stdout.clone();
        Ok((Output::of(format!("kms {line}"), output), stdout))
    }
}

impl Deref for Desk {
    type Target = Environment;

    fn deref(&self) -> &Environment {
        &self.service
    }
}
