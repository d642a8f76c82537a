//! What a key asks of the claims of its tokens, beside their end.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::Error;

/// Rules over claims (RFC 7519 §4). An empty list asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClaimRules {
    /// `iss` must stand there and be one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub issuers: Vec<String>,
    /// `aud` must stand there, and each of its values must be one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// Claims that must stand there, and not be null.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<String>,
}

/// `aud`: one value or several (RFC 7519 §4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl ClaimRules {
    /// Most entries of each list.
    pub const ENTRIES_MAX: usize = 64;
    /// Longest entry in bytes.
    pub const ENTRY_LEN_MAX: usize = 256;

    /// Refuses lists that are too long, and entries that are empty or too long.
    pub fn check(&self) -> Result<(), Error> {
        let lists = [
            ("claim_rules.issuers", &self.issuers),
            ("claim_rules.audiences", &self.audiences),
            ("claim_rules.required", &self.required),
        ];
        for (field, list) in lists {
            let too_long = |entry: &String| entry.is_empty() || entry.len() > Self::ENTRY_LEN_MAX;
            if list.len() > Self::ENTRIES_MAX || list.iter().any(too_long) {
                let text =
                    format!("at most {} entries of 1 to {} bytes", Self::ENTRIES_MAX, Self::ENTRY_LEN_MAX);
                return Err(Error::invalid(field, text));
            }
        }
        Ok(())
    }

    /// Holds the rules against claims. `claim` gives the value of a member. Errors name the claim and what is allowed,
    /// never what was given: claims are the caller's secret.
    pub(crate) fn hold<'a>(&self, claim: impl Fn(&str) -> Option<&'a RawValue>) -> Result<(), Error> {
        let refused = |text: String| Error::precondition("CLAIM_NOT_ALLOWED", text);
        let one_of = |allowed: &[String], value: &String| allowed.contains(value);
        if !self.issuers.is_empty() {
            let issuer = claim("iss").and_then(|value| serde_json::from_str::<String>(value.get()).ok());
            if !issuer.is_some_and(|issuer| one_of(&self.issuers, &issuer)) {
                return Err(refused(format!("this key signs only with iss {}", any_of(&self.issuers))));
            }
        }
        if !self.audiences.is_empty() {
            let audiences = claim("aud").and_then(|value| serde_json::from_str(value.get()).ok());
            let allowed = match audiences {
                Some(Audiences::One(audience)) => one_of(&self.audiences, &audience),
                Some(Audiences::Many(all)) => {
                    !all.is_empty() && all.iter().all(|audience| one_of(&self.audiences, audience))
                }
                None => false,
            };
            if !allowed {
                return Err(refused(format!("this key signs only with aud {}", any_of(&self.audiences))));
            }
        }
        match self.required.iter().find(|name| claim(name).is_none_or(|value| value.get() == "null")) {
            Some(name) => Err(refused(format!("this key signs only claims that have {name:?}"))),
            None => Ok(()),
        }
    }
}

fn any_of(allowed: &[String]) -> String {
    match allowed {
        [only] => format!("{only:?}"),
        [first, second] => format!("{first:?} or {second:?}"),
        [first, second, rest @ ..] => format!("{first:?}, {second:?} or {} others", rest.len()),
        [] => String::new(),
    }
}
