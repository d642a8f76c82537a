//! The names of those who call: one canonical spelling for each, told apart by where the proof came from.
//!
//! | name                            | proven by                                                          |
//! |---------------------------------|--------------------------------------------------------------------|
//! | `access-token:ci`               | an access token of ours                                            |
//! | `spiffe://example.org/ns/a`     | a client certificate with this SPIFFE ID (SPIFFE-ID §2)            |
//! | `dns:db1.example.org`           | a client certificate with this DNS name (RFC 5280 §4.2.1.6)        |
//! | `subject:CN=db1,O=Example`      | a client certificate with this subject (RFC 4514)                  |
//! | `jwt:cluster/system:node:a`     | a JWT of the issuer that the config calls `cluster`, with this `sub` |
//! | `unix:1000`                     | a local process of this user id                                    |
//!
//! A name that could be spelt in another way is refused, not normalised: two spellings of one name would be two names for
//! policy, or two names one.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Error, KeyId};

/// Longest name in bytes (SPIFFE-ID §2.3).
pub const PRINCIPAL_LEN_MAX: usize = 2048;
/// Longest DNS name in bytes (RFC 1035 §2.3.4).
const DNS_LEN_MAX: usize = 253;
/// Longest label of one.
const DNS_LABEL_LEN_MAX: usize = 63;
/// Longest trust domain in bytes (SPIFFE-ID §2.1).
const TRUST_DOMAIN_LEN_MAX: usize = 255;
/// Longest `sub` of a JWT in characters (OpenID Connect Core §2).
const SUBJECT_LEN_MAX: usize = 255;

/// A canonical name of somebody who may call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Principal(Arc<str>);

/// Where the proof of a name comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// An access token of ours.
    AccessToken,
    /// The SPIFFE ID of a client certificate.
    Spiffe,
    /// The DNS name of a client certificate.
    Dns,
    /// The subject of a client certificate.
    Subject,
    /// A JWT of a configured issuer.
    Jwt,
    /// The user of a local process.
    Unix,
}

impl Principal {
    /// Whoever holds the access token of this name.
    pub fn of_access_token(name: &str) -> Result<Self, Error> {
        format!("access-token:{name}").parse()
    }

    /// A SPIFFE ID, as a certificate's URI says it.
    pub fn of_spiffe_id(uri: &str) -> Result<Self, Error> {
        if uri.starts_with("spiffe://") { uri.parse() } else { Err(refused()) }
    }

    /// A DNS name of a certificate.
    pub fn of_dns_name(name: &str) -> Result<Self, Error> {
        format!("dns:{name}").parse()
    }

    /// A certificate's subject, as RFC 4514 writes it.
    pub fn of_subject(subject: &str) -> Result<Self, Error> {
        format!("subject:{subject}").parse()
    }

    /// The `sub` of a JWT of the issuer that is configured as `issuer`.
    pub fn of_jwt(issuer: &KeyId, sub: &str) -> Result<Self, Error> {
        format!("jwt:{issuer}/{sub}").parse()
    }

    /// A user of this host.
    pub fn of_uid(uid: u32) -> Self {
        Self(format!("unix:{uid}").into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// Where its proof comes from.
    pub fn source(&self) -> Source {
        // Only what parses becomes a principal.
        split(&self.0).map_or(Source::AccessToken, |(source, _)| source)
    }
}

impl FromStr for Principal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let canonical = text.len() <= PRINCIPAL_LEN_MAX
            && split(text).is_some_and(|(source, rest)| match source {
                Source::AccessToken => rest.parse::<KeyId>().is_ok(),
                Source::Spiffe => is_spiffe(rest),
                Source::Dns => is_dns(rest),
                Source::Subject => is_subject(rest),
                Source::Jwt => rest
                    .split_once('/')
                    .is_some_and(|(issuer, sub)| issuer.parse::<KeyId>().is_ok() && is_sub(sub)),
                Source::Unix => rest.parse::<u32>().is_ok_and(|uid| uid.to_string() == rest),
            });
        if canonical { Ok(Self(text.into())) } else { Err(refused()) }
    }
}

