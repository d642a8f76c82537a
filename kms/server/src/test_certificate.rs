//! Self-signed certificates for the tests of this crate, and a TLS client that tells which one it was shown.

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
    builder::{Builder as _, CertificateBuilder, profile::cabf::Root},
    der::{Encode as _, EncodePem as _},
    name::Name,
    serial_number::SerialNumber,
    spki::SubjectPublicKeyInfo,
    time::Validity,
};

/// One certificate per `seed`, in DER; both files are written.
pub(crate) fn write(seed: u8, cert_file: &Path, key_file: &Path) -> Vec<u8> {
    let key = SigningKey::from_slice(&[seed; 32]).expect("a scalar");
    let subject = Name::from_str("CN=localhost,O=kms,C=CH").expect("a name");
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

/// Shakes hands with whoever serves at `socket`.
pub(crate) async fn connect(socket: TcpStream, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
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
