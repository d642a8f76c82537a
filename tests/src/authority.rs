//! Authorities of client certificates, and the certificates that they issue, good ones and others.

use std::{fs, path::Path, str::FromStr as _, time::Duration};

use anyhow::Context as _;
use aws_lc_rs::{rand::SystemRandom, signature};
use kms_client::ClientCertificate;
use p256::{
    ecdsa::{DerSignature, SigningKey},
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding},
};
use x509_cert::{
    Certificate, TbsCertificate,
    builder::{self, Builder as _, CertificateBuilder, profile::BuilderProfile},
    der::{
        DateTime, EncodePem as _,
        asn1::{Ia5String, ObjectIdentifier},
        flagset::FlagSet,
        oid::db::rfc5280::ID_KP_CLIENT_AUTH,
    },
    ext::{
        Extension, ToExtension as _,
        pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName, name::GeneralName},
    },
    name::Name,
    serial_number::SerialNumber,
    spki::{SubjectPublicKeyInfo, SubjectPublicKeyInfoRef},
    time::Validity,
};

/// What an authority's own certificate and those of callers last, unless a test says otherwise.
const LIFE: Duration = Duration::from_secs(3_600);

/// A root, and its key.
pub struct Authority {
    name: Name,
    key: SigningKey,
    root: Certificate,
}

/// What a certificate says.
#[derive(Debug, Clone)]
pub struct Says {
    /// Its subject (RFC 4514).
    pub subject: String,
    /// Its URIs.
    pub uris: Vec<String>,
    /// Its DNS names.
    pub dns: Vec<String>,
    /// What its key may do.
    pub usage: FlagSet<KeyUsages>,
    /// What it is for.
    pub purpose: ObjectIdentifier,
    /// Whether it is one of an authority.
    pub is_ca: bool,
    /// Seconds from now when it begins to hold.
    pub begins_s: i64,
    /// Seconds from now when it ends.
    pub ends_s: i64,
}

/// The profile by which a certificate is built.
struct Profile {
    issuer: Name,
    says: Says,
}

impl Says {
    /// A caller's, as it should be, but without a name beside its subject.
    pub fn subject(subject: &str) -> Self {
        Self {
            subject: subject.to_owned(),
            uris: Vec::new(),
            dns: Vec::new(),
            usage: KeyUsages::DigitalSignature.into(),
            purpose: ID_KP_CLIENT_AUTH,
            is_ca: false,
            begins_s: -60,
            ends_s: 3_600,
        }
    }

    /// One with these URIs.
    pub fn uris(uris: &[&str]) -> Self {
        let uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
        Self { uris, ..Self::subject("CN=caller") }
    }

    /// One with these DNS names.
    pub fn dns(names: &[&str]) -> Self {
        let dns = names.iter().map(|name| (*name).to_owned()).collect();
        Self { dns, ..Self::subject("CN=caller") }
    }
}

impl Authority {
    /// A new one of this name.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let key = new_key()?;
        let usage = KeyUsages::KeyCertSign | KeyUsages::CRLSign;
        let says = Says { is_ca: true, usage, ..Says::subject(&format!("CN={name}")) };
        let name = Name::from_str(&says.subject)?;
        let root = certify(Profile { issuer: name.clone(), says }, &key, &key)?;
        Ok(Self { name, key, root })
    }

    /// Its root, PEM.
    pub fn pem(&self) -> anyhow::Result<String> {
        Ok(self.root.to_pem(LineEnding::LF)?)
    }

    /// Issues a certificate for a new key, and writes both to `NAME.crt` and `NAME.key` in `dir`.
    pub fn issue(&self, says: &Says, dir: &Path, name: &str) -> anyhow::Result<ClientCertificate> {
        let key = new_key()?;
        let profile = Profile { issuer: self.name.clone(), says: says.clone() };
        let certificate = certify(profile, &key, &self.key)?;
        let (cert_file, key_file) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        fs::write(&key_file, key.to_pkcs8_pem(LineEnding::LF)?)?;
        fs::write(&cert_file, certificate.to_pem(LineEnding::LF)?)?;
        Ok(ClientCertificate { cert_file, key_file })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.name)
    }
}

fn new_key() -> anyhow::Result<SigningKey> {
    let algorithm = &signature::ECDSA_P256_SHA256_ASN1_SIGNING;
    let pkcs8 = signature::EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new());
    Ok(SigningKey::from_pkcs8_der(pkcs8.context("no random numbers")?.as_ref())?)
}

fn certify(profile: Profile, subject: &SigningKey, issuer: &SigningKey) -> anyhow::Result<Certificate> {
    // The builder's clock is the one that we may ask.
    let now = Validity::<x509_cert::certificate::Rfc5280>::from_now(LIFE)?.not_before.to_unix_duration();
    let at = |seconds: i64| -> anyhow::Result<_> {
        let since_epoch = now.as_secs().checked_add_signed(seconds).context("before 1970")?;
        Ok(DateTime::from_unix_duration(Duration::from_secs(since_epoch))?.into())
    };
    let validity = Validity::new(at(profile.says.begins_s)?, at(profile.says.ends_s)?);
    let info = SubjectPublicKeyInfo::from_key(subject.verifying_key())?;
    let builder = CertificateBuilder::new(profile, SerialNumber::from(1_u32), validity, info)?;
    Ok(builder.build::<_, DerSignature>(issuer)?)
}

impl BuilderProfile for Profile {
    fn get_issuer(&self, _: &Name) -> Name {
        self.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        Name::from_str(&self.says.subject).unwrap_or_default()
    }

    fn build_extensions(
        &self,
        _: SubjectPublicKeyInfoRef<'_>,
        _: SubjectPublicKeyInfoRef<'_>,
        tbs: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let (subject, says) = (tbs.subject(), &self.says);
        let constraints = BasicConstraints { ca: says.is_ca, path_len_constraint: None };
        let mut extensions =
            vec![constraints.to_extension(subject, &[])?, KeyUsage(says.usage).to_extension(subject, &[])?];
        if !says.is_ca {
            extensions.push(ExtendedKeyUsage(vec![says.purpose]).to_extension(subject, &[])?);
        }
        let mut names = Vec::new();
        for uri in &says.uris {
            names.push(GeneralName::UniformResourceIdentifier(Ia5String::new(uri)?));
        }
        for name in &says.dns {
            names.push(GeneralName::DnsName(Ia5String::new(name)?));
        }
        if !names.is_empty() {
            extensions.push(SubjectAltName(names).to_extension(subject, &[])?);
        }
        Ok(extensions)
    }
}
