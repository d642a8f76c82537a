//! What the module is asked to do, call by call.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Context as _;

use crate::{Output, PATIENCE, Plan};

/// OpenSC's pkcs11-spy, which stands between us and the module and writes down every call.
#[derive(Debug)]
pub struct Spy {
    module: PathBuf,
    log: PathBuf,
}

impl Spy {
    /// Puts it between.
    pub fn between(plan: &mut Plan) -> anyhow::Result<Self> {
        let places =
            ["x86_64-linux-gnu", "aarch64-linux-gnu"].map(|arch| format!("/usr/lib/{arch}/pkcs11-spy.so"));
        let spy =
            places.into_iter().find(|path| fs::exists(path).unwrap_or(false)).context("no pkcs11-spy.so")?;
        let module = plan.token.module().to_owned();
        plan.uri = plan.uri.replace(&module.display().to_string(), &spy);
        Ok(Self { module, log: plan.dir().join("spy") })
    }

    /// Tells it where the module is.
    pub fn lead(&self, mut command: Command) -> Command {
        command.env("PKCS11SPY", &self.module).env("PKCS11SPY_OUTPUT", &self.log);
        command
    }

    /// Runs `kms` over it, which must end by itself.
    pub async fn run(&self, plan: &Plan, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = tokio::process::Command::from(self.lead(plan.command(arguments)?));
        let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await;
        Ok(Output::of(arguments.join(" "), output.context("it does not end")??))
    }

    /// How often C_Login was called until now.
    pub fn logins(&self) -> anyhow::Result<usize> {
        let log = if self.log.exists() { fs::read(&self.log)? } else { Vec::new() };
        Ok(String::from_utf8_lossy(&log).lines().filter(|line| line.contains("C_Login")).count())
    }
}
