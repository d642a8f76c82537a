//! What an operator can get wrong with a server of his own: each mistake ends the start, or the one command, with
//! a message that says what to do, and loses nothing.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use kms_client::v1;
use kms_softhsm::EphemeralToken;
use kms_tests::{PATIENCE, Plan, Process, Server, TestHsm, python, refusal, refused, until};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_nobody_knows_is_named_with_its_file_and_line() -> anyhow::Result<()> {
    let mut plan = Plan::new()?;
    plan.more.push(("store", "pth = \"elsewhere\"".into()));
    for command in [&["config", "check"][..], &["serve"], &["bootstrap"]] {
        let output = plan.run(command).await?;
        refused(&output, &["kms.toml:", "unknown field `pth`", "path"])?;
        let text = fs::read_to_string(plan.config_file())?;
        let line = text.lines().position(|line| line.starts_with("pth")).context("the line")? + 1;
        ensure!(output.stderr.contains(&format!("kms.toml:{line}:")), "not line {line}: {}", output.stderr);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_file_that_is_not_there_is_named() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    let absent = plan.dir().join("absent.toml").display().to_string();
    refused(&plan.run(&["serve", "--config", &absent]).await?, &["absent.toml"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_is_not_there_is_named() -> anyhow::Result<()> {
    let mut plan = Plan::new()?;
    plan.bootstrap().await?;
    plan.uri = plan.uri.replace("libsofthsm2.so", "libabsent.so");
    refused(&plan.run(&["serve"]).await?, &["libabsent.so", "module-path"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_module_is_named() -> anyhow::Result<()> {
    let mut plan = Plan::new()?;
    plan.bootstrap().await?;
    let module = plan.token.module().display().to_string();
    plan.uri = plan.uri.replace(&module, &plan.config_file().display().to_string());
    refused(&plan.run(&["serve"]).await?, &["kms.toml", "module"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_absent_is_named_and_so_are_those_that_are_there() -> anyhow::Result<()> {
    let mut plan = Plan::new()?;
    plan.bootstrap().await?;
    plan.uri = plan.uri.replace(plan.token.label(), "absent");
    refused(&plan.run(&["serve"]).await?, &["absent", plan.token.label()])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_file_that_is_not_there_is_named() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    fs::remove_file(plan.token.pin_file())?;
    let name = plan.token.pin_file().display().to_string();
    refused(&plan.run(&["serve"]).await?, &["PIN file", &name])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_may_not_be_written_is_refused() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    fs::set_permissions(&plan.store, Permissions::from_mode(0o400))?;
    refused(&plan.run(&["serve"]).await?, &["kms.db", "cannot be written"])?;
    fs::set_permissions(&plan.store, Permissions::from_mode(0o600))?;
    sign_with_a_new_key(&plan.start().await?, "orders").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_full_makes_no_key_and_loses_none() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    // A file system of 1 MiB, in a mount namespace of its own.
    let script =
        "mount -t tmpfs -o size=1m tmpfs \"$1\" && \"$2\" bootstrap --out \"$3\" && exec \"$2\" serve";
    let serve = plan.command(&["serve"])?;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-euc", script, "sh"]);
    command
        .arg(plan.store.parent().context("a directory")?)
        .arg(serve.get_program())
        .arg(plan.credential_file());
    command.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let inside = |path: &Path, pid: rustix::process::Pid| {
        let path = path.strip_prefix("/").unwrap_or(path);
        PathBuf::from(format!("/proc/{}/root", pid.as_raw_nonzero())).join(path)
    };
    let server = plan.start_with(command, inside).await?;

    let client = server.client().await?;
    let create = |number: usize| v1::CreateKeyRequest {
        key_id: format!("k{number}"),
        key: Some(v1::Key { algorithm: "ES256".into(), owner: "x".repeat(256), ..Default::default() }),
        ..Default::default()
    };
    let mut made = 0;
    let full = loop {
        match client.keys().create_key(create(made)).await {
            Ok(_) => made += 1,
            Err(status) => break status,
        }
        ensure!(made < 2_000, "1 MiB is never full");
    };
    let full = refusal::<()>(Err(full))?;
    ensure!(matches!(full.code, Code::Unavailable | Code::ResourceExhausted), "{full:?}");
    ensure!(full.reason.starts_with("STORE_"), "{full:?}");
    ensure!(made > 0, "it was full from the start");
    for number in 0..made {
        let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
        let request = v1::SignRequest { name: format!("keys/k{number}"), input, ..Default::default() };
        client.sign(request).await.with_context(|| format!("key {number} of {made}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_store_is_refused_and_the_first_goes_on() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let server = plan.start().await?;
    let plan = &server.plan;
    refused(&plan.run(&["serve"]).await?, &["kms.lock", "stop it first"])?;
    // Another audit log, or another token, does not make it another store.
    let other = plan.dir().join("other.toml");
    let audit = plan.dir().join("audit").display().to_string();
    let text = fs::read_to_string(plan.config_file())?.replace(&audit, &format!("{audit}-of-another"));
    fs::write(&other, text)?;
    let other = other.display().to_string();
    refused(&plan.run(&["serve", "--config", &other]).await?, &["kms.lock", "stop it first"])?;
    sign_with_a_new_key(&server, "orders").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_before_the_token_is_touched() -> anyhow::Result<()> {
    let plan = Plan::on(TestHsm::faulty(EphemeralToken::new()?)?)?;
    plan.bootstrap().await?;
    let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    let addr = socket.local_addr()?.to_string();
    let output = plan.run(&["serve", "--grpc-addr", &addr]).await?;
    refused(&output, &["grpc.addr", &addr])?;
    ensure!(plan.token.logins()? == 0, "it logged in first");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_from_a_newer_version_is_refused_and_left_as_it_is() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let script = "import sqlite3, sys\n\
                  db = sqlite3.connect(sys.argv[1])\n\
                  db.execute(sys.argv[2])\n\
                  db.commit()\n";
    let migrate = |sql: &str| {
        let output = Command::new(&python).args(["-c", script]).arg(&plan.store).arg(sql).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    migrate(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99991231235959, 'from the future', 1, x'00', 0)",
    )?;
    refused(&plan.run(&["serve"]).await?, &["99991231235959", "upgrade the program"])?;
    migrate("DELETE FROM _sqlx_migrations WHERE version = 99991231235959")?;
    sign_with_a_new_key(&plan.start().await?, "orders").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_administrator_is_made_once() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let second = plan.dir().join("second");
    let output = plan.run(&["bootstrap", "--out", &second.display().to_string()]).await?;
    refused(&output, &["administrator"])?;
    ensure!(!second.exists(), "a credential file without a credential is left");
    let server = plan.start().await?;
    let running = server.plan.run(&["bootstrap"]).await?;
    refused(&running, &["kms.lock", "stop it first"])?;
    sign_with_a_new_key(&server, "orders").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_leaves_no_process_and_no_address_behind() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let mut server = plan.start().await?;
    sign_with_a_new_key(&server, "orders").await?;
    let tree = server.running.tree()?;
    // Two that serve and a spare one, which may still be starting.
    ensure!((2..=3).contains(&tree.workers().len()) && tree.front().is_some(), "{tree:?}");
    let status = server.running.terminate().await?;
    ensure!(status.success(), "{status}");
    until("every process has gone", PATIENCE, async || {
        Ok((!tree.pids().into_iter().any(Process::runs)).then_some(()))
    })
    .await?;
    let listening = server.plan.store.with_file_name("listening.json");
    ensure!(!listening.exists(), "{} is left", listening.display());
    Ok(())
}

async fn sign_with_a_new_key(server: &Server, name: &str) -> anyhow::Result<()> {
    server.kms(["keys", "create", name, "--algorithm", "ES256"]).await?.text()?;
    server.kms(["jwt", "sign", name, "--claims", "{}", "--ttl", "1m"]).await?.text()?;
    Ok(())
}
