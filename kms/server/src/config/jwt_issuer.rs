//! `[[authn.jwt_issuer]]`: whose JWTs prove who calls, and what they must be like (RFC 8725 §3).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use kms_core::KeyId;
use reqwest::Url;
use serde::{
    Deserialize,
    de::{Deserializer, Error as _, IntoDeserializer as _},
};

use super::duration;

/// Most issuers.
const ISSUERS_MAX: usize = 16;
/// Most audiences of one.
const AUDIENCES_MAX: usize = 8;
/// Most claims that one may require.
const REQUIRED_CLAIMS_MAX: usize = 16;
/// Longest issuer, audience, or name or value of a claim, in bytes.
const TEXT_LEN_MAX: usize = 1024;
/// The longest life of a token when nothing else is said.
const LIFETIME_MAX_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// An issuer of JWTs, and what its tokens must be like.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Fields")]
pub struct JwtIssuer {
    /// Our name for it: its callers are `jwt:NAME/SUB`.
    pub name: KeyId,
    /// What stands in `iss`, character by character.
    pub issuer: String,
    /// What we are called there: `aud` must contain one of them.
    pub audiences: BTreeSet<String>,
    /// Where its keys are.
    pub keys: KeySource,
    /// What it may sign with. Default: RS256 and ES256.
    pub algorithms: Vec<JwtAlgorithm>,
    /// The claim that names the caller. Default: sub.
    pub subject_claim: String,
    /// The longest that a token may live. Default: 24h.
    pub max_lifetime: Duration,
    /// Claims that must be these texts.
    pub required_claims: BTreeMap<String, String>,
}

/// Where a JWK set (RFC 7517 §5) is.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// A file, read again when it changes.
    File(PathBuf),
    /// An address.
    Url {
        /// https, or http on this host.
        url: Url,
        /// Who alone may certify the server there, PEM. Absent: whom the operating system trusts.
        ca_file: Option<PathBuf>,
    },
}

/// A signature algorithm (RFC 7518 §3.1, RFC 8037 §3.1). None has a shared secret: whoever could verify could also
/// make tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names are the standard's")]
pub enum JwtAlgorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// The section as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    name: KeyId,
    issuer: String,
    audiences: BTreeSet<String>,
    jwks_file: Option<PathBuf>,
    jwks_url: Option<String>,
    ca_file: Option<PathBuf>,
    #[serde(default = "default_algorithms")]
    algorithms: Vec<JwtAlgorithm>,
    #[serde(default = "default_subject_claim")]
    subject_claim: String,
    #[serde(default = "default_max_lifetime", deserialize_with = "duration::deserialize")]
    max_lifetime: Duration,
    #[serde(default)]
    required_claims: BTreeMap<String, String>,
}

impl JwtAlgorithm {
    /// The algorithm of this name, if it is one of ours.
    pub fn named(name: &str) -> Option<Self> {
        let name: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
        Self::deserialize(name).ok()
    }
}

impl JwtIssuer {
    pub(super) fn paths_mut(&mut self) -> Option<&mut PathBuf> {
        match &mut self.keys {
            KeySource::File(path) => Some(path),
            KeySource::Url { ca_file, .. } => ca_file.as_mut(),
        }
    }
}

