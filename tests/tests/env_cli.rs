//! `kms env`: a sealed .env file is opened into one command's environment, and nowhere else.

use std::fs;

use anyhow::ensure;
use kms_tests::{Desk, Output, refused};

const ENV: &str =
    "# of the shop\nDB_URL=postgres://u:p@h/db\nexport QUOTED='pa$$ \"word\"'\nLINES=\"one\\ntwo\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_the_variables_and_none_of_ours() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    desk.write(".env", ENV)?;
    desk.run("env seal --file .env --context stage=test")?.text()?;
    fs::remove_file(desk.path(".env"))?;
    let run = |flags: &str, command: &[&str]| -> anyhow::Result<Output> {
        let line = format!("env run --file .env.sealed --context stage=test{flags} --");
        let output = desk.command(&line)?.args(command).env("DB_URL", "stale").output()?;
        Ok(Output::of(line, output))
    };
    let seen = run("", &["sh", "-c", "tr '\\0' '\\n' </proc/self/environ"])?;
    let seen = seen.text()?;
    for line in ["DB_URL=postgres://u:p@h/db", "QUOTED=pa$$ \"word\"", "LINES=one\ntwo"] {
        ensure!(seen.contains(line), "{line:?} is not there");
    }
    ensure!(!seen.contains("KMS_"), "a KMS_ variable was passed on:\n{seen}");
    ensure!(run(" --keep-kms-env", &["sh", "-c", "echo $KMS_TOKEN_FILE"])?.text()?.ends_with("admin-token"));
    ensure!(run("", &["sh", "-c", "exit 9"])?.code == Some(9), "its exit code is ours");
    ensure!(desk.names("")? == [".env.sealed"], "something was written: {:?}", desk.names("")?);
    let absent = run("", &["no-such-program"])?;
    ensure!(absent.code == Some(2), "{absent:?}");
    refused(&absent, &["no-such-program"])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_environment_of_ours_runs_nothing() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    desk.write(".env", "A=1\nPASSWORD=hunter2 hunter2\n")?;
    let output = desk.run("env seal")?;
    ensure!(output.code == Some(1), "{output:?}");
    refused(&output, &["line 2", "must be quoted"])?;
    ensure!(!output.stderr.contains("hunter2") && desk.names("")? == [".env"], "{output:?}");

    // Sealed past the check, as an older program may have done it.
    desk.run("envelope seal --payload-context content=dotenv .env")?.text()?;
    let output = desk.run("env run -- touch ran")?;
    refused(&output, &["line 2"])?;
    ensure!(!output.stderr.contains("hunter2"), "{output:?}");

    desk.write(".env", "A=1\n")?;
    desk.run("envelope seal --existing replace .env")?.text()?;
    let something_else = desk.run("env run -- touch ran")?;
    ensure!(something_else.code == Some(7), "{something_else:?}");
    desk.run("env seal --existing replace")?.text()?;
    let mut sealed = desk.read(".env.sealed")?;
    ensure!(desk.run("env run --context stage=prod -- touch ran")?.code == Some(7));
    let last = sealed.len() - 1;
    sealed[last] ^= 1;
    desk.write(".env.sealed", &sealed)?;
    ensure!(desk.run("env run -- touch ran")?.code == Some(7));
    ensure!(!desk.path("ran").exists(), "the command ran");
    Ok(())
}
