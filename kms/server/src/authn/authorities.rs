//! Who may vouch for callers by certificates, and for which names; the bundles change while we run.
//!
//! Each bundle is read again every few seconds and compared by its content, as the server's own certificates are. One
//! that cannot be used changes nothing. Each change moves the *generation*, by which open connections notice that
//! what they were told once has to be looked at again.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use kms_core::principal::Principal;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};

use super::certificate::{self, Nameless};
use crate::{
    config::{ClientCa, TrustDomain},
    tls,
};

/// All authorities of client certificates.
#[derive(Debug)]
pub struct Authorities {
    all: Vec<Authority>,
    generation: AtomicU64,
    provider: Arc<CryptoProvider>,
}

/// One of them.
#[derive(Debug)]
struct Authority {
    name: String,
    file: PathBuf,
    vouches: Vouches,
    roots: ArcSwap<Roots>,
    /// SHA-256 of the bundle that was looked at last, good or bad: a bad one is reported once.
    seen: Mutex<[u8; 32]>,
}

/// Which names an authority may give.
#[derive(Debug, Clone)]
pub struct Vouches {
    /// The SPIFFE IDs of this trust domain.
    pub trust_domain: Option<TrustDomain>,
    /// DNS names.
    pub dns: bool,
    /// Subjects.
    pub subject: bool,
}

/// What a bundle held.
#[derive(Debug)]
struct Roots {
    verifier: Arc<dyn ClientCertVerifier>,
    count: usize,
}

/// Why authorities cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bundle cannot be read.
    #[error(transparent)]
    Unreadable(#[from] tls::Error),
    /// It can be read, and not used.
    #[error("{file} of the authority {name} cannot be used: {why}")]
    Unusable {
        /// The authority.
        name: String,
        /// Its bundle.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// A name without which logs would be of no use.
    #[error("an authority needs a name of its own, by which logs call it; {0:?} is empty or there twice")]
    Name(String),
    /// It would verify certificates that then name nobody.
    #[error(
        "the authority {0} may give no names; set trust_domain = \"example.org\", dns = true or subject = true"
    )]
    NoNames(String),
    /// Whoever has one authority could name the callers of the other.
    #[error(
        "the trust domain {domain} belongs to {first} and {second}; give it to one, and put the roots of both into its \
         ca_file if they are the same domain's"
    )]
    SharedDomain {
        /// Which.
        domain: String,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
}

