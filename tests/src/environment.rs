//! Where a service is, and how to use it: what `DIR/env` tells a shell.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};
use kms_client::{Client, Options};
use reqwest::StatusCode;
use serde_json::Value;

use crate::{Output, PATIENCE, kms, until};

/// How often a connection is tried.
const CONNECT_ATTEMPTS: usize = 3;

/// The client's variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `KMS_ADDR`: URL of the gRPC API.
    pub addr: String,
    /// `KMS_CACERT`: file with the certificate authority to trust.
    pub ca_file: PathBuf,
    /// `KMS_TOKEN_FILE`: file with the access token.
    pub token_file: PathBuf,
    /// `KMS_HTTP_ADDR`: URL under which JWKS, health and metrics are.
    pub http_addr: String,
}

impl Environment {
    /// Reads `DIR/env` as its readers do: with a shell.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let script =
            r#". "$1" && printf '%s\0' "$KMS_ADDR" "$KMS_CACERT" "$KMS_TOKEN_FILE" "$KMS_HTTP_ADDR""#;
        let output = Command::new("sh").args(["-euc", script, "sh"]).arg(file).env_clear().output()?;
        if !output.status.success() {
            bail!("{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8(output.stdout)?;
        let mut values = text.split_terminator('\0').map(str::to_owned);
        let mut next = || values.next().context("a variable is missing");
        Ok(Self { addr: next()?, ca_file: next()?.into(), token_file: next()?.into(), http_addr: next()? })
    }

    /// The same service, called with another access token.
    pub fn with_token_file(&self, token_file: impl Into<PathBuf>) -> Self {
        Self { token_file: token_file.into(), ..self.clone() }
    }

    /// Connects with the SDK.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let mut options = Options::new(self.addr.clone(), self.access_token()?.into());
        options.ca_pem = Some(std::fs::read(&self.ca_file)?);
        // On a busy machine a handshake takes longer than the SDK waits for one.
        (options.connect_timeout, options.timeout) = (PATIENCE, PATIENCE);
        // And longer than the server waits for one, who then hangs up.
        for _ in 1..CONNECT_ATTEMPTS {
            if let Ok(client) = Client::connect(options.clone()).await {
                return Ok(client);
            }
        }
        Ok(Client::connect(options).await?)
    }

    /// The credential.
    pub fn access_token(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(&self.token_file)?.trim_end().to_owned())
    }

    /// Runs `kms` with these variables.
    pub async fn kms<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Output> {
        let args: Vec<&str> = args.into_iter().collect();
        let output = tokio::process::Command::new(kms()?)
            .args(&args)
            .env("KMS_ADDR", &self.addr)
            .env("KMS_CACERT", &self.ca_file)
            .env("KMS_TOKEN_FILE", &self.token_file)
            .env("KMS_HTTP_ADDR", &self.http_addr)
            .kill_on_drop(true)
            .output()
            .await?;
        Ok(Output::of(format!("kms {}", args.join(" ")), output))
    }

    /// Has the proposal that a refusal names approved by a second administrator, and executes it.
    pub async fn consent(&self, refusal: &str) -> anyhow::Result<()> {
        let (_, from) =
            refusal.split_once("proposals/").with_context(|| format!("no proposal: {refusal}"))?;
        let id = from.get(..32).with_context(|| format!("no proposal: {refusal}"))?;
        let second = self.with_token_file(self.token_file.with_extension("second"));
        if !second.token_file.exists() {
            let out = second.token_file.to_str().context("a path in UTF-8")?;
            let create =
                ["access-token", "create", "second", "--role", "administrator", "--all-keys", "--out", out];
            self.kms(create).await?.text()?;
        }
        second.kms(["approvals", "approve", id, "--yes"]).await?.text()?;
        self.kms(["approvals", "execute", id]).await?.text()?;
        Ok(())
    }

    /// Reads a path over HTTP, following no redirect.
    pub async fn get(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        Ok(Self::http()?.get(format!("{}{path}", self.http_addr)).send().await?)
    }

    /// Reads JSON from a path that must answer 200.
    pub async fn get_json(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.get(path).await?;
        ensure!(response.status() == StatusCode::OK, "GET {path}: {}", response.status());
        Ok(serde_json::from_slice(&response.bytes().await?)?)
    }

    /// One number of `/metrics`, the first of that name without its labels.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let text = self.get("/metrics").await?.error_for_status()?.text().await?;
        let value = |line: &str| {
            let (found, value) = line.rsplit_once(' ')?;
            let found = found.split('{').next()?;
            (found == name).then(|| value.to_owned())
        };
        Ok(text.lines().find_map(value).with_context(|| format!("no metric {name} in\n{text}"))?.parse()?)
    }

    /// Waits until every worker, spare ones too, is logged in and answers: only then may one be killed (SoftHSM
    /// 2.6.1 loses a token when a process dies in C_Login).
    pub async fn all_workers_ready(&self) -> anyhow::Result<()> {
        until("all workers are ready", PATIENCE, async || {
            let ready = self.metric("kms_hsm_workers_ready").await?;
            let wanted = self.metric("kms_hsm_workers_wanted").await?;
            let spares = self.metric("kms_hsm_spares_ready").await?;
            let spares_wanted = self.metric("kms_hsm_spares_wanted").await?;
            Ok((ready >= wanted && spares >= spares_wanted).then_some(()))
        })
        .await
    }

    /// An HTTP client that follows no redirect.
    pub fn http() -> anyhow::Result<reqwest::Client> {
        Ok(reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(std::time::Duration::from_secs(10))
            .build()?)
    }
}
