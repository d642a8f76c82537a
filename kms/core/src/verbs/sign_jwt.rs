//! SignJwt: claims in, a compact JWS out (RFC 7515 §7.1, RFC 7519). Header, `kid` and signature are made
//! together from one version, so they cannot disagree.

use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Hsm, Key, KeyId, Kid, Kms, Store, Unsettled,
    jwk::base64url,
    key::Purpose,
    signature,
    time::{Deadline, SignedDuration, Timestamp},
    verbs::sign::{signs_only_bundles, wraps_only_keys},
};

/// Longest claims in bytes.
pub const CLAIMS_LEN_MAX: usize = 64 * 1024;
/// Longest `typ` in bytes.
pub const TYP_LEN_MAX: usize = 64;

/// Claims to be signed.
#[derive(Clone)]
pub struct SignJwt {
    /// The key.
    pub id: KeyId,
    /// A JSON object. Members keep their order and their spelling.
    pub claims: Vec<u8>,
    /// Sets `exp` (and `iat`). Given exactly when the claims have no `exp` of their own.
    pub ttl: Option<SignedDuration>,
    /// The header's `typ`; `JWT` when absent.
    pub typ: Option<String>,
}

/// A signed token.
#[derive(Clone)]
pub struct SignedJwt {
    /// `header.claims.signature`.
    pub token: String,
    /// The key.
    pub key: KeyId,
    /// The version that signed.
    pub version: u32,
    /// Its kid, as in the header.
    pub kid: Kid,
    /// When the token expires.
    pub expires_at: Timestamp,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Signs a JWT.
    pub async fn sign_jwt(
        &self,
        caller: &Caller,
        request: SignJwt,
        deadline: Deadline,
    ) -> Result<SignedJwt, Error> {
        let now = self.clock.now();
        let mut admission = self.gate.admit(caller, Action::SignJwt, Some(&request.id), now).await?;
        let result = self.sign_jwt_admitted(&mut admission, request, now, deadline).await;
        admission.settle(result).await
    }

    async fn sign_jwt_admitted(
        &self,
        admission: &mut Admission<A>,
        request: SignJwt,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Unsettled<SignedJwt>, Error> {
        let entry = self.catalog.entry(&request.id)?;
        check_purpose(&entry.key)?;
        let version = entry.signing_version(None, now)?;
        admission.uses_version(version.row.number);
        let (claims, expires_at) = Claims::parse(&request.claims)?.complete(request.ttl, &entry.key, now)?;
        let kid = version.public()?.jwk().kid();
        let header = header(entry.key.algorithm.jose_name(), &kid, request.typ.as_deref())?;
        let signing_input = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.as_bytes()));
        let input = signature::input_of(entry.key.algorithm, signing_input.as_bytes());
        let signature = self.sign_with(admission, &entry, version, input, deadline).await?;
        let (key, number) = (request.id, version.row.number);
        Ok(signature.map(|signature| SignedJwt {
            token: format!("{signing_input}.{}", base64url(&signature)),
            key,
            version: number,
            kid,
            expires_at,
        }))
    }
}

/// A key of signatures may have signed anything: its signature says nothing about a token.
fn check_purpose(key: &Key) -> Result<(), Error> {
    match key.purpose {
        Purpose::Jwt => Ok(()),
        Purpose::JwksBundle => Err(signs_only_bundles(key)),
        Purpose::Wrap => Err(wraps_only_keys(key)),
        Purpose::Signature => Err(Error::precondition(
            "WRONG_PURPOSE",
            format!("keys/{} signs bytes and no tokens; use a key whose purpose is jwt", key.id),
        )),
    }
}

