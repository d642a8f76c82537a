//! Client certificates: the one name that a certificate has, and whether it still has it.
//!
//! A certificate with several names of the kind that counts, or with one that is not canonical, has none: to pick
//! one would be to let whoever asked for the certificate pick. SPIFFE IDs follow X509-SVID §2 and §5.2.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use kms_core::principal::Principal;
use rustls_pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::Decode as _,
    ext::pkix::{BasicConstraints, KeyUsage, SubjectAltName, name::GeneralName},
};

use super::authorities::{Authorities, Vouches};

/// Why a certificate that an authority has verified names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Nameless {
    /// No authority verifies it any more.
    #[error("no authority verifies it: {0}")]
    NotVerified(String),
    /// It is no X.509 certificate, or says a thing twice that is said once.
    #[error("it cannot be read")]
    Unreadable,
    /// It is one of an authority.
    #[error("it may sign certificates or revocation lists, as no caller's may")]
    IsAuthority,
    /// A SPIFFE ID stands beside another URI.
    #[error("it has {0} URIs beside each other; a certificate with a SPIFFE ID has that one alone")]
    SeveralUris(usize),
    /// Several DNS names.
    #[error("it has {0} DNS names; a caller's certificate has one")]
    SeveralDnsNames(usize),
    /// The SPIFFE ID is of a domain for which none of the authorities that verify it speaks.
    #[error("its SPIFFE ID is not of the authority's trust domain")]
    NotOfTheDomain,
    /// A name that could be written in another way.
    #[error("its {0} is not written in the canonical way")]
    NotCanonical(&'static str),
    /// The authority may not give the kind of name that it has.
    #[error("its authority may not give the kind of name that it has")]
    NotVouchedFor,
}

/// What a certificate says of its holder.
#[derive(Debug)]
struct Names {
    uris: Vec<String>,
    dns: Vec<String>,
    subject: String,
}

/// A certificate that a client has shown, for as long as its connection lasts.
pub struct Shown {
    chain: Vec<CertificateDer<'static>>,
    authorities: Arc<Authorities>,
    judged: ArcSwap<Judged>,
}

/// What was found when it was last looked at.
#[derive(Debug)]
struct Judged {
    /// Of the authorities, when this was found.
    generation: u64,
    /// When it was found.
    since: Timestamp,
    /// The first end of a certificate of the chain that is still to come.
    until: Timestamp,
    principal: Option<Principal>,
}

impl Shown {
    /// `chain` begins with the client's own certificate.
    pub fn new(chain: Vec<CertificateDer<'static>>, authorities: Arc<Authorities>, now: Timestamp) -> Self {
        let judged = ArcSwap::from_pointee(judge(&chain, &authorities, now));
        Self { chain, authorities, judged }
    }

    /// Who has shown it. Looked at anew when the authorities have changed or a certificate of the chain has expired.
    pub fn principal(&self, now: Timestamp) -> Option<Principal> {
        let judged = self.judged.load();
        if judged.generation == self.authorities.generation() && (judged.since..judged.until).contains(&now) {
            return judged.principal.clone();
        }
        let judged = judge(&self.chain, &self.authorities, now);
        let principal = judged.principal.clone();
        self.judged.store(Arc::new(judged));
        principal
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("judged", &self.judged.load()).finish_non_exhaustive()
    }
}

