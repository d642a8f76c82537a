//! What is wrong with a configuration beyond its text: files that are missing or that others may read.
//!
//! Everything is looked at and everything found is told, so that an operator need not go round by round.

use std::{fmt, fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use super::{ClientCa, Config, Postgres, Store};
use crate::{authn::authorities::Authorities, jwt, runtime_dir::RuntimeDir, telemetry, tls};

/// Permission bits of group and others.
const NOT_THE_OWNERS: u32 = 0o077;

/// Permission bits by which group and others may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Longest path of a unix socket in bytes (unix(7)).
const UNIX_PATH_LEN_MAX: usize = 107;

/// Something that an operator should know before the server starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whether the server would start.
    pub severity: Severity,
    /// The field, for instance `grpc.tls_key_file`.
    pub field: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The server would start.
    Warning,
    /// It would not.
    Error,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: {}: {}", self.field, self.message)
    }
}

impl Config {
    /// Looks at everything that the configuration names, without changing anything and without the token.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        problems.pair("grpc.tls_key_file", &self.grpc.tls_cert_file, &self.grpc.tls_key_file);
        match (&self.http.tls_cert_file, &self.http.tls_key_file) {
            (Some(cert), Some(key)) => problems.pair("http.tls_key_file", cert, key),
            (None, None) => {}
            _ => problems
                .error("http.tls_cert_file", "tls_cert_file and tls_key_file go together; name both or none"),
        }
        if self.http.issuer.as_str().starts_with("http://") {
            problems.warning("http.issuer", "most verifiers accept an issuer only as an https:// URL");
        }
        problems.token(&self.hsm.uri);
        match &self.store {
            Store::Sqlite { path } => {
                problems.directory("store.path", self.state_dir());
                problems.moved("store.path", path);
            }
            Store::Postgres(postgres) => problems.postgres(postgres),
        }
        if let Some(dir) = &self.hsm.lock_dir {
            problems.directory("hsm.lock_dir", dir);
        }
        if let Some(file) = &self.hsm.profile_file
            && let Err(why) = kms_pkcs11::profile::Profile::read(file)
        {
            problems.error("hsm.profile_file", format!("{} cannot be used: {why}", file.display()));
        }
        problems.parent("audit.dir", &self.audit.dir);
        if let Some(dir) = &self.runtime.dir {
            problems.parent("runtime.dir", dir);
            problems.runtime_dir(dir);
        }
        problems.authorities(&self.authn.client_ca);
        if let Some(socket) = &self.grpc.unix_socket {
            problems.unix_socket("grpc.unix_socket", socket);
        }
        for issuer in &self.authn.jwt_issuer {
            // A start needs no issuer; its tokens are refused until its keys are there.
            if let Err(error) = jwt::check(issuer) {
                problems.warning("authn.jwt_issuer", format!("{}: {error:#}", issuer.name));
            }
        }
        if let Err(error) = telemetry::filter(&self.log.level) {
            problems.error("log.level", error.to_string());
        }
        problems.0
    }
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn error(&mut self, field: &'static str, message: impl Into<String>) {
        self.0.push(Problem { severity: Severity::Error, field, message: message.into() });
    }

    fn warning(&mut self, field: &'static str, message: impl Into<String>) {
        self.0.push(Problem { severity: Severity::Warning, field, message: message.into() });
    }

    fn pair(&mut self, field: &'static str, cert_file: &Path, key_file: &Path) {
        match tls::Pair::load(cert_file, key_file) {
            Ok(_) => self.private(field, key_file),
            Err(error) => self.error(field, error.to_string()),
        }
    }

    fn authorities(&mut self, configured: &[ClientCa]) {
        let field = "authn.client_ca";
        for error in Authorities::load(configured).err().unwrap_or_default() {
            self.error(field, error.to_string());
        }
        let names = |gives: fn(&&ClientCa) -> bool| -> Vec<&str> {
            configured.iter().filter(gives).map(|ca| ca.name.as_str()).collect()
        };
        for (kind, names) in [("DNS names", names(|ca| ca.dns)), ("subjects", names(|ca| ca.subject))] {
            if names.len() > 1 {
                let names = names.join(" and ");
                self.warning(
                    field,
                    format!("{names} give {kind}: each can name whomever the other has named"),
                );
            }
        }
    }

    fn unix_socket(&mut self, field: &'static str, socket: &Path) {
        let dir = socket.parent().unwrap_or(Path::new("/"));
        self.directory(field, dir);
        if socket.as_os_str().len() > UNIX_PATH_LEN_MAX {
            self.error(field, format!("{} is longer than {UNIX_PATH_LEN_MAX} bytes", socket.display()));
        }
        let mode = fs::metadata(dir).map_or(0, |found| found.permissions().mode());
        if mode & WRITABLE_BY_OTHERS != 0 {
            let dir = dir.display();
            self.warning(
                field,
                format!("whoever may write to {dir} can put a socket of their own there; chmod go-w {dir}"),
            );
        }
    }

    fn token(&mut self, uri: &str) {
        let field = "hsm.uri";
        let uri: kms_pkcs11::Uri = match uri.parse() {
            Ok(uri) => uri,
            Err(error) => return self.error(field, format!("{error}")),
        };
        if let Err(error) = fs::metadata(&uri.module_path) {
            self.error(field, unreadable("module-path", &uri.module_path, &error));
        }
        match &uri.pin_source {
            None => {
                self.error(field, "pin-source= is missing after \"?\"; name the file that holds the user PIN")
            }
            Some(pin) => match fs::metadata(pin) {
                Ok(_) => self.private(field, pin),
                Err(error) => self.error(field, unreadable("pin-source", pin, &error)),
            },
        }
    }

    fn postgres(&mut self, postgres: &Postgres) {
        let checked = postgres.options().map_err(|error| error.to_string());
        match checked.and_then(|options| options.check().map_err(|error| error.to_string())) {
            Ok(()) => {
                if let Some(file) = postgres.password_file() {
                    self.private("store.password_file", file);
                }
            }
            Err(error) => self.error("store.url", error),
        }
    }

    fn moved(&mut self, field: &'static str, path: &Path) {
        if let Some(to) = kms_store::moved(path) {
            let refusal = kms_store::OpenError::Moved { path: path.to_owned(), to };
            self.error(field, refusal.to_string());
        }
    }

    fn directory(&mut self, field: &'static str, dir: &Path) {
        match fs::metadata(dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => self.error(field, format!("{} is not a directory", dir.display())),
            Err(error) => self.error(field, unreadable("directory", dir, &error)),
        }
    }

    /// A directory that we make ourselves, in one that must be there.
    fn parent(&mut self, field: &'static str, dir: &Path) {
        if !dir.is_dir() {
            self.directory(field, dir.parent().unwrap_or(dir));
        }
    }

    /// A start refuses one that is not this user's alone.
    fn runtime_dir(&mut self, dir: &Path) {
        if let Err(error) = RuntimeDir::refuse_unless_private(dir)
            && dir.exists()
        {
            self.error("runtime.dir", error.to_string());
        }
    }

    fn private(&mut self, field: &'static str, path: &Path) {
        let mode = fs::metadata(path).map_or(0, |found| found.permissions().mode());
        if mode & NOT_THE_OWNERS != 0 {
            let path = path.display();
            self.warning(
                field,
                format!("{path} is open to other users (mode {:03o}); chmod go= {path}", mode & 0o777),
            );
        }
    }
}

