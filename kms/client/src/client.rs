//! Connecting, and the connections' one handle.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::stream::{FuturesUnordered, StreamExt};
use http::Uri;
use rustls::crypto::CryptoProvider;
use secrecy::SecretString;
use tonic::transport::{Channel, Endpoint};

use crate::{
    Authenticated, Authentication, Error, Kind,
    replicas::{REPLICAS_MAX, Replicas},
    tls::{self, Tls, Way},
    v1::{
        access_service_client::AccessServiceClient, approval_service_client::ApprovalServiceClient,
        crypto_service_client::CryptoServiceClient, hsm_service_client::HsmServiceClient,
        key_service_client::KeyServiceClient, policy_service_client::PolicyServiceClient,
        status_service_client::StatusServiceClient,
    },
};

/// A silent connection is probed after this long, so that a vanished server is noticed between calls and during them.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// A probe that is not answered within this time ends the connection; the next call makes a new one.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the service is, and how to speak to it.
#[derive(Debug, Clone)]
pub struct Options {
    /// `host:port` or `https://host:port`, of each replica, separated by commas; at most 64. The calls are spread over
    /// them. There is no plain-text mode: a credential travels with each call. Or `unix:///path`, the server's socket
    /// on this host.
    pub addr: String,
    /// PEM of the certificate authorities to trust; the system's own when `None`.
    pub ca_pem: Option<Vec<u8>>,
    /// The credential that `CreateAccessToken`, `kms bootstrap` or `kms dev` showed. Where there is one, it decides who
    /// calls.
    pub access_token: Option<SecretString>,
    /// The certificate by which the server knows the caller when there is no access token.
    pub client_certificate: Option<ClientCertificate>,
    /// Bound on one attempt to connect: name resolution, TCP and TLS. Default 5 s.
    pub connect_timeout: Duration,
    /// Deadline of each call, its repetitions on whichever replica included; the server is told what is left. Default 10 s.
    pub timeout: Duration,
}

/// A certificate of the caller and its key. Both are read anew for each connection: whoever renews them need not tell us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The chain, PEM, the caller's own first.
    pub cert_file: PathBuf,
    /// Its private key, PEM, unencrypted.
    pub key_file: PathBuf,
}

/// The connections to the service. Cloning is cheap and shares them; they reconnect by themselves.
#[derive(Clone)]
pub struct Client {
    channel: Authenticated,
    keys: KeyServiceClient<Authenticated>,
    crypto: CryptoServiceClient<Authenticated>,
    access: AccessServiceClient<Authenticated>,
    policy: PolicyServiceClient<Authenticated>,
    approvals: ApprovalServiceClient<Authenticated>,
    hsm: HsmServiceClient<Authenticated>,
    status: StatusServiceClient<Authenticated>,
    pub(crate) replicas: Replicas,
    pub(crate) timeout: Duration,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl Options {
    /// Options with the default time limits and the system's certificate authorities.
    pub fn new(addr: impl Into<String>, access_token: SecretString) -> Self {
        Self { access_token: Some(access_token), ..Self::without_token(addr) }
    }

    /// The same for a caller whom the server knows by its certificate or, on a unix socket, by its user.
    pub fn without_token(addr: impl Into<String>) -> Self {
        Self {
            addr: addr.into(),
            ca_pem: None,
            access_token: None,
            client_certificate: None,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
        }
    }
}

impl Client {
    /// Connects now, so that a wrong address or certificate shows here and not at the first call. One replica that
    /// answers is enough; the others are connected to when their turn comes.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let authentication = Authentication::new(options.access_token.as_ref(), options.timeout)?;
        let replicas = connect_to_one(endpoints(&options, &provider)?, options.connect_timeout).await?;
        let channel = Authenticated::new(replicas.clone(), authentication);
        Ok(Self {
            keys: KeyServiceClient::new(channel.clone()),
            crypto: CryptoServiceClient::new(channel.clone()),
            access: AccessServiceClient::new(channel.clone()),
            policy: PolicyServiceClient::new(channel.clone()),
            approvals: ApprovalServiceClient::new(channel.clone()),
            hsm: HsmServiceClient::new(channel.clone()),
            status: StatusServiceClient::new(channel.clone()),
            channel,
            replicas,
            timeout: options.timeout,
            provider,
        })
    }

    /// The connections themselves, for generated clients of other services of the server, such as gRPC health.
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

    /// The generated client of `PolicyService`.
    pub fn policy(&self) -> PolicyServiceClient<Authenticated> {
        self.policy.clone()
    }

