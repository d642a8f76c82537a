//! Which database, and what is asked of the way to it and of its settings. Everything is parsed here, before sqlx sees
//! it: sqlx would log what it does not know, and take from the environment what is not said.

use std::{collections::BTreeSet, fmt, net::IpAddr, path::PathBuf, time::Duration};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::{Host, Url};

use crate::OpenError;

/// What a session of PostgreSQL may take for a statement, for a lock, and between two statements of a transaction: who
/// is stopped while holding the lock of all commits must not stop the others for longer.
pub(super) const STATEMENT_MAX: Duration = Duration::from_secs(5);

/// Settings that are refused unless named.
const UNSAFE_SETTINGS: [&str; 4] = ["synchronous_commit", "fsync", "full_page_writes", "tls"];

/// Which database, and how it is used.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://USER@HOST[:PORT]/DATABASE?sslmode=verify-full&sslrootcert=FILE`, without a password.
    pub url: String,
    /// The user's password.
    pub password: Option<String>,
    /// Most connections of the pool; two more are for beats and for news.
    pub connections_max: u32,
    /// Settings that may be unsafe: `synchronous_commit`, `fsync`, `full_page_writes`, `tls`.
    pub unsafe_settings: BTreeSet<String>,
}

impl PostgresOptions {
    /// With [`PostgresOptions::CONNECTIONS_MAX`] connections, safe settings and no password.
    pub fn new(url: impl Into<String>) -> Self {
        let unsafe_settings = BTreeSet::new();
        Self { url: url.into(), password: None, connections_max: Self::CONNECTIONS_MAX, unsafe_settings }
    }

    /// Connections of a pool when nothing else is said.
    pub const CONNECTIONS_MAX: u32 = 8;

    /// Whether a server would take them; asks nobody.
    pub fn check(&self) -> Result<(), OpenError> {
        self.connect_options().map(drop)
    }

    /// Whether the operator accepts this setting as it is.
    pub(super) fn accepts_unsafe(&self, setting: &str) -> bool {
        self.unsafe_settings.contains(setting)
    }

    pub(super) fn connect_options(&self) -> Result<PgConnectOptions, OpenError> {
        let refused = |why: String| OpenError::Database(format!("store.url {why}"));
        if let Some(unknown) =
            self.unsafe_settings.iter().find(|name| !UNSAFE_SETTINGS.contains(&name.as_str()))
        {
            let known = UNSAFE_SETTINGS.join(", ");
            return Err(OpenError::Database(format!(
                "store.unsafe_settings: {unknown:?} is none of {known}"
            )));
        }
        // The parser's error does not repeat the text, which may hold a password.
        let url = Url::parse(&self.url).map_err(|error| refused(format!("is no URL: {error}")))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(refused("must begin with postgres://".to_owned()));
        }
        if url.password().is_some() {
            return Err(refused(
                "holds a password; put it into a file and name that in store.password_file".to_owned(),
            ));
        }
        let user = decoded(url.username());
        let host = match url.host() {
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(host) => decoded(&host.to_string()),
            None => String::new(),
        };
        if user.is_empty() || host.is_empty() {
            return Err(refused("must name user and host: postgres://USER@HOST/DATABASE".to_owned()));
        }
        let database = decoded(url.path().trim_start_matches('/'));
        if database.is_empty() {
            return Err(refused("must name a database: postgres://USER@HOST/DATABASE".to_owned()));
        }
        let (mut mode, mut root) = (None, None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "sslmode" => {
                    let parsed = value.parse::<PgSslMode>();
                    mode =
                        Some(parsed.map_err(|_| {
                            refused("has an sslmode that PostgreSQL does not know".to_owned())
                        })?);
                }
                "sslrootcert" => root = Some(PathBuf::from(&*value)),
                _ => {
                    return Err(refused(format!(
                        "has the parameter {name:?}; only sslmode and sslrootcert may be given"
                    )));
                }
            }
        }
        let mode = mode.unwrap_or(PgSslMode::VerifyFull);
        let verified = matches!(mode, PgSslMode::VerifyFull | PgSslMode::VerifyCa);
        if !verified && !is_loopback(&host) && !self.accepts_unsafe("tls") {
            return Err(refused(
                "asks for a connection that is not verified; use sslmode=verify-full with sslrootcert, or name \"tls\" \
                 in store.unsafe_settings"
                    .to_owned(),
            ));
        }
        // Whatever the environment holds for programs of PostgreSQL is not for us.
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&host)
            .port(url.port().unwrap_or(5432))
            .username(&user)
            .password(self.password.as_deref().unwrap_or_default())
            .database(&database)
            .ssl_mode(mode)
            .application_name("kms");
        if let Some(root) = root {
            options = options.ssl_root_cert(root);
        }
        let ms = STATEMENT_MAX.as_millis().to_string();
        Ok(options.options([
            ("statement_timeout", ms.as_str()),
            ("lock_timeout", ms.as_str()),
            ("idle_in_transaction_session_timeout", ms.as_str()),
            ("tcp_keepalives_idle", "5"),
            ("tcp_keepalives_interval", "2"),
            ("tcp_keepalives_count", "3"),
            ("tcp_user_timeout", "10000"),
        ]))
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password, too, before it is checked.
        f.debug_struct("PostgresOptions")
            .field("connections_max", &self.connections_max)
            .finish_non_exhaustive()
    }
}