fn unreadable(what: &str, path: &Path, error: &io::Error) -> String {
    format!("{what} {} cannot be used: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::PathBuf};

    use super::*;
    use crate::{config::Overrides, test_certificate};

    /// A configuration in a directory of its own; everything that it names is there and private.
    fn sound() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        test_certificate::write(1, &dir.path().join("tls.crt"), &dir.path().join("tls.key"));
        for file in ["pin", "module.so"] {
            fs::write(dir.path().join(file), "").expect("written");
        }
        for file in ["pin", "tls.key"] {
            fs::set_permissions(dir.path().join(file), fs::Permissions::from_mode(0o600)).expect("private");
        }
        let base = dir.path().display();
        let text = format!(
            r#"
            grpc = {{ tls_cert_file = "tls.crt", tls_key_file = "tls.key" }}
            http = {{ issuer = "https://kms.example.com" }}
            hsm = {{ uri = "pkcs11:token=t?module-path={base}/module.so&pin-source=file:{base}/pin" }}
            store = {{ path = "kms.db" }}
            audit = {{ dir = "audit" }}
            "#
        );
        let file = dir.path().join("kms.toml");
        fs::write(&file, text).expect("written");
        (dir, file)
    }

    fn problems(file: &Path, flags: &Overrides) -> Vec<Problem> {
        Config::load(file, [], flags).expect("a configuration").check()
    }

    #[test]
    fn every_error_is_told_at_once_with_its_field() {
        let (_dir, file) = sound();
        let flags = Overrides::default()
            .with("grpc", "tls_cert_file", "absent.crt", "flag")
            .with("http", "tls_cert_file", "tls.crt", "flag")
            .with("hsm", "uri", "pkcs11:token=t?module-path=/absent.so", "flag")
            .with("hsm", "lock_dir", "absent", "flag")
            .with("hsm", "profile_file", "absent.toml", "flag")
            .with("store", "path", "absent/kms.db", "flag")
            .with("audit", "dir", "absent/audit", "flag")
            .with("runtime", "dir", "absent/run", "flag")
            .with("log", "level", "a=b=c", "flag");
        let problems = problems(&file, &flags);
        assert!(problems.iter().all(|problem| problem.severity == Severity::Error), "{problems:#?}");
        let fields: BTreeSet<_> = problems.iter().map(|problem| problem.field).collect();
        let expected = [
            "audit.dir",
            "grpc.tls_key_file",
            "hsm.lock_dir",
            "hsm.profile_file",
            "hsm.uri",
            "http.tls_cert_file",
            "log.level",
            "runtime.dir",
            "store.path",
        ];
        assert_eq!(fields, BTreeSet::from(expected));
    }

    #[test]
    fn a_store_that_has_moved_to_postgresql_is_an_error() {
        let (dir, file) = sound();
        fs::write(dir.path().join("kms.db.migrated"), "").expect("written");
        let problems = problems(&file, &Overrides::default().with("http", "issuer", "https://k", "flag"));
        let [problem] = &problems[..] else { panic!("{problems:#?}") };
        assert_eq!((problem.field, problem.severity), ("store.path", Severity::Error));
        assert!(problem.message.contains("kms.db.migrated"), "{}", problem.message);
    }

    #[test]
    fn secrets_that_others_may_read_and_an_issuer_without_tls_are_warnings() {
        let (dir, file) = sound();
        for secret in ["pin", "tls.key"] {
            fs::set_permissions(dir.path().join(secret), fs::Permissions::from_mode(0o640)).expect("opened");
        }
        let flags = Overrides::default().with("http", "issuer", "http://kms.example.com", "flag");
        let problems = problems(&file, &flags);
        assert!(problems.iter().all(|problem| problem.severity == Severity::Warning), "{problems:#?}");
        let fields: BTreeSet<_> = problems.iter().map(|problem| problem.field).collect();
        assert_eq!(fields, BTreeSet::from(["grpc.tls_key_file", "hsm.uri", "http.issuer"]));
    }

    #[test]
    fn a_runtime_directory_that_a_start_would_refuse_is_an_error() {
        let (dir, file) = sound();
        let runtime = dir.path().join("run");
        fs::create_dir(&runtime).expect("made");
        let flags = Overrides::default().with("runtime", "dir", runtime.to_string_lossy(), "flag");
        for (mode, expected) in [(0o755, Some(Severity::Error)), (0o700, None)] {
            fs::set_permissions(&runtime, fs::Permissions::from_mode(mode)).expect("ours");
            let found: Vec<_> = problems(&file, &flags).iter().map(|problem| problem.severity).collect();
            assert_eq!(found, Vec::from_iter(expected), "{mode:o}");
            assert_eq!(RuntimeDir::open(Some(&runtime)).is_err(), expected.is_some(), "{mode:o}");
        }
    }

    #[test]
    fn authorities_that_a_start_would_refuse_and_a_socket_nowhere_are_errors() {
        let (_dir, file) = sound();
        let text = fs::read_to_string(&file).expect("read");
        let more = "[[authn.client_ca]]\nname = 'a'\nca_file = 'absent.pem'\ndns = true";
        fs::write(&file, format!("{text}\n{more}")).expect("written");
        let flags = Overrides::default().with("grpc", "unix_socket", "absent/kms.sock", "flag");
        let found = problems(&file, &flags);
        let found: Vec<_> = found.iter().map(|problem| (problem.severity, problem.field)).collect();
        let error = |field| (Severity::Error, field);
        assert_eq!(found, [error("authn.client_ca"), error("grpc.unix_socket")]);
    }

    #[test]
    fn names_that_two_authorities_give_and_a_socket_that_others_can_replace_are_warnings() {
        let (dir, file) = sound();
        let text = fs::read_to_string(&file).expect("read");
        let section =
            |name| format!("[[authn.client_ca]]\nname = '{name}'\nca_file = 'tls.crt'\ndns = true\n");
        fs::write(&file, format!("{text}\n{}{}", section("a"), section("b"))).expect("written");
        let open = dir.path().join("open");
        fs::create_dir(&open).expect("made");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("ours");
        let flags = Overrides::default().with("grpc", "unix_socket", "open/kms.sock", "flag");
        let found = problems(&file, &flags);
        let found: Vec<_> = found.iter().map(|problem| (problem.severity, problem.field)).collect();
        let warning = |field| (Severity::Warning, field);
        assert_eq!(found, [warning("authn.client_ca"), warning("grpc.unix_socket")]);
    }

    #[test]
    fn keys_of_a_jwt_issuer_that_cannot_be_used_are_a_warning_that_names_it() {
        let (dir, file) = sound();
        let mut text = fs::read_to_string(&file).expect("the configuration");
        text += "[[authn.jwt_issuer]]\nname = \"cluster\"\nissuer = \"https://k8s\"\naudiences = [\"kms\"]\n\
                 jwks_file = \"keys.json\"\n";
        fs::write(&file, text).expect("written");
        let problems = problems(&file, &Overrides::default());
        let [problem] = &problems[..] else { panic!("{problems:#?}") };
        assert_eq!((problem.field, problem.severity), ("authn.jwt_issuer", Severity::Warning));
        let path = dir.path().join("keys.json");
        let named =
            problem.message.starts_with("cluster: ") && problem.message.contains(&*path.to_string_lossy());
        assert!(named, "{}", problem.message);
    }

    #[test]
    fn a_sound_configuration_has_no_problems() {
        let (_dir, file) = sound();
        assert_eq!(problems(&file, &Overrides::default()), []);
    }
}
