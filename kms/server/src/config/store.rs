//! `[store]`: which database, SQLite for one server or PostgreSQL for several.

use std::{
    collections::BTreeSet,
    fs,
    num::NonZeroU16,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use kms_store::PostgresOptions;
use serde::Deserialize;

/// Longest password in bytes.
const PASSWORD_LEN_MAX: usize = 1024;

/// `[store]`: keys, versions and access tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Fields")]
pub enum Store {
    /// One server.
    Sqlite {
        /// The file, in a directory of its own: its lock and `listening.json` stand beside it.
        path: PathBuf,
    },
    /// Any number of servers.
    Postgres(Postgres),
}

/// A PostgreSQL database.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Holds no password that is accepted, but may hold one that is refused: not to be shown.
    url: Hidden,
    password_file: Option<PathBuf>,
    connections_max: NonZeroU16,
    unsafe_settings: BTreeSet<String>,
    /// Fields of the configuration that replicas need not agree on while they are changed one after another.
    pub may_differ: BTreeSet<String>,
}

/// The section as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    path: Option<PathBuf>,
    url: Option<String>,
    password_file: Option<PathBuf>,
    connections_max: Option<NonZeroU16>,
    #[serde(default)]
    unsafe_settings: BTreeSet<String>,
    #[serde(default)]
    may_differ: BTreeSet<String>,
}

#[derive(Clone)]
struct Hidden(String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

/// What every replica must agree on, whatever [`Postgres::may_differ`] says.
pub(crate) const NEVER_DIFFER: [&str; 2] = ["http.issuer", "hsm.token"];

/// What they must agree on unless it is named there.
pub(crate) const MAY_DIFFER: [&str; 5] = [
    "keys.verify_before_release",
    "keys.allow_destroy",
    "keys.destroy_delay",
    "keys.unwrap_quiet_period",
    "keys.bundle_ttl_max",
];

impl TryFrom<Fields> for Store {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let Fields { path, url, password_file, connections_max, unsafe_settings, may_differ } = fields;
        match (path, url) {
            (Some(path), None) => {
                let alone =
                    password_file.is_none() && connections_max.is_none() && unsafe_settings.is_empty();
                if !alone || !may_differ.is_empty() {
                    return Err(
                        "path is for SQLite; password_file, connections_max, unsafe_settings and may_differ \
                                go with url"
                            .to_owned(),
                    );
                }
                Ok(Self::Sqlite { path })
            }
            (None, Some(url)) => {
                if let Some(field) = NEVER_DIFFER.iter().find(|field| may_differ.contains(**field)) {
                    return Err(format!(
                        "{field} must be the same on all replicas; take it out of may_differ"
                    ));
                }
                if let Some(unknown) = may_differ.iter().find(|field| !MAY_DIFFER.contains(&field.as_str())) {
                    return Err(format!("may_differ: {unknown:?} is none of {}", MAY_DIFFER.join(", ")));
                }
                let default = NonZeroU16::MIN.saturating_add(7);
                let connections_max = connections_max.unwrap_or(default);
                let url = Hidden(url);
                Ok(Self::Postgres(Postgres {
                    url,
                    password_file,
                    connections_max,
                    unsafe_settings,
                    may_differ,
                }))
            }
            (None, None) => Err("name path, for SQLite, or url, for PostgreSQL".to_owned()),
            (Some(_), Some(_)) => {
                Err("path is for SQLite and url for PostgreSQL; name one of them".to_owned())
            }
        }
    }
}

impl Store {
    /// The SQLite file, if it is one.
    pub fn sqlite_path(&self) -> Option<&Path> {
        match self {
            Self::Sqlite { path } => Some(path),
            Self::Postgres(_) => None,
        }
    }

    pub(super) fn paths_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Sqlite { path } => Some(path),
            Self::Postgres(postgres) => postgres.password_file.as_mut(),
        }
    }
}

impl Postgres {
    /// The file of the password.
    pub fn password_file(&self) -> Option<&Path> {
        self.password_file.as_deref()
    }

    /// For [`kms_store::PostgresStore::open`], with the password.
    pub fn options(&self) -> anyhow::Result<PostgresOptions> {
        let password = self.password_file.as_ref().map(|file| {
            let text = fs::read_to_string(file)
                .with_context(|| format!("store.password_file: cannot read {}", file.display()))?;
            let password = text.trim_end_matches(['\n', '\r']).to_owned();
            anyhow::ensure!(
                !password.is_empty() && password.len() <= PASSWORD_LEN_MAX,
                "store.password_file: {} must hold a password of at most {PASSWORD_LEN_MAX} bytes",
                file.display()
            );
            Ok(password)
        });
        Ok(PostgresOptions {
            password: password.transpose()?,
            connections_max: u32::from(self.connections_max.get()),
            unsafe_settings: self.unsafe_settings.clone(),
            ..PostgresOptions::new(self.url.0.clone())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Store, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn it_is_one_database_or_the_other() {
        for (text, said) in [
            ("", "name path"),
            ("path = \"a\"\nurl = \"postgres://k@h/d\"", "one of them"),
            ("path = \"a\"\nconnections_max = 3", "go with url"),
            ("url = \"postgres://k@h/d\"\nmay_differ = [\"http.issuer\"]", "must be the same"),
            ("uri = \"postgres://k@h/d\"", "unknown field"),
        ] {
            let refused = parse(text).expect_err(text);
            assert!(refused.contains(said), "{text}: {refused}");
        }
        assert!(matches!(parse("path = \"a\""), Ok(Store::Sqlite { .. })));
    }

    #[test]
    fn a_password_in_the_url_is_not_shown() {
        let store = parse("url = \"postgres://k:geheim@h/d\"").expect("it parses");
        assert!(!format!("{store:?}").contains("geheim"));
    }
}
