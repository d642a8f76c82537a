//! A token is measured with `kms hsm probe`, and served with the profile that comes of it.

use std::fs;

use anyhow::ensure;
use kms_softhsm::{EphemeralToken, unless_left_out};
use kms_tests::Plan;

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_of_another_token_is_refused_by_check_doctor_and_server() -> anyhow::Result<()> {
    let mut plan = Plan::new()?;
    plan.bootstrap().await?;
    let file = plan.dir().join("profile.toml");
    plan.more.push(("hsm", "profile_file = \"profile.toml\"".into()));
    for (profile, commands, says) in [
        (None, &[&["config", "check"][..], &["serve"], &["doctor"]][..], "profile.toml"),
        (Some("speed = 3"), &[&["config", "check"], &["serve"], &["doctor"]], "speed"),
        (
            Some("name = \"x\"\n[token]\nmodule_manufacturer = \"Acme\"\n"),
            &[&["serve"], &["doctor"]],
            "it is for \"Acme\"",
        ),
    ] {
        if let Some(profile) = profile {
            fs::write(&file, profile)?;
        }
        for command in commands {
            let output = plan.run(command).await?;
            let text = format!("{}{}", output.stdout, output.stderr);
            ensure!(
                output.code != Some(0) && text.contains(says),
                "{command:?} does not say {says:?}: {text}"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_probed_and_then_served_with_its_profile() -> anyhow::Result<()> {
    probed_and_served(Plan::new()?).await?;
    match unless_left_out(EphemeralToken::kryoptic())? {
        Some(token) => probed_and_served(Plan::on(token)?).await,
        None => Ok(()),
    }
}

async fn probed_and_served(mut plan: Plan) -> anyhow::Result<()> {
    plan.bootstrap().await?;
    let file = plan.dir().join("profile.toml").display().to_string();
    let printed = plan.run(&["hsm", "probe"]).await?.text()?.to_owned();
    plan.run(&["hsm", "probe", "--out", &file]).await?.text()?;
    ensure!(fs::read_to_string(&file)?.trim_end() == printed.trim_end(), "the file is not what is printed");
    plan.more.push(("hsm", "profile_file = \"profile.toml\"".into()));
    let doctor = plan.run(&["doctor"]).await?.text()?.to_owned();
    ensure!(doctor.contains("IV of the caller"), "doctor does not show what was measured: {doctor}");
    let server = plan.start().await?;
    server.kms(["keys", "create", "orders", "--algorithm", "ES256"]).await?.text()?;
    server.kms(["jwt", "sign", "orders", "--claims", "{}", "--ttl", "1m"]).await?.text()?;
    Ok(())
}
