//! The server's configuration: what an operator can set, and the values that stand when nothing is said.
//!
//! Four layers, the later ones win: the defaults here, the TOML file, `KMS_<SECTION>__<FIELD>` variables of the
//! environment, flags of the command line (see `layers.rs`). A field that nobody knows is an error,
//! and every error names its file, line and column or its variable or flag. Secrets are never written into a
//! configuration: a field names the *file* that holds one.

mod authn;
mod check;
mod duration;
mod jwt_issuer;
mod layers;
mod limits;
mod store;

use std::{
    net::SocketAddr,
    num::{NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, de};

pub use authn::{Authn, ClientCa, TrustDomain};
pub use check::{Problem, Severity};
pub use jwt_issuer::{JwtAlgorithm, JwtIssuer, KeySource};
pub use layers::{Error, Overrides};
pub use limits::Limits;
pub(crate) use store::NEVER_DIFFER;
pub use store::{Postgres, Store};

/// Everything that the server can be told. Paths are absolute once it is loaded.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Our own API.
    pub grpc: Grpc,
    /// JWKS, health and metrics.
    pub http: Http,
    /// The token.
    pub hsm: Hsm,
    /// The rows.
    pub store: Store,
    /// The audit log.
    pub audit: Audit,
    /// Who may say who a caller is.
    #[serde(default)]
    pub authn: Authn,
    /// Sockets between our own processes.
    #[serde(default)]
    pub runtime: Runtime,
    /// Rules for all keys.
    #[serde(default)]
    pub keys: Keys,
    /// How often callers may call.
    #[serde(default)]
    pub limits: Limits,
    /// Logging.
    #[serde(default)]
    pub log: Log,
}

/// `[grpc]`: the listener of `kms.v1`, always over TLS.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grpc {
    /// Where to listen. Port 0 takes a free one. Default: 127.0.0.1:8443.
    #[serde(default = "defaults::grpc_addr")]
    pub addr: SocketAddr,
    /// Certificate chain, PEM, the server's own first. Read again when it changes.
    pub tls_cert_file: PathBuf,
    /// Its private key, PEM. Read again when it changes.
    pub tls_key_file: PathBuf,
    /// A unix socket on which processes of this host call without TLS, known by their user. Default: none.
    #[serde(default)]
    pub unix_socket: Option<PathBuf>,
    /// Whether strangers may ask for the list of methods (gRPC reflection). Default: false.
    #[serde(default)]
    pub reflection: bool,
    /// A call's longest deadline, also of calls that name none. Default: 60s: RSA-4096 is slow to generate.
    #[serde(default = "defaults::max_deadline", deserialize_with = "duration::deserialize")]
    pub max_deadline: Duration,
    /// How long a server that is asked to end says that it is not ready, and goes on serving: longer than a balancer
    /// needs to notice. Default: 5s with PostgreSQL, 0 with SQLite.
    #[serde(default, deserialize_with = "duration::deserialize_some")]
    pub drain_delay: Option<Duration>,
}

/// `[http]`: the listener of JWKS, health and metrics. Over TLS when both files are named.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Where to listen. Port 0 takes a free one. Default: 127.0.0.1:8080.
    #[serde(default = "defaults::http_addr")]
    pub addr: SocketAddr,
    /// Certificate chain, PEM. Absent: plain HTTP, for a TLS-terminating proxy in front.
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    pub tls_key_file: Option<PathBuf>,
    /// The issuer's URL, as verifiers compare it, character by character, with `iss`.
    pub issuer: Issuer,
    /// Most keys that have metrics of their own; the others are in the sums alone. Default: 1,000.
    #[serde(default = "defaults::metrics_keys_max")]
    pub metrics_keys_max: u32,
}

