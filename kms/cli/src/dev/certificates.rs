//! TLS for `kms dev`: an authority that exists for one moment, and the server certificate that it issues.
//!
//! The authority's private key is never written down: it signs one certificate and is dropped. So a developer
//! can trust `ca.pem` without trusting whoever reads the directory to make certificates for other names.
//! Renewal makes a new authority. Profile: RFC 5280 §4.2.1, names as subjectAltName (RFC 9525 §6.3).

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    str::FromStr as _,
    time::Duration,
};

use anyhow::Context as _;
use aws_lc_rs::{digest, rand::SystemRandom, signature};
use der::{DecodePem as _, EncodePem as _, asn1::Ia5String};
use jiff::Timestamp;
use p256::{
    ecdsa::{DerSignature, SigningKey},
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _},
};
use spki::{EncodePublicKey as _, SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef, der::pem::LineEnding};
use x509_cert::{
    Certificate, TbsCertificate,
    builder::{self, Builder as _, CertificateBuilder, profile::BuilderProfile},
    ext::{
        Extension, ToExtension as _,
        pkix::{
            AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
            SubjectKeyIdentifier, name::GeneralName,
        },
    },
    name::Name,
    serial_number::SerialNumber,
    time::{Time, Validity},
};

use super::files::write_atomically;

/// Public certificate of the authority, for clients.
pub(super) const CA_FILE: &str = "ca.pem";
/// The server's certificate.
pub(super) const CERTIFICATE_FILE: &str = "tls.pem";
/// The server's private key, PKCS#8.
pub(super) const KEY_FILE: &str = "tls.key";

/// How long certificates last: the longest that platforms accept from private authorities.
const LIFE: Duration = Duration::from_secs(397 * 86_400);
/// Certificates with less left than this are renewed at start.
const RENEW_WITHIN: Duration = Duration::from_secs(30 * 86_400);
/// Clocks of containers and virtual machines lag.
const BACKDATED: Duration = Duration::from_secs(3_600);

const AUTHORITY_NAME: &str = "CN=kms dev authority (development only),O=kms dev";
const SERVER_NAME: &str = "CN=localhost,O=kms dev";

/// A key and the certificates for it, as PEM.
pub(super) struct Issued {
    pub(super) ca_pem: String,
    pub(super) certificate_pem: String,
    pub(super) key_pem: p256::pkcs8::der::zeroize::Zeroizing<String>,
}

/// Makes sure that `dir` holds a certificate that lasts; issues one when there is none or it ends soon.
pub(super) fn ensure(dir: &Path, now: Timestamp) -> anyhow::Result<()> {
    if is_usable(dir, now) {
        return Ok(());
    }
    let issued = issue(now).context("cannot issue the development certificate")?;
    // The certificate last: it is what `is_usable` reads, together with an authority that must match.
    write_atomically(&dir.join(KEY_FILE), issued.key_pem.as_bytes(), 0o600)?;
    write_atomically(&dir.join(CA_FILE), issued.ca_pem.as_bytes(), 0o644)?;
    write_atomically(&dir.join(CERTIFICATE_FILE), issued.certificate_pem.as_bytes(), 0o644)?;
    Ok(())
}

/// Issues a certificate for `localhost`, 127.0.0.1 and ::1 from a new authority.
pub(super) fn issue(now: Timestamp) -> anyhow::Result<Issued> {
    let authority_name = Name::from_str(AUTHORITY_NAME)?;
    let authority = new_key()?;
    let ca = certify(Authority { name: authority_name.clone() }, &authority, &authority, now)?;

    let server = new_key()?;
    let profile = Server { issuer: authority_name, name: Name::from_str(SERVER_NAME)? };
    let certificate = certify(profile, &server, &authority, now)?;

    Ok(Issued {
        ca_pem: ca.to_pem(LineEnding::LF)?,
        certificate_pem: certificate.to_pem(LineEnding::LF)?,
        key_pem: server.to_pkcs8_pem(LineEnding::LF)?,
    })
}