pub(super) fn header(alg: &str, kid: &Kid, typ: Option<&str>) -> Result<String, Error> {
    let typ = typ.unwrap_or("JWT");
    let is_media_type = |c: u8| c.is_ascii_alphanumeric() || b"+-./_".contains(&c);
    if typ.is_empty() || typ.len() > TYP_LEN_MAX || !typ.bytes().all(is_media_type) {
        return Err(Error::invalid(
            "type",
            "the header's typ is a media type without parameters, e.g. JWT or at+jwt (RFC 7515 section 4.1.9)",
        ));
    }
    Ok(format!(r#"{{"alg":"{alg}","kid":"{kid}","typ":"{typ}"}}"#))
}

/// The registered claims (RFC 7519 §4.1).
const REGISTERED: [&str; 7] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"];

/// As readers do that know no case: also the long s and the Kelvin sign are letters to them.
fn case_folded(name: &str) -> String {
    name.chars().map(|c| if c == '\u{17f}' { 's' } else { c }).flat_map(char::to_lowercase).collect()
}

/// A JSON object's members in order, values verbatim: numbers and strings are not rewritten.
struct Claims<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Claims<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        if bytes.len() > CLAIMS_LEN_MAX {
            return Err(Error::invalid("claims_json", format!("claims have at most {CLAIMS_LEN_MAX} bytes")));
        }
        // The message names line and column only: claims are the caller's secret.
        serde_json::from_slice(bytes).map_err(|error| {
            let problem = match error.classify() {
                serde_json::error::Category::Data => "not a JSON object with distinct members",
                _ => "not JSON",
            };
            Error::invalid(
                "claims_json",
                format!("the claims are {problem} (line {}, column {})", error.line(), error.column()),
            )
        })
    }

    /// Sees to `exp` and `iat`, and writes the object out again.
    fn complete(
        self,
        ttl: Option<SignedDuration>,
        key: &Key,
        now: Timestamp,
    ) -> Result<(String, Timestamp), Error> {
        self.refuse_look_alikes(&key.claim_rules.required)?;
        let max = key.max_token_ttl;
        let (expires_at, add_exp) = match (self.numeric_date("exp")?, ttl) {
            (None, None) => {
                return Err(Error::invalid(
                    "ttl",
                    "a token needs an end: put exp into the claims, or give a ttl",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(Error::invalid(
                    "ttl",
                    "exp stands in the claims already: give it or a ttl, not both",
                ));
            }
            (Some(exp), None) => (exp, None),
            (None, Some(ttl)) if ttl >= SignedDuration::from_secs(1) && ttl <= max => {
                let exp = now.as_second().saturating_add(ttl.as_secs());
                (Timestamp::from_second(exp).map_err(|_| too_long(key))?, Some(exp))
            }
            (None, Some(ttl)) if ttl > max => return Err(too_long(key)),
            (None, Some(_)) => return Err(Error::invalid("ttl", "a ttl is at least one second")),
        };
        if expires_at <= now {
            return Err(Error::invalid(
                "claims_json",
                "exp lies in the past; check the clock of whoever set it",
            ));
        }
        if expires_at.duration_since(now) > max {
            return Err(too_long(key));
        }
        let add_iat = self.numeric_date("iat")?.is_none().then(|| now.as_second());
        let added = |name: &str| (name == "iat" || name == "exp").then_some(RawValue::TRUE);
        key.claim_rules.hold(|name| self.member(name).or_else(|| added(name)))?;
        self.numeric_date("nbf")?;
        Ok((self.write([("iat", add_iat), ("exp", add_exp)]), expires_at))
    }

    /// Some verifiers take `Exp` for `exp`, and the last of the two: what a rule was held against must be all there is.
    fn refuse_look_alikes(&self, required: &[String]) -> Result<(), Error> {
        let watched = || REGISTERED.into_iter().chain(required.iter().map(String::as_str));
        for (member, _) in &self.0 {
            let folded = case_folded(member);
            if let Some(name) = watched().find(|name| case_folded(name) == folded && member != name) {
                let text = format!("a claim is spelled like {name} in another case; leave it out");
                return Err(Error::invalid("claims_json", text));
            }
        }
        Ok(())
    }

    fn member(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(member, _)| member == name).map(|(_, value)| *value)
    }

    /// A NumericDate (RFC 7519 §2): seconds since the epoch, perhaps with a fraction.
    fn numeric_date(&self, name: &'static str) -> Result<Option<Timestamp>, Error> {
        let Some(value) = self.member(name) else { return Ok(None) };
        let wrong =
            || Error::invalid("claims_json", format!("{name} must be a number of seconds since the epoch"));
        let seconds: f64 = serde_json::from_str(value.get()).map_err(|_| wrong())?;
        // Rounded up, so that a fraction never outlives the bound.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a float saturates, and Timestamp refuses the ends"
        )]
        let whole = seconds.ceil() as i64;
        Timestamp::from_second(whole).map(Some).map_err(|_| wrong())
    }

    fn write(&self, added: [(&str, Option<i64>); 2]) -> String {
        let mut text = String::from("{");
        let mut member = |name: &str, value: &str| {
            if text.len() > 1 {
                text.push(',');
            }
            // A string serialises always; Value's Display is its JSON.
            text.push_str(&serde_json::Value::from(name).to_string());
            text.push(':');
            text.push_str(value);
        };
        for (name, value) in &self.0 {
            member(name, value.get());
        }
        for (name, value) in added {
            if let Some(value) = value {
                member(name, &value.to_string());
            }
        }
        text.push('}');
        text
    }
}