/// The URL's parser leaves an address as text: the scheme is none that it knows.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn decoded(part: &str) -> String {
    percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        PostgresOptions::new(url).check().expect_err("it is refused").to_string()
    }

    #[test]
    fn a_url_that_is_unsafe_or_says_too_much_is_refused_with_what_to_do_and_without_its_secrets() {
        for (url, text) in [
            ("kms.db", "is no URL"),
            ("http://kms@db/kms", "postgres://"),
            ("postgres://kms:geheim@db/kms", "store.password_file"),
            ("postgres://db/kms", "user and host"),
            ("postgres://kms@db", "a database"),
            ("postgres://kms@db/kms?sslmode=require", "verify-full"),
            ("postgres://kms@db/kms?sslmode=disable", "verify-full"),
            ("postgres://kms@db/kms?sslmode=none", "sslmode"),
            ("postgres://kms@db/kms?password=geheim", "only sslmode and sslrootcert"),
            ("postgres://kms@127.0.0.1/kms?host=db&sslmode=disable", "only sslmode and sslrootcert"),
            ("postgres://kms@db/kms?options=-csynchronous_commit%3Doff", "only sslmode and sslrootcert"),
        ] {
            let refused = refusal(url);
            assert!(refused.contains(text), "{url}: {refused}");
            assert!(!refused.contains("geheim"), "{refused}");
        }
    }

    #[test]
    fn a_safe_url_is_taken_and_an_unsafe_one_when_the_operator_says_so() {
        PostgresOptions::new("postgres://kms@db.example.com/kms")
            .check()
            .expect("verify-full is the default");
        for here in ["[::1]:5433", "127.0.0.1:5433", "localhost"] {
            PostgresOptions::new(format!("postgres://kms@{here}/kms?sslmode=disable")).check().expect(here);
        }
        let mut options = PostgresOptions::new("postgres://kms@db/kms?sslmode=disable");
        options.unsafe_settings.insert("tls".to_owned());
        options.check().expect("the operator accepts it");
        options.unsafe_settings.insert("fsnyc".to_owned());
        assert!(options.check().expect_err("it is no setting").to_string().contains("fsnyc"));
    }

    #[test]
    fn debug_shows_no_password() {
        let options =
            PostgresOptions { password: Some("geheim".to_owned()), ..PostgresOptions::new("u:geheim@h") };
        assert!(!format!("{options:?}").contains("geheim"));
    }
}