/// Whether all three files are there, belong together and last beyond [`RENEW_WITHIN`].
fn is_usable(dir: &Path, now: Timestamp) -> bool {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let check = || {
        let ca = Certificate::from_pem(read(CA_FILE)?).ok()?;
        let certificate = Certificate::from_pem(read(CERTIFICATE_FILE)?).ok()?;
        let key = SigningKey::from_pkcs8_pem(&read(KEY_FILE)?).ok()?;
        let public = key.verifying_key().to_public_key_der().ok()?;
        let tbs = certificate.tbs_certificate();
        let same_key =
            SubjectPublicKeyInfoRef::try_from(public.as_bytes()).ok()?.subject_public_key.raw_bytes()
                == tbs.subject_public_key_info().subject_public_key.raw_bytes();
        let same_authority = authority_key_id(tbs) == subject_key_id(ca.tbs_certificate());
        let until = tbs.validity().not_after.to_unix_duration();
        let needed = Duration::try_from(now.as_duration()).ok()?.saturating_add(RENEW_WITHIN);
        Some(same_key && same_authority && until > needed)
    };
    check().unwrap_or(false)
}

fn authority_key_id(tbs: &TbsCertificate) -> Option<Vec<u8>> {
    let (_, extension) = tbs.get_extension::<AuthorityKeyIdentifier>().ok()??;
    extension.key_identifier.map(|id| id.as_bytes().to_vec())
}

fn subject_key_id(tbs: &TbsCertificate) -> Option<Vec<u8>> {
    let (_, extension) = tbs.get_extension::<SubjectKeyIdentifier>().ok()??;
    Some(extension.0.as_bytes().to_vec())
}

/// A new P-256 key, from the same generator that TLS uses.
fn new_key() -> anyhow::Result<SigningKey> {
    let pkcs8 = signature::EcdsaKeyPair::generate_pkcs8(
        &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        &SystemRandom::new(),
    )
    .context("the operating system gave no random numbers")?;
    Ok(SigningKey::from_pkcs8_der(pkcs8.as_ref())?)
}

fn certify(
    profile: impl BuilderProfile,
    subject: &SigningKey,
    issuer: &SigningKey,
    now: Timestamp,
) -> anyhow::Result<Certificate> {
    let public = subject.verifying_key().to_public_key_der()?;
    let validity = Validity::new(time(now - BACKDATED)?, time(now + LIFE)?);
    let info = SubjectPublicKeyInfoOwned::try_from(public.as_bytes())?;
    let builder = CertificateBuilder::new(profile, serial_number(public.as_bytes())?, validity, info)?;
    Ok(builder.build::<_, DerSignature>(issuer)?)
}

/// Positive, unique and unpredictable because the key is new (RFC 5280 §4.1.2.2): a digest of the key.
fn serial_number(public_key: &[u8]) -> anyhow::Result<SerialNumber> {
    let digest = digest::digest(&digest::SHA256, public_key);
    let mut serial = digest.as_ref()[..16].to_vec();
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(SerialNumber::new(&serial)?)
}

fn time(at: Timestamp) -> anyhow::Result<Time> {
    let since_epoch = Duration::from_secs(u64::try_from(at.as_second())?);
    Ok(der::DateTime::from_unix_duration(since_epoch)?.into())
}

/// Profile of the authority: may issue end-entity certificates and nothing else.
struct Authority {
    name: Name,
}

/// Profile of the server: TLS server authentication for this machine's own names.
struct Server {
    issuer: Name,
    name: Name,
}

impl BuilderProfile for Authority {
    fn get_issuer(&self, subject: &Name) -> Name {
        subject.clone()
    }

    fn get_subject(&self) -> Name {
        self.name.clone()
    }