impl Authorities {
    /// Reads all bundles. Everything that is wrong is told.
    pub fn load(configured: &[ClientCa]) -> Result<Self, Vec<Error>> {
        let (mut all, mut errors) = (Vec::new(), check(configured));
        for ca in configured {
            match Authority::load(ca) {
                Ok(authority) => all.push(authority),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            Ok(Self { all, generation: AtomicU64::new(0), provider: tls::provider() })
        } else {
            Err(errors)
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Counts the changes.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The name that the first authority gives which verifies `chain` and may give one; and the authority's.
    pub(super) fn name(
        &self,
        chain: &[CertificateDer<'_>],
        now: Timestamp,
    ) -> Result<(Principal, &str), Nameless> {
        let (leaf, intermediates) = chain.split_first().ok_or(Nameless::Unreadable)?;
        let since_epoch = Duration::try_from(now.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(since_epoch);
        let mut refusal = None;
        for authority in &self.all {
            let verified = authority.roots.load().verifier.verify_client_cert(leaf, intermediates, now);
            let named = match verified {
                Ok(_) => certificate::name(leaf, &authority.vouches),
                Err(error) => Err(Nameless::NotVerified(error.to_string())),
            };
            match named {
                Ok(principal) => return Ok((principal, &authority.name)),
                // What an authority says that verifies it is worth more than that another does not.
                Err(Nameless::NotVerified(_)) if refusal.is_some() => {}
                Err(why) => refusal = Some(why),
            }
        }
        Err(refusal.unwrap_or(Nameless::NotVouchedFor))
    }

    /// Verifies with what the bundles hold now, if that changed: `Ok(true)`. On an error the old one stays.
    fn reload(&self, authority: &Authority) -> Result<bool, Error> {
        let changed = authority.reload()?;
        if changed {
            // After the roots: who sees the new number sees them too.
            self.generation.fetch_add(1, Ordering::Release);
        }
        Ok(changed)
    }

    /// Reloads all bundles once. For each that cannot be used `failed` is called.
    fn reload_all(&self, failed: impl Fn()) {
        for authority in &self.all {
            let (name, file) = (&authority.name, authority.file.display());
            match self.reload(authority) {
                Ok(false) => {}
                Ok(true) => {
                    let roots = authority.roots.load().count;
                    tracing::info!(authority = name, %file, roots, "client authorities reloaded");
                }
                Err(error) => {
                    failed();
                    tracing::error!(%error, authority = name, "client authorities not reloaded; the old ones hold");
                }
            }
        }
    }

    /// Reloads for ever; `failed` is called for each bundle that cannot be used.
    pub(crate) async fn follow(self: Arc<Self>, failed: impl Fn() + Clone + Send + 'static) {
        let mut tick = tokio::time::interval(tls::RELOAD_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let (authorities, failed) = (Arc::clone(&self), failed.clone());
            let reloaded = tokio::task::spawn_blocking(move || authorities.reload_all(failed)).await;
            if let Err(error) = reloaded {
                tracing::error!(%error, "client authorities not reloaded");
            }
        }
    }
}

/// The handshake: whether any authority verifies the chain. Whom it names is asked later.
impl ClientCertVerifier for Authorities {
    fn client_auth_mandatory(&self) -> bool {
        // Access tokens work without.
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // They change while we run, and are nobody's business who has no certificate.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let mut refusal = rustls::Error::General("there is no authority of client certificates".into());
        for authority in &self.all {
            match authority.roots.load().verifier.verify_client_cert(end_entity, intermediates, now) {
                Ok(verified) => return Ok(verified),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Authority {
    fn load(ca: &ClientCa) -> Result<Self, Error> {
        let pem = tls::read(&ca.ca_file)?;
        Ok(Self {
            name: ca.name.clone(),
            file: ca.ca_file.clone(),
            vouches: Vouches { trust_domain: ca.trust_domain.clone(), dns: ca.dns, subject: ca.subject },
            roots: ArcSwap::from_pointee(Roots::parse(&ca.name, &ca.ca_file, &pem)?),
            seen: Mutex::new(tls::digest(&pem, &[])),
        })
    }

    fn reload(&self) -> Result<bool, Error> {
        let pem = tls::read(&self.file)?;
        let digest = tls::digest(&pem, &[]);
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == digest {
                return Ok(false);
            }
            *seen = digest;
        }
        self.roots.store(Arc::new(Roots::parse(&self.name, &self.file, &pem)?));
        Ok(true)
    }
}

impl Roots {
    fn parse(name: &str, file: &Path, pem: &[u8]) -> Result<Self, Error> {
        let unusable =
            |why: String| Error::Unusable { name: name.to_owned(), file: file.display().to_string(), why };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate =
                certificate.map_err(|error| unusable(format!("a certificate is cut off: {error}")))?;
            roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(unusable(
                "it holds no certificate in PEM; expected \"-----BEGIN CERTIFICATE-----\"".into(),
            ));
        }
        let count = roots.len();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider())
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self { verifier, count })
    }
}

/// What is wrong with them beside their files.
fn check(configured: &[ClientCa]) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut names = HashSet::new();
    for (index, ca) in configured.iter().enumerate() {
        if ca.name.is_empty() || !names.insert(&ca.name) {
            errors.push(Error::Name(ca.name.clone()));
        }
        let Some(domain) = &ca.trust_domain else {
            if !ca.dns && !ca.subject {
                errors.push(Error::NoNames(ca.name.clone()));
            }
            continue;
        };
        if let Some(first) =
            configured[..index].iter().find(|other| other.trust_domain.as_ref() == Some(domain))
        {
            errors.push(Error::SharedDomain {
                domain: domain.as_str().to_owned(),
                first: first.name.clone(),
                second: ca.name.clone(),
            });
        }
    }
    errors
}

#[cfg(test)]
impl Authorities {
    /// Reloads all bundles once; how many failed.
    pub(super) fn reload_counted(&self) -> usize {
        let failures = std::cell::Cell::new(0);
        self.reload_all(|| failures.set(failures.get() + 1));
        failures.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_certificate;

    fn refused(sections: &str) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        test_certificate::write(1, &dir.path().join("ca.pem"), &dir.path().join("key"));
        let config: crate::config::Authn = toml::from_str(sections).expect("sections");
        let mut configured = config.client_ca;
        configured.iter_mut().for_each(|ca| ca.ca_file = dir.path().join(&ca.ca_file));
        let errors = Authorities::load(&configured).expect_err("they are refused");
        errors.iter().map(|error| format!("{error}\n")).collect()
    }

    #[test]
    fn everything_that_is_wrong_with_authorities_is_told_at_once() {
        let told = refused(
            "[[client_ca]]\nname = 'a'\nca_file = 'ca.pem'\ntrust_domain = 'example.org'\n\
             [[client_ca]]\nname = 'a'\nca_file = 'ca.pem'\ndns = true\n\
             [[client_ca]]\nname = 'b'\nca_file = 'ca.pem'\ntrust_domain = 'example.org'\n\
             [[client_ca]]\nname = 'c'\nca_file = 'ca.pem'\n\
             [[client_ca]]\nname = 'd'\nca_file = 'key'\nsubject = true\n\
             [[client_ca]]\nname = 'e'\nca_file = 'absent.pem'\nsubject = true\n",
        );
        for part in [
            "\"a\" is empty or there twice",
            "example.org belongs to a and b",
            "the authority c may give no names",
            "of the authority d cannot be used: it holds no certificate",
            "absent.pem",
        ] {
            assert!(told.contains(part), "{part} is missing in\n{told}");
        }
        assert_eq!(told.lines().count(), 5, "{told}");
    }
}
