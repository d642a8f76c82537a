//! The way to the server: TCP, then TLS 1.2 or 1.3 by rustls on aws-lc-rs, the one backend of this project.

use std::{io, sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, time};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{Error, Kind};

/// What is trusted and spoken: these authorities, and HTTP/2.
pub(crate) fn connector(
    provider: &Arc<CryptoProvider>,
    ca_pem: Option<&[u8]>,
) -> Result<TlsConnector, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::local(Kind::Internal, "TLS cannot be set up", &error))?
        .with_root_certificates(roots(ca_pem)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// One connection to the host and port of `uri`, made within `timeout`. That is bounded here, and not by whoever calls,
/// for tonic then knows the failure as one to connect: the request was never sent.
pub(crate) async fn connect(
    tls: TlsConnector,
    uri: Uri,
    timeout: Duration,
) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the server cannot be connected to in time");
    time::timeout(timeout, connect_to(tls, uri)).await.map_err(late)?
}

async fn connect_to(tls: TlsConnector, uri: Uri) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
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
    Ok(TokioIo::new(tls.connect(name, tcp).await?))
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
}