    fn build_extensions(
        &self,
        key: SubjectPublicKeyInfoRef<'_>,
        _issuer_key: SubjectPublicKeyInfoRef<'_>,
        tbs: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let none = Vec::new();
        let subject = tbs.subject();
        Ok(vec![
            BasicConstraints { ca: true, path_len_constraint: Some(0) }.to_extension(subject, &none)?,
            KeyUsage(KeyUsages::KeyCertSign.into()).to_extension(subject, &none)?,
            SubjectKeyIdentifier::try_from(key)?.to_extension(subject, &none)?,
        ])
    }
}

impl BuilderProfile for Server {
    fn get_issuer(&self, _subject: &Name) -> Name {
        self.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        self.name.clone()
    }

    fn build_extensions(
        &self,
        key: SubjectPublicKeyInfoRef<'_>,
        issuer_key: SubjectPublicKeyInfoRef<'_>,
        tbs: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let none = Vec::new();
        let subject = tbs.subject();
        let names = SubjectAltName(vec![
            GeneralName::DnsName(Ia5String::new("localhost")?),
            GeneralName::from(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            GeneralName::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ]);
        let server_auth = ExtendedKeyUsage(vec![der::oid::db::rfc5280::ID_KP_SERVER_AUTH]);
        Ok(vec![
            BasicConstraints { ca: false, path_len_constraint: None }.to_extension(subject, &none)?,
            KeyUsage(KeyUsages::DigitalSignature.into()).to_extension(subject, &none)?,
            server_auth.to_extension(subject, &none)?,
            names.to_extension(subject, &none)?,
            SubjectKeyIdentifier::try_from(key)?.to_extension(subject, &none)?,
            AuthorityKeyIdentifier::try_from(issuer_key)?.to_extension(subject, &none)?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
        crypto::aws_lc_rs::default_provider,
    };
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};

    use super::*;

    const DAY_S: i64 = 86_400;

    fn verify(issued: &Issued, name: &str, at: Timestamp) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(issued.ca_pem.as_bytes()).expect("PEM")).expect("a root");
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
                .build()
                .expect("a verifier");
        let certificate = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).expect("PEM");
        let name = ServerName::try_from(name).expect("a name");
        let at = UnixTime::since_unix_epoch(Duration::from_secs(at.as_second().unsigned_abs()));
        verifier.verify_server_cert(&certificate, &[], &name, &[], at).map(drop)
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    #[test]
    fn other_names_other_authorities_and_other_times_are_refused() {
        let issued = issue(now()).expect("issue");
        for name in ["example.com", "127.0.0.2", "kms.localhost"] {
            assert!(verify(&issued, name, now()).is_err(), "{name} was taken");
        }
        let other = Issued { ca_pem: issue(now()).expect("issue").ca_pem, ..issue(now()).expect("issue") };
        assert!(verify(&other, "localhost", now()).is_err());
        for days in [-1, 398] {
            let at = now() + jiff::SignedDuration::from_secs(days * DAY_S);
            assert!(verify(&issued, "localhost", at).is_err(), "{days} days from now");
        }
    }

    #[test]
    fn the_chain_verifies_for_all_names_of_this_machine() {
        let issued = issue(now()).expect("issue");
        for name in ["localhost", "127.0.0.1", "::1"] {
            assert_eq!(verify(&issued, name, now()), Ok(()), "{name}");
        }
    }

    #[test]
    fn certificates_are_kept_until_they_end_soon_and_renewed_when_a_file_is_lost() {
        let dir = tempfile::tempdir().expect("a directory");
        let read = || fs::read_to_string(dir.path().join(CERTIFICATE_FILE)).expect("a certificate");
        ensure(dir.path(), now()).expect("issue");
        let first = read();
        ensure(dir.path(), now() + jiff::SignedDuration::from_secs(300 * DAY_S)).expect("keep");
        assert_eq!(read(), first);

        ensure(dir.path(), now() + jiff::SignedDuration::from_secs(368 * DAY_S)).expect("renew");
        let second = read();
        assert_ne!(second, first);

        fs::remove_file(dir.path().join(CA_FILE)).expect("lose the authority");
        ensure(dir.path(), now()).expect("renew");
        assert_ne!(read(), second);
    }
}
