//! A signed bundle of the key set, as a CDN would serve it: a verifier in Python that has pinned its key verifies
//! tokens while the service does not run, and takes nothing else for a bundle.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use kms_tests::{Jwt, Plan, Server, Verdict, Verifier, python, refused};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

const ISSUER: &str = "https://kms.test";
const AUDIENCE: &str = "here";

/// What a verifier keeps, and what it fetches.
struct Cdn {
    python: PathBuf,
    dir: TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_verify_with_a_pinned_bundle_while_the_service_does_not_run() -> anyhow::Result<()> {
    let Some((mut server, cdn)) = server_and_cdn().await? else { return Ok(()) };
    cdn.publish(&server, &[]).await?;
    let tokens = [token(&server, "web").await?, token(&server, "api").await?];
    let stranger = Jwt::parse(&tokens[0])?.with_claim("sub", "mallory".into())?;
    server.running.terminate().await?;

    let (bundle, verdicts) = cdn.verify(&[], &[&tokens[0], &tokens[1], &stranger]).await?;
    ensure!(bundle["verdict"] == "accepted", "{bundle}");
    ensure!(verdicts[..2].iter().all(|verdict| verdict["verdict"] == "verified"), "{verdicts:?}");
    ensure!(verdicts[0]["claims"]["sub"] == "alice", "{verdicts:?}");
    ensure!(verdicts[2]["verdict"] == "bad-signature", "{verdicts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verifier_follows_the_chain_to_the_next_version_and_pins_anew_after_an_emergency()
-> anyhow::Result<()> {
    let Some((mut server, cdn)) = server_and_cdn().await? else { return Ok(()) };
    let pinned_long_ago = cdn.state()?;
    cdn.publish(&server, &[]).await?;
    let first = cdn.document()?;
    // The next one waits for its time, and an emergency takes it: nobody need wait for the lead here.
    server.kms(["keys", "rotate", "publisher"]).await?.text()?;
    server.kms(["keys", "rotate", "publisher", "--emergency"]).await?.text()?;
    cdn.publish(&server, &[]).await?;
    let second = cdn.document()?;
    ensure!(second["chain"].as_array().map(Vec::len) == Some(1), "{second}");
    let token = token(&server, "web").await?;

    // What leads to the second is of its predecessor alone, and about it alone.
    let statement = Jwt::parse(second["chain"][0].as_str().context("a statement")?)?;
    let own = statement.claims()?["jwk"].clone();
    let thief = public_jwk(&server, "web").await?;
    let forged = statement.with_claim("jwk", thief)?;
    cdn.put(&json!({"bundle": second["bundle"], "chain": [forged]}))?;
    refuses(&cdn, &[], "InvalidSignature").await?;
    cdn.put(&json!({"bundle": second["bundle"], "chain": []}))?;
    refuses(&cdn, &[], "not what is pinned").await?;

    cdn.put(&second)?;
    let (bundle, verdicts) = cdn.verify(&[], &[&token]).await?;
    ensure!(bundle["kid"] == own["kid"] && verdicts[0]["verdict"] == "verified", "{bundle} {verdicts:?}");
    // It has moved on, and goes back neither to the first bundle nor with its key.
    cdn.put(&first)?;
    refuses(&cdn, &[], "not what is pinned").await?;

    // Nobody vouches for what was made in an emergency.
    server.kms(["keys", "rotate", "publisher", "--emergency"]).await?.text()?;
    cdn.publish(&server, &[]).await?;
    ensure!(cdn.document()?["chain"] == json!([]), "{}", cdn.document()?);
    refuses(&cdn, &[], "not what is pinned").await?;
    cdn.pin(&server).await?;
    server.running.terminate().await?;
    let (bundle, verdicts) = cdn.verify(&[], &[&token]).await?;
    ensure!(bundle["verdict"] == "accepted" && verdicts[0]["verdict"] == "verified", "{bundle} {verdicts:?}");
    // Whoever slept through all of it can follow as far as the chain of that time went.
    cdn.put(&second)?;
    cdn.keep(&pinned_long_ago)?;
    ensure!(cdn.verify(&[], &[]).await?.0["kid"] == own["kid"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_bundle_of_today_by_the_pinned_key_is_refused() -> anyhow::Result<()> {
    let Some((server, cdn)) = server_and_cdn().await? else { return Ok(()) };
    cdn.publish(&server, &["--ttl", "10m"]).await?;
    let old = cdn.document()?;
    let bundle = Jwt::parse(old["bundle"].as_str().context("a bundle")?)?;
    let (claims, header) = (bundle.claims()?, bundle.header()?);
    let time = |name: &str| claims[name].as_i64().with_context(|| format!("no {name}"));
    let (from, until) = (time("nbf")?, time("exp")?);
    ensure!(until - from == 600, "{claims}");

    // Tampered: a key added, the end put off, a signature bit turned.
    let mut keys = claims["keys"].clone();
    keys.as_array_mut().context("keys")?.push(public_jwk(&server, "publisher").await?);
    for (name, value) in [("keys", keys), ("exp", json!(until + 1)), ("seq", json!(time("seq")? + 1))] {
        cdn.put(&json!({"bundle": bundle.with_claim(name, value)?, "chain": []}))?;
        refuses(&cdn, &[], "InvalidSignature").await?;
    }

    // Of another time, another life, another set.
    cdn.put(&old)?;
    refuses(&cdn, &["--now", &until.to_string()], "it has expired").await?;
    refuses(&cdn, &["--now", &(from - 61).to_string()], "it does not hold yet").await?;
    refuses(&cdn, &["--lifetime-max", "599"], "longer than a revocation may take").await?;
    refuses(&cdn, &["--subject", "keys/web"], "it is the set keys/*").await?;
    cdn.publish(&server, &["--of", "web"]).await?;
    refuses(&cdn, &[], "it is the set keys/web").await?;
    let (bundle_of_one, verdicts) = cdn
        .verify(&["--subject", "keys/web"], &[&token(&server, "web").await?, &token(&server, "api").await?])
        .await?;
    ensure!(bundle_of_one["verdict"] == "accepted", "{bundle_of_one}");
    ensure!(verdicts[0]["verdict"] == "verified" && verdicts[1]["verdict"] == "refused", "{verdicts:?}");

    // By an ordinary key, which takes the same claims and the same type; and that under the name of the pinned one.
    let text = claims.to_string();
    let sign = ["jwt", "sign", "web", "--claims", &text, "--type", "kms-jwks-bundle+jwt"];
    let ordinary = server.kms(sign).await?.text()?.to_owned();
    ensure!(Jwt::parse(&ordinary)?.header()?["typ"] == header["typ"], "{ordinary}");
    cdn.put(&json!({"bundle": ordinary, "chain": []}))?;
    refuses(&cdn, &[], "not what is pinned").await?;
    let mut parts: Vec<_> = ordinary.split('.').map(str::to_owned).collect();
    parts[0] = BASE64_URL_SAFE_NO_PAD.encode(header.to_string());
    cdn.put(&json!({"bundle": parts.join("."), "chain": []}))?;
    refuses(&cdn, &[], "InvalidSignature").await?;

    // Rolled back: a change, a newer bundle of a shorter life, the older one again, also once the newer one has expired.
    server.kms(["keys", "disable", "api", "--version", "1"]).await?.text()?;
    cdn.publish(&server, &["--ttl", "5m"]).await?;
    let new = cdn.document()?;
    let (seen, _) = cdn.verify(&[], &[]).await?;
    ensure!(seen["verdict"] == "accepted" && seen["seq"].as_i64() > Some(time("seq")?), "{seen}");
    cdn.put(&old)?;
    refuses(&cdn, &[], "it is older").await?;
    let after_the_new_one = (time("nbf")? + 5 * 60 + 90).to_string();
    refuses(&cdn, &["--now", &after_the_new_one], "it is older").await?;
    cdn.put(&new)?;
    ensure!(cdn.verify(&[], &[]).await?.0["verdict"] == "accepted", "the same one again");

    // Of another type: the pinned key signs statements too.
    server.kms(["keys", "rotate", "publisher"]).await?.text()?;
    server.kms(["keys", "rotate", "publisher", "--emergency"]).await?.text()?;
    cdn.publish(&server, &[]).await?;
    let statement = cdn.document()?["chain"][0].clone();
    cdn.put(&json!({"bundle": statement, "chain": []}))?;
    refuses(&cdn, &[], "its type is kms-jwks-bundle-succession+jwt").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_bundles_signs_no_token_and_no_verifier_of_tokens_is_told_of_it() -> anyhow::Result<()> {
    let Some((server, cdn)) = server_and_cdn().await? else { return Ok(()) };
    let kid = public_jwk(&server, "publisher").await?["kid"].clone();
    let set = server.get_json("/.well-known/jwks.json").await?;
    let kids: Vec<_> = set["keys"].as_array().context("keys")?.iter().map(|key| key["kid"].clone()).collect();
    ensure!(kids.len() == 2 && !kids.contains(&kid), "{set}");
    let own = server.get("/keys/publisher/jwks.json").await?.status();
    ensure!(own == StatusCode::NOT_FOUND, "{own}");

    let jwt = server.kms(["jwt", "sign", "publisher", "--claims", "{}", "--ttl", "1m"]).await?;
    refused(&jwt, &["signs bundles of key sets and nothing else"])?;
    let file = cdn.dir.path().join("bytes");
    fs::write(&file, "eyJ9.e30")?;
    let bytes = server.kms(["sign", "publisher", "--in", &file.display().to_string()]).await?;
    refused(&bytes, &["signs bundles of key sets and nothing else"])?;
    let bundle = server.kms(["jwks", "bundle", "--key", "web"]).await?;
    refused(&bundle, &["whose purpose is jwks-bundle"])?;

    // Nor is a bundle a token.
    cdn.publish(&server, &[]).await?;
    let bundle = cdn.document()?["bundle"].as_str().context("a bundle")?.to_owned();
    let url = format!("{}/.well-known/jwks.json", server.http_addr);
    let verdicts = Verifier::PyJwt.verify(&url, ISSUER, AUDIENCE, &[("ES256".to_owned(), bundle)]).await?;
    ensure!(matches!(verdicts[..], [Verdict::Refused { .. }]), "{verdicts:?}");
    Ok(())
}

/// A server with two keys of tokens, `web` and `api`, and one of bundles, `publisher`, which a verifier has pinned.
/// `None` where Python is not installed.
async fn server_and_cdn() -> anyhow::Result<Option<(Server, Cdn)>> {
    let Some(python) = python()? else { return Ok(None) };
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let server = plan.start().await?;
    for name in ["web", "api"] {
        server.kms(["keys", "create", name, "--algorithm", "ES256"]).await?.text()?;
    }
    let create = ["keys", "create", "publisher", "--algorithm", "ES256", "--purpose", "jwks-bundle"];
    server.kms(create).await?.text()?;
    let cdn = Cdn { python, dir: tempfile::tempdir()? };
    cdn.pin(&server).await?;
    Ok(Some((server, cdn)))
}

async fn public_jwk(server: &Server, name: &str) -> anyhow::Result<Value> {
    Ok(server.kms(["keys", "public", name, "-o", "json"]).await?.json()?["jwk"].clone())
}

async fn token(server: &Server, key: &str) -> anyhow::Result<String> {
    let claims = json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "alice"}).to_string();
    let token = server.kms(["jwt", "sign", key, "--claims", &claims, "--ttl", "15m"]).await?;
    Ok(token.text()?.to_owned())
}

/// The verifier refuses what it fetches, says why, and remembers nothing of it.
async fn refuses(cdn: &Cdn, arguments: &[&str], why: &str) -> anyhow::Result<()> {
    let before = cdn.state()?;
    let (verdict, _) = cdn.verify(arguments, &[]).await?;
    let detail = verdict["detail"].as_str().unwrap_or_default();
    ensure!(verdict["verdict"] == "refused" && detail.contains(why), "{why}: {verdict}");
    ensure!(cdn.state()? == before, "{why}: it was remembered");
    Ok(())
}

impl Cdn {
    /// Out of band: what `kms keys public` says now.
    async fn pin(&self, server: &Server) -> anyhow::Result<()> {
        self.keep(&json!({"pin": public_jwk(server, "publisher").await?, "seq": 0, "until": 0}))
    }

    async fn publish(&self, server: &Server, arguments: &[&str]) -> anyhow::Result<()> {
        let out = self.fetched().display().to_string();
        let publish = ["jwks", "bundle", "--key", "publisher", "--out", &out];
        server.kms(publish.into_iter().chain(arguments.iter().copied())).await?.text()?;
        Ok(())
    }

    fn document(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.fetched())?)?)
    }

    fn put(&self, document: &Value) -> anyhow::Result<()> {
        Ok(fs::write(self.fetched(), document.to_string())?)
    }

    fn state(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.kept())?)?)
    }

    fn keep(&self, state: &Value) -> anyhow::Result<()> {
        Ok(fs::write(self.kept(), state.to_string())?)
    }

    fn fetched(&self) -> PathBuf {
        self.dir.path().join("keys.json")
    }

    fn kept(&self) -> PathBuf {
        self.dir.path().join("state.json")
    }

    /// What the verifier says of the bundle, and of each token when it took that. Its exit code must agree.
    async fn verify(&self, arguments: &[&str], tokens: &[&str]) -> anyhow::Result<(Value, Vec<Value>)> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python/verify_bundle.py");
        let mut child = tokio::process::Command::new(&self.python)
            .arg(program)
            .args([self.fetched(), self.kept()])
            .args([ISSUER, AUDIENCE])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        let lines: String = tokens.iter().map(|token| format!("ES256 {token}\n")).collect();
        // One that refuses the bundle reads no tokens.
        let (_, output) =
            tokio::join!(async move { stdin.write_all(lines.as_bytes()).await }, child.wait_with_output());
        let output = output?;
        let verdicts = String::from_utf8(output.stdout)?;
        let verdicts = verdicts.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        let (bundle, verdicts) = verdicts.split_first().context("it said nothing")?;
        let good = |verdict: &Value| verdict["verdict"] == "verified";
        let all_good = bundle["verdict"] == "accepted" && verdicts.iter().all(good);
        ensure!(
            output.status.code() == Some(i32::from(!all_good)),
            "{}: {bundle} {verdicts:?}",
            output.status
        );
        Ok((bundle.clone(), verdicts.to_vec()))
    }
}