fn too_long(key: &Key) -> Error {
    Error::invalid(
        "ttl",
        format!(
            "tokens of keys/{} live at most {} seconds; ask for less, or have an administrator raise max_token_ttl",
            key.id,
            key.max_token_ttl.as_secs()
        ),
    )
}

impl<'de: 'a, 'a> Deserialize<'de> for Claims<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> de::Visitor<'de> for Members {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: de::MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members: Self::Value = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    if !seen.insert(name.clone()) {
                        return Err(de::Error::custom("a member stands there twice"));
                    }
                    members.push((name, value));
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Members).map(Claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::a_key;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    fn complete(claims: &str, ttl: Option<i64>) -> Result<(String, Timestamp), Error> {
        Claims::parse(claims.as_bytes())?.complete(ttl.map(SignedDuration::from_secs), &a_key("k"), now())
    }

    #[test]
    fn claims_that_are_not_an_object_with_distinct_members_are_refused_without_being_quoted() {
        for bad in
            ["", "[]", "\"s3cret\"", "{\"a\":1", "{\"a\":1}x", "{\"s3cret\":1,\"s3cret\":2}", "null", "{a:1}"]
        {
            let error = complete(bad, Some(60)).expect_err(bad);
            assert_eq!(error.field(), Some("claims_json"), "{bad}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_token_has_exactly_one_end_and_it_is_bounded() {
        let exp = |offset: i64| format!("{{\"exp\":{}}}", now().as_second() + offset);
        assert!(complete("{}", None).is_err(), "neither exp nor ttl");
        assert!(complete(&exp(60), Some(60)).is_err(), "both");
        assert!(complete("{}", Some(0)).is_err());
        assert!(complete("{}", Some(-5)).is_err());
        assert!(complete("{}", Some(3601)).is_err());
        assert!(complete(&exp(0), None).is_err());
        assert!(complete(&exp(3601), None).is_err());
        assert!(complete("{\"exp\":\"1800000060\"}", None).is_err(), "a string is no NumericDate");
        assert!(complete("{\"exp\":1e300}", None).is_err());
        assert!(complete("{\"exp\":1800003600.5}", None).is_err(), "the fraction would outlive the bound");
        assert_eq!(complete(&exp(3600), None).map(|(_, at)| at.as_second()), Ok(1_800_003_600));
        assert_eq!(complete("{}", Some(3600)).map(|(_, at)| at.as_second()), Ok(1_800_003_600));
    }

    #[test]
    fn members_keep_their_order_and_their_spelling() {
        let (text, _) =
            complete("{ \"z\": 1.0, \"a\\u0062\": [ 9007199254740993 ] }", Some(60)).expect("claims");
        assert_eq!(text, "{\"z\":1.0,\"ab\":[ 9007199254740993 ],\"iat\":1800000000,\"exp\":1800000060}");
    }

    #[test]
    fn a_claim_that_some_reader_would_take_for_another_is_refused() {
        for bad in ["Exp", "EXP", "i\u{17f}s", "\u{17f}ub", "Aud", "nBf", "Jti"] {
            let claims = serde_json::json!({ bad: "s3cret" }).to_string();
            let error = complete(&claims, Some(60)).expect_err(bad);
            assert_eq!(error.field(), Some("claims_json"), "{bad}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        let mut key = a_key("k");
        key.claim_rules.required = vec!["tenantK".to_owned(), "iat".to_owned(), "exp".to_owned()];
        let complete = |claims: &str| {
            let claims = Claims::parse(claims.as_bytes()).expect("claims");
            claims.complete(Some(SignedDuration::from_secs(60)), &key, now()).map(drop)
        };
        assert_eq!(complete(r#"{"tenantK":1}"#), Ok(()), "iat and exp are added");
        assert!(complete("{\"tenantK\":1,\"tenant\u{212a}\":2}").is_err());
        assert!(complete(r#"{"tenantk":1}"#).is_err());
    }

    #[test]
    fn an_iat_of_the_callers_own_is_kept() {
        let (text, _) = complete("{\"iat\":1799999999}", Some(60)).expect("claims");
        assert_eq!(text, "{\"iat\":1799999999,\"exp\":1800000060}");
    }

    #[test]
    fn a_typ_cannot_break_out_of_the_header() {
        let kid = Kid::from_stored("k");
        for bad in ["", "a\"b", "a b", "a\\", &"x".repeat(TYP_LEN_MAX + 1)] {
            assert!(header("ES256", &kid, Some(bad)).is_err(), "{bad:?}");
        }
        assert_eq!(
            header("ES256", &kid, Some("at+jwt")).as_deref(),
            Ok(r#"{"alg":"ES256","kid":"k","typ":"at+jwt"}"#)
        );
    }
}
