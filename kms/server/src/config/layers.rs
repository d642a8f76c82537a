//! Defaults < file < environment < flags: the layers are laid over each other *before* anything is typed, and
//! each value remembers where it came from, so that an error can say so.
//!
//! The TOML parser gives every value its place in the file as a byte range. A value from elsewhere gets a
//! made-up range behind the end of the file, which leads back to the variable or flag that set it.

use std::{borrow::Cow, fs, io, ops::Range, path::Path};

use serde::Deserialize as _;
use toml::{
    Deserializer, Spanned,
    de::{DeTable, DeValue},
};

use super::Config;

/// Largest configuration file in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// What a variable's name begins with; two underscores part the section from the field.
const ENV_PREFIX: &str = "KMS_";

/// Values set on the command line, over everything else.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Vec<Override>);

/// One value from outside the file.
#[derive(Debug, Clone)]
struct Override {
    section: String,
    field: String,
    value: String,
    /// The variable or flag, for errors.
    source: String,
}

/// Why there is no configuration, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {file}: {error}; name an existing file with --config")]
    Unreadable {
        /// Its path.
        file: String,
        /// What the system said.
        error: io::Error,
    },
    /// The file is wrong somewhere.
    #[error("{file}:{line}:{column}: {message}")]
    File {
        /// Its path.
        file: String,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// A variable or flag is wrong.
    #[error("{origin}: {message}")]
    Override {
        /// The variable or flag.
        origin: String,
        /// What is wrong with it.
        message: String,
    },
}

impl Overrides {
    /// Sets `field` of `section` to `value`; `flag` is what errors name.
    #[must_use]
    pub fn with(mut self, section: &str, field: &str, value: impl Into<String>, flag: &str) -> Self {
        self.0.push(Override {
            section: section.into(),
            field: field.into(),
            value: value.into(),
            source: flag.into(),
        });
        self
    }
}

impl Config {
    /// Reads `file` and lays `KMS_<SECTION>__<FIELD>` variables of `env` and then `flags` over it. A relative
    /// path in any of them is relative to the file's directory.
    pub fn load(
        file: &Path,
        env: impl IntoIterator<Item = (String, String)>,
        flags: &Overrides,
    ) -> Result<Self, Error> {
        let name = file.display().to_string();
        let unreadable = |error| Error::Unreadable { file: name.clone(), error };
        let text = read(file).map_err(unreadable)?;
        let mut config = parse(&name, &text, env, flags)?;
        // Absolute, so that a path means the same to every process that it is handed on to.
        let file = std::path::absolute(file).map_err(unreadable)?;
        let base = file.parent().unwrap_or(Path::new("/"));
        config.paths_mut().for_each(|path| *path = base.join(&path));
        Ok(config)
    }
}

fn parse(
    name: &str,
    text: &str,
    env: impl IntoIterator<Item = (String, String)>,
    flags: &Overrides,
) -> Result<Config, Error> {
    let overrides: Vec<_> = env.into_iter().filter_map(from_env).chain(flags.0.iter().cloned()).collect();
    let explain = |error: toml::de::Error| explain(name, text, &overrides, &error);
    let mut table = DeTable::parse(text).map_err(explain)?;
    for (index, value) in overrides.iter().enumerate() {
        lay(table.get_mut(), value, range_of(text, index));
    }
    Config::deserialize(Deserializer::from(table)).map_err(explain)
}

fn read(file: &Path) -> io::Result<String> {
    if fs::metadata(file)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    fs::read_to_string(file)
}

/// `KMS_HSM__CALL_TIMEOUT` is `call_timeout` of `[hsm]`. Variables with single underscores are the client's.
fn from_env((variable, value): (String, String)) -> Option<Override> {
    let (section, field) = variable.strip_prefix(ENV_PREFIX)?.split_once("__")?;
    Some(Override { section: section.to_lowercase(), field: field.to_lowercase(), value, source: variable })
}

