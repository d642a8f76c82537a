//! The token as OpenSC's `pkcs11-tool` sees it, with our own PIN in its hand: every private key was made in the
//! token, is sensitive and has never been extractable, and no attempt to get one out succeeds.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context as _, ensure};
use kms_tests::{Output, Service};

#[tokio::test(flavor = "multi_thread")]
async fn no_private_key_can_be_read_or_wrapped() -> anyhow::Result<()> {
    let service = service_with_keys().await?;
    let token = Token::of(&service)?;
    let keys = token.private_keys()?;
    ensure!(keys.len() == 4, "{keys:#?}");

    for key in &keys {
        let id = key.get("ID").context("no CKA_ID")?;
        let read = token.tool(&[
            "--read-object",
            "--type",
            "privkey",
            "--id",
            id,
            "--output-file",
            "/dev/stdout",
        ])?;
        ensure!(read.code != Some(0), "{} gave a private key away", read.command);
        ensure!(!read.stdout.contains("PRIVATE KEY"), "{}", read.stdout);
        for mechanism in ["RSA-PKCS", "RSA-PKCS-OAEP", "AES-KEY-WRAP"] {
            let wrap = token.tool(&[
                "--wrap",
                "--mechanism",
                mechanism,
                "--id",
                id,
                "--application-id",
                id,
                "--output-file",
                "/dev/stdout",
            ])?;
            ensure!(wrap.code != Some(0), "{} wrapped a private key", wrap.command);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_private_key_is_local_sensitive_never_extractable_and_good_for_signing_only()
-> anyhow::Result<()> {
    let service = service_with_keys().await?;
    let keys = Token::of(&service)?.private_keys()?;
    ensure!(keys.len() == 4, "{keys:#?}");
    for key in keys {
        let access = key.get("Access").context("no access flags")?;
        let mut flags: Vec<_> = access.split(", ").map(str::trim).collect();
        flags.sort_unstable();
        ensure!(flags == ["always sensitive", "local", "never extractable", "sensitive"], "{key:#?}");
        ensure!(key.get("Usage").map(|usage| usage.trim()) == Some("sign"), "{key:#?}");
        ensure!(key.get("label").is_some_and(|label| !label.is_empty()), "{key:#?}");
        ensure!(key.get("ID").is_some_and(|id| id.len() == 32), "CKA_ID is not 128 bits: {key:#?}");
    }
    Ok(())
}

async fn service_with_keys() -> anyhow::Result<Service> {
    let service = Service::start().await?;
    for (name, algorithm) in [("ec", "ES384"), ("rsa", "PS256"), ("edwards", "EdDSA")] {
        service.kms(["keys", "create", name, "--algorithm", algorithm, "--timeout", "60s"]).await?.text()?;
    }
    Ok(service) // And there is the sample key.
}

/// What `kms dev` leaves for other tools to look at the token.
struct Token {
    module: String,
    conf: String,
    pin: String,
}

impl Token {
    fn of(service: &Service) -> anyhow::Result<Self> {
        let dir = service.dir();
        let conf = dir.join("softhsm2.conf").display().to_string();
        let pin = fs::read_to_string(dir.join("pin"))?.trim_end().to_owned();
        let modules = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"];
        let named = std::env::var("SOFTHSM2_MODULE").ok();
        let found = named.or_else(|| {
            modules.into_iter().find(|path| fs::exists(path).unwrap_or(false)).map(str::to_owned)
        });
        Ok(Self { module: found.context("no SoftHSM module")?, conf, pin })
    }

    /// Runs pkcs11-tool, logged in. The PIN is one of a throw-away token, so it may stand in the arguments.
    fn tool(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = Command::new("pkcs11-tool")
            .args(["--module", &self.module, "--login", "--pin", &self.pin])
            .args(arguments)
            .env("SOFTHSM2_CONF", &self.conf)
            .output()
            .context("pkcs11-tool")?;
        Ok(Output::of(format!("pkcs11-tool {}", arguments.join(" ")), output))
    }

    /// The private keys that `pkcs11-tool -O` lists, each with its fields.
    fn private_keys(&self) -> anyhow::Result<Vec<BTreeMap<String, String>>> {
        let listing = self.tool(&["-O"])?;
        let mut objects: Vec<(bool, BTreeMap<String, String>)> = Vec::new();
        for line in listing.text()?.lines() {
            if !line.starts_with(' ') {
                objects.push((line.starts_with("Private Key Object"), BTreeMap::new()));
            } else if let (Some((_, fields)), Some((name, value))) =
                (objects.last_mut(), line.split_once(':'))
            {
                fields.insert(name.trim().to_owned(), value.trim().to_owned());
            }
        }
        Ok(objects.into_iter().filter(|(private, _)| *private).map(|(_, fields)| fields).collect())
    }
}
