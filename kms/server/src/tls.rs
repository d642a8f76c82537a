//! TLS of our listeners: rustls over aws-lc-rs, TLS 1.2 and 1.3, and certificates that change while we run.
//!
//! The files are read again every few seconds and compared by content, not by time or name, because
//! Kubernetes flips a symlink and others write in place. A pair that does not parse or does not belong together
//! (the certificate was replaced, the key not yet) changes nothing: the old pair serves on until it is whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::{
    ServerConfig, SupportedCipherSuite,
    crypto::{
        CryptoProvider, SupportedKxGroup,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_cert::der::Decode as _;
use zeroize::Zeroizing;

/// What we speak, best first: authenticated encryption with forward secrecy and nothing else (RFC 9325 §4.2). Named
/// here, so that another version of the library changes nothing unseen; `tests/tests/tls.rs` reads it off the wire.
const CIPHER_SUITES: [SupportedCipherSuite; 9] = [
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];
/// And how keys are agreed on.
const KEY_EXCHANGE_GROUPS: [&dyn SupportedKxGroup; 4] =
    [kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1, kx_group::X25519MLKEM768];
/// How often the files are compared with what is served.
pub(crate) const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// Largest certificate chain or key file in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// A certificate chain and its key, as the files last held them.
#[derive(Debug)]
pub struct Pair {
    cert_file: PathBuf,
    key_file: PathBuf,
    current: ArcSwap<Served>,
    /// SHA-256 of the files that were looked at last, good or bad: a bad pair is reported once.
    seen: Mutex<[u8; 32]>,
}

/// What is served now.
#[derive(Debug)]
struct Served {
    key: Arc<CertifiedKey>,
    expires_at: Timestamp,
}

/// Why a pair cannot be served, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {file}: {error}; check that it exists and that this user may read it")]
    Unreadable {
        /// Which.
        file: String,
        /// What the system said.
        error: io::Error,
    },
    /// There is no certificate in it.
    #[error("{0} holds no certificate in PEM; expected \"-----BEGIN CERTIFICATE-----\"")]
    NoCertificate(String),
    /// There is no private key in it.
    #[error("{0} holds no private key in PEM; expected \"-----BEGIN PRIVATE KEY-----\", unencrypted")]
    NoKey(String),
    /// They do not belong together, or are of a kind that rustls does not take.
    #[error("{cert_file} and {key_file} cannot be used together: {error}")]
    Mismatch {
        /// The chain.
        cert_file: String,
        /// The key.
        key_file: String,
        /// What rustls said.
        error: rustls::Error,
    },
}

impl Pair {
    /// Reads and checks the pair.
    pub fn load(cert_file: &Path, key_file: &Path) -> Result<Self, Error> {
        let (cert, key) = (read(cert_file)?, read(key_file)?);
        let served = Served::parse(cert_file, &cert, key_file, &key)?;
        Ok(Self {
            cert_file: cert_file.to_owned(),
            key_file: key_file.to_owned(),
            current: ArcSwap::from_pointee(served),
            seen: Mutex::new(digest(&cert, &key)),
        })
    }

    /// A server configuration that follows the pair, and asks for a client certificate if there is somebody to look at
    /// it. `alpn` names the protocols, best first.
    pub fn server_config(
        self: &Arc<Self>,
        alpn: &[&[u8]],
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Self>::clone(self);
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let mut config = match clients {
            None => builder.with_no_client_auth().with_cert_resolver(resolver),
            Some(clients) => {
                let mut config = builder.with_client_cert_verifier(clients).with_cert_resolver(resolver);
                // A session that is resumed brings its certificate along without anybody looking at it.
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
                config
            }
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// When the served certificate expires.
    pub fn expires_at(&self) -> Timestamp {
        self.current.load().expires_at
    }

    /// Serves what the files hold now, if that changed: `Ok(true)`. On an error the old pair stays.
    pub fn reload(&self) -> Result<bool, Error> {
        let (cert, key) = (read(&self.cert_file)?, read(&self.key_file)?);
        let digest = digest(&cert, &key);
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == digest {
                return Ok(false);
            }
            *seen = digest;
        }
        self.current.store(Arc::new(Served::parse(&self.cert_file, &cert, &self.key_file, &key)?));
        Ok(true)
    }

    /// Reloads for ever; `failed` is called for each pair that cannot be served.
    pub(crate) async fn follow(self: Arc<Self>, failed: impl Fn()) {
        let mut tick = tokio::time::interval(RELOAD_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let pair = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || pair.reload()).await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => {
                    tracing::info!(cert = %self.cert_file.display(), expires_at = %self.expires_at(), "TLS certificate reloaded");
                }
                Ok(Err(error)) => {
                    failed();
                    tracing::error!(%error, "TLS certificate not reloaded; the old one is served on");
                }
                Err(error) => tracing::error!(%error, "TLS certificate not reloaded"),
            }
        }
    }
}

