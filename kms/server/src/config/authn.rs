//! `[authn]`: whose word counts about who a caller is, beside access tokens of our own.

use std::path::PathBuf;

use kms_core::principal::Principal;
use serde::{Deserialize, Deserializer, de};

use super::jwt_issuer::{self, JwtIssuer};

/// `[authn]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authn {
    /// `[[authn.client_ca]]`: authorities of client certificates. Without one, no client is asked for a certificate.
    pub client_ca: Vec<ClientCa>,
    /// `[[authn.jwt_issuer]]`: issuers of JWTs that are taken as credentials.
    #[serde(deserialize_with = "jwt_issuer::deserialize_all")]
    pub jwt_issuer: Vec<JwtIssuer>,
}

/// An authority of client certificates, and the names that it may give.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCa {
    /// What logs call it.
    pub name: String,
    /// Its root certificates, PEM, one or several. Read again when they change.
    pub ca_file: PathBuf,
    /// It gives the SPIFFE IDs of this trust domain.
    #[serde(default)]
    pub trust_domain: Option<TrustDomain>,
    /// It gives DNS names, any of them. Default: false.
    #[serde(default)]
    pub dns: bool,
    /// It gives subjects, any of them. Default: false.
    #[serde(default)]
    pub subject: bool,
}

/// The name of a SPIFFE trust domain (SPIFFE-ID §2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `principal` is a SPIFFE ID of exactly this domain.
    pub fn holds(&self, principal: &Principal) -> bool {
        let rest = principal.as_str().strip_prefix("spiffe://").and_then(|rest| rest.strip_prefix(&self.0));
        rest.is_some_and(|path| path.starts_with('/'))
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let is_one = !name.contains('/') && Principal::of_spiffe_id(&format!("spiffe://{name}/a")).is_ok();
        if is_one {
            Ok(Self(name))
        } else {
            Err(de::Error::custom(format_args!(
                "{name:?} is no trust domain; write its name alone, in lower case: \"example.org\""
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str) -> Result<TrustDomain, toml::de::Error> {
        let text = format!("name = 'a'\nca_file = 'a.pem'\ntrust_domain = '{name}'");
        toml::from_str::<ClientCa>(&text).map(|ca| ca.trust_domain.expect("it was given"))
    }

    #[test]
    fn a_trust_domain_is_its_canonical_name_alone() {
        for odd in
            ["", "Example.org", "spiffe://example.org", "example.org/", "example.org/a", "a b", "ä.org"]
        {
            let error = domain(odd).expect_err(odd).to_string();
            assert!(error.contains("trust domain"), "{error}");
        }
    }

    #[test]
    fn a_trust_domain_holds_its_own_ids_and_no_others() {
        let domain = domain("example.org").expect("a domain");
        let holds = |name: &str| domain.holds(&name.parse().expect("a principal"));
        assert!(holds("spiffe://example.org/a"));
        for other in [
            "spiffe://example.org.evil/a",
            "spiffe://a.example.org/a",
            "spiffe://evil/example.org/a",
            "dns:example.org",
        ] {
            assert!(!holds(other), "{other}");
        }
    }
}
