//! The main job, with every algorithm: a key is born in the HSM, signs a token, and strangers verify it with
//! nothing but the URL of the JWKS.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kms_tests::{ALGORITHMS, Environment, Jwt, Service, Verdict, Verifier, jose_name, thumbprint};
use serde_json::{Value, json};

/// Commands at a time. The token makes one key at a time anyway.
const COMMANDS: usize = 4;
const AUDIENCE: &str = "https://strangers.test";

#[tokio::test(flavor = "multi_thread")]
async fn strangers_verify_each_algorithm_and_refuse_each_changed_token() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let discovery: Value = service.get_json("/.well-known/openid-configuration").await?;
    let issuer = discovery["issuer"].as_str().context("no issuer")?;
    let jwks_url = discovery["jwks_uri"].as_str().context("no jwks_uri")?;

    let tokens: Vec<Token> = stream::iter(ALGORITHMS)
        .map(|algorithm| make_key_and_token(&service, algorithm, issuer))
        .buffered(COMMANDS)
        .try_collect()
        .await?;
    check_jwks(&service.get_json("/.well-known/jwks.json").await?, &tokens)?;

    let good: Vec<_> = tokens.iter().map(|t| (t.alg().to_owned(), t.token.clone())).collect();
    let changed: Vec<_> = tokens.iter().map(Token::with_another_subject).collect::<Result<_, _>>()?;
    let mut columns = Vec::new();
    for verifier in Verifier::ALL {
        if !verifier.is_here()? {
            continue;
        }
        let good = verifier.verify(jwks_url, issuer, AUDIENCE, &good).await?;
        let changed = verifier.verify(jwks_url, issuer, AUDIENCE, &changed).await?;
        let column: Vec<bool> = tokens
            .iter()
            .zip(good.into_iter().zip(changed))
            .map(|(token, (good, changed))| {
                supported(token, good, changed)
                    .with_context(|| format!("{} of {}", token.algorithm, verifier.name()))
            })
            .collect::<Result<_, _>>()?;
        columns.push((verifier, column));
    }
    check_document(&columns)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_still_signs_with_the_version_that_verifiers_know() -> anyhow::Result<()> {
    let service = Service::start().await?;
    service.kms(["keys", "create", "orders", "--algorithm", "ES256"]).await?.text()?;
    let before = sign(&service, "orders", &json!({"sub": "alice"})).await?;
    let next = service.kms(["keys", "rotate", "orders", "-o", "json"]).await?.json()?;
    let after = sign(&service, "orders", &json!({"sub": "alice"})).await?;

    let kid = |token: &str| anyhow::Ok(Jwt::parse(token)?.header()?["kid"].clone());
    ensure!(kid(&before)? == kid(&after)?, "the next version signs before it was published long enough");
    ensure!(kid(&after)? != next["kid"], "the next version is the same key");
    let jwks: Value = service.get_json("/keys/orders/jwks.json").await?;
    let published: BTreeSet<_> = kids(&jwks).collect();
    let both: BTreeSet<_> = [kid(&after)?, next["kid"].clone()].iter().map(Value::to_string).collect();
    ensure!(published == both, "published are {published:?} instead of {both:?}");
    Ok(())
}

/// A token, and what it must say.
struct Token {
    algorithm: &'static str,
    token: String,
    claims: Value,
}

impl Token {
    fn alg(&self) -> &'static str {
        jose_name(self.algorithm)
    }

    /// The same header and signature under other claims, with the algorithm to expect.
    fn with_another_subject(&self) -> anyhow::Result<(String, String)> {
        let changed = Jwt::parse(&self.token)?.with_claim("sub", json!("mallory"))?;
        Ok((self.alg().to_owned(), changed))
    }
}

async fn make_key_and_token(
    service: &Environment,
    algorithm: &'static str,
    issuer: &str,
) -> anyhow::Result<Token> {
    let name = algorithm.to_ascii_lowercase();
    service.kms(["keys", "create", &name, "--algorithm", algorithm, "--timeout", "60s"]).await?.text()?;
    let claims = json!({"iss": issuer, "aud": AUDIENCE, "sub": "alice", "n": 9_007_199_254_740_993_u64});
    let token = sign(service, &name, &claims).await?;
    Ok(Token { algorithm, token, claims })
}

