//! A database that is restored from a backup is older than the HSM has seen: what was revoked or disabled since is
//! valid in it. The service notices, reads and takes away, and does nothing else until an administrator accepts it.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use kms_client::v1;
use kms_tests::{Environment, PATIENCE, Plan, Server, pkcs11_tool, refusal, until};
use reqwest::StatusCode;
use serde_json::Value;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_signs_nothing_until_an_administrator_has_accepted_it() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let leaked = plan.dir().join("leaked");
    let server = plan.start().await?;
    let client = server.client().await?;
    let key = Some(v1::Key { algorithm: "ES256".into(), ..Default::default() });
    client.create_key(v1::CreateKeyRequest { key_id: "orders".into(), key, ..Default::default() }).await?;
    client.rotate_key(v1::RotateKeyRequest { name: "keys/orders".into(), ..Default::default() }).await?;
    let out = leaked.display().to_string();
    let create =
        ["access-token", "create", "leaked", "--role", "raw-signer", "--key", "orders", "--out", &out];
    server.kms(create).await?.text()?;
    sign(&server.with_token_file(&leaked)).await?;
    let jwks = server.get_json("/.well-known/jwks.json").await?;
    ensure!(objects_of(&server)? == [2, 2, 1], "two pairs and an epoch");
    let plan = stop(server).await?;
    let (store, backup) = (plan.store.clone(), plan.dir().join("backup"));
    copy(store.parent().context("the store's directory")?, &backup)?;

    let server = plan.start().await?;
    ensure!(server.metric("kms_recovery_mode").await? == 0.0, "the database is the newest");
    server.kms(["access-token", "revoke", "leaked"]).await?.text()?;
    let refused = refusal(sign_raw(&server.with_token_file(&leaked)).await?)?;
    ensure!(refused.code == Code::Unauthenticated, "{refused:?}");
    server.kms(["keys", "disable", "orders", "--version", "2"]).await?.text()?;
    let plan = stop(server).await?;

    copy(&backup, store.parent().context("the store's directory")?)?;
    let server = plan.start().await?;
    let log = server.running.log();
    ensure!(log.contains("recovery mode") && log.contains("accept-older-store"), "{log}");
    let (_, code) = log.split_once("--confirm ").with_context(|| format!("no code in {log}"))?;
    let code: String = code.chars().take_while(char::is_ascii_hexdigit).collect();
    ensure!(code.len() == 16, "{log}");
    for who in [&*server, &server.with_token_file(&leaked)] {
        let refused = refusal(sign_raw(who).await?)?;
        ensure!(
            (refused.code, &*refused.reason) == (Code::FailedPrecondition, "RECOVERY_MODE"),
            "{refused:?}"
        );
    }
    let created = server.kms(["keys", "create", "other", "--algorithm", "ES256"]).await?;
    ensure!(!created.stderr.contains(&code), "callers learn the code: {created:?}");
    ensure!(created.code == Some(5) && created.stderr.contains("accept-older-store"), "{created:?}");
    let rotated = server.kms(["keys", "rotate", "orders"]).await?;
    ensure!(rotated.code == Some(5), "{rotated:?}");

    ensure!(
        server.get_json("/.well-known/jwks.json").await? == jwks,
        "the JWKS is served as the backup has it"
    );
    server.kms(["keys", "list"]).await?.text()?;
    let ready = server.get("/readyz").await?;
    ensure!(ready.status() == StatusCode::SERVICE_UNAVAILABLE, "{}", ready.status());
    let ready: Value = serde_json::from_slice(&ready.bytes().await?)?;
    ensure!(!ready.to_string().contains(&code), "{ready}");
    ensure!(ready["epoch"].as_str().is_some_and(|text| text.contains("recovery mode")), "{ready}");
    ensure!(ready["hsm"] == "ok" && ready["store"] == "ok", "{ready}");
    ensure!(server.metric("kms_recovery_mode").await? == 1.0, "the metric");

    // What the administrator knows to be missing is done again before anything signs.
    server.kms(["access-token", "revoke", "leaked"]).await?.text()?;
    let by_mistake = server.kms(["hsm", "accept-older-store", "--confirm", "4"]).await?;
    ensure!(by_mistake.code == Some(2) && by_mistake.stderr.contains("confirm"), "{by_mistake:?}");
    let accepted =
        server.kms(["-o", "json", "hsm", "accept-older-store", "--confirm", &code]).await?.json()?;
    ensure!(accepted["epoch"] == 5, "{accepted}");

    sign(&server).await?;
    let refused = refusal(sign_raw(&server.with_token_file(&leaked)).await?)?;
    ensure!(refused.code == Code::Unauthenticated, "the revoked access token came back: {refused:?}");
    until("it is ready again", PATIENCE, async || {
        Ok((server.get("/readyz").await?.status() == StatusCode::OK).then_some(()))
    })
    .await?;
    ensure!(server.metric("kms_recovery_mode").await? == 0.0, "the metric");
    let twice = server.kms(["hsm", "accept-older-store", "--confirm", &code]).await?;
    ensure!(twice.code == Some(5), "{twice:?}");
    ensure!(objects_of(&server)? == [2, 2, 1], "none was made, none destroyed");

    let server = stop(server).await?.start().await?;
    sign(&server).await
}

async fn stop(server: Server) -> anyhow::Result<Plan> {
    // Else a backup of what was may pass for the newest: the token follows a moment after the change.
    until("the HSM holds the epoch", PATIENCE, async || {
        Ok((server.metric("kms_epoch_pending").await? == 0.0).then_some(()))
    })
    .await?;
    let Server { mut running, plan, .. } = server;
    let status = running.terminate().await?;
    ensure!(status.success(), "{status}");
    Ok(plan)
}

async fn sign_raw(who: &Environment) -> anyhow::Result<Result<v1::SignResponse, tonic::Status>> {
    let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
    let request = v1::SignRequest { name: "keys/orders".into(), input, ..Default::default() };
    Ok(who.client().await?.crypto().sign(request).await.map(tonic::Response::into_inner))
}

async fn sign(who: &Environment) -> anyhow::Result<()> {
    sign_raw(who).await??;
    Ok(())
}

/// How many private keys, public keys and marks of an epoch stock `pkcs11-tool` sees.
fn objects_of(Server { plan, .. }: &Server) -> anyhow::Result<[usize; 3]> {
    let output = pkcs11_tool(&plan.token, &["--list-objects"])?;
    let text = output.text()?;
    let count = |what| text.matches(what).count();
    Ok(["Private Key Object", "Public Key Object", "kms-epoch"].map(count))
}

/// The files of a directory, in place of those of another.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