/// `[hsm]`: the token, and the processes that talk to it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hsm {
    /// RFC 7512 URI of the token, with `module-path` and `pin-source`; never with `pin-value`.
    pub uri: String,
    /// Worker processes. Default: 2.
    #[serde(default = "defaults::workers")]
    pub workers: NonZeroU16,
    /// READY workers beside them that take over when one dies, hangs or retires. Default: 1.
    #[serde(default = "defaults::spare_workers")]
    pub spare_workers: u16,
    /// PKCS#11 sessions, each with its thread, in every worker; more than 1 for an HSM behind a network.
    /// Default: 1.
    #[serde(default = "defaults::sessions_per_worker")]
    pub sessions_per_worker: NonZeroU16,
    /// How long one call into the module may take before its worker is replaced. Default: 5s.
    #[serde(default = "defaults::call_timeout", deserialize_with = "duration::deserialize")]
    pub call_timeout: Duration,
    /// How long a worker may take to load the module and log in. Default: 30s.
    #[serde(default = "defaults::startup_timeout", deserialize_with = "duration::deserialize")]
    pub startup_timeout: Duration,
    /// A worker that was asked nothing for this long is sent a canary, so that a link that died unused is found
    /// before a caller needs it. Default: 10s.
    #[serde(default = "defaults::keep_alive", deserialize_with = "duration::deserialize")]
    pub keep_alive: Duration,
    /// After so many operations a worker is replaced by a fresh one, without a failed request: vendor libraries
    /// leak. 0 for never. Default: 10,000,000.
    #[serde(default = "defaults::worker_operations_max")]
    pub worker_operations_max: u64,
    /// A worker that holds more memory than this, in bytes, is replaced likewise. 0 for never. Default: 1 GiB.
    #[serde(default = "defaults::worker_memory_bytes_max")]
    pub worker_memory_bytes_max: u64,
    /// Most requests that wait for the token; one more is refused. One caller alone gets about seven tenths of them.
    /// Default: 2048.
    #[serde(default = "defaults::queue_max")]
    pub queue_max: NonZeroU16,
    /// Where the locks lie under which processes of this host log in one after another; all that use one
    /// token must name the same directory. Default: the directory of the SQLite file, or the one that holds `audit.dir`.
    pub lock_dir: Option<PathBuf>,
    /// A profile of the token, as `kms hsm probe` writes it. Default: a built-in one, by the module's manufacturer.
    pub profile_file: Option<PathBuf>,
    /// Which PIN this is, counted by the operator: raise it when the PIN was changed, and the latch that a refused
    /// PIN left behind holds no longer. Default: 1.
    #[serde(default = "defaults::pin_generation")]
    pub pin_generation: NonZeroU32,
}

/// `[audit]`: the log that every operation is recorded in before its result leaves.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Its directory.
    pub dir: PathBuf,
    /// With less free space than this on its file system, in bytes, no operation is admitted.
    /// Default: 64 MiB.
    #[serde(default = "defaults::free_bytes_min")]
    pub free_bytes_min: u64,
}

/// `[runtime]`: where our processes meet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// A directory that only this user may enter (0700). Default: `$RUNTIME_DIRECTORY` (systemd), else a
    /// fresh one in `$XDG_RUNTIME_DIR` or `/tmp`.
    pub dir: Option<PathBuf>,
}

/// `[keys]`: what holds for every key.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// Verify each signature before it is released. Default: true.
    pub verify_before_release: bool,
    /// Whether key versions may be destroyed at all. Default: false.
    pub allow_destroy: bool,
    /// From the request to the destruction. Default: 30d.
    #[serde(deserialize_with = "duration::deserialize")]
    pub destroy_delay: Duration,
    /// How long a version that wraps must not have unwrapped before it may be destroyed. Default: 30d.
    #[serde(deserialize_with = "duration::deserialize")]
    pub unwrap_quiet_period: Duration,
    /// The longest that a verifier may keep a key set, 10 s to 5 min; a key whose `publish_lead` is short makes it
    /// shorter. All replicas must agree on it. Default: 5m.
    #[serde(deserialize_with = "duration::between_seconds::<10, 300, _>")]
    pub jwks_max_age: Duration,
    /// The longest that a signed bundle of key sets lives, at least 30 s: how long a revocation may take to reach
    /// whoever verifies with one. Default: 1h.
    #[serde(deserialize_with = "duration::at_least_seconds::<30, _>")]
    pub bundle_ttl_max: Duration,
    /// From one audit of the attributes of all keys in the token to the next, at least 10 s; the first is at start.
    /// Default: 1h.
    #[serde(deserialize_with = "duration::at_least_seconds::<10, _>")]
    pub attribute_audit_period: Duration,
}

/// `[log]`: what is told on standard error.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Default: text.
    pub format: LogFormat,
    /// A level, or directives as `tracing` writes them: `info,kms_pkcs11=debug`. Default: info.
    pub level: String,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The issuer identifier (OpenID Connect Discovery 1.0 §3): an http(s) URL without query, fragment and
/// trailing slash, kept exactly as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer(String);