impl TryFrom<Fields> for JwtIssuer {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let name = fields.name;
        let refuse = |why: &str| Err(format!("JWT issuer {name}: {why}"));
        let is_text = |text: &String| (1..=TEXT_LEN_MAX).contains(&text.len());
        if !is_text(&fields.issuer) {
            return refuse("issuer must be what stands in the tokens' \"iss\"");
        }
        if !(1..=AUDIENCES_MAX).contains(&fields.audiences.len()) || !fields.audiences.iter().all(is_text) {
            return refuse(
                "audiences must be 1 to 8 texts, for instance [\"kms\"]: a token for others is not for us",
            );
        }
        if fields.algorithms.is_empty() {
            return refuse("algorithms must name at least one; leave it out for RS256 and ES256");
        }
        let named = fields.required_claims.keys().chain([&fields.subject_claim]);
        if !named.chain(fields.required_claims.values()).all(is_text)
            || fields.required_claims.len() > REQUIRED_CLAIMS_MAX
        {
            return refuse("subject_claim and at most 16 required_claims must be texts of 1 to 1024 bytes");
        }
        let keys = match (fields.jwks_file, fields.jwks_url, fields.ca_file) {
            (Some(file), None, None) => KeySource::File(file),
            (None, Some(url), ca_file) => match parse_url(&url) {
                Some(url) => KeySource::Url { url, ca_file },
                None => {
                    return refuse(
                        "jwks_url must be https://, or http:// on this host (127.0.0.1, [::1], localhost), \
                         without user and fragment",
                    );
                }
            },
            (Some(_), None, Some(_)) => return refuse("ca_file is for jwks_url"),
            _ => return refuse("name jwks_file or jwks_url, one of them"),
        };
        Ok(Self {
            name,
            issuer: fields.issuer,
            audiences: fields.audiences,
            keys,
            algorithms: fields.algorithms,
            subject_claim: fields.subject_claim,
            max_lifetime: fields.max_lifetime,
            required_claims: fields.required_claims,
        })
    }
}

/// For `#[serde(deserialize_with)]`: all issuers, none of which can be taken for another.
pub(super) fn deserialize_all<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<JwtIssuer>, D::Error> {
    let issuers = Vec::<JwtIssuer>::deserialize(deserializer)?;
    if issuers.len() > ISSUERS_MAX {
        return Err(D::Error::custom(format_args!("there may be at most {ISSUERS_MAX} JWT issuers")));
    }
    let (mut names, mut said) = (BTreeSet::new(), BTreeSet::new());
    for JwtIssuer { name, issuer, .. } in &issuers {
        if !names.insert(name) {
            return Err(D::Error::custom(format_args!(
                "two JWT issuers are called {name}; rename one of them"
            )));
        }
        if !said.insert(issuer) {
            return Err(D::Error::custom(format_args!(
                "JWT issuer {name} has the same \"iss\" as another; whose a token is must be certain"
            )));
        }
    }
    Ok(issuers)
}

fn parse_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let host = url.host_str()?;
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_here = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_here);
    let is_plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    (is_safe && is_plain && text.len() <= TEXT_LEN_MAX).then_some(url)
}

fn default_algorithms() -> Vec<JwtAlgorithm> {
    vec![JwtAlgorithm::Rs256, JwtAlgorithm::Es256]
}

fn default_subject_claim() -> String {
    "sub".to_owned()
}

fn default_max_lifetime() -> Duration {
    LIFETIME_MAX_DEFAULT
}

#[cfg(test)]
mod tests {
    use super::super::Authn;

    const SOUND: &str = r#"
[[jwt_issuer]]
name = "cluster"
issuer = "https://kubernetes.default.svc.cluster.local"
audiences = ["kms"]
jwks_url = "https://kubernetes.default.svc/openid/v1/jwks"
"#;

