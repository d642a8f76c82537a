//! The token as other people's tools see it, with our own PIN in their hands: every private key was made in the
//! token, is sensitive and has never been extractable, and signs and does nothing else.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use kms_tests::{Output, Service};

#[tokio::test(flavor = "multi_thread")]
async fn pkcs11_tool_shows_each_private_key_as_local_never_extractable_and_for_signing_only()
-> anyhow::Result<()> {
    let service = service_with_keys().await?;
    let keys = Token::of(&service)?.private_keys()?;
    ensure!(keys.len() >= 4, "{keys:#?}");
    for key in keys {
        let access = key.get("Access").context("no access flags")?;
        let mut flags: Vec<_> = access.split(", ").collect();
        flags.sort_unstable();
        ensure!(flags == ["always sensitive", "local", "never extractable", "sensitive"], "{key:#?}");
        ensure!(key.get("Usage").is_some_and(|usage| usage == "sign"), "{key:#?}");
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

/// A token, as tools are led to it.
struct Token {
    module: PathBuf,
    conf: PathBuf,
    pin_file: PathBuf,
}

impl Token {
    /// The token of `kms dev`, which leaves `softhsm2.conf` and `pin` for this.
    fn of(service: &Service) -> anyhow::Result<Self> {
        Self::new(&service.dir().join("softhsm2.conf"), &service.dir().join("pin"))
    }

    fn new(conf: &Path, pin_file: &Path) -> anyhow::Result<Self> {
        let named = std::env::var_os("SOFTHSM2_MODULE").map(PathBuf::from);
        let usual = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"];
        let module = named.or_else(|| usual.into_iter().map(PathBuf::from).find(|path| path.exists()));
        let module = module.context("no SoftHSM module")?;
        Ok(Self { module, conf: conf.to_owned(), pin_file: pin_file.to_owned() })
    }

    /// Runs pkcs11-tool, logged in. The PIN is one of a throw-away token, so it may stand in the arguments.
    fn tool(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = Command::new("pkcs11-tool")
            .arg("--module")
            .arg(&self.module)
            .args(["--login", "--pin", fs::read_to_string(&self.pin_file)?.trim_end()])
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