    /// The generated client of `ApprovalService`.
    pub fn approvals(&self) -> ApprovalServiceClient<Authenticated> {
        self.approvals.clone()
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

/// A replica: its address as the caller wrote it, and how it is reached.
struct Place {
    addr: String,
    endpoint: Endpoint,
    way: Way,
}

/// What is left of an address when it is read.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Host(Uri),
    Unix(PathBuf),
}

fn endpoints(options: &Options, provider: &Arc<CryptoProvider>) -> Result<Vec<Place>, Error> {
    let addrs: Vec<&str> = options.addr.split(',').map(str::trim).collect();
    if addrs.len() > REPLICAS_MAX {
        return Err(Error::invalid(format!("{} addresses are more than {REPLICAS_MAX}", addrs.len())));
    }
    // Made when it is first needed: on a unix socket nobody needs authorities to trust.
    let mut tls = None;
    let mut place = |addr: &str| {
        let (uri, way) = match parse_addr(addr)? {
            Address::Host(uri) => {
                let tls = match &mut tls {
                    Some(tls) => tls,
                    none @ None => none.insert(Tls::new(
                        provider,
                        options.ca_pem.as_deref(),
                        options.client_certificate.as_ref(),
                    )?),
                };
                (uri.clone(), Way::Tls(tls.clone(), uri))
            }
            // HTTP wants a host; nobody resolves it.
            Address::Unix(path) => (Uri::from_static("http://localhost"), Way::Unix(path)),
        };
        let endpoint = Endpoint::from(uri)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        Ok(Place { addr: addr.to_owned(), endpoint, way })
    };
    addrs.into_iter().map(&mut place).collect()
}

/// Connects to all replicas at once until one is there; the others get a connection that makes itself when needed.
async fn connect_to_one(places: Vec<Place>, timeout: Duration) -> Result<Replicas, Error> {
    let connector = |place: &Place| {
        let way = place.way.clone();
        tower::service_fn(move |_| tls::connect(way.clone(), timeout))
    };
    let attempts = places.iter().enumerate().map(|(index, place)| async move {
        let connected = place.endpoint.connect_with_connector(connector(place)).await;
        let named =
            |error| Error::local(Kind::Unavailable, &format!("cannot connect to {}", place.addr), &error);
        connected.map(|channel| (index, channel)).map_err(named)
    });
    let mut attempts: FuturesUnordered<_> = attempts.collect();
    let mut failures = Vec::new();
    let (first, connected) = loop {
        match attempts.next().await {
            Some(Ok(connected)) => break connected,
            Some(Err(error)) => failures.push(error),
            None => return Err(Error::all_of(failures)),
        }
    };
    drop(attempts);
    let lazily = |place: &Place| place.endpoint.connect_with_connector_lazy(connector(place));
    let mut channels: Vec<(String, Channel)> =
        places.iter().map(|place| (place.addr.clone(), lazily(place))).collect();
    channels[first].1 = connected;
    Ok(Replicas::new(channels, first))
}

fn parse_addr(addr: &str) -> Result<Address, Error> {
    let wrong = || {
        Error::invalid(format!(
            "{addr:?} is not an address of the service; use host:port, https://host:port or unix:///path"
        ))
    };
    if let Some(path) = addr.strip_prefix("unix://").map(Path::new) {
        return if path.is_absolute() { Ok(Address::Unix(path.to_owned())) } else { Err(wrong()) };
    }
    let authority = match addr.split_once("://") {
        Some(("https", rest)) => rest.trim_end_matches('/'),
        Some(_) => return Err(wrong()),
        None => addr,
    };
    let uri: Uri = format!("https://{authority}").parse().map_err(|_| wrong())?;
    let plain = uri.path() == "/" && uri.query().is_none() && !authority.contains('@');
    let complete = uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some();
    if plain && complete { Ok(Address::Host(uri)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_tls_port_or_host_is_refused() {
        for bad in [
            "http://h:1",
            "h",
            "https://h",
            "https://h:1/path",
            "u@h:1",
            "h:x",
            "",
            ":1",
            "h:1?q",
            "unix://",
            "unix://a",
            "unix:/a",
        ] {
            assert!(parse_addr(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_address_may_be_a_socket_of_this_host() {
        let path = PathBuf::from("/run/kms/kms.sock");
        assert_eq!(parse_addr("unix:///run/kms/kms.sock").expect("a path"), Address::Unix(path));
    }

    #[test]
    fn an_address_may_carry_its_scheme_or_not() {
        for good in ["h:1", "https://h:1", "https://h:1/", "127.0.0.1:8443", "[::1]:8443"] {
            assert!(parse_addr(good).is_ok(), "{good:?} was refused");
        }
    }
}
