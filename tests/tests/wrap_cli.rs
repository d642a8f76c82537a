//! The small verbs at the command line: `kms wrap`, `unwrap`, `rewrap`, `datakey`, `encrypt`, `decrypt`, `re-encrypt`, and
//! what `kms keys` says of keys that wrap.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::ensure;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use kms_tests::{Desk, PATIENCE, Plan, refused, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_in_comes_out_under_the_same_context_only() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    let key = [9; 32];
    let (output, wrapped) = desk.bytes("wrap files --context tenant=acme", &key)?;
    output.text()?;
    let (output, unwrapped) = desk.bytes("unwrap files --context tenant=acme", &wrapped)?;
    ensure!(output.code == Some(0) && unwrapped == key, "{output:?}");
    let refusal = desk.pipe("unwrap files", &wrapped)?;
    ensure!(refusal.code == Some(7) && refusal.stdout.is_empty(), "{refusal:?}");

    let (output, sealed) =
        desk.bytes("encrypt files --context tenant=acme --payload-context row=1", b"small")?;
    output.text()?;
    let (output, opened) =
        desk.bytes("decrypt files --context tenant=acme --payload-context row=1", &sealed)?;
    ensure!(output.code == Some(0) && opened == b"small", "{output:?}");
    let refusal = desk.pipe("decrypt files --context tenant=acme --payload-context row=2", &sealed)?;
    ensure!(refusal.code == Some(7) && refusal.stdout.is_empty(), "{refusal:?}");
    // The service's envelopes and those that are made here are the same.
    let (output, opened) =
        desk.bytes("envelope open - --context tenant=acme --payload-context row=1", &sealed)?;
    ensure!(output.code == Some(0) && opened == b"small", "{output:?}");

    ensure!(desk.rotate().await? == 2);
    let (_, moved) = desk.bytes("rewrap files", &wrapped)?;
    let said = desk.pipe("unwrap files --context tenant=acme -o json", &moved)?.json()?;
    ensure!(said["name"] == "keys/files/versions/2" && said["primary"] == true, "{said}");
    ensure!(said["plaintext_base64"] == BASE64_STANDARD.encode(key), "{said}");
    let (_, moved) = desk.bytes("re-encrypt files", &sealed)?;
    ensure!(moved.len() == sealed.len() && moved != sealed);
    let (output, opened) =
        desk.bytes("decrypt files --context tenant=acme --payload-context row=1", &moved)?;
    ensure!(output.code == Some(0) && opened == b"small", "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn base64_goes_in_where_it_came_out_and_limits_are_named() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    let text = desk.pipe("wrap files --base64", &[9; 32])?.text()?.to_owned();
    let (output, unwrapped) = desk.bytes("unwrap files", text.as_bytes())?;
    ensure!(output.code == Some(0) && unwrapped == [9; 32], "{output:?}");
    let text = desk.pipe("encrypt files --base64", b"")?.text()?.to_owned();
    let (output, opened) = desk.bytes("decrypt files", text.as_bytes())?;
    ensure!(output.code == Some(0) && opened.is_empty(), "{output:?}");
    let (output, sealed) = desk.bytes("encrypt files", &[1; 65_536])?;
    output.text()?;
    ensure!(desk.bytes("decrypt files", &sealed)?.1 == [1; 65_536]);
    for (line, input, says) in [
        ("encrypt files", vec![1; 65_537], "envelope seal"),
        ("decrypt files", vec![1; 200_000], "larger than"),
        ("wrap files", vec![1; 1_025], "larger than 1024 bytes"),
        ("wrap files", vec![1; 15], "16"),
        ("wrap files --context a=1 --context a=2", vec![1; 32], "--context"),
    ] {
        let output = desk.pipe(line, &input)?;
        ensure!(output.code == Some(2), "{line}: {output:?}");
        refused(&output, &[says])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_go_to_new_files_that_only_their_user_can_read() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    desk.run("datakey files --out dk --wrapped-out dk.wrapped")?.text()?;
    let mode = fs::metadata(desk.path("dk"))?.permissions().mode() & 0o777;
    ensure!(mode == 0o600 && desk.read("dk")?.len() == 32, "{mode:o}");
    let (_, unwrapped) = desk.bytes("unwrap files --in dk.wrapped", b"")?;
    ensure!(unwrapped == desk.read("dk")?, "another key");
    for line in ["datakey files --out dk", "unwrap files --in dk.wrapped --out dk"] {
        let output = desk.run(line)?;
        ensure!(output.code == Some(2), "{output:?}");
        refused(&output, &["exists already", "never written over"])?;
        ensure!(desk.read("dk")? == unwrapped, "it was written over");
    }
    let only_wrapped = desk.json("datakey files --without-plaintext --length 64")?;
    ensure!(only_wrapped["plaintext_base64"].is_null(), "{only_wrapped}");
    ensure!(only_wrapped["wrapped_key_base64"].is_string(), "{only_wrapped}");
    // In place, again and again.
    desk.run("rewrap files --in dk.wrapped --out dk.wrapped")?.text()?;
    ensure!(desk.bytes("unwrap files --in dk.wrapped", b"")?.1 == unwrapped);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_can_require_a_context_and_say_what_lives_on_its_versions() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    let strict = desk.json("keys create strict --algorithm A256GCMKW --require-context tenant")?;
    ensure!(strict["required_context"] == serde_json::json!(["tenant"]), "{strict}");
    let output = desk.run("datakey strict --context table=orders")?;
    refused(&output, &["tenant"])?;
    desk.run("datakey strict --context tenant=acme")?.text()?;
    desk.run("keys update strict --no-required-context")?.text()?;
    desk.run("datakey strict")?.text()?;

    let usage = desk.json("keys report-usage files --consumer orders-db --envelopes 1=5")?;
    ensure!(usage["consumers"][0]["envelopes"]["1"] == 5, "{usage}");
    ensure!(usage["versions"][0]["envelopes"] == 5, "{usage}");
    let table = desk.run("keys usage files")?;
    for part in ["ENVELOPES", "WRAPS MAX", "orders-db", "version 1 cannot be destroyed: "] {
        ensure!(table.text()?.contains(part), "it does not say {part:?}: {table:?}");
    }
    let usage = desk.json("keys consumers remove files orders-db")?;
    ensure!(usage["consumers"] == serde_json::json!([]), "{usage}");
    let output = desk.run("keys consumers remove files orders-db")?;
    ensure!(output.code == Some(3), "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_destroyed_only_by_who_attests_that_no_backup_needs_it() -> anyhow::Result<()> {
    let mut plan = Plan::new()?;
    let keys = "allow_destroy = true\nunwrap_quiet_period = \"1s\"".to_owned();
    plan.more.push(("keys", keys));
    plan.bootstrap().await?;
    let server = plan.start().await?;
    server.kms(["keys", "create", "files", "--algorithm", "A256GCMKW"]).await?.text()?;
    server.kms(["keys", "rotate", "files", "--emergency"]).await?.text()?;
    until("nothing keeps it but the attestation", PATIENCE, async || {
        let usage = server.kms(["keys", "usage", "files", "-o", "json"]).await?.json()?;
        Ok((usage["versions"][0]["destruction_blockers"] == serde_json::json!([])).then_some(()))
    })
    .await?;
    let destroy = ["keys", "destroy", "files", "--version", "1", "--confirm", "keys/files/versions/1"];
    let output = server.kms(destroy).await?;
    ensure!(output.code == Some(2), "{output:?}");
    refused(&output, &["attest"])?;
    let attested = destroy.into_iter().chain(["--attest", "no backup is older than the key", "-o", "json"]);
    let alone = server.kms(attested).await?;
    ensure!(alone.code == Some(5), "{alone:?}");
    server.consent(&alone.stderr).await?;
    let doomed = server.kms(["keys", "versions", "files", "-o", "json"]).await?.json()?[0].clone();
    ensure!(doomed["destroy_time"].is_string(), "{doomed}");
    let ours = kms_tests::records(server.plan.dir())?.into_iter().any(|record| {
        record["action"] == "destroy_key_version" && record.to_string().contains("no backup is older")
    });
    ensure!(ours, "the attestation is not on record");
    Ok(())
}