async fn sign(service: &Environment, name: &str, claims: &Value) -> anyhow::Result<String> {
    let output = service.kms(["jwt", "sign", name, "--claims", &claims.to_string(), "--ttl", "15m"]).await?;
    Ok(output.text()?.to_owned())
}

/// The published keys are public, bear their own thumbprints, and are those that the tokens name.
fn check_jwks(jwks: &Value, tokens: &[Token]) -> anyhow::Result<()> {
    let keys = jwks["keys"].as_array().context("no keys")?;
    for jwk in keys {
        let thumbprint = thumbprint(jwk)?;
        ensure!(jwk["kid"] == thumbprint.as_str(), "the kid is not the thumbprint {thumbprint}: {jwk}");
        ensure!(jwk["use"] == "sig", "not for signatures: {jwk}");
        let private = ["d", "p", "q", "dp", "dq", "qi", "k"];
        ensure!(
            private.iter().all(|member| jwk.get(member).is_none()),
            "a private member is published: {jwk}"
        );
    }
    let distinct: BTreeSet<_> = kids(jwks).collect();
    ensure!(distinct.len() == keys.len(), "two keys have one kid: {jwks}");
    for token in tokens {
        let header = Jwt::parse(&token.token)?.header()?;
        let named: Vec<_> = keys.iter().filter(|jwk| jwk["kid"] == header["kid"]).collect();
        ensure!(named.len() == 1, "{}: {header} names {} keys", token.algorithm, named.len());
        ensure!(named[0]["alg"] == token.alg() && header["alg"] == token.alg(), "{header} and {}", named[0]);
    }
    Ok(())
}

fn kids(jwks: &Value) -> impl Iterator<Item = String> {
    jwks["keys"].as_array().into_iter().flatten().map(|jwk| jwk["kid"].to_string())
}

/// Whether the verifier supports the algorithm: then it took the good token with its claims as they were, and
/// refused the changed one for its signature.
fn supported(token: &Token, good: Verdict, changed: Verdict) -> anyhow::Result<bool> {
    match (good, changed) {
        (Verdict::Verified { claims }, Verdict::BadSignature { .. }) => {
            for (name, value) in token.claims.as_object().into_iter().flatten() {
                // JavaScript has no integers beyond 2^53.
                let same = claims[name] == *value || (name == "n" && claims[name].as_f64() == value.as_f64());
                ensure!(same, "{name} became {}", claims[name]);
            }
            Ok(true)
        }
        (Verdict::UnsupportedAlgorithm { .. }, Verdict::UnsupportedAlgorithm { .. }) => Ok(false),
        (good, changed) => bail!("the token is {good:?} and the changed one {changed:?}"),
    }
}

/// docs/reference/algorithms.md says the same about who supports what. `KMS_BLESS=1` writes it.
fn check_document(columns: &[(Verifier, Vec<bool>)]) -> anyhow::Result<()> {
    const BEGIN: &str = "<!-- written by tests/tests/born_signed_verified.rs -->\n";
    const END: &str = "<!-- end -->\n";
    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/algorithms.md"));
    if columns.len() < Verifier::ALL.len() {
        return Ok(()); // Those that were left out have been named.
    }
    let document = fs::read_to_string(&file)?;
    let (before, rest) = document.split_once(BEGIN).context("no table")?;
    let (found, after) = rest.split_once(END).context("the table has no end")?;

    let mut table = String::from("| Algorithm |");
    for (verifier, _) in columns {
        write!(table, " {} |", verifier.name())?;
    }
    writeln!(table, "\n|---|{}", "---|".repeat(columns.len()))?;
    for (row, algorithm) in ALGORITHMS.iter().enumerate() {
        write!(table, "| {algorithm} |")?;
        for (_, column) in columns {
            write!(table, " {} |", if column[row] { "yes" } else { "no" })?;
        }
        writeln!(table)?;
    }
    if std::env::var_os("KMS_BLESS").is_some() {
        fs::write(&file, [before, BEGIN, &table, END, after].concat())?;
        return Ok(());
    }
    ensure!(
        found == table,
        "{} is out of date (KMS_BLESS=1 writes it); it must say\n{table}",
        file.display()
    );
    Ok(())
}
