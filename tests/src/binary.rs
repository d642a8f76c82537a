//! The program under test.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// Path of `kms`: `KMS_BIN` when set, else what cargo builds (once in each process, and quickly when it is
/// built already).
pub fn kms() -> anyhow::Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let binary = BINARY.get_or_init(|| match std::env::var_os("KMS_BIN") {
        Some(path) => Ok(path.into()),
        None => build().map_err(|error| format!("{error:#}")),
    });
    binary.as_deref().map_err(|error| anyhow::anyhow!("kms does not build: {error}"))
}

fn build() -> anyhow::Result<PathBuf> {
    let output = Command::new(env!("CARGO"))
        // The whole workspace, so that crates from outside have the features with which the tests were just built.
        // Our own differ by the failpoints: cargo keeps both sorts, so neither build undoes the other.
        .args(["build", "--quiet", "--workspace", "--bin", "kms", "--features", "kms-cli/failpoints"])
        .arg("--message-format=json")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .context("cargo")?;
    if !output.status.success() {
        bail!("cargo build: {}", output.status);
    }
    let messages = String::from_utf8(output.stdout)?;
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let ours = message["reason"] == "compiler-artifact" && message["target"]["name"] == "kms";
        ours.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    };
    messages.lines().find_map(executable).context("cargo names no executable")
}
