//! The life of keys by hand, at the command line: rotations at a time, emergencies, revocations, the inventory of keys,
//! classes, claim rules, and who may sign what.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kms_softhsm::EphemeralToken;
use kms_tests::{
    Environment, Jwt, Output, PATIENCE, Plan, Server, Service, TestHsm, kill, records, refused, until,
};
use rustix::process::Signal;
use serde_json::Value;

async fn run(there: &Environment, line: &str) -> anyhow::Result<Output> {
    there.kms(line.split(' ')).await
}

async fn json(there: &Environment, line: &str) -> anyhow::Result<Value> {
    run(there, &format!("{line} -o json")).await?.json()
}

/// The names of the keys that a list shows.
async fn listed(there: &Environment, terms: &str) -> anyhow::Result<Vec<String>> {
    let keys = json(there, format!("keys list {terms}").trim_end()).await?;
    let names = keys.as_array().context("a list")?.iter().map(|key| key["name"].as_str());
    let names: Option<Vec<_>> =
        names.map(|name| Some(name?.trim_start_matches("keys/").to_owned())).collect();
    names.context("a key without a name")
}

async fn kid_of_a_token(there: &Environment, key: &str) -> anyhow::Result<Value> {
    let token = run(there, &format!("jwt sign {key} --claims {{}} --ttl 1m")).await?;
    Ok(Jwt::parse(token.text()?)?.header()?["kid"].clone())
}

