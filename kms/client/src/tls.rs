//! The way to the server: TCP and then TLS 1.2 or 1.3 by rustls on aws-lc-rs, the one backend of this project; or a unix
//! socket of this host, which needs neither.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    net::{TcpStream, UnixStream},
    time,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use zeroize::Zeroizing;

use crate::{ClientCertificate, Error, Kind};

/// Largest certificate chain or key file in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// What is trusted and shown.
#[derive(Clone)]
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    shown: Shown,
}

#[derive(Clone)]
enum Shown {
    /// No certificate: one configuration does for all connections.
    Nothing(TlsConnector),
    /// What the files hold when a connection is made.
    Files(ClientCertificate),
}

/// How a server is reached.
#[derive(Clone)]
pub(crate) enum Way {
    /// Its host and port.
    Tls(Tls, Uri),
    /// Its socket on this host.
    Unix(PathBuf),
}

type Stream = Either<TlsStream<TcpStream>, UnixStream>;

impl Tls {
    /// Fails here, and not at a connection, when the files cannot be used now.
    pub(crate) fn new(
        provider: &Arc<CryptoProvider>,
        ca_pem: Option<&[u8]>,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Self, Error> {
        let (provider, roots) = (Arc::clone(provider), Arc::new(roots(ca_pem)?));
        let connector = connector(&provider, &roots, certificate)
            .map_err(|error| Error::local(Kind::InvalidArgument, "TLS cannot be set up", &error))?;
        let shown = match certificate {
            None => Shown::Nothing(connector),
            Some(certificate) => Shown::Files(certificate.clone()),
        };
        Ok(Self { provider, roots, shown })
    }

    fn connector(&self) -> io::Result<TlsConnector> {
        match &self.shown {
            Shown::Nothing(connector) => Ok(connector.clone()),
            // A new configuration has no memory of sessions either, in which the old certificate would live on.
            Shown::Files(certificate) => connector(&self.provider, &self.roots, Some(certificate)),
        }
    }
}

fn connector(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    certificate: Option<&ClientCertificate>,
) -> io::Result<TlsConnector> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(Arc::clone(roots));
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(ClientCertificate { cert_file, key_file }) => {
            let chain = CertificateDer::pem_slice_iter(&read(cert_file)?).collect::<Result<Vec<_>, _>>();
            let chain = chain.ok().filter(|chain| !chain.is_empty());
            let chain = chain.ok_or_else(|| useless(cert_file, "it holds no certificate in PEM"))?;
            let key = PrivateKeyDer::from_pem_slice(&read(key_file)?)
                .map_err(|_| useless(key_file, "it holds no private key in PEM, unencrypted"))?;
            // A key of another certificate is noticed here.
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| useless(cert_file, &error.to_string()))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn read(file: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let named = |error: io::Error| useless(file, &error.to_string());
    if fs::metadata(file).map_err(named)?.len() > FILE_BYTES_MAX {
        return Err(useless(file, "it is larger than 256 KiB"));
    }
    fs::read(file).map(Zeroizing::new).map_err(named)
}

fn useless(file: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{} cannot be used: {why}", file.display()))
}

/// One connection to the server, made within `timeout`. That is bounded here, and not by whoever calls, for tonic then
/// knows the failure as one to connect: the request was never sent.
pub(crate) async fn connect(way: Way, timeout: Duration) -> io::Result<TokioIo<Stream>> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the server cannot be connected to in time");
    let connected = async {
        Ok(TokioIo::new(match way {
            Way::Tls(tls, uri) => Either::Left(connect_to(tls.connector()?, uri).await?),
            Way::Unix(path) => Either::Right(UnixStream::connect(path).await?),
        }))
    };
    time::timeout(timeout, connected).await.map_err(late)?
}

async fn connect_to(tls: TlsConnector, uri: Uri) -> io::Result<TlsStream<TcpStream>> {
    let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the address lacks a host or a port"));
    };
    // A URI writes an IPv6 address in brackets; the resolver and the certificate do not.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the host is no DNS name or IP address"))?;
    let tcp = TcpStream::connect((host, port)).await?;
    // Small messages, one at a time: Nagle would hold each back for the acknowledgement of the last.
    tcp.set_nodelay(true)?;
    tls.connect(name, tcp).await
}

fn roots(ca_pem: Option<&[u8]>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    match ca_pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate =
                    certificate.map_err(|error| Error::local(Kind::InvalidArgument, "ca_pem", &error))?;
                roots
                    .add(certificate)
                    .map_err(|error| Error::local(Kind::InvalidArgument, "ca_pem", &error))?;
            }
        }
        None => {
            // One odd certificate in the system's store must not stop the others.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(Error::invalid("there is no certificate authority to trust; give one as ca_pem"));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_authorities_that_do_not_parse_or_are_none_are_refused() {
        for bad in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(roots(Some(bad.as_bytes())).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn client_certificates_that_cannot_be_used_are_refused_with_their_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cert_file, key_file) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let certificate = ClientCertificate { cert_file: cert_file.clone(), key_file };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = Arc::new(RootCertStore::empty());
        for text in [None, Some(""), Some("no PEM")] {
            if let Some(text) = text {
                fs::write(&cert_file, text).expect("written");
            }
            let error = connector(&provider, &roots, Some(&certificate)).err().expect("refused").to_string();
            assert!(error.contains("tls.crt cannot be used"), "{text:?}: {error}");
        }
    }
}