impl Config {
    /// The directory of this server's state, where `listening.json` stands: that of the SQLite file, or the one that
    /// holds `audit.dir`.
    pub fn state_dir(&self) -> &Path {
        self.store.sqlite_path().unwrap_or(&self.audit.dir).parent().unwrap_or(Path::new("/"))
    }

    /// How long a server that is asked to end goes on serving after it has said that it is not ready.
    pub fn drain_delay(&self) -> Duration {
        self.grpc.drain_delay.unwrap_or(match self.store {
            Store::Sqlite { .. } => Duration::ZERO,
            Store::Postgres(_) => Duration::from_secs(5),
        })
    }

    /// The directory of the locks around the token.
    pub(crate) fn lock_dir(&self) -> &Path {
        self.hsm.lock_dir.as_deref().unwrap_or_else(|| self.state_dir())
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.grpc.tls_cert_file, &mut self.grpc.tls_key_file, &mut self.audit.dir]
            .into_iter()
            .chain(self.store.paths_mut())
            .chain(&mut self.http.tls_cert_file)
            .chain(&mut self.http.tls_key_file)
            .chain(&mut self.hsm.lock_dir)
            .chain(&mut self.hsm.profile_file)
            .chain(&mut self.runtime.dir)
            .chain(&mut self.grpc.unix_socket)
            .chain(self.authn.client_ca.iter_mut().map(|ca| &mut ca.ca_file))
            .chain(self.authn.jwt_issuer.iter_mut().filter_map(JwtIssuer::paths_mut))
    }
}

impl Http {
    /// The certificate and key files, when this listener is to speak TLS.
    pub fn tls_files(&self) -> Option<(&Path, &Path)> {
        Some((self.tls_cert_file.as_deref()?, self.tls_key_file.as_deref()?))
    }
}

impl Issuer {
    /// The URL, exactly as configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Issuer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const HELP: &str = "the issuer must be an http:// or https:// URL with a host and without user, query, \
                            fragment and trailing slash, for instance \"https://kms.example.com\"";
        let uri: http::Uri = text.parse().map_err(|_| HELP)?;
        let web = matches!(uri.scheme_str(), Some("http" | "https"));
        let host = uri.host().is_some_and(|host| !host.is_empty());
        let forbidden = text.contains(['?', '#', '@']) || text.ends_with('/');
        if web && host && !forbidden { Ok(Self(text.to_owned())) } else { Err(HELP) }
    }
}

impl<'de> Deserialize<'de> for Issuer {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Default for Keys {
    fn default() -> Self {
        let destroy_delay = Duration::from_secs(30 * 24 * 60 * 60);
        let unwrap_quiet_period = destroy_delay;
        let attribute_audit_period = Duration::from_secs(60 * 60);
        let jwks_max_age = Duration::from_secs(300);
        let bundle_ttl_max = Duration::from_secs(60 * 60);
        Self {
            verify_before_release: true,
            allow_destroy: false,
            destroy_delay,
            unwrap_quiet_period,
            jwks_max_age,
            bundle_ttl_max,
            attribute_audit_period,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

/// Values of fields whose section has others that must be set.
mod defaults {
    use super::*;

    pub(super) fn grpc_addr() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 8443))
    }

    pub(super) fn max_deadline() -> Duration {
        kms_api_grpc::DEADLINE_MAX_DEFAULT
    }

    pub(super) fn http_addr() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 8080))
    }

    pub(super) fn metrics_keys_max() -> u32 {
        1_000
    }

    pub(super) fn workers() -> NonZeroU16 {
        NonZeroU16::MIN.saturating_add(1)
    }

    pub(super) fn spare_workers() -> u16 {
        1
    }

    pub(super) fn keep_alive() -> Duration {
        Duration::from_secs(10)
    }

    pub(super) fn worker_operations_max() -> u64 {
        10_000_000
    }

    pub(super) fn worker_memory_bytes_max() -> u64 {
        1 << 30
    }

    pub(super) fn sessions_per_worker() -> NonZeroU16 {
        NonZeroU16::MIN
    }

    pub(super) fn call_timeout() -> Duration {
        Duration::from_secs(5)
    }

    pub(super) fn startup_timeout() -> Duration {
        Duration::from_secs(30)
    }

    pub(super) fn pin_generation() -> NonZeroU32 {
        NonZeroU32::MIN
    }

    pub(super) fn queue_max() -> NonZeroU16 {
        NonZeroU16::MIN.saturating_add(2047)
    }

    pub(super) fn free_bytes_min() -> u64 {
        64 * 1024 * 1024
    }
}
