//! A verifier in Rust that we did not write: the jsonwebtoken crate, with nothing but the JWKS.

use anyhow::{Context as _, ensure};
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header, errors::ErrorKind, jwk::JwkSet};
use kms_tests::Service;
use serde_json::{Value, json};

/// What jsonwebtoken knows: no P-521, and EdDSA only under its older name.
const SUPPORTED: [&str; 9] = [
    "ES256",
    "ES384",
    "RS256-2048",
    "RS384-2048",
    "RS512-2048",
    "PS256-2048",
    "PS384-2048",
    "PS512-2048",
    "EdDSA",
];

#[tokio::test(flavor = "multi_thread")]
async fn jsonwebtoken_verifies_what_it_supports_and_refuses_another_audience() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let mut tokens = Vec::new();
    for algorithm in SUPPORTED {
        let name = algorithm.to_ascii_lowercase();
        service.kms(["keys", "create", &name, "--algorithm", algorithm]).await?.text()?;
        let claims = json!({"aud": "here", "sub": "alice"}).to_string();
        let token = service.kms(["jwt", "sign", &name, "--claims", &claims, "--ttl", "15m"]).await?;
        tokens.push(token.text()?.to_owned());
    }
    let jwks: JwkSet = serde_json::from_value(service.get_json("/.well-known/jwks.json").await?)?;
    for token in tokens {
        let header = decode_header(&token)?;
        let jwk = jwks.find(header.kid.as_deref().context("no kid")?).context("the kid is not published")?;
        let key = DecodingKey::from_jwk(jwk)?;
        let mut validation = Validation::new(header.alg);
        validation.set_audience(&["here"]);
        let claims = decode::<Value>(&token, &key, &validation)?.claims;
        ensure!(claims["sub"] == "alice", "{claims}");
        validation.set_audience(&["elsewhere"]);
        let refused = decode::<Value>(&token, &key, &validation).err().map(|error| error.into_kind());
        ensure!(matches!(refused, Some(ErrorKind::InvalidAudience)), "{:?}: {refused:?}", header.alg);
    }
    Ok(())
}
