//! A wrong PIN reaches the token once, however often the server is started: the durable latch.
//!
//! SoftHSM remembers a wrong try in a flag of the token, which the server heeds too. So the flag is cleared before each
//! start, by a login of another program with the right PIN: only the latch stands between the wrong PIN and the token,
//! as with a token that reports nothing.

use std::{fs, process::Command};

use anyhow::{Context as _, ensure};
use kms_tests::{Output, Plan, Server, Spy, refused};

/// Starts with a wrong PIN.
const STARTS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_is_tried_once_in_ten_starts_on_a_token_that_does_not_report_it() -> anyhow::Result<()> {
    let story = Story::new().await?;
    story.give_wrong_pin()?;
    for start in 0..STARTS {
        story.clear_flag()?;
        let output = story.spy.run(&story.plan, &["serve"]).await?;
        refused(&output, &["PIN", "kms hsm login"]).with_context(|| format!("start {start}"))?;
        ensure!(story.spy.logins()? == 1, "{} tries after start {start}", story.spy.logins()?);
    }

    // The doctor sees it, and does not try either.
    story.clear_flag()?;
    let doctor = story.spy.run(&story.plan, &["doctor"]).await?;
    ensure!(doctor.code == Some(1) && doctor.stdout.contains("closed since"), "{doctor:?}");
    ensure!(doctor.stdout.contains("pin_generation"), "it does not say what to do: {}", doctor.stdout);
    ensure!(story.spy.logins()? == 1);

    // The right PIN alone does not heal: nobody knows yet that it is right.
    story.give_right_pin()?;
    refused(&story.spy.run(&story.plan, &["serve"]).await?, &["PIN", "kms hsm login"])?;
    ensure!(story.spy.logins()? == 1);
    // One login on purpose does. A wrong one of those is one try, too.
    story.give_wrong_pin()?;
    refused(&story.spy.run(&story.plan, &["hsm", "login"]).await?, &["PIN"])?;
    ensure!(story.spy.logins()? == 2);
    story.give_right_pin()?;
    story.spy.run(&story.plan, &["hsm", "login"]).await?.text()?;
    ensure!(story.spy.logins()? == 3);
    let doctor = story.spy.run(&story.plan, &["doctor"]).await?;
    ensure!(doctor.stdout.contains("the token took this PIN"), "{}", doctor.stdout);
    story.serves().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_number_for_a_new_pin_heals_without_a_login_on_purpose() -> anyhow::Result<()> {
    let mut story = Story::new().await?;
    story.give_wrong_pin()?;
    refused(&story.spy.run(&story.plan, &["serve"]).await?, &["PIN"])?;
    story.give_right_pin()?;
    story.clear_flag()?;
    refused(&story.spy.run(&story.plan, &["serve"]).await?, &["PIN"])?;
    ensure!(story.spy.logins()? == 1);
    story.plan.more.push(("hsm", "pin_generation = 2".into()));
    story.serves().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_was_changed_at_the_token_costs_a_server_that_knew_it_one_try() -> anyhow::Result<()> {
    let story = Story::new().await?;
    let mut server = story.serves().await?;
    server.running.terminate().await?;
    let story = Story { plan: server.plan, spy: server.spy, right: server.right };
    let before = story.spy.logins()?;
    story.give_wrong_pin()?;
    for _ in 0..3 {
        story.clear_flag()?;
        refused(&story.spy.run(&story.plan, &["serve"]).await?, &["PIN", "kms hsm login"])?;
    }
    ensure!(story.spy.logins()? == before + 1, "{} tries", story.spy.logins()? - before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_on_purpose_is_refused_while_the_server_runs() -> anyhow::Result<()> {
    let server = Story::new().await?.serves().await?;
    let before = server.spy.logins()?;
    let output = server.spy.run(&server.plan, &["hsm", "login"]).await?;
    refused(&output, &["kms.lock", "stop it first"])?;
    ensure!(server.spy.logins()? == before, "it logged in all the same");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_first_login_of_a_pin_is_not_simply_started_again()
-> anyhow::Result<()> {
    for point in ["login-begun", "login-ended"] {
        let story = Story::new().await?;
        let mut command = story.spy.lead(story.plan.command(&["serve"])?);
        let killed = command.env("FAILPOINTS", format!("{point}=return")).output()?;
        ensure!(killed.status.code() == Some(128 + 6), "{point}: {killed:?}");
        let before = story.spy.logins()?;
        for _ in 0..2 {
            refused(&story.spy.run(&story.plan, &["serve"]).await?, &["was cut off", "kms hsm login"])?;
        }
        let doctor = story.spy.run(&story.plan, &["doctor"]).await?;
        ensure!(doctor.stdout.contains("has not ended"), "{}", doctor.stdout);
        ensure!(story.spy.logins()? == before, "{point}: it was tried again");
        story.spy.run(&story.plan, &["hsm", "login"]).await?.text()?;
        let story = story.serves().await?;

        // The PIN is proven now: a kill is one more try, and a second kill in a row the last.
        let Serving { mut running, plan, spy, right } = story;
        running.terminate().await?;
        let story = Story { plan, spy, right };
        for (kill, status) in [(1, Some(128 + 6)), (2, Some(128 + 6)), (3, Some(1))] {
            let mut command = story.spy.lead(story.plan.command(&["serve"])?);
            let ended = command.env("FAILPOINTS", format!("{point}=return")).output()?;
            ensure!(ended.status.code() == status, "{point}, kill {kill}: {ended:?}");
        }
        let last = story.spy.run(&story.plan, &["serve"]).await?;
        refused(&last, &["in a row ended unexplained", "kms hsm login"])?;
    }
    Ok(())
}

/// A server to be, with a spy that counts its logins.
struct Story {
    plan: Plan,
    spy: Spy,
    /// The right PIN.
    right: String,
}

/// The same, started.
struct Serving {
    running: kms_tests::Running,
    plan: Plan,
    spy: Spy,
    right: String,
}

impl Story {
    async fn new() -> anyhow::Result<Self> {
        let mut plan = Plan::new()?;
        plan.bootstrap().await?;
        let right = fs::read_to_string(plan.token.pin_file())?;
        let spy = Spy::between(&mut plan)?;
        Ok(Self { plan, spy, right })
    }

    fn give_wrong_pin(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.plan.token.pin_file(), "000000-wrong")?)
    }

    fn give_right_pin(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.plan.token.pin_file(), &self.right)?)
    }

    /// Logs in by another program, past the spy, with the right PIN.
    fn clear_flag(&self) -> anyhow::Result<()> {
        let (name, conf) = self.plan.token.env();
        // The PIN is one of a throw-away token, so it may stand in the arguments.
        let output = Command::new("pkcs11-tool")
            .arg("--module")
            .arg(self.plan.token.module())
            .args(["--login", "--pin", self.right.trim_end(), "--list-objects"])
            .env(name, conf)
            .output()
            .context("pkcs11-tool")?;
        Output::of("pkcs11-tool", output).text().map(drop)
    }

    /// It starts, and signs.
    async fn serves(self) -> anyhow::Result<Serving> {
        let Self { plan, spy, right } = self;
        let command = spy.lead(plan.command(&["serve"])?);
        let server = plan.start_with(command, |path, _| path.to_owned()).await?;
        sign_with_a_new_key(&server).await?;
        let Server { running, plan, .. } = server;
        Ok(Serving { running, plan, spy, right })
    }
}

async fn sign_with_a_new_key(server: &Server) -> anyhow::Result<()> {
    server.kms(["keys", "create", "orders", "--algorithm", "ES256"]).await?.text()?;
    server.kms(["jwt", "sign", "orders", "--claims", "{}", "--ttl", "1m"]).await?.text()?;
    Ok(())
}
