//! What operators are told about rotation: the metrics that their rules already know, and that the rules and documents
//! of ours name nothing that is not there.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, ensure};
use kms_softhsm::{EphemeralToken, unless_left_out};
use kms_tests::{Environment, PATIENCE, Plan, TestHsm, until};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus/kms.rules.yml");
const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/metrics.md");
const RUNBOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/how-to/alerts.md");

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_the_hsm_keeps_from_being_done_is_told_and_over_when_it_is_done() -> anyhow::Result<()>
{
    let Some(token) = unless_left_out(EphemeralToken::kryoptic())? else { return Ok(()) };
    let plan = Plan::on(TestHsm::remote(token)?)?;
    plan.bootstrap().await?;
    let server = plan.start().await?;
    let TestHsm::Remote(remote) = &server.plan.token else { anyhow::bail!("the HSM is not remote") };
    until("the attribute audit has come to its end", PATIENCE, async || {
        Ok(server.metric("kms_attribute_audit_last_success_timestamp_seconds").await.ok())
    })
    .await?;
    let periods = ["--rotation-period", "90d", "--publish-lead", "10s", "--max-token-ttl", "10s"];
    for name in ["orders", "steady"] {
        server.kms([&["keys", "create", name, "-a", "ES256"], &periods[..]].concat()).await?.text()?;
        ensure!(of_key(&server, "key_rotation_success", name).await? == Some(1.0));
        ensure!(of_key(&server, "key_expiry_timestamp", name).await?.is_some());
    }

    remote.kill()?;
    server.kms(["keys", "update", "orders", "--rotation-period", "20s"]).await?.text()?;
    until("the failure is told", PATIENCE, async || {
        let told = of_key(&server, "key_rotation_success", "orders").await? == Some(0.0)
            && of_key(&server, "kms_key_rotation_failures_total", "orders").await? >= Some(1.0);
        Ok(told.then_some(()))
    })
    .await?;
    ensure!(of_key(&server, "key_rotation_success", "steady").await? == Some(1.0));
    ensure!(of_key(&server, "kms_key_jwks_versions", "orders").await? == Some(1.0));
    ensure!(server.metric("kms_keys_rotation_failing").await? == 1.0);
    ensure!(server.metric("kms_keys_without_active_version").await? == 0.0, "the old version signs on");
    until("it is called overdue", PATIENCE, async || {
        Ok((server.metric("kms_keys_rotation_overdue").await? == 1.0).then_some(()))
    })
    .await?;

    remote.restart()?;
    until("the rotation is done", PATIENCE, async || {
        Ok((of_key(&server, "key_rotation_success", "orders").await? == Some(1.0)).then_some(()))
    })
    .await?;
    ensure!(of_key(&server, "kms_key_jwks_versions", "orders").await? == Some(2.0));
    ensure!(of_key(&server, "kms_key_rotation_failures_total", "orders").await? >= Some(1.0));
    ensure!(server.metric("kms_keys_rotation_failing").await? == 0.0);
    ensure!(server.metric("kms_keys_rotation_overdue").await? == 0.0);

    // Everything that there can be is there now.
    let scraped = Scrape::of(&server).await?;
    let in_rules = names(&fs::read_to_string(RULES)?);
    ensure!(in_rules.len() > 10, "{in_rules:?}");
    let invented: Vec<_> = in_rules.difference(&scraped.series).collect();
    ensure!(invented.is_empty(), "rules name what is not there: {invented:?}");
    let in_reference = names(&fs::read_to_string(REFERENCE)?);
    let known = &scraped.series | &scraped.families;
    let invented: Vec<_> = in_reference.difference(&known).collect();
    ensure!(invented.is_empty(), "the reference names what is not there: {invented:?}");
    let documented = |family: &&String| {
        ["", "_total", "_info"].iter().any(|suffix| in_reference.contains(&format!("{family}{suffix}")))
    };
    let untold: Vec<_> = scraped.families.iter().filter(|family| !documented(family)).collect();
    ensure!(untold.is_empty(), "the reference does not name {untold:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_beyond_the_configured_number_are_in_the_sums_alone() -> anyhow::Result<()> {
    let mut plan = Plan::new()?;
    plan.more.push(("http", "metrics_keys_max = 1".to_owned()));
    plan.bootstrap().await?;
    let server = plan.start().await?;
    for name in ["b", "a"] {
        server.kms(["keys", "create", name, "-a", "ES256"]).await?.text()?;
    }
    ensure!(of_key(&server, "key_rotation_success", "a").await? == Some(1.0));
    ensure!(of_key(&server, "key_rotation_success", "b").await? == None);
    ensure!(server.metric("kms_keys").await? == 2.0);
    ensure!(server.metric("kms_keys_without_series").await? == 1.0);
    Ok(())
}

#[test]
fn every_alert_links_to_a_section_about_it() -> anyhow::Result<()> {
    let (rules, runbooks) = (fs::read_to_string(RULES)?, fs::read_to_string(RUNBOOKS)?);
    let after = |line: &str, word: &str| Some(line.trim().strip_prefix(word)?.trim().to_owned());
    let alerts: Vec<_> = rules.lines().filter_map(|line| after(line, "- alert:")).collect();
    let links: Vec<_> = rules.lines().filter_map(|line| after(line, "runbook_url:")).collect();
    ensure!(!alerts.is_empty() && alerts.len() == links.len(), "{alerts:?} {links:?}");
    for (alert, link) in alerts.iter().zip(links) {
        ensure!(link == format!("docs/how-to/alerts.md#{}", alert.to_lowercase()), "{alert} links to {link}");
        ensure!(runbooks.lines().any(|line| line == format!("## {alert}")), "no section about {alert}");
    }
    Ok(())
}

struct Scrape {
    /// As they stand before their values.
    series: BTreeSet<String>,
    /// As they are declared: a counter without `_total`, a histogram without `_bucket`, an info without `_info`.
    families: BTreeSet<String>,
}

impl Scrape {
    async fn of(server: &Environment) -> anyhow::Result<Self> {
        let text = server.get("/metrics").await?.error_for_status()?.text().await?;
        let family = |line: &str| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned());
        let series = text.lines().filter(|line| !line.starts_with('#'));
        let series = series.filter_map(|line| line.split(['{', ' ']).next());
        Ok(Self {
            series: series.map(str::to_owned).collect(),
            families: text.lines().filter_map(family).collect(),
        })
    }
}

/// The value of a key's series, if it has one.
async fn of_key(server: &Environment, name: &str, key: &str) -> anyhow::Result<Option<f64>> {
    let text = server.get("/metrics").await?.error_for_status()?.text().await?;
    let series = format!("{name}{{key=\"{key}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.map(|value| value.parse().with_context(|| series.clone())).transpose()
}

/// The words of a text that are names of metrics.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_name = |word: &&str| word.starts_with("kms_") || word.starts_with("key_");
    words.filter(is_name).map(str::to_owned).collect()
}