impl Served {
    fn parse(cert_file: &Path, cert: &[u8], key_file: &Path, key: &[u8]) -> Result<Self, Error> {
        let name = |file: &Path| file.display().to_string();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<_, _>>()
            .map_err(|_| Error::NoCertificate(name(cert_file)))?;
        let expires_at = chain
            .first()
            .and_then(|leaf| x509_cert::Certificate::from_der(leaf).ok())
            .map(|leaf| leaf.tbs_certificate().validity().not_after.to_unix_duration())
            .and_then(|since| Timestamp::UNIX_EPOCH.checked_add(since).ok())
            .ok_or_else(|| Error::NoCertificate(name(cert_file)))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| Error::NoKey(name(key_file)))?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| Error::Mismatch {
            cert_file: name(cert_file),
            key_file: name(key_file),
            error,
        })?;
        Ok(Self { key: Arc::new(key), expires_at })
    }
}

impl ResolvesServerCert for Pair {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().key))
    }
}

/// Our one cryptographic backend.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: CIPHER_SUITES.to_vec(),
        kx_groups: KEY_EXCHANGE_GROUPS.to_vec(),
        ..aws_lc_rs::default_provider()
    })
}

/// A file of bounded size.
pub(crate) fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let bounded = || {
        if fs::metadata(file)?.len() > FILE_BYTES_MAX {
            return Err(io::Error::other("it is larger than 256 KiB"));
        }
        fs::read(file)
    };
    bounded()
        .map(Zeroizing::new)
        .map_err(|error| Error::Unreadable { file: file.display().to_string(), error })
}

/// By which the content of files is compared.
pub(crate) fn digest(cert: &[u8], key: &[u8]) -> [u8; 32] {
    let mut context = ::aws_lc_rs::digest::Context::new(&::aws_lc_rs::digest::SHA256);
    context.update(&cert.len().to_be_bytes());
    context.update(cert);
    context.update(key);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use rustls::HandshakeKind;
    use rustls_pki_types::ServerName;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::{authn::authorities::Authorities, test_certificate};

    fn files() -> (TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        (dir, cert, key)
    }

    fn leaf(pair: &Pair) -> Vec<u8> {
        pair.current.load().key.cert[0].to_vec()
    }

    #[test]
    fn a_pair_that_cannot_be_used_is_refused_with_its_reason() {
        let (_dir, cert, key) = files();
        let missing = Pair::load(&cert, &key).expect_err("no files").to_string();
        assert!(missing.starts_with("cannot read") && missing.contains("tls.crt"), "{missing}");
        test_certificate::write(1, &cert, &key);
        let good = fs::read(&key).expect("a key");
        fs::write(&key, "no key").expect("write");
        assert!(matches!(Pair::load(&cert, &key), Err(Error::NoKey(_))));
        fs::write(&key, good).expect("write");
        let (_other_dir, other_cert, other_key) = files();
        test_certificate::write(2, &other_cert, &other_key);
        assert!(matches!(Pair::load(&cert, &other_key), Err(Error::Mismatch { .. })));
        fs::write(&cert, "").expect("write");
        assert!(matches!(Pair::load(&cert, &key), Err(Error::NoCertificate(_))));
    }

    #[test]
    fn the_old_pair_is_served_until_the_new_one_is_whole() {
        let (_dir, cert, key) = files();
        let first = test_certificate::write(1, &cert, &key);
        let pair = Pair::load(&cert, &key).expect("a pair");
        assert!(matches!(pair.reload(), Ok(false)), "nothing changed");
        let old_key = fs::read(&key).expect("a key");
        let second = test_certificate::write(2, &cert, &key);
        let new_key = fs::read(&key).expect("a key");
        fs::write(&key, old_key).expect("write");
        assert!(matches!(pair.reload(), Err(Error::Mismatch { .. })));
        assert!(matches!(pair.reload(), Ok(false)), "a bad pair is reported once");
        assert_eq!(leaf(&pair), first);
        fs::write(&key, new_key).expect("write");
        assert!(matches!(pair.reload(), Ok(true)));
        assert_eq!(leaf(&pair), second);
    }

    /// How the second of two handshakes of one client went.
    async fn second_handshake(config: Arc<ServerConfig>) -> HandshakeKind {
        let (acceptor, client) =
            (TlsAcceptor::from(config), TlsConnector::from(test_certificate::client(b"h2")));
        let mut kind = None;
        for _ in 0..2 {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let name = ServerName::try_from("localhost").expect("a name");
            let (server, client) = tokio::join!(acceptor.accept(ours), client.connect(name, theirs));
            let (mut server, mut client) = (server.expect("a handshake"), client.expect("a handshake"));
            // Tickets come with the first bytes.
            server.write_all(b"a").await.expect("written");
            client.read_exact(&mut [0]).await.expect("read");
            kind = client.get_ref().1.handshake_kind();
        }
        kind.expect("a handshake")
    }

    #[tokio::test]
    async fn whoever_may_show_a_certificate_shows_it_for_each_connection() {
        let (dir, cert, key) = files();
        test_certificate::write(1, &cert, &key);
        let pair = Arc::new(Pair::load(&cert, &key).expect("a pair"));
        let config = |clients| pair.server_config(&[b"h2"], clients).expect("TLS");
        assert_eq!(
            second_handshake(config(None)).await,
            HandshakeKind::Resumed,
            "the test sees no difference"
        );
        let section = format!("name = 'a'\nca_file = '{}'\ndns = true", dir.path().join("tls.crt").display());
        let authorities = Authorities::load(&[toml::from_str(&section).expect("a section")]).expect("one");
        assert_eq!(second_handshake(config(Some(Arc::new(authorities)))).await, HandshakeKind::Full);
    }
}
