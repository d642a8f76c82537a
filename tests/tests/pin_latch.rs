//! A wrong PIN reaches the token once, however often the server is started: the durable latch.
//!
//! SoftHSM remembers a wrong try in a flag of the token, which the server heeds too. So the flag is cleared before each
//! start, by a login of another program with the right PIN: only the latch stands between the wrong PIN and the token,
//! as with a token that reports nothing.

use std::fs;

use anyhow::{Context as _, ensure};
use kms_softhsm::{EphemeralToken, unless_left_out};
use kms_tests::{Fleet, Plan, Promise, Server, TestHsm, pkcs11_tool, refused};

/// Starts with a wrong PIN.
const STARTS: usize = 10;
/// Kryoptic locks the user PIN at so many wrong tries in a row.
const KRYOPTIC_LOCKS_AT: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_is_tried_once_in_ten_starts_on_a_token_that_does_not_report_it() -> anyhow::Result<()> {
    let story = Story::new().await?;
    story.give_wrong_pin()?;
    for start in 0..STARTS {
        story.clear_flag()?;
        let output = story.plan.run(&["serve"]).await?;
        refused(&output, &["PIN", "kms hsm login"]).with_context(|| format!("start {start}"))?;
        ensure!(!output.stderr.contains("000000-wrong"), "the PIN is in the log: {}", output.stderr);
        ensure!(story.plan.token.logins()? == 1, "{} tries after start {start}", story.plan.token.logins()?);
    }

    // The doctor sees it, and does not try either.
    story.clear_flag()?;
    let doctor = story.plan.run(&["doctor"]).await?;
    ensure!(doctor.code == Some(1) && doctor.stdout.contains("closed since"), "{doctor:?}");
    ensure!(doctor.stdout.contains("pin_generation"), "it does not say what to do: {}", doctor.stdout);
    ensure!(story.plan.token.logins()? == 1);

    // The right PIN alone does not heal: nobody knows yet that it is right.
    story.give_right_pin()?;
    refused(&story.plan.run(&["serve"]).await?, &["PIN", "kms hsm login"])?;
    ensure!(story.plan.token.logins()? == 1);
    // One login on purpose does. A wrong one of those is one try, too.
    story.give_wrong_pin()?;
    refused(&story.plan.run(&["hsm", "login"]).await?, &["PIN"])?;
    ensure!(story.plan.token.logins()? == 2);
    story.give_right_pin()?;
    story.plan.run(&["hsm", "login"]).await?.text()?;
    ensure!(story.plan.token.logins()? == 3);
    let doctor = story.plan.run(&["doctor"]).await?;
    ensure!(doctor.stdout.contains("the token took this PIN"), "{}", doctor.stdout);
    story.serves().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_of_starts_with_a_wrong_pin_locks_a_token_that_locks() -> anyhow::Result<()> {
    let promise = Promise::begin(8, "pin_latch")?;
    let Some(token) = unless_left_out(EphemeralToken::kryoptic())? else { return Ok(()) };
    let story = Story::on(token).await?;
    story.give_wrong_pin()?;
    let starts = Promise::count(KRYOPTIC_LOCKS_AT + 2, 100);
    for start in 0..starts {
        refused(&story.plan.run(&["serve"]).await?, &["PIN"]).with_context(|| format!("start {start}"))?;
    }
    let tries = story.plan.token.logins()?;
    ensure!(tries <= 1, "{tries} tries reached the token");
    story.give_right_pin()?;
    story.plan.run(&["hsm", "login"]).await?.text()?;
    story.serves().await?;
    promise.kept(
        format!("{starts} starts with a wrong PIN on Kryoptic, which locks at {KRYOPTIC_LOCKS_AT}"),
        format!("{tries} try reached the token; the right PIN and `kms hsm login` heal it"),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_of_starts_of_three_replicas_with_a_wrong_pin_locks_a_token_that_locks()
-> anyhow::Result<()> {
    let promise = Promise::begin(8, "pin_latch")?;
    let Some(token) = unless_left_out(EphemeralToken::kryoptic())? else { return Ok(()) };
    let plan = Plan::on(TestHsm::faulty(token)?)?;
    let right = fs::read_to_string(plan.token.pin_file())?;
    let mut fleet = Fleet::prepare(plan, 3).await?;
    // As on three hosts: no lock but the latch keeps them apart.
    for replica in &mut fleet.replicas {
        let dir = serde_json::Value::from(replica.dir().display().to_string());
        replica.more.push(("hsm", format!("lock_dir = {dir}")));
    }
    let story = Story { plan: fleet.plan, right };
    story.give_wrong_pin()?;
    let rounds = Promise::count(KRYOPTIC_LOCKS_AT / 3 + 1, 100);
    for round in 0..rounds {
        Promise::progress("starts of three replicas", round, rounds);
        let starts = fleet.replicas.iter().map(|replica| replica.run(&story.plan, &["serve"]));
        for output in futures::future::join_all(starts).await {
            refused(&output?, &["PIN"]).with_context(|| format!("round {round}"))?;
        }
    }
    let tries = story.plan.token.logins()?;
    ensure!(tries <= 1, "{tries} tries reached the token");
    story.give_right_pin()?;
    fleet.replicas[2].run(&story.plan, &["hsm", "login"]).await?.text()?;
    for replica in &mut fleet.replicas {
        replica.start(&story.plan).await?;
    }
    promise.kept(
        format!(
            "{rounds} starts of 3 replicas with a wrong PIN on Kryoptic, which locks at {KRYOPTIC_LOCKS_AT}"
        ),
        format!("{tries} try reached the token; the right PIN and `kms hsm login` heal all"),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_number_for_a_new_pin_heals_without_a_login_on_purpose() -> anyhow::Result<()> {
    let mut story = Story::new().await?;
    story.give_wrong_pin()?;
    refused(&story.plan.run(&["serve"]).await?, &["PIN"])?;
    story.give_right_pin()?;
    story.clear_flag()?;
    refused(&story.plan.run(&["serve"]).await?, &["PIN"])?;
    ensure!(story.plan.token.logins()? == 1);
    story.plan.more.push(("hsm", "pin_generation = 2".into()));
    story.serves().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_was_changed_at_the_token_costs_a_server_that_knew_it_one_try() -> anyhow::Result<()> {
    let story = Story::new().await?;
    let right = story.right.clone();
    let mut server = story.serves().await?;
    server.running.terminate().await?;
    let story = Story { plan: server.plan, right };
    let before = story.plan.token.logins()?;
    story.give_wrong_pin()?;
    for _ in 0..3 {
        story.clear_flag()?;
        refused(&story.plan.run(&["serve"]).await?, &["PIN", "kms hsm login"])?;
    }
    ensure!(story.plan.token.logins()? == before + 1, "{} tries", story.plan.token.logins()? - before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_on_purpose_is_refused_while_the_server_runs() -> anyhow::Result<()> {
    let server = Story::new().await?.serves().await?;
    server.all_workers_ready().await?;
    let before = server.plan.token.logins()?;
    let output = server.plan.run(&["hsm", "login"]).await?;
    refused(&output, &["kms.lock", "stop it first"])?;
    ensure!(server.plan.token.logins()? == before, "it logged in all the same");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_first_login_of_a_pin_is_not_simply_started_again()
-> anyhow::Result<()> {
    for point in ["login-begun", "login-ended"] {
        let story = Story::new().await?;
        let mut command = story.plan.command(&["serve"])?;
        let killed = command.env("FAILPOINTS", format!("{point}=return")).output()?;
        ensure!(killed.status.code() == Some(128 + 6), "{point}: {killed:?}");
        let before = story.plan.token.logins()?;
        for _ in 0..2 {
            refused(&story.plan.run(&["serve"]).await?, &["was cut off", "kms hsm login"])?;
        }
        let doctor = story.plan.run(&["doctor"]).await?;
        ensure!(doctor.stdout.contains("has not ended"), "{}", doctor.stdout);
        ensure!(story.plan.token.logins()? == before, "{point}: it was tried again");
        story.plan.run(&["hsm", "login"]).await?.text()?;
        // The PIN is proven now: two kills are worth another try each, and a third one in a row is the last.
        let right = story.right.clone();
        let Server { mut running, plan, .. } = story.serves().await?;
        running.terminate().await?;
        let story = Story { plan, right };
        for (kill, status) in [(1, Some(128 + 6)), (2, Some(128 + 6)), (3, Some(128 + 6)), (4, Some(1))] {
            let mut command = story.plan.command(&["serve"])?;
            let ended = command.env("FAILPOINTS", format!("{point}=return")).output()?;
            ensure!(ended.status.code() == status, "{point}, kill {kill}: {ended:?}");
        }
        let last = story.plan.run(&["serve"]).await?;
        refused(&last, &["in a row ended unexplained", "kms hsm login"])?;
    }
    Ok(())
}

/// A server to be, behind the fault shim, which counts its logins.
struct Story {
    plan: Plan,
    /// The right PIN.
    right: String,
}

impl Story {
    async fn new() -> anyhow::Result<Self> {
        Self::on(EphemeralToken::new()?).await
    }

    async fn on(token: EphemeralToken) -> anyhow::Result<Self> {
        let plan = Plan::on(TestHsm::faulty(token)?)?;
        plan.bootstrap().await?;
        let right = fs::read_to_string(plan.token.pin_file())?;
        Ok(Self { plan, right })
    }

    fn give_wrong_pin(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.plan.token.pin_file(), "000000-wrong")?)
    }

    fn give_right_pin(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.plan.token.pin_file(), &self.right)?)
    }

    /// Logs in by another program, past the shim, with the right PIN.
    fn clear_flag(&self) -> anyhow::Result<()> {
        let file = self.plan.token.pin_file();
        let given = fs::read(file)?;
        self.give_right_pin()?;
        let listed = pkcs11_tool(&self.plan.token, &["--list-objects"])?;
        fs::write(file, given)?;
        listed.text().map(drop)
    }

    /// It starts, and signs.
    async fn serves(self) -> anyhow::Result<Server> {
        let server = self.plan.start().await?;
        sign_with_a_new_key(&server).await?;
        Ok(server)
    }
}

async fn sign_with_a_new_key(server: &Server) -> anyhow::Result<()> {
    server.kms(["keys", "create", "orders", "--algorithm", "ES256"]).await?.text()?;
    server.kms(["jwt", "sign", "orders", "--claims", "{}", "--ttl", "1m"]).await?.text()?;
    Ok(())
}
