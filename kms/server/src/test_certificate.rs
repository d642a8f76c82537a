//! Certificates for the tests of this crate, signed by themselves or by an authority of the test, and a TLS client that
//! tells which one it was shown.

use std::{fs, path::Path, str::FromStr as _, sync::Arc, time::Duration};

use p256::{
    ecdsa::{DerSignature, SigningKey},
    pkcs8::{EncodePrivateKey as _, LineEnding},
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_cert::{
    TbsCertificate,
    builder::{
        self, Builder as _, CertificateBuilder,
        profile::{BuilderProfile, cabf::Root},
    },
    der::{Encode as _, EncodePem as _, flagset::FlagSet},
    ext::{
        Extension, ToExtension as _,
        pkix::{BasicConstraints, KeyUsage, KeyUsages, SubjectAltName, name::GeneralName},
    },
    name::Name,
    serial_number::SerialNumber,
    spki::{SubjectPublicKeyInfo, SubjectPublicKeyInfoRef},
    time::Validity,
};

/// Whoever signs itself, and for others.
const AUTHORITY: &str = "CN=localhost,O=kms,C=CH";

/// One certificate per `seed`, in DER; both files are written.
pub(crate) fn write(seed: u8, cert_file: &Path, key_file: &Path) -> Vec<u8> {
    let key = SigningKey::from_slice(&[seed; 32]).expect("a scalar");
    let subject = Name::from_str(AUTHORITY).expect("a name");
    let validity = Validity::from_now(Duration::from_secs(3600)).expect("an hour");
    let info = SubjectPublicKeyInfo::from_key(key.verifying_key()).expect("a public key");
    let profile = Root::new(false, subject).expect("a profile");
    let certificate = CertificateBuilder::new(profile, SerialNumber::from(u32::from(seed)), validity, info)
        .expect("a builder")
        .build::<_, DerSignature>(&key)
        .expect("a certificate");
    fs::write(cert_file, certificate.to_pem(LineEnding::LF).expect("PEM")).expect("write");
    fs::write(key_file, key.to_pkcs8_pem(LineEnding::LF).expect("PEM")).expect("write");
    certificate.to_der().expect("DER")
}

/// What a certificate of an authority of the test says.
pub(crate) struct Said {
    pub(crate) subject: &'static str,
    pub(crate) names: Vec<GeneralName>,
    pub(crate) usage: FlagSet<KeyUsages>,
    pub(crate) is_ca: bool,
}

impl Said {
    /// A caller's, as it should be, with these names.
    pub(crate) fn of(names: Vec<GeneralName>) -> Self {
        Self { subject: "CN=db1,O=Example", names, usage: KeyUsages::DigitalSignature.into(), is_ca: false }
    }

    /// Signed by the authority of this `seed`, whose name is its own; in DER.
    pub(crate) fn signed(self, seed: u8) -> CertificateDer<'static> {
        let authority = SigningKey::from_slice(&[seed; 32]).expect("a scalar");
        let key = SigningKey::from_slice(&[seed + 100; 32]).expect("a scalar");
        let info = SubjectPublicKeyInfo::from_key(key.verifying_key()).expect("a public key");
        let validity = Validity::from_now(Duration::from_secs(3600)).expect("an hour");
        let certificate = CertificateBuilder::new(self, SerialNumber::from(7_u32), validity, info)
            .expect("a builder")
            .build::<_, DerSignature>(&authority)
            .expect("a certificate");
        certificate.to_der().expect("DER").into()
    }
}

impl BuilderProfile for Said {
    fn get_issuer(&self, _: &Name) -> Name {
        Name::from_str(AUTHORITY).expect("a name")
    }

    fn get_subject(&self) -> Name {
        match self.subject {
            "" => Name::default(),
            subject => Name::from_str(subject).expect("a name"),
        }
    }

    fn build_extensions(
        &self,
        _: SubjectPublicKeyInfoRef<'_>,
        _: SubjectPublicKeyInfoRef<'_>,
        tbs: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let subject = tbs.subject();
        let constraints = BasicConstraints { ca: self.is_ca, path_len_constraint: None };
        let mut extensions =
            vec![constraints.to_extension(subject, &[])?, KeyUsage(self.usage).to_extension(subject, &[])?];
        if !self.names.is_empty() {
            extensions.push(SubjectAltName(self.names.clone()).to_extension(subject, &[])?);
        }
        Ok(extensions)
    }
}

/// Shakes hands with whoever serves at `socket`.
pub(crate) async fn connect(socket: TcpStream, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(client(alpn)).connect(name, socket).await
}

/// A client that remembers its sessions and trusts everybody.
pub(crate) fn client(alpn: &[u8]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

/// The server's certificate, in DER.
pub(crate) fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().expect("certificates")[0].to_vec()
}

/// Trusts everybody: tests look at the certificate themselves.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crate::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