fn lay<'t>(table: &mut DeTable<'t>, over: &'t Override, range: Range<usize>) {
    let spanned = |text: &'t str| Spanned::new(range.clone(), Cow::Borrowed(text));
    let fresh = || Spanned::new(range.clone(), DeValue::Table(DeTable::new()));
    let section = table.entry(spanned(&over.section)).or_insert_with(fresh).get_mut();
    // A file that makes a section something else than a table is told so when the file is typed.
    if let DeValue::Table(section) = section {
        // Removed first: inserting over an entry would keep the old key, with its place in the file.
        section.remove(over.field.as_str());
        section.insert(spanned(&over.field), Spanned::new(range.clone(), scalar(&over.value)));
    }
}

/// A boolean or integer when it reads as one in TOML, else a string, whose quotes may be left out.
fn scalar(text: &str) -> DeValue<'_> {
    match DeValue::parse(text).map(Spanned::into_inner) {
        Ok(value @ (DeValue::Boolean(_) | DeValue::Integer(_) | DeValue::String(_))) => value,
        _ => DeValue::String(Cow::Borrowed(text)),
    }
}

fn range_of(text: &str, index: usize) -> Range<usize> {
    let start = text.len() + 1 + index;
    start..start
}

fn explain(name: &str, text: &str, overrides: &[Override], error: &toml::de::Error) -> Error {
    let start = error.span().map_or(0, |span| span.start);
    let message = error.message().to_owned();
    match start.checked_sub(text.len() + 1).and_then(|index| overrides.get(index)) {
        Some(over) => Error::Override { origin: over.source.clone(), message },
        None => {
            let before = text.get(..start).unwrap_or(text);
            let (line, column) = before.chars().fold((1, 1), |(line, column), c| match c {
                '\n' => (line + 1, 1),
                _ => (line, column + 1),
            });
            Error::File { file: name.to_owned(), line, column, message }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MINIMAL: &str = r#"
[grpc]
tls_cert_file = "tls.crt"
tls_key_file = "tls.key"
[http]
issuer = "https://kms.example.com"
[hsm]
uri = "pkcs11:token=kms?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/kms/pin"
[store]
path = "data/kms.db"
[audit]
dir = "/var/log/kms"
"#;

    fn parse_with(text: &str, env: &[(&str, &str)], flags: &Overrides) -> Result<Config, String> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        parse("kms.toml", text, env, flags).map_err(|error| error.to_string())
    }

    fn error(text: &str, env: &[(&str, &str)], flags: &Overrides) -> String {
        parse_with(text, env, flags).expect_err("a wrong configuration")
    }

    #[test]
    fn an_unknown_field_is_an_error_with_file_line_and_column() {
        let text = MINIMAL.replace("[store]", "[store]\nptah = 1");
        let error = error(&text, &[], &Overrides::default());
        assert!(
            error.starts_with("kms.toml:10:1: unknown field `ptah`, expected one of `path`, `url`"),
            "{error}"
        );
    }

    #[test]
    fn audits_of_the_whole_token_without_a_pause_are_refused() {
        for (period, is_taken) in [("1ms", false), ("9999ms", false), ("10s", true)] {
            let text = format!("{MINIMAL}[keys]\nattribute_audit_period = \"{period}\"\n");
            let config = parse_with(&text, &[], &Overrides::default());
            assert_eq!(config.is_ok(), is_taken, "{period}");
            if let Err(error) = config {
                assert!(error.starts_with("kms.toml:14:") && error.contains("at least 10s"), "{error}");
            }
        }
    }

    #[test]
    fn an_unknown_section_and_a_missing_field_are_errors() {
        let unknown = error(&format!("{MINIMAL}[hms]\n"), &[], &Overrides::default());
        assert!(unknown.starts_with("kms.toml:13:2: unknown field `hms`"), "{unknown}");
        let missing = error(&MINIMAL.replace("path =", "# path ="), &[], &Overrides::default());
        assert!(missing.starts_with("kms.toml:9:1: name path, for SQLite, or url"), "{missing}");
    }

    #[test]
    fn bad_values_are_errors_where_they_stand() {
        for (good, bad, place, part) in [
            (
                "issuer = \"https://kms.example.com\"",
                "issuer = \"kms.example.com/\"",
                "6:10",
                "issuer must be",
            ),
            ("[audit]", "[audit]\nfree_bytes_min = -1", "12:18", "expected u64"),
            ("[hsm]", "[hsm]\ncall_timeout = \"5 s\"", "8:16", "is not a duration"),
            ("[hsm]", "[hsm]\nworkers = 0", "8:11", "nonzero"),
            ("[hsm]", "[hsm]\npin_generation = 0", "8:18", "nonzero"),
            ("[grpc]", "[grpc]\naddr = \"localhost\"", "3:8", "socket address"),
            ("[grpc]", "[grpc", "2:6", "unclosed table"),
        ] {
            let error = error(&MINIMAL.replace(good, bad), &[], &Overrides::default());
            assert!(error.starts_with(&format!("kms.toml:{place}: ")), "{bad}: {error}");
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[test]
    fn an_error_in_a_variable_or_flag_names_it() {
        let env = error(MINIMAL, &[("KMS_HSM__WORKERS", "many")], &Overrides::default());
        assert!(env.starts_with("KMS_HSM__WORKERS: invalid type: string"), "{env}");
        let typo = error(MINIMAL, &[("KMS_HSM__WORKRES", "2")], &Overrides::default());
        assert!(typo.starts_with("KMS_HSM__WORKRES: unknown field `workres`"), "{typo}");
        let flags = Overrides::default().with("grpc", "addr", "nowhere", "--grpc-addr");
        let flag = error(MINIMAL, &[], &flags);
        assert!(flag.starts_with("--grpc-addr: "), "{flag}");
    }

    #[test]
    fn flags_win_over_variables_over_the_file_over_defaults() {
        let text = MINIMAL.replace("[hsm]", "[hsm]\nworkers = 3\nqueue_max = 7");
        let env = [
            ("KMS_HSM__WORKERS", "4"),
            ("KMS_HSM__CALL_TIMEOUT", "250ms"),
            ("KMS_KEYS__ALLOW_DESTROY", "true"),
            ("KMS_LOG__LEVEL", "\"debug\""),
            // The client's variables, which live in the same environment.
            ("KMS_HTTP_ADDR", "https://elsewhere"),
            ("KMS_TOKEN_FILE", "token"),
        ];
        let flags = Overrides::default().with("hsm", "workers", "5", "--workers");
        let config = parse_with(&text, &env, &flags).expect("a configuration");
        assert_eq!(config.hsm.workers.get(), 5);
        assert_eq!(config.hsm.queue_max.get(), 7);
        assert_eq!(config.hsm.pin_generation.get(), 1);
        assert_eq!(config.hsm.call_timeout, Duration::from_millis(250));
        assert_eq!(config.hsm.startup_timeout, Duration::from_secs(30));
        assert_eq!(config.log.level, "debug");
        assert!(config.keys.allow_destroy && config.keys.verify_before_release);
        assert_eq!(config.http.addr.to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn relative_paths_start_at_the_file_and_a_missing_file_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("kms.toml");
        let absent = Config::load(&file, [], &Overrides::default()).expect_err("no file yet").to_string();
        assert!(absent.contains("kms.toml") && absent.contains("--config"), "{absent}");
        fs::write(&file, MINIMAL).expect("write");
        let config = Config::load(&file, [], &Overrides::default()).expect("a configuration");
        assert_eq!(config.store.sqlite_path(), Some(&*dir.path().join("data/kms.db")));
        assert_eq!(config.state_dir(), dir.path().join("data"));
        assert_eq!(config.audit.dir, Path::new("/var/log/kms"));
    }
}
