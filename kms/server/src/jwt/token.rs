//! A JWT in its compact form (RFC 7515 §7.1), taken apart and not yet believed.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{
    Deserialize,
    de::{Deserializer, Error as _, MapAccess, Visitor},
};
use serde_json::Value;

use super::refusal::Refusal;
use crate::config::JwtAlgorithm;

/// Longest token in bytes.
const TOKEN_LEN_MAX: usize = 8 * 1024;
/// What `typ` may be (RFC 7519 §5.1, RFC 9068 §2.1), in any case.
const TYPES: [&str; 2] = ["JWT", "at+jwt"];

/// The parts of a token.
pub(super) struct Token<'a> {
    algorithm: Option<JwtAlgorithm>,
    kid: Option<String>,
    claims: Object,
    /// Header and claims, as they were signed.
    signed: &'a [u8],
    signature: Vec<u8>,
}

/// A JSON object in which no name stands twice (RFC 7515 §4, RFC 7519 §4): whoever reads the first and whoever reads
/// the last would read two tokens.
#[derive(Debug)]
pub(super) struct Object(BTreeMap<String, Value>);

impl<'a> Token<'a> {
    /// Takes it apart. Three parts, no padding, nothing that the header says is critical: we know no extension.
    pub(super) fn parse(text: &'a str) -> Result<Self, Refusal> {
        if text.len() > TOKEN_LEN_MAX {
            return Err(Refusal::TooLong);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::Malformed);
        };
        let signed = text.as_bytes().get(..header.len() + 1 + claims.len()).ok_or(Refusal::Malformed)?;
        let signature = decode(signature)?;
        let (header, claims) = (Object::parse(header)?, Object::parse(claims)?);
        if header.0.contains_key("crit") {
            return Err(Refusal::CriticalHeader);
        }
        if let Some(typ) = header.0.get("typ") {
            let is_jwt = |typ: &str| TYPES.iter().any(|known| known.eq_ignore_ascii_case(typ));
            typ.as_str().filter(|typ| is_jwt(typ)).ok_or(Refusal::Type)?;
        }
        let kid = match header.0.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.clone()),
            Some(_) => return Err(Refusal::Malformed),
        };
        let algorithm = header.text("alg").and_then(JwtAlgorithm::named);
        Ok(Self { algorithm, kid, claims, signed, signature })
    }

    /// What `iss` says.
    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.text("iss")
    }

    /// What `alg` says, if it is an algorithm of ours: `none` is not, nor is what has a shared secret.
    pub(super) fn algorithm(&self) -> Option<JwtAlgorithm> {
        self.algorithm
    }

    /// Which key `kid` says.
    pub(super) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    pub(super) fn claims(&self) -> &Object {
        &self.claims
    }

    pub(super) fn signed(&self) -> &[u8] {
        self.signed
    }

    pub(super) fn signature(&self) -> &Vec<u8> {
        &self.signature
    }
}

impl Object {
    fn parse(part: &str) -> Result<Self, Refusal> {
        serde_json::from_slice(&decode(part)?).map_err(|_| Refusal::Malformed)
    }

    /// The member of this name.
    pub(super) fn member(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// The member of this name, if it is a text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.member(name)?.as_str()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name stands twice"));
                    }
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

fn decode(part: &str) -> Result<Vec<u8>, Refusal> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::Malformed)
}