/// What was said, without the breaks of lines.
fn said(output: &Output) -> String {
    output.stderr.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_is_kept_at_its_time_or_refused_with_the_earliest_one() -> anyhow::Result<()> {
    let service = Service::start().await?;
    run(&service, "keys create orders --algorithm ES256 --publish-lead 1h").await?.text()?;
    let early = run(&service, "keys rotate orders --at 2020-01-01T00:00:00Z").await?;
    ensure!(early.code == Some(2), "{early:?}");
    refused(&early, &["activate_time", "can take over from "])?;
    let earliest = said(&early);
    let (_, earliest) = earliest.split_once("can take over from ").context("no time")?;
    let (earliest, latest) = earliest.split_once(" to ").context("no latest time")?;
    let latest = latest.split('Z').next().context("no latest time")?;
    ensure!(json(&service, "keys versions orders").await?.as_array().is_some_and(|all| all.len() == 1));

    let late = format!("keys rotate orders --at {}", latest.replacen("20", "21", 1));
    refused(&run(&service, &format!("{late}Z")).await?, &["can take over from "])?;
    let taken = json(&service, &format!("keys rotate orders --at {latest}Z")).await?;
    ensure!(taken["activate_time"] == format!("{latest}Z"), "{taken}, latest {latest}Z");
    ensure!(taken["state"] == "pre_activation" && taken["emergency"] == false, "{taken}");
    let versions = json(&service, "keys versions orders").await?;
    ensure!(versions[0]["retire_time"] == taken["activate_time"], "{versions}");

    // The earliest one that was named was one, a moment before.
    run(&service, "keys create other --algorithm ES256 --publish-lead 1h").await?.text()?;
    let other = run(&service, &format!("keys rotate other --at {earliest}")).await?;
    let named_again = said(&other).contains("can take over from ");
    ensure!(other.code == Some(0) || named_again, "{other:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emergency_signs_at_once_and_says_what_it_breaks() -> anyhow::Result<()> {
    let service = Service::start().await?;
    run(&service, "keys create orders --algorithm ES256").await?.text()?;
    let both = run(&service, "keys rotate orders --emergency --at 2030-01-01T00:00:00Z").await?;
    ensure!(both.code == Some(2), "{both:?}");

    let output = run(&service, "keys rotate orders --emergency -o json").await?;
    let second = output.json()?;
    ensure!(
        second["state"] == "active" && second["primary"] == true && second["emergency"] == true,
        "{second}"
    );
    for part in [
        "keys/orders/versions/2 signs now",
        "refuse its tokens until they have fetched the key set again",
        "What the version before it signed still verifies",
    ] {
        ensure!(said(&output).contains(part), "{part}: {output:?}");
    }
    ensure!(kid_of_a_token(&service, "orders").await? == second["kid"], "it does not sign");
    // One that waits is taken, and no other made.
    let waiting = json(&service, "keys rotate orders").await?;
    let promoted = json(&service, "keys rotate orders --emergency").await?;
    ensure!(waiting["number"] == 3 && promoted["number"] == 3 && promoted["primary"] == true, "{promoted}");
    let set = service.get_json("/keys/orders/jwks.json").await?;
    ensure!(
        set["keys"].as_array().is_some_and(|keys| keys.len() == 3),
        "an emergency withdraws nothing: {set}"
    );
    let recorded = records(&service.dir())?;
    let emergencies = recorded.iter().filter(|record| record["action"] == "emergency_rotate_key");
    ensure!(emergencies.filter(|record| record["outcome"] == "succeeded").count() == 2, "{recorded:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_version_is_refused_at_once_and_what_to_do_next_is_said() -> anyhow::Result<()> {
    let service = Service::start().await?;
    run(&service, "keys create orders --algorithm ES256").await?.text()?;
    let kid = kid_of_a_token(&service, "orders").await?;
    for reason in ["", " "] {
        let revoke = ["keys", "revoke", "orders", "--version", "1", "--reason", reason];
        refused(&service.kms(revoke).await?, &["reason"])?;
    }
    let revoke = ["keys", "revoke", "orders", "--version", "1", "--reason", "the backup was stolen"];
    let output = service.kms(revoke.into_iter().chain(["-o", "json"])).await?;
    let revoked = output.json()?;
    ensure!(
        revoked["state"] == "compromised" && revoked["compromise_reason"] == "the backup was stolen",
        "{revoked}"
    );
    let kid_text = kid.as_str().context("a kid")?;
    for part in [
        "is out of the JWKS and signs nothing more",
        &format!("refuse kid {kid_text} where you can"),
        "their holders must get new ones",
        "keys/orders/versions/2 signs now",
        "Find out how it got out",
    ] {
        ensure!(said(&output).contains(part), "{part}: {output:?}");
    }
    let set = service.get_json("/keys/orders/jwks.json").await?.to_string();
    ensure!(!set.contains(kid_text), "it is published: {set}");
    ensure!(kid_of_a_token(&service, "orders").await? != kid, "it signs");
    // Nothing brings it back: see its state below.
    run(&service, "keys enable orders --version 1").await?;
    // The first reason stands.
    run(&service, "keys revoke orders --version 1 --reason another").await?.text()?;
    let versions = json(&service, "keys versions orders").await?;
    ensure!(versions[0]["compromise_reason"] == "the backup was stolen", "{versions}");
    ensure!(versions[0]["state"] == "compromised" && versions[1]["primary"] == true, "{versions}");
    ensure!(listed(&service, "--state compromised").await? == ["orders"]);
    let timeline = run(&service, "keys timeline orders").await?;
    ensure!(timeline.text()?.contains("declared compromised: refused everywhere"), "{timeline:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_does_not_wait_for_an_hsm_that_is_down_and_the_successor_comes_by_itself()
-> anyhow::Result<()> {
    let Some(server) = remote_server().await? else { return Ok(()) };
    let TestHsm::Remote(remote) = &server.plan.token else { anyhow::bail!("the HSM is not remote") };
    run(&server, "keys create orders --algorithm ES256").await?.text()?;
    let kid = kid_of_a_token(&server, "orders").await?;
    server.all_workers_ready().await?;
    remote.kill()?;
    for worker in server.running.tree()?.workers() {
        // It may have seen for itself that the link is gone.
        let _ = kill(worker, Signal::KILL);
    }
    let revoke = ["keys", "revoke", "orders", "--version", "1", "--reason", "r", "--timeout", "20s"];
    let output = server.kms(revoke.into_iter().chain(["-o", "json"])).await?;
    ensure!(output.json()?["state"] == "compromised", "{output:?}");
    ensure!(said(&output).contains("Nothing signs yet in its place"), "{output:?}");
    let set = server.get_json("/keys/orders/jwks.json").await?.to_string();
    ensure!(!set.contains(kid.as_str().context("a kid")?), "it is published: {set}");
    let signed = run(&server, "jwt sign orders --claims {} --ttl 1m --timeout 5s").await?;
    ensure!(signed.code != Some(0), "somebody signs: {signed:?}");

    remote.restart()?;
    let token = until("a successor signs", PATIENCE.max(Duration::from_secs(180)), async || {
        let token = run(&server, "jwt sign orders --claims {} --ttl 1m --timeout 5s").await?;
        Ok((token.code == Some(0)).then_some(token))
    })
    .await?;
    let successor = Jwt::parse(token.text()?)?.header()?["kid"].clone();
    ensure!(successor != kid, "the revoked version signs");
    let set = server.get_json("/keys/orders/jwks.json").await?.to_string();
    ensure!(set.contains(successor.as_str().context("a kid")?), "it is not published: {set}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_keys_is_an_inventory_and_a_timeline_tells_past_and_future() -> anyhow::Result<()> {
    let service = Service::start().await?;
    for line in [
        "keys create daily --algorithm ES256 --class session --owner alice",
        "keys create yearly --algorithm ES256 --class root --owner bob --purpose signature",
        "keys create never --algorithm ES256 --rotation-period never --owner alice",
    ] {
        run(&service, line).await?.text()?;
    }
    ensure!(listed(&service, "--due 2d --owner alice").await? == ["daily"]);
    ensure!(listed(&service, "--owner alice").await? == ["daily", "never"]);
    ensure!(listed(&service, "--class root").await? == ["yearly"]);
    ensure!(listed(&service, "--due 366d --class root --owner bob").await? == ["yearly"]);
    ensure!(listed(&service, "--filter purpose=signature").await? == ["yearly"]);
    ensure!(listed(&service, "--state suspended").await?.is_empty());
    run(&service, "keys disable never --version 1").await?.text()?;
    ensure!(listed(&service, "--state suspended").await? == ["never"]);
    refused(&run(&service, "keys list --class gold").await?, &["class"])?;
    refused(&run(&service, "keys list --state lost").await?, &["state"])?;

    let ahead = json(&service, "keys timeline daily").await?;
    let events = |timeline: &Value| -> Vec<String> {
        let event =
            |event: &Value| format!("{} {}", event["version"], event["event"].as_str().unwrap_or_default());
        timeline.as_array().into_iter().flatten().map(event).collect()
    };
    let of_one =
        ["1 made", "1 published in the JWKS", "1 signs", "null now", "null the next version is to sign"];
    let found = events(&ahead);
    ensure!(of_one.iter().all(|event| found.iter().any(|found| found == event)), "{found:#?}");
    ensure!(found.last().is_some_and(|last| last.ends_with("is to sign")), "{found:#?}");
    run(&service, "keys rotate daily").await?.text()?;
    let found = events(&json(&service, "keys timeline daily").await?);
    let place = |event: &str| found.iter().position(|found| found == event).with_context(|| event.to_owned());
    ensure!(place("2 published in the JWKS")? < place("2 signs")?, "{found:#?}");
    ensure!(place("null now")? < place("2 signs")?, "{found:#?}");
    ensure!(place("2 signs")? < place("1 leaves the JWKS")?, "{found:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_gives_its_periods_to_its_keys_until_they_have_their_own() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let classes = json(&service, "keys classes").await?;
    let names: Vec<_> =
        classes.as_array().context("a list")?.iter().map(|class| class["name"].clone()).collect();
    for name in ["root", "jwt-signing", "database", "api", "session", "development"] {
        ensure!(names.iter().any(|found| *found == format!("keyClasses/{name}")), "{name} of {names:?}");
    }
    run(&service, "keys create plain --algorithm ES256 --class api").await?.text()?;
    run(&service, "keys create own --algorithm ES256 --class api --rotation-period 45d").await?.text()?;
    let period = async |key: &str| {
        let key = json(&service, &format!("keys get {key}")).await?;
        anyhow::Ok(key["rotation_period"].as_str().context("a period")?.to_owned())
    };
    ensure!(period("plain").await? == "90d" && period("own").await? == "45d");
    run(&service, "keys class-update api --rotation-period 60d").await?.text()?;
    ensure!(period("plain").await? == "60d" && period("own").await? == "45d");
    run(&service, "keys update own --inherit rotation-period").await?.text()?;
    ensure!(period("own").await? == "60d");
    // Alone, without any other change.
    run(&service, "keys update own --rotation-period 50d").await?.text()?;
    ensure!(period("own").await? == "50d");
    run(&service, "keys class-update api --reset rotation-period").await?.text()?;
    ensure!(period("plain").await? == "90d" && period("own").await? == "50d");

    refused(
        &run(&service, "keys class-update api --rotation-period 1h").await?,
        &["rotation_period", "publish_lead"],
    )?;
    refused(&run(&service, "keys class-update gold --rotation-period 1d").await?, &["class"])?;
    refused(&run(&service, "keys class-update api").await?, &["nothing is to be changed"])?;
    refused(&run(&service, "keys update own").await?, &["nothing is to be changed"])?;
    ensure!(period("plain").await? == "90d", "a refused change was made");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_a_key_does_not_allow_are_not_signed() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let create = "keys create orders --algorithm ES256 --issuer https://i.test --audience a --audience b --require-claim sub";
    run(&service, create).await?.text()?;
    let sign =
        async |claims: &str| service.kms(["jwt", "sign", "orders", "--claims", claims, "--ttl", "1m"]).await;
    for (claims, says) in [
        (r#"{"aud":"a","sub":"s"}"#, "iss"),
        (r#"{"iss":"https://other.test","aud":"a","sub":"s"}"#, "iss"),
        (r#"{"iss":"https://i.test","sub":"s"}"#, "aud"),
        (r#"{"iss":"https://i.test","aud":["a","c"],"sub":"s"}"#, "aud"),
        (r#"{"iss":"https://i.test","aud":"a"}"#, "sub"),
        (r#"{"iss":"https://i.test","aud":"a","sub":null}"#, "sub"),
    ] {
        let output = sign(claims).await?;
        refused(&output, &["this key signs only", says]).context(claims)?;
        ensure!(output.code == Some(5) && !output.stderr.contains("other.test"), "{output:?}");
    }
    sign(r#"{"iss":"https://i.test","aud":["b","a"],"sub":"s"}"#).await?.text()?;
    run(&service, "keys update orders --no-claim-rules").await?.text()?;
    sign("{}").await?.text()?;
    run(&service, "keys update orders --issuer https://i.test").await?.text()?;
    refused(&sign("{}").await?, &["this key signs only with iss"])
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_ones_own_choice_are_signed_by_keys_of_signatures_and_by_raw_signers() -> anyhow::Result<()>
{
    let service = Service::start().await?;
    run(&service, "keys create tokens --algorithm ES256").await?.text()?;
    run(&service, "keys create bytes --algorithm ES256 --purpose signature").await?.text()?;
    let with_role = async |role: &str| {
        let file = service.dir().join(role);
        let create = ["access-token", "create", role, "--role", role, "--all-keys", "--out"];
        service.kms(create.into_iter().chain([file.to_str().context("a path")?])).await?.text()?;
        anyhow::Ok(service.with_token_file(file))
    };
    let (user, raw_signer) = (with_role("user").await?, with_role("raw-signer").await?);
    let sign = async |who: &Environment, key: &str| {
        run(who, &format!("sign {key} --in /dev/null --out /dev/null")).await
    };

    let denied = sign(&user, "tokens").await?;
    ensure!(denied.code == Some(4), "a user could make a token that never ends: {denied:?}");
    let last = records(&service.dir())?.pop().context("no record")?;
    ensure!(last["action"] == "sign_raw" && last["outcome"] == "denied", "{last}");
    sign(&user, "bytes").await?.text()?;
    sign(&raw_signer, "tokens").await?.text()?;
    sign(&raw_signer, "bytes").await?.text()?;
    // Tokens come from keys of tokens, whoever asks.
    for who in [&user, &raw_signer] {
        run(who, "jwt sign tokens --claims {} --ttl 1m").await?.text()?;
        let output = run(who, "jwt sign bytes --claims {} --ttl 1m").await?;
        ensure!(output.code == Some(5), "{output:?}");
    }
    let managed = run(&raw_signer, "keys rotate tokens").await?;
    ensure!(managed.code == Some(4), "{managed:?}");
    Ok(())
}

/// A server whose HSM can be taken away, unless the software for that is not installed.
async fn remote_server() -> anyhow::Result<Option<Server>> {
    let Some(token) = kms_softhsm::unless_left_out(EphemeralToken::kryoptic())? else { return Ok(None) };
    let plan = Plan::on(TestHsm::remote(token)?)?;
    plan.bootstrap().await?;
    Ok(Some(plan.start().await?))
}
