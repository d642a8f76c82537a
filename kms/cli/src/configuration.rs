//! The server's configuration on the command line: `--config` and the flags that win over the file and the
//! environment; `kms config check`.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
pub(crate) use kms_server::config::Overrides;
use kms_server::config::{self, Config, Severity};
use serde::Serialize;

use crate::{
    failure::{Code, Failure},
    output::Format,
};

/// Where packages put it.
pub(crate) const DEFAULT_CONFIG: &str = "/etc/kms/kms.toml";

/// Which configuration, and what is different this time.
#[derive(Debug, Clone, Args)]
pub(crate) struct Configuration {
    /// The configuration, TOML; variables KMS_SECTION__FIELD win over it, and flags over both
    #[arg(long, env = "KMS_CONFIG", value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    overrides: Flags,
}

/// Flags that win over the configuration.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Instead of what the configuration says")]
struct Flags {
    /// Where gRPC listens (grpc.addr)
    #[arg(long, value_name = "ADDR")]
    grpc_addr: Option<String>,
    /// Where HTTP listens (http.addr)
    #[arg(long, value_name = "ADDR")]
    http_addr: Option<String>,
    /// Worker processes (hsm.workers)
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// Level or directives of the log (log.level)
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// Look at a configuration
#[derive(Debug, Args)]
pub(crate) struct ConfigCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(Check),
}

/// Check a configuration and the files that it names, without starting anything
#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    configuration: Configuration,
}

/// A problem, as it is printed.
#[derive(Debug, Serialize)]
struct Problem {
    severity: &'static str,
    field: &'static str,
    message: String,
}

impl Configuration {
    /// Loads it. What is wrong with it is a usage error that names file, line and column.
    pub(crate) fn load(&self) -> Result<Config, Failure> {
        load(&self.config, &self.overrides.to_overrides())
    }

    /// The arguments that lead another process of this executable to the same configuration.
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let mut args = vec!["--config".into(), self.config.clone().into_os_string()];
        for (flag, _, _, value) in self.overrides.given() {
            args.extend([OsString::from(flag), OsString::from(value)]);
        }
        args
    }
}

impl Flags {
    /// The flags that are given: flag, section, field, value.
    fn given(&self) -> impl Iterator<Item = (&'static str, &'static str, &'static str, &str)> {
        [
            ("--grpc-addr", "grpc", "addr", &self.grpc_addr),
            ("--http-addr", "http", "addr", &self.http_addr),
            ("--workers", "hsm", "workers", &self.workers),
            ("--log-level", "log", "level", &self.log_level),
        ]
        .into_iter()
        .filter_map(|(flag, section, field, value)| Some((flag, section, field, value.as_deref()?)))
    }

    fn to_overrides(&self) -> Overrides {
        self.given().fold(Overrides::default(), |overrides, (flag, section, field, value)| {
            overrides.with(section, field, value, flag)
        })
    }
}

impl ConfigCommand {
    pub(crate) fn run(self, format: Format) -> Result<(), Failure> {
        let Verb::Check(Check { configuration }) = self.verb;
        let problems: Vec<Problem> = configuration.load()?.check().into_iter().map(Problem::from).collect();
        let errors = problems.iter().filter(|problem| problem.severity == "error").count();
        match (format, problems.is_empty()) {
            (Format::Table, true) => {
                format.print_text_or(&format!("{} is fine", configuration.config.display()), &())
            }
            _ => format.print_list(&problems, &["severity", "field", "message"]),
        }?;
        if errors == 0 {
            Ok(())
        } else {
            Err(Failure::usage(format!("{}: the server would not start", configuration.config.display()))
                .hint("correct what is marked as error"))
        }
    }
}

impl From<config::Problem> for Problem {
    fn from(problem: config::Problem) -> Self {
        let severity = match problem.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        Self { severity, field: problem.field, message: problem.message }
    }
}

/// Loads `file`, under the variables of this process and `overrides`.
pub(crate) fn load(file: &Path, overrides: &Overrides) -> Result<Config, Failure> {
    // A variable that is not UTF-8 is not ours.
    let env = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Config::load(file, env, overrides).map_err(|error| Failure::new(Code::Usage, error.to_string()))
}
