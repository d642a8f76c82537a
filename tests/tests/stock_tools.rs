//! The token as other people's tools see it, with our own PIN in their hands: every private key was made in the
//! token, is sensitive and has never been extractable, and signs and does nothing else.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use kms_tests::{Plan, Server, pkcs11_tool};

#[tokio::test(flavor = "multi_thread")]
async fn pkcs11_tool_shows_each_private_key_as_local_never_extractable_and_for_signing_only()
-> anyhow::Result<()> {
    let server = server_with_keys().await?;
    let keys = private_keys(pkcs11_tool(&server.plan.token, &["--list-objects"])?.text()?);
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

async fn server_with_keys() -> anyhow::Result<Server> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let server = plan.start().await?;
    for (name, algorithm) in [("p256", "ES256"), ("p384", "ES384"), ("rsa", "PS256"), ("edwards", "EdDSA")] {
        server.kms(["keys", "create", name, "--algorithm", algorithm, "--timeout", "60s"]).await?.text()?;
    }
    Ok(server)
}

/// The private keys of a listing, each with its fields.
fn private_keys(listing: &str) -> Vec<BTreeMap<String, String>> {
    let mut objects: Vec<(bool, BTreeMap<String, String>)> = Vec::new();
    for line in listing.lines() {
        if !line.starts_with(' ') {
            objects.push((line.starts_with("Private Key Object"), BTreeMap::new()));
        } else if let (Some((_, fields)), Some((name, value))) = (objects.last_mut(), line.split_once(':')) {
            fields.insert(name.trim().to_owned(), value.trim().to_owned());
        }
    }
    objects.into_iter().filter(|(private, _)| *private).map(|(_, fields)| fields).collect()
}
