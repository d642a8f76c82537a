//! What lies in the token against what the service knows, with other people's tools at work on the token: nothing is
//! overlooked, nothing is destroyed, and a key that is not as it was made is taken out of service.

use std::{fs, process::Command};

use anyhow::{Context as _, ensure};
use kms_softhsm::Token;
use kms_tests::{
    Environment, Output, PATIENCE, Plan, Server, pkcs11_tool, pkcs11_tool_without_pin, records, until,
};
use serde_json::Value;

const ORPHAN: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const FOREIGN: &str = "0102030405060708090a0b0c0d0e0f1011121314";

#[tokio::test(flavor = "multi_thread")]
async fn inventory_names_orphans_foreigners_and_what_is_missing_and_destroys_nothing() -> anyhow::Result<()> {
    let server = start_with_keys(Plan::new()?, &["web", "gone"]).await?;
    let token = &server.plan.token;
    generate(token, ORPHAN, "elsewhere/3", &["--usage-sign"])?;
    generate(token, FOREIGN, "somebody's", &["--usage-sign"])?;
    let gone = cka_id(&server, "gone").await?;
    delete(token, &gone, &["privkey", "pubkey"])?;

    let inventory = server.kms(["hsm", "inventory", "-o", "json"]).await?;
    let states = states(&inventory.json()?)?;
    let web = cka_id(&server, "web").await?;
    let expected = [(FOREIGN, "foreign"), (ORPHAN, "orphan"), (&gone, "dangling"), (&web, "live")];
    ensure!(states.len() == expected.len(), "{states:?}");
    for (cka_id, state) in expected {
        ensure!(
            states.contains(&(cka_id.to_owned(), state.to_owned())),
            "{cka_id} is not {state}: {states:?}"
        );
    }
    for told in ["1 orphan: ", "1 dangling: "] {
        ensure!(inventory.stderr.contains(told), "{}", inventory.stderr);
    }
    ensure!(inventory.stderr.contains("it may be somebody's live key"), "{}", inventory.stderr);
    let table = server.kms(["hsm", "inventory", "--state", "dangling"]).await?;
    let table = table.text()?;
    ensure!(table.contains("keys/gone/versions/1") && table.contains("not in the token"), "{table}");
    ensure!(!table.contains(ORPHAN), "{table}");

    let before = objects(token)?;
    for refused in [&web, &gone] {
        let answer = server.kms(["hsm", "quarantine", refused, "--note", "a mistake"]).await?;
        ensure!(answer.code == Some(5) && answer.stderr.contains("kms keys disable"), "{answer:?}");
    }
    let absent = server.kms(["hsm", "quarantine", "ff", "--note", "a mistake"]).await?;
    ensure!(absent.code == Some(3), "{absent:?}");
    server.kms(["hsm", "quarantine", ORPHAN, "--note", "left by a restore"]).await?.text()?;
    let inventory = server.kms(["hsm", "inventory", "-o", "json"]).await?;
    let quarantined = (ORPHAN.to_owned(), "quarantined".to_owned());
    ensure!(states_of(&inventory)?.contains(&quarantined), "{inventory:?}");
    ensure!(!inventory.stderr.contains("orphan"), "{}", inventory.stderr);
    ensure!(gauge(&server, "orphan").await? == 0.0 && gauge(&server, "quarantined").await? == 1.0);
    ensure!(
        objects(token)? == before && before.matches(ORPHAN).count() == 2,
        "the token was touched:\n{before}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_not_as_they_were_made_are_out_of_service_after_a_start() -> anyhow::Result<()> {
    let names = ["web", "imported", "extractable", "public", "decrypts", "derives", "modifiable"];
    let mut server = start_with_keys(Plan::new()?, &names).await?;
    let mut ids = Vec::new();
    for name in names {
        ids.push(cka_id(&server, name).await?);
    }
    server.running.terminate().await?;
    let Server { plan, .. } = server;
    let [_, imported, extractable, public, decrypts, derives, modifiable] = &ids[..] else {
        unreachable!("seven names")
    };
    let token = &plan.token;
    delete(token, imported, &["privkey"])?;
    import(&plan, imported, "privkey", pkcs11_tool)?;
    delete(token, public, &["pubkey"])?;
    import(&plan, public, "pubkey", pkcs11_tool)?;
    for (id, more) in [
        (extractable, &["--usage-sign", "--extractable"][..]),
        (derives, &["--usage-sign", "--usage-derive"]),
        (modifiable, &["--usage-sign"]),
    ] {
        delete(token, id, &["privkey", "pubkey"])?;
        generate(token, id, "changeling", more)?;
    }
    delete(token, decrypts, &["privkey", "pubkey"])?;
    let rsa = ["--keypairgen", "--key-type", "rsa:2048", "--id", decrypts, "--usage-sign", "--usage-decrypt"];
    pkcs11_tool(token, &rsa)?.text()?;

    let server = plan.start().await?;
    until("the attribute audit has come to its end", PATIENCE, async || {
        Ok(server.metric("kms_attribute_audit_last_success_timestamp_seconds").await.ok())
    })
    .await?;
    ensure!(state(&server, "web").await? == "active");
    for name in &names[1..] {
        ensure!(state(&server, name).await? == "suspended", "{name} is in service\n{}", server.running.log());
        let refused = server.kms(["keys", "enable", name, "--version", "1"]).await?;
        ensure!(refused.code == Some(5) && refused.stderr.contains("stays disabled"), "{name}: {refused:?}");
    }
    ensure!(server.metric("kms_key_versions_suspended_by_audit_total").await? == 6.0);
    // Of `public` it is the public key that differs.
    ensure!(gauge(&server, "deviating").await? == 5.0 && gauge(&server, "dangling").await? == 1.0);
    let reasons: Vec<_> = records(&server.plan.dir().join("audit"))?
        .into_iter()
        .filter(|record| record["caller"] == "system:attribute-audit" && record["phase"] == "outcome")
        .map(|record| record["reason"].clone())
        .collect();
    let of = |reason: &str| reasons.iter().filter(|found| **found == reason).count();
    ensure!((of("ATTRIBUTES_DEVIATE"), of("PUBLIC_KEY_DIFFERS")) == (5, 1), "{reasons:?}");
    ensure!(server.running.log().contains("CKA_MODIFIABLE is true"), "the log does not say which attribute");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_key_that_somebody_adds_without_the_pin_raises_an_alarm_and_suspends_nothing()
-> anyhow::Result<()> {
    let mut server = start_with_keys(Plan::new()?, &["web"]).await?;
    let web = cka_id(&server, "web").await?;
    server.running.terminate().await?;
    let Server { plan, .. } = server;
    import(&plan, &web, "pubkey", pkcs11_tool_without_pin)?;

    let server = plan.start().await?;
    until("the attribute audit has come to its end", PATIENCE, async || {
        Ok(server.metric("kms_attribute_audit_last_success_timestamp_seconds").await.ok())
    })
    .await?;
    ensure!(gauge(&server, "dangling").await? == 1.0);
    ensure!(server.metric("kms_key_versions_suspended_by_audit_total").await? == 0.0);
    ensure!(state(&server, "web").await? == "active");
    let table = server.kms(["hsm", "inventory", "--state", "dangling"]).await?;
    ensure!(table.text()?.contains("1 private and 2 public objects"), "{table:?}");
    Ok(())
}

async fn start_with_keys(plan: Plan, names: &[&str]) -> anyhow::Result<Server> {
    plan.bootstrap().await?;
    let server = plan.start().await?;
    // A login of another process and one of a worker at once would harm a SoftHSM token.
    server.all_workers_ready().await?;
    for name in names {
        server.kms(["keys", "create", name, "--algorithm", "ES256"]).await?.text()?;
    }
    Ok(server)
}

async fn state(server: &Environment, name: &str) -> anyhow::Result<String> {
    let versions = server.kms(["keys", "versions", name, "-o", "json"]).await?.json()?;
    Ok(versions[0]["state"].as_str().context("a state")?.to_owned())
}

/// CKA_ID of the first version of a key.
async fn cka_id(server: &Environment, name: &str) -> anyhow::Result<String> {
    let inventory = server.kms(["hsm", "inventory", "-o", "json"]).await?.json()?;
    let version = format!("keys/{name}/versions/1");
    let objects = inventory.as_array().context("a list")?;
    let object = objects.iter().find(|object| object["key_version"] == version);
    Ok(object.and_then(|object| object["cka_id"].as_str()).context(version)?.to_owned())
}

fn states_of(inventory: &Output) -> anyhow::Result<Vec<(String, String)>> {
    states(&inventory.json()?)
}

fn states(inventory: &Value) -> anyhow::Result<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let object = |object: &Value| Some((text(&object["cka_id"])?, text(&object["state"])?));
    inventory.as_array().and_then(|objects| objects.iter().map(object).collect()).context("a list")
}

async fn gauge(server: &Environment, state: &str) -> anyhow::Result<f64> {
    let text = server.get("/metrics").await?.error_for_status()?.text().await?;
    let name = format!("kms_hsm_objects{{state=\"{state}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name)).with_context(|| name.clone())?;
    Ok(value.parse()?)
}

/// Everything in the token, as pkcs11-tool shows it, in an order of its own.
fn objects(token: &Token) -> anyhow::Result<String> {
    let listing = pkcs11_tool(token, &["--list-objects"])?;
    let mut lines: Vec<_> = listing.text()?.lines().collect();
    lines.sort_unstable();
    Ok(lines.join("\n"))
}

fn generate(token: &Token, id: &str, label: &str, more: &[&str]) -> anyhow::Result<()> {
    let pair = ["--keypairgen", "--key-type", "EC:prime256v1", "--id", id, "--label", label];
    pkcs11_tool(token, &[&pair, more].concat())?.text().map(drop)
}

fn delete(token: &Token, id: &str, classes: &[&str]) -> anyhow::Result<()> {
    for class in classes {
        pkcs11_tool(token, &["--delete-object", "--type", class, "--id", id])?.text()?;
    }
    Ok(())
}

/// Runs pkcs11-tool, with the PIN or without.
type Tool = fn(&Token, &[&str]) -> anyhow::Result<Output>;

/// Writes one half of a fresh key of our own.
fn import(plan: &Plan, id: &str, class: &str, tool: Tool) -> anyhow::Result<()> {
    let (pem, der) = (plan.dir().join("import.pem"), plan.dir().join("import.der"));
    let openssl = |arguments: &[&str]| -> anyhow::Result<()> {
        let output = Command::new("openssl").args(arguments).current_dir(plan.dir()).output()?;
        Output::of(format!("openssl {}", arguments.join(" ")), output).text().map(drop)
    };
    let curve = "ec_paramgen_curve:P-256";
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", "import.pem"])?;
    let public: &[&str] = if class == "pubkey" { &["-pubout"] } else { &[] };
    openssl(&[&["pkey", "-in", "import.pem", "-outform", "DER", "-out", "import.der"], public].concat())?;
    let file = der.display().to_string();
    tool(
        &plan.token,
        &["--write-object", &file, "--type", class, "--id", id, "--label", "imported", "--usage-sign"],
    )?
    .text()?;
    fs::remove_file(pem)?;
    Ok(())
}
