//! Where the shim is.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

use crate::Error;

/// Path of the shim: `KMS_FAULTY_PKCS11` when set, else what cargo builds (once in each process, and quickly when it
/// is built already). For code that cargo runs inside this workspace.
pub fn module() -> Result<PathBuf, Error> {
    static MODULE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let module = MODULE.get_or_init(|| match env::var_os("KMS_FAULTY_PKCS11") {
        Some(path) => Ok(path.into()),
        None => build(),
    });
    module.clone().map_err(Error::Shim)
}

fn build() -> Result<PathBuf, String> {
    // By name: nothing that ships may depend on the shim, not even through cargo.
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--package", "kms-faulty-pkcs11", "--lib", "--message-format=json"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo build: {}", output.status));
    }
    let library = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let ours =
            message["reason"] == "compiler-artifact" && message["target"]["name"] == "kms_faulty_pkcs11";
        ours.then(|| message["filenames"][0].as_str().map(PathBuf::from)).flatten()
    };
    let messages = String::from_utf8_lossy(&output.stdout);
    messages.lines().find_map(library).ok_or_else(|| "cargo names no library".to_owned())
}
