//! A verifier that stays up, so that its cache of the key set lives as long as a story does.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
};

use crate::{Verdict, Verifier};

/// A verifier's program, running.
#[derive(Debug)]
pub struct CachedVerifier {
    name: &'static str,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

/// What it says about one token.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// About the token.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How often it has fetched the key set until now.
    pub fetches: u64,
}

impl Verifier {
    /// Starts it on the JWKS at `jwks_url`. Where the library leaves it to its user how long a set is kept, it keeps one for
    /// `cache`.
    pub fn start(
        self,
        jwks_url: &str,
        issuer: &str,
        audience: &str,
        cache: Duration,
    ) -> anyhow::Result<CachedVerifier> {
        let [program, arguments @ ..] = &self.command()[..] else { bail!("no command") };
        let mut command = tokio::process::Command::new(program);
        command.args(arguments);
        if matches!(self, Self::PyJwt | Self::Jose) {
            command.args(["--cache", &cache.as_secs().to_string()]);
        }
        let mut child = command
            .args([jwks_url, issuer, audience])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let stdin = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        Ok(CachedVerifier { name: self.name(), stdin, answers, _child: child })
    }
}

impl CachedVerifier {
    /// Verifies one token, with what it has in its cache or fetches.
    pub async fn verify(&mut self, alg: &str, token: &str) -> anyhow::Result<Answer> {
        self.stdin.write_all(format!("{alg} {token}\n").as_bytes()).await?;
        let line = self.answers.next_line().await?;
        let line = line.with_context(|| format!("{} has ended", self.name))?;
        serde_json::from_str(&line).with_context(|| format!("{} says {line}", self.name))
    }
}
