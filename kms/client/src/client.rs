//! Connecting, and the connection's one handle.

use std::{fmt, sync::Arc, time::Duration};

use http::Uri;
use rustls::crypto::CryptoProvider;
use secrecy::SecretString;
use tonic::transport::Endpoint;

use crate::{
    Authenticated, Authentication, Error, Kind, tls,
    v1::{
        access_service_client::AccessServiceClient, crypto_service_client::CryptoServiceClient,
        hsm_service_client::HsmServiceClient, key_service_client::KeyServiceClient,
        status_service_client::StatusServiceClient,
    },
};

/// A silent connection is probed after this long, so that a vanished server is noticed between calls.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// A probe that is not answered within this time ends the connection; the next call makes a new one.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the service is, and how to speak to it.
#[derive(Debug, Clone)]
pub struct Options {
    /// `host:port` or `https://host:port`. There is no plain-text mode: a credential travels with each call.
    pub addr: String,
    /// PEM of the certificate authorities to trust; the system's own when `None`.
    pub ca_pem: Option<Vec<u8>>,
    /// The credential that `CreateAccessToken`, `kms bootstrap` or `kms dev` showed.
    pub access_token: SecretString,
    /// Bound on one attempt to connect: name resolution, TCP and TLS. Default 5 s.
    pub connect_timeout: Duration,
    /// Deadline of each call, its repetitions included; the server is told what is left. Default 10 s.
    pub timeout: Duration,
}

/// A connection to the service. Cloning is cheap and shares it; it reconnects by itself.
#[derive(Clone)]
pub struct Client {
    channel: Authenticated,
    keys: KeyServiceClient<Authenticated>,
    crypto: CryptoServiceClient<Authenticated>,
    access: AccessServiceClient<Authenticated>,
    hsm: HsmServiceClient<Authenticated>,
    status: StatusServiceClient<Authenticated>,
    pub(crate) timeout: Duration,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl Options {
    /// Options with the default time limits and the system's certificate authorities.
    pub fn new(addr: impl Into<String>, access_token: SecretString) -> Self {
        Self {
            addr: addr.into(),
            ca_pem: None,
            access_token,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
        }
    }
}

impl Client {
    /// Connects now, so that a wrong address or certificate shows here and not at the first call.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = tls::connector(&provider, options.ca_pem.as_deref())?;
        let authentication = Authentication::new(&options.access_token, options.timeout)?;
        let channel = Endpoint::from(parse_addr(&options.addr)?)
            .connect_timeout(options.connect_timeout)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector(tower::service_fn(move |uri| tls::connect(tls.clone(), uri)))
            .await
            .map_err(|error| Error::local(Kind::Unavailable, "cannot connect", &error))?;
        let channel = Authenticated::new(channel, authentication);
        Ok(Self {
            keys: KeyServiceClient::new(channel.clone()),
            crypto: CryptoServiceClient::new(channel.clone()),
            access: AccessServiceClient::new(channel.clone()),
            hsm: HsmServiceClient::new(channel.clone()),
            status: StatusServiceClient::new(channel.clone()),
            channel,
            timeout: options.timeout,
            provider,
        })
    }

    /// The connection itself, for generated clients of other services of the server, such as gRPC health.
    pub fn channel(&self) -> Authenticated {
        self.channel.clone()
    }

    /// The generated client of `KeyService`.
    pub fn keys(&self) -> KeyServiceClient<Authenticated> {
        self.keys.clone()
    }

    /// The generated client of `CryptoService`.
    pub fn crypto(&self) -> CryptoServiceClient<Authenticated> {
        self.crypto.clone()
    }

    /// The generated client of `AccessService`.
    pub fn access(&self) -> AccessServiceClient<Authenticated> {
        self.access.clone()
    }

    /// The generated client of `HsmService`.
    pub fn hsm(&self) -> HsmServiceClient<Authenticated> {
        self.hsm.clone()
    }

    /// The generated client of `StatusService`.
    pub fn status(&self) -> StatusServiceClient<Authenticated> {
        self.status.clone()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

fn parse_addr(addr: &str) -> Result<Uri, Error> {
    let wrong = || {
        Error::invalid(format!(
            "{addr:?} is not an address of the service; use host:port or https://host:port"
        ))
    };
    let authority = match addr.split_once("://") {
        Some(("https", rest)) => rest.trim_end_matches('/'),
        Some(_) => return Err(wrong()),
        None => addr,
    };
    let uri: Uri = format!("https://{authority}").parse().map_err(|_| wrong())?;
    let plain = uri.path() == "/" && uri.query().is_none() && !authority.contains('@');
    let complete = uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some();
    if plain && complete { Ok(uri) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_tls_port_or_host_is_refused() {
        for bad in ["http://h:1", "h", "https://h", "https://h:1/path", "u@h:1", "h:x", "", ":1", "h:1?q"] {
            assert!(parse_addr(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_address_may_carry_its_scheme_or_not() {
        for good in ["h:1", "https://h:1", "https://h:1/", "127.0.0.1:8443", "[::1]:8443"] {
            assert!(parse_addr(good).is_ok(), "{good:?} was refused");
        }
    }
}
