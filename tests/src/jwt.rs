//! Tokens taken apart by hand, so that the tests share no code with what they test.

use anyhow::Context as _;
use aws_lc_rs::digest;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// A compact JWS (RFC 7515 §3.1) that holds a JWT.
#[derive(Debug, Clone)]
pub struct Jwt {
    parts: [String; 3],
}

impl Jwt {
    /// Takes it apart.
    pub fn parse(token: &str) -> anyhow::Result<Self> {
        let parts: Vec<_> = token.split('.').map(str::to_owned).collect();
        let parts = <[String; 3]>::try_from(parts).ok().context("a compact JWS has three parts")?;
        Ok(Self { parts })
    }

    /// The header.
    pub fn header(&self) -> anyhow::Result<Value> {
        decoded(&self.parts[0])
    }

    /// The claims.
    pub fn claims(&self) -> anyhow::Result<Value> {
        decoded(&self.parts[1])
    }

    /// The same signature under claims with one changed.
    pub fn with_claim(&self, name: &str, value: Value) -> anyhow::Result<String> {
        let mut claims = self.claims()?;
        claims[name] = value;
        let claims = BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
        Ok(format!("{}.{claims}.{}", self.parts[0], self.parts[2]))
    }
}

/// The RFC 7638 thumbprint of a JWK: SHA-256 over its required members, sorted and without white space.
pub fn thumbprint(jwk: &Value) -> anyhow::Result<String> {
    let member = |name: &str| jwk[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
    // serde_json writes the members of an object in the order of their names.
    let required = match jwk["kty"].as_str() {
        Some("EC") => json!({"crv": member("crv")?, "kty": "EC", "x": member("x")?, "y": member("y")?}),
        Some("RSA") => json!({"e": member("e")?, "kty": "RSA", "n": member("n")?}),
        Some("OKP") => json!({"crv": member("crv")?, "kty": "OKP", "x": member("x")?}),
        other => anyhow::bail!("no thumbprint of a key of type {other:?}"),
    };
    let digest = digest::digest(&digest::SHA256, required.to_string().as_bytes());
    Ok(BASE64_URL_SAFE_NO_PAD.encode(digest))
}

fn decoded(part: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_rfc_7638_section_3_1() {
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs\
                 tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n9\
                 1CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let jwk = json!({"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"});
        assert_eq!(thumbprint(&jwk).expect("a key"), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }
}
