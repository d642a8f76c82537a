//! OpenSC's `pkcs11-tool`: what somebody else's program sees in a token, and does to it.

use std::{fs, process::Command};

use anyhow::Context as _;
use kms_softhsm::Token;

use crate::Output;

/// Runs it on `token`, logged in as the user.
pub fn pkcs11_tool(token: &Token, arguments: &[&str]) -> anyhow::Result<Output> {
    let (name, value) = token.env();
    let output = Command::new("pkcs11-tool")
        .arg("--module")
        .arg(token.module())
        .args(["--token-label", token.label(), "--login", "--pin", "env:KMS_TEST_PIN"])
        .args(arguments)
        .env("KMS_TEST_PIN", fs::read_to_string(token.pin_file())?.trim_end())
        .env(name, value)
        .output()
        .context("opensc's pkcs11-tool is needed: apt-get install opensc")?;
    Ok(Output::of(format!("pkcs11-tool {}", arguments.join(" ")), output))
}