/// Once for each connection and each change, so that its outcome may stand in the log.
fn judge(chain: &[CertificateDer<'static>], authorities: &Authorities, now: Timestamp) -> Judged {
    // Read first: a change while we look makes us look again.
    let generation = authorities.generation();
    // A second later than the last in which it holds (RFC 5280 §4.1.2.5).
    let until = chain.iter().filter_map(|one| ends_at(one)).filter(|end| *end > now).min();
    let principal = match authorities.name(chain, now) {
        Ok((principal, authority)) => {
            tracing::debug!(caller = %principal, authority, "client certificate known");
            Some(principal)
        }
        Err(why) => {
            tracing::info!(reason = %why, "client certificate refused: its calls are UNAUTHENTICATED");
            None
        }
    };
    Judged { generation, since: now, until: until.unwrap_or(Timestamp::MAX), principal }
}

fn ends_at(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let last = certificate.tbs_certificate().validity().not_after.to_unix_duration();
    Timestamp::UNIX_EPOCH.checked_add(last).ok()?.checked_add(std::time::Duration::from_secs(1)).ok()
}

/// The one name that `leaf` has, from an authority that vouches for `vouches`.
pub(super) fn name(leaf: &CertificateDer<'_>, vouches: &Vouches) -> Result<Principal, Nameless> {
    let Names { uris, dns, subject } = Names::of(leaf)?;
    if uris.iter().any(|uri| is_spiffe(uri)) {
        let [uri] = &uris[..] else { return Err(Nameless::SeveralUris(uris.len())) };
        let principal = Principal::of_spiffe_id(uri).map_err(|_| Nameless::NotCanonical("SPIFFE ID"))?;
        let domain = vouches.trust_domain.as_ref();
        return match domain.is_some_and(|domain| domain.holds(&principal)) {
            true => Ok(principal),
            false => Err(Nameless::NotOfTheDomain),
        };
    }
    match &dns[..] {
        [name] if vouches.dns => Principal::of_dns_name(name).map_err(|_| Nameless::NotCanonical("DNS name")),
        [_, _, ..] if vouches.dns => Err(Nameless::SeveralDnsNames(dns.len())),
        _ if vouches.subject => {
            Principal::of_subject(&subject).map_err(|_| Nameless::NotCanonical("subject"))
        }
        _ => Err(Nameless::NotVouchedFor),
    }
}

/// In whichever spelling: one that is not ours is a wrong SPIFFE ID, and not none.
fn is_spiffe(uri: &str) -> bool {
    uri.split_once(':').is_some_and(|(scheme, _)| scheme.trim().eq_ignore_ascii_case("spiffe"))
}

impl Names {
    fn of(leaf: &CertificateDer<'_>) -> Result<Self, Nameless> {
        let certificate = Certificate::from_der(leaf).map_err(|_| Nameless::Unreadable)?;
        let tbs = certificate.tbs_certificate();
        let constraints = tbs.get_extension::<BasicConstraints>().map_err(|_| Nameless::Unreadable)?;
        let usage = tbs.get_extension::<KeyUsage>().map_err(|_| Nameless::Unreadable)?;
        if constraints.is_some_and(|(_, constraints)| constraints.ca)
            || usage.is_some_and(|(_, usage)| usage.key_cert_sign() || usage.crl_sign())
        {
            return Err(Nameless::IsAuthority);
        }
        let alternatives = tbs.get_extension::<SubjectAltName>().map_err(|_| Nameless::Unreadable)?;
        let (mut uris, mut dns) = (Vec::new(), Vec::new());
        for name in alternatives.map(|(_, SubjectAltName(names))| names).unwrap_or_default() {
            match name {
                GeneralName::UniformResourceIdentifier(uri) => uris.push(uri.as_str().to_owned()),
                GeneralName::DnsName(name) => dns.push(name.as_str().to_owned()),
                _ => {}
            }
        }
        Ok(Self { uris, dns, subject: tbs.subject().to_string() })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use kms_core::Clock as _;
    use x509_cert::{der::asn1::Ia5String, ext::pkix::KeyUsages};

    use super::*;
    use crate::{
        clock::SystemClock,
        config::ClientCa,
        test_certificate::{self, Said},
    };

    fn uri(text: &str) -> GeneralName {
        GeneralName::UniformResourceIdentifier(Ia5String::new(text).expect("ASCII"))
    }

    fn dns(text: &str) -> GeneralName {
        GeneralName::DnsName(Ia5String::new(text).expect("ASCII"))
    }

    fn vouches(what: &str) -> Vouches {
        let ca: ClientCa = toml::from_str(&format!("name = 'a'\nca_file = 'a'\n{what}")).expect("a section");
        Vouches { trust_domain: ca.trust_domain, dns: ca.dns, subject: ca.subject }
    }

    fn named(said: Said, what: &str) -> Result<String, Nameless> {
        name(&said.signed(1), &vouches(what)).map(String::from)
    }

    const ALL: &str = "trust_domain = 'example.org'\ndns = true\nsubject = true";

    #[test]
    fn a_certificate_has_the_name_of_the_kind_that_counts_most() {
        let all = || vec![dns("db1.example.org"), uri("spiffe://example.org/db1")];
        let without_spiffe = || vec![uri("https://example.org/db1"), dns("db1.example.org")];
        for (names, what, expected) in [
            (all(), ALL, "spiffe://example.org/db1"),
            (all(), "trust_domain = 'example.org'", "spiffe://example.org/db1"),
            (without_spiffe(), ALL, "dns:db1.example.org"),
            (without_spiffe(), "subject = true", "subject:CN=db1,O=Example"),
            (vec![dns("a.org"), dns("b.org")], "subject = true", "subject:CN=db1,O=Example"),
            (vec![], ALL, "subject:CN=db1,O=Example"),
        ] {
            assert_eq!(named(Said::of(names), what).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn a_spiffe_id_that_is_not_the_only_uri_is_none() {
        let id = || uri("spiffe://example.org/a");
        for other in [uri("spiffe://example.org/b"), uri("https://example.org/"), id()] {
            assert_eq!(named(Said::of(vec![id(), other.clone()]), ALL), Err(Nameless::SeveralUris(2)));
            assert_eq!(named(Said::of(vec![other, id()]), ALL), Err(Nameless::SeveralUris(2)));
        }
    }

    #[test]
    fn a_spiffe_id_in_another_spelling_is_refused_and_no_other_name_takes_its_place() {
        for odd in [
            "SPIFFE://example.org/a",
            "Spiffe://example.org/a",
            " spiffe://example.org/a",
            "spiffe:example.org/a",
            "spiffe://Example.org/a",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://example.org/a/",
            "spiffe://example.org//a",
            "spiffe://example.org/./a",
            "spiffe://example.org/../a",
            "spiffe://example.org/%61",
            "spiffe://example.org/a ",
            "spiffe://example.org/a?b=c",
            "spiffe://example.org/a#b",
            "spiffe://example.org:8443/a",
            "spiffe://user@example.org/a",
            "spiffe://example.org/a\0",
        ] {
            let names = vec![uri(odd), dns("db1.example.org")];
            assert_eq!(named(Said::of(names), ALL), Err(Nameless::NotCanonical("SPIFFE ID")), "{odd:?}");
        }
        for other in ["spiffe://example.com/a", "spiffe://example.org.com/a", "spiffe://a.example.org/a"] {
            assert_eq!(named(Said::of(vec![uri(other)]), ALL), Err(Nameless::NotOfTheDomain), "{other}");
        }
        let id = || Said::of(vec![uri("spiffe://example.org/a"), dns("db1.example.org")]);
        assert_eq!(named(id(), "dns = true\nsubject = true"), Err(Nameless::NotOfTheDomain));
    }

    #[test]
    fn several_or_odd_dns_names_are_refused_and_no_other_name_takes_their_place() {
        let several = vec![dns("a.example.org"), dns("b.example.org")];
        assert_eq!(named(Said::of(several), ALL), Err(Nameless::SeveralDnsNames(2)));
        for odd in
            ["DB1.example.org", "db1.example.org.", "*.example.org", "db1 ", "a..b", "", "db1\0.evil", "a_b"]
        {
            assert_eq!(
                named(Said::of(vec![dns(odd)]), ALL),
                Err(Nameless::NotCanonical("DNS name")),
                "{odd:?}"
            );
        }
        let one = || Said::of(vec![dns("db1.example.org")]);
        assert_eq!(named(one(), "trust_domain = 'example.org'"), Err(Nameless::NotVouchedFor));
    }

    #[test]
    fn a_subject_that_could_be_written_in_another_way_is_refused() {
        for odd in
            ["", "CN=db1\\,O=Example", "CN=db1+OU=a", "CN=\\ db1", "CN=db1\\ ", "CN=d\u{fc}b1", "CN=a\\\"b"]
        {
            let said = Said { subject: odd, ..Said::of(vec![]) };
            assert_eq!(named(said, "subject = true"), Err(Nameless::NotCanonical("subject")), "{odd:?}");
        }
    }

    #[test]
    fn whoever_may_sign_certificates_is_no_caller() {
        let id = || Said::of(vec![uri("spiffe://example.org/a")]);
        for said in [
            Said { is_ca: true, ..id() },
            Said { usage: KeyUsages::DigitalSignature | KeyUsages::KeyCertSign, ..id() },
            Said { usage: KeyUsages::DigitalSignature | KeyUsages::CRLSign, ..id() },
        ] {
            assert_eq!(named(said, ALL), Err(Nameless::IsAuthority));
        }
        assert_eq!(name(&CertificateDer::from(vec![0x30, 0]), &vouches(ALL)), Err(Nameless::Unreadable));
    }

    /// Authorities by their seeds, and what they vouch for.
    fn authorities(dir: &Path, sections: &[(u8, &str)]) -> Arc<Authorities> {
        let section = |(index, (seed, what)): (usize, &(u8, &str))| -> ClientCa {
            let file = dir.join(format!("{seed}.pem"));
            test_certificate::write(*seed, &file, &dir.join("key"));
            let text = format!("name = '{index}'\nca_file = '{}'\n{what}", file.display());
            toml::from_str(&text).expect("a section")
        };
        let configured: Vec<_> = sections.iter().enumerate().map(section).collect();
        Arc::new(Authorities::load(&configured).expect("authorities"))
    }

    #[test]
    fn the_first_authority_that_gives_a_name_decides() {
        let dir = tempfile::tempdir().expect("a directory");
        let sections = [(2, "dns = true"), (1, "subject = true"), (1, "trust_domain = 'example.org'")];
        let authorities = authorities(dir.path(), &sections);
        let now = SystemClock.now();
        let name = |said: Said| {
            let shown = Shown::new(vec![said.signed(1)], Arc::clone(&authorities), now);
            shown.principal(now).map(String::from)
        };
        let id = || Said::of(vec![uri("spiffe://example.org/a")]);
        assert_eq!(name(id()).as_deref(), Some("spiffe://example.org/a"));
        assert_eq!(name(Said::of(vec![dns("a.org")])).as_deref(), Some("subject:CN=db1,O=Example"));
        assert_eq!(name(Said { is_ca: true, ..id() }), None);
        // The log is told what the authority says that verifies it, and not that another does not.
        let other = vec![Said::of(vec![uri("spiffe://example.com/a"), uri("https://a.org/")]).signed(1)];
        assert_eq!(authorities.name(&other, now).map(|_| ()), Err(Nameless::SeveralUris(2)));
        let last = [(1, "trust_domain = 'example.org'"), (2, "dns = true")];
        let authorities = self::authorities(dir.path(), &last);
        assert_eq!(authorities.name(&other, now).map(|_| ()), Err(Nameless::SeveralUris(2)));
    }

    #[test]
    fn a_name_ends_with_its_certificate_and_with_its_authority() {
        let dir = tempfile::tempdir().expect("a directory");
        let authorities = authorities(dir.path(), &[(1, "trust_domain = 'example.org'")]);
        let now = SystemClock.now();
        let leaf = Said::of(vec![uri("spiffe://example.org/a")]).signed(1);
        let end = ends_at(&leaf).expect("an end");
        let shown = Shown::new(vec![leaf], Arc::clone(&authorities), now);
        let last = end - std::time::Duration::from_secs(1);
        assert!(shown.principal(last).is_some());
        assert!(shown.principal(end).is_none());
        assert!(shown.principal(now).is_some(), "a clock that was wrong is set right");

        let bundle = dir.path().join("1.pem");
        let before = fs::read(&bundle).expect("a bundle");
        for useless in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            fs::write(&bundle, useless).expect("written");
            assert_eq!(authorities.reload_counted(), 1, "{useless:?} was not counted");
            assert_eq!(authorities.reload_counted(), 0, "{useless:?} was counted twice");
            assert!(shown.principal(now).is_some(), "{useless:?} changed something");
        }
        test_certificate::write(2, &bundle, &dir.path().join("key"));
        assert_eq!(authorities.reload_counted(), 0);
        assert!(shown.principal(now).is_none(), "its authority is gone");
        fs::write(&bundle, before).expect("written");
        assert_eq!(authorities.reload_counted(), 0);
        assert!(shown.principal(now).is_some(), "its authority is back");
    }
}
