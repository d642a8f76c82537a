//! OpenSC's `pkcs11-tool`: what somebody else's program sees in a token, and does to it.

use std::{fs, process::Command};

use anyhow::Context as _;
use kms_softhsm::Token;

use crate::Output;

/// Runs it on `token`, logged in as the user.
pub fn pkcs11_tool(token: &Token, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = command(token);
    command.args(["--login", "--pin", "env:KMS_TEST_PIN"]);
    command.env("KMS_TEST_PIN", fs::read_to_string(token.pin_file())?.trim_end());
    run(command, arguments)
}

/// Runs it as somebody would who reaches the token and has no PIN.
pub fn pkcs11_tool_without_pin(token: &Token, arguments: &[&str]) -> anyhow::Result<Output> {
    run(command(token), arguments)
}

fn command(token: &Token) -> Command {
    let (name, value) = token.env();
    let mut command = Command::new("pkcs11-tool");
    command.arg("--module").arg(token.module()).args(["--token-label", token.label()]).env(name, value);
    command
}

fn run(mut command: Command, arguments: &[&str]) -> anyhow::Result<Output> {
    let output = command.args(arguments).output();
    let output = output.context("opensc's pkcs11-tool is needed: apt-get install opensc")?;
    Ok(Output::of(format!("pkcs11-tool {}", arguments.join(" ")), output))
}
