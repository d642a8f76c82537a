//! An authority that vouches for a TLS server called `localhost`.

use std::{fs, path::Path, str::FromStr as _, sync::Arc, time::Duration};

use p256::{
    ecdsa::{DerSignature, SigningKey},
    pkcs8::{EncodePrivateKey as _, LineEnding},
};
use tokio_rustls::TlsAcceptor;
use x509_cert::{
    Certificate,
    builder::{
        Builder as _, CertificateBuilder,
        profile::{BuilderProfile, cabf::Root},
    },
    der::{EncodePem as _, asn1::Ia5String},
    ext::{Extension, ToExtension as _, pkix::SubjectAltName, pkix::name::GeneralName},
    name::Name,
    serial_number::SerialNumber,
    spki::{SubjectPublicKeyInfo, SubjectPublicKeyInfoRef},
    time::Validity,
};

use crate::tls::Pair;

/// A server certificate for `localhost`.
struct Localhost {
    issuer: Name,
}

impl BuilderProfile for Localhost {
    fn get_issuer(&self, _: &Name) -> Name {
        self.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        Name::from_str("CN=localhost,O=kms,C=CH").expect("a name")
    }

    fn build_extensions(
        &self,
        _: SubjectPublicKeyInfoRef<'_>,
        _: SubjectPublicKeyInfoRef<'_>,
        tbs: &x509_cert::TbsCertificate,
    ) -> x509_cert::builder::Result<Vec<Extension>> {
        let names = SubjectAltName(vec![GeneralName::DnsName(Ia5String::new("localhost")?)]);
        Ok(vec![names.to_extension(tbs.subject(), &Vec::new())?])
    }
}

/// Speaks TLS as `localhost`. The authority's certificate is written as `ca.crt` in `dir`.
pub(super) fn acceptor(dir: &Path) -> TlsAcceptor {
    let name = Name::from_str("CN=authority,O=kms,C=CH").expect("a name");
    let [authority, server] = [[7; 32], [8; 32]].map(|key| SigningKey::from_slice(&key).expect("a scalar"));
    let ca = certify(Root::new(false, name.clone()).expect("a profile"), &authority, &authority);
    let certificate = certify(Localhost { issuer: name }, &server, &authority);
    let [ca_file, cert_file, key_file] = ["ca.crt", "tls.crt", "tls.key"].map(|name| dir.join(name));
    fs::write(ca_file, ca.to_pem(LineEnding::LF).expect("PEM")).expect("written");
    fs::write(&cert_file, certificate.to_pem(LineEnding::LF).expect("PEM")).expect("written");
    fs::write(&key_file, server.to_pkcs8_pem(LineEnding::LF).expect("PEM")).expect("written");
    let pair = Arc::new(Pair::load(&cert_file, &key_file).expect("a pair"));
    TlsAcceptor::from(pair.server_config(&[b"http/1.1"], None).expect("a configuration"))
}

fn certify(profile: impl BuilderProfile, subject: &SigningKey, issuer: &SigningKey) -> Certificate {
    let validity = Validity::from_now(Duration::from_secs(3600)).expect("an hour");
    let info = SubjectPublicKeyInfo::from_key(subject.verifying_key()).expect("a public key");
    CertificateBuilder::new(profile, SerialNumber::from(1_u32), validity, info)
        .expect("a builder")
        .build::<_, DerSignature>(issuer)
        .expect("a certificate")
}