    fn parse(text: &str) -> Result<Authn, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_unsafe_or_unclear_is_an_error_that_says_where_and_what_to_do() {
        let url = "jwks_url = \"https://kubernetes.default.svc/openid/v1/jwks\"";
        for (good, bad, said) in [
            ("\"cluster\"", "\"Cluster/1\"", "a name is 1 to 63"),
            ("issuer = \"https://kubernetes.default.svc.cluster.local\"", "issuer = \"\"", "\"iss\""),
            ("[\"kms\"]", "[]", "audiences must be"),
            ("[\"kms\"]", "[\"\"]", "audiences must be"),
            ("[\"kms\"]", "[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]", "audiences must be"),
            ("audiences = [\"kms\"]", "", "missing field `audiences`"),
            (url, "", "one of them"),
            (url, &format!("{url}\njwks_file = \"keys.json\""), "one of them"),
            (url, "jwks_file = \"keys.json\"\nca_file = \"ca.crt\"", "ca_file is for jwks_url"),
            (url, "jwks_url = \"http://idp.example.com/keys\"", "jwks_url must be https://"),
            (url, "jwks_url = \"http://127.0.0.1.example.com/keys\"", "jwks_url must be https://"),
            (url, "jwks_url = \"http://localhost.example.com/keys\"", "jwks_url must be https://"),
            (url, "jwks_url = \"http://127.0.0.1@example.com/keys\"", "jwks_url must be https://"),
            (url, "jwks_url = \"https://user@idp.example.com/keys\"", "jwks_url must be https://"),
            (url, "jwks_url = \"file:///etc/passwd\"", "jwks_url must be https://"),
            (url, "jwks_url = \"keys.json\"", "jwks_url must be https://"),
            (url, &format!("{url}\nalgorithms = []"), "at least one"),
            (url, &format!("{url}\nalgorithms = [\"HS256\"]"), "unknown variant `HS256`"),
            (url, &format!("{url}\nalgorithms = [\"none\"]"), "unknown variant `none`"),
            (url, &format!("{url}\nalgorithms = [\"ES512\"]"), "unknown variant `ES512`"),
            (url, &format!("{url}\nsubject_claim = \"\""), "subject_claim"),
            (url, &format!("{url}\nmax_lifetime = \"0s\""), "is not a duration"),
            (url, &format!("{url}\nrequired_claims = {{ ref = 1 }}"), "invalid type"),
            (url, &format!("{url}\nissuer_url = \"x\""), "unknown field"),
        ] {
            let refused = parse(&SOUND.replace(good, bad)).expect_err(bad);
            assert!(refused.contains(said) && refused.contains("line"), "{bad}: {refused}");
        }
    }

    #[test]
    fn issuers_that_could_be_taken_for_one_another_and_too_many_of_them_are_errors() {
        let other = SOUND.replace("\"cluster\"", "\"other\"");
        let refused = parse(&format!("{SOUND}{other}")).expect_err("one iss");
        assert!(refused.contains("issuer other has the same \"iss\""), "{refused}");
        let elsewhere = SOUND.replace("cluster.local", "example.org");
        let refused = parse(&format!("{SOUND}{elsewhere}")).expect_err("one name");
        assert!(refused.contains("two JWT issuers are called cluster"), "{refused}");
        let many = |count: usize| -> String {
            let one = |n: usize| {
                SOUND.replace("\"cluster\"", &format!("\"c{n}\"")).replace(".local", &format!(".{n}"))
            };
            (0..count).map(one).collect()
        };
        assert_eq!(parse(&many(16)).expect("sixteen").jwt_issuer.len(), 16);
        let refused = parse(&many(17)).expect_err("seventeen");
        assert!(refused.contains("at most 16"), "{refused}");
    }

    #[test]
    fn the_examples_of_the_manual_are_sound() {
        let manual = include_str!("../../../../docs/how-to/identities-jwt.md");
        let examples: Vec<_> =
            manual.split("```toml\n").skip(1).filter_map(|text| text.split("```").next()).collect();
        assert_eq!(examples.len(), 4);
        for example in examples {
            let authn = parse(&example.replace("[[authn.", "[[")).expect(example);
            assert_eq!(authn.jwt_issuer.len(), 1, "{example}");
        }
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let authn = parse(SOUND).expect("an issuer");
        let [issuer] = &authn.jwt_issuer[..] else { panic!("{authn:?}") };
        assert_eq!(issuer.algorithms, super::default_algorithms());
        assert_eq!((issuer.subject_claim.as_str(), issuer.max_lifetime.as_secs()), ("sub", 86_400));
        assert!(issuer.required_claims.is_empty());
        for here in ["http://127.0.0.1:80/keys", "http://[::1]/keys", "http://localhost:8080/keys"] {
            let text = SOUND.replace("https://kubernetes.default.svc/openid/v1/jwks", here);
            parse(&text).expect(here);
        }
    }
}