impl TryFrom<String> for Principal {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Principal> for String {
    fn from(principal: Principal) -> Self {
        principal.0.as_ref().to_owned()
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn split(text: &str) -> Option<(Source, &str)> {
    const PREFIXES: [(&str, Source); 6] = [
        ("access-token:", Source::AccessToken),
        ("spiffe://", Source::Spiffe),
        ("dns:", Source::Dns),
        ("subject:", Source::Subject),
        ("jwt:", Source::Jwt),
        ("unix:", Source::Unix),
    ];
    PREFIXES.into_iter().find_map(|(prefix, source)| Some((source, text.strip_prefix(prefix)?)))
}

fn refused() -> Error {
    Error::invalid(
        "principal",
        "a caller is spiffe://DOMAIN/PATH, dns:NAME, subject:CN=..., jwt:ISSUER/SUB, access-token:NAME or unix:UID, \
         in its one canonical spelling: no capitals in domains, no percent-encoding, no dot segments, no spaces at the \
         ends",
    )
}

/// SPIFFE-ID §2.1 and §2.2. An id without a path names the trust domain itself, which is no workload.
fn is_spiffe(rest: &str) -> bool {
    let Some((domain, path)) = rest.split_once('/') else { return false };
    let in_domain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-' | b'_');
    let in_segment = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(in_segment);
    (1..=TRUST_DOMAIN_LEN_MAX).contains(&domain.len())
        && domain.bytes().all(in_domain)
        && path.split('/').all(is_segment)
}

/// Letters, digits and hyphens (RFC 1123 §2.1), lower case, without the root's dot and without wildcards.
fn is_dns(name: &str) -> bool {
    let in_label = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let is_label = |label: &str| {
        (1..=DNS_LABEL_LEN_MAX).contains(&label.len())
            && label.bytes().all(in_label)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= DNS_LEN_MAX && name.split('.').all(is_label)
}

/// `TYPE=value` joined by commas: no escapes, no quotes, no multi-valued names, so that there is one spelling.
fn is_subject(subject: &str) -> bool {
    let in_value =
        |c: u8| c.is_ascii_alphanumeric() || matches!(c, b' ' | b'.' | b'-' | b'_' | b':' | b'@' | b'/');
    let is_value = |value: &str| !value.is_empty() && value.trim() == value && value.bytes().all(in_value);
    let is_attribute = |part: &str| {
        part.split_once('=').is_some_and(|(kind, value)| {
            !kind.is_empty()
                && kind.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'.')
                && is_value(value)
        })
    };
    subject.split(',').all(is_attribute)
}

/// Visible ASCII without what would need an escape somewhere.
fn is_sub(sub: &str) -> bool {
    (1..=SUBJECT_LEN_MAX).contains(&sub.len())
        && sub.bytes().all(|c| c.is_ascii_graphic() && !matches!(c, b'"' | b'\\' | b'%'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canonical_name_is_read_back_as_it_is_and_tells_its_source() {
        for (name, source) in [
            ("access-token:ci", Source::AccessToken),
            ("spiffe://example.org/ns/a/sa/B_c.d-1", Source::Spiffe),
            ("dns:db1.example.org", Source::Dns),
            ("dns:localhost", Source::Dns),
            ("subject:CN=db1,O=Example Ltd", Source::Subject),
            ("jwt:cluster/system:serviceaccount:ns:auth", Source::Jwt),
            ("jwt:corp/https://accounts.example.org/me", Source::Jwt),
            ("unix:0", Source::Unix),
            ("unix:4294967295", Source::Unix),
        ] {
            let principal: Principal = name.parse().expect(name);
            assert_eq!((principal.as_str(), principal.source()), (name, source));
        }
    }

    #[test]
    fn what_has_another_spelling_is_refused() {
        for odd in [
            "",
            "ci",
            "access-token:",
            "access-token:CI/x",
            "Access-Token:ci",
            "system:scheduler",
            " unix:1",
            "unix:1 ",
            "unix:01",
            "unix:+1",
            "unix:-1",
            "unix:4294967296",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://Example.org/a",
            "spiffe://example.org/a/",
            "spiffe://example.org//a",
            "spiffe://example.org/./a",
            "spiffe://example.org/a/..",
            "spiffe://example.org/%61",
            "spiffe://example.org/a?b",
            "spiffe://example.org/a#b",
            "spiffe://example.org:443/a",
            "spiffe://user@example.org/a",
            "SPIFFE://example.org/a",
            "spiffe:///a",
            "spiffe://example.org/ä",
            "dns:",
            "dns:DB1",
            "dns:db1.",
            "dns:.db1",
            "dns:a..b",
            "dns:*.example.org",
            "dns:-a",
            "dns:a-",
            "dns:a b",
            "dns:bücher.example",
            "subject:",
            "subject:db1",
            "subject:CN=",
            "subject:CN= db1",
            "subject:CN=db1,",
            "subject:CN=a\\,b",
            "subject:CN=a+OU=b",
            "subject:CN=\"a\"",
            "jwt:",
            "jwt:cluster",
            "jwt:cluster/",
            "jwt:Clu ster/a",
            "jwt:cluster/a b",
            "jwt:cluster/a%20",
            "jwt:cluster/a\u{0}",
            "jwt:cluster/ä",
        ] {
            assert_eq!(
                odd.parse::<Principal>().map_err(|error| error.field()),
                Err(Some("principal")),
                "{odd:?}"
            );
        }
        let long = format!("spiffe://example.org/{}", "a".repeat(PRINCIPAL_LEN_MAX));
        assert!(long.parse::<Principal>().is_err());
        assert!(format!("dns:{}", "a".repeat(64)).parse::<Principal>().is_err());
        assert!(format!("jwt:c/{}", "a".repeat(256)).parse::<Principal>().is_err());
    }
}
