//! The programs under test: as cargo builds them, once in each process, and quickly when they are built already.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// Path of `kms`: `KMS_BIN` when set, else what cargo builds.
pub fn kms() -> anyhow::Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let binary = BINARY.get_or_init(|| match std::env::var_os("KMS_BIN") {
        Some(path) => Ok(path.into()),
        // Our own crates differ by the failpoints: cargo keeps both sorts, so neither build undoes the other.
        None => build("kms", &["--features", "kms-cli/failpoints"]),
    });
    binary.as_deref().map_err(|error| anyhow::anyhow!("kms does not build: {error}"))
}

/// Path of the example `encrypted-rows`.
pub fn encrypted_rows() -> anyhow::Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let binary = BINARY.get_or_init(|| build("encrypted-rows", &[]));
    binary.as_deref().map_err(|error| anyhow::anyhow!("encrypted-rows does not build: {error}"))
}

fn build(name: &str, features: &[&str]) -> Result<PathBuf, String> {
    built(name, features).map_err(|error| format!("{error:#}"))
}

fn built(name: &str, features: &[&str]) -> anyhow::Result<PathBuf> {
    let output = Command::new(env!("CARGO"))
        // The whole workspace, so that crates from outside have the features with which the tests were just built.
        .args(["build", "--quiet", "--workspace", "--bin", name])
        .args(features)
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
        let ours = message["reason"] == "compiler-artifact" && message["target"]["name"] == name;
        ours.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    };
    messages.lines().find_map(executable).context("cargo names no executable")
}
