//! `kms doctor`: looks at everything that the server depends on, changes nothing, and says what to do.
//!
//! No check stops the others: an operator sees at once all that is wrong. The PIN is never tried, because a
//! wrong one costs a try.

mod files;
mod pin_latch;
mod token;

use std::{fmt, ops::Range, path::PathBuf};

use clap::Args;
use jiff::{Timestamp, tz::TimeZone};
use kms_server::config::Config;
use kms_store::SqliteStore;
use serde::Serialize;

use crate::{
    clock,
    configuration::{self, Overrides},
    failure::Failure,
    output::{self, Format},
};

/// Years that a clock may show: not before this program was written.
const PLAUSIBLE_YEARS: Range<i16> = 2026..2100;

/// Check the module, the token, the files and the clock that the server depends on
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The server's configuration
    #[arg(long, env = "KMS_CONFIG", value_name = "FILE", default_value = configuration::DEFAULT_CONFIG)]
    config: PathBuf,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// It works now, and should be looked after.
    Warn,
    /// The server would not start, or not work.
    Fail,
}

/// What one check found.
#[derive(Debug, Serialize)]
struct Finding {
    status: Status,
    check: &'static str,
    found: String,
    /// What to do about it, unless `found` says so itself.
    hint: Option<String>,
}

/// All findings, in the order of the checks.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Doctor {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let config = configuration::load(&self.config, &Overrides::default())?;
        let now = clock::now();
        let mut findings = Findings::default();
        findings.ok("config", self.config.display());
        check_clock(now, &mut findings);
        let token_serial = token::check(&config, &mut findings);
        files::check(&config, now, &mut findings);
        check_store(&config, token_serial.as_deref(), &mut findings).await;
        findings.print(format)
    }
}

impl Finding {
    /// Says what to do about it, where `found` does not say so itself.
    fn hint(&mut self, hint: impl Into<String>) {
        self.hint = Some(hint.into());
    }
}

impl Findings {
    fn ok(&mut self, check: &'static str, found: impl fmt::Display) {
        self.add(Status::Ok, check, found);
    }

    fn warn(&mut self, check: &'static str, found: impl fmt::Display) -> &mut Finding {
        self.add(Status::Warn, check, found)
    }

    fn fail(&mut self, check: &'static str, found: impl fmt::Display) -> &mut Finding {
        self.add(Status::Fail, check, found)
    }

    fn add(&mut self, status: Status, check: &'static str, found: impl fmt::Display) -> &mut Finding {
        self.0.push_mut(Finding { status, check, found: found.to_string(), hint: None })
    }

    fn print(self, format: Format) -> Result<(), Failure> {
        match format {
            Format::Table => output::print_text(&self.to_string()),
            _ => format.print_list(&self.0, &[]),
        }?;
        match self.0.iter().filter(|finding| finding.status == Status::Fail).count() {
            0 => Ok(()),
            1 => Err(Failure::other("1 check failed")),
            failed => Err(Failure::other(format!("{failed} checks failed"))),
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.0 {
            let (word, colour) = match finding.status {
                Status::Ok => ("ok  ", "32"),
                Status::Warn => ("warn", "33"),
                Status::Fail => ("FAIL", "1;31"),
            };
            let word = output::painted(word, colour, output::to_terminal());
            writeln!(f, "{word}  {:<18}  {}", finding.check, finding.found)?;
            if let Some(hint) = &finding.hint {
                writeln!(f, "{:26}do: {hint}", "")?;
            }
        }
        Ok(())
    }
}

/// Connects to PostgreSQL as a server would, and looks at the latch.
async fn check_database(
    config: &Config,
    postgres: &kms_server::config::Postgres,
    token_serial: Option<&str>,
    findings: &mut Findings,
) {
    match kms_server::look_at_store(postgres).await {
        Ok(store) => {
            findings.ok("store", "the database answers, and its settings are safe");
            if let Some(serial) = token_serial {
                pin_latch::check(&store, serial, config.hsm.pin_generation.get(), findings).await;
            }
            store.close().await;
        }
        // It says what to do.
        Err(error) => {
            findings.fail("store", format_args!("{error:#}"));
        }
    }
}

/// Opens the store for reading, beside a server that may be running.
async fn check_store(config: &Config, token_serial: Option<&str>, findings: &mut Findings) {
    let path = match &config.store {
        kms_server::config::Store::Sqlite { path } => path,
        kms_server::config::Store::Postgres(postgres) => {
            return check_database(config, postgres, token_serial, findings).await;
        }
    };
    if !path.exists() && kms_store::moved(path).is_none() {
        let found = format_args!("{} is not there yet", path.display());
        return findings.warn("store", found).hint("make it, with the first administrator: kms bootstrap");
    }
    match SqliteStore::open_read_only(path).await {
        Ok(store) => {
            findings.ok("store", format_args!("{} can be read", path.display()));
            if let Some(serial) = token_serial {
                pin_latch::check(&store, serial, config.hsm.pin_generation.get(), findings).await;
            }
            store.close().await;
        }
        // It says what to do.
        Err(error) => {
            findings.fail("store", error);
        }
    }
}

/// A clock that is far off makes tokens that nobody accepts, or that live for years. Nothing here knows the
/// true time, so only nonsense is found.
fn check_clock(now: Timestamp, findings: &mut Findings) {
    if PLAUSIBLE_YEARS.contains(&now.to_zoned(TimeZone::UTC).year()) {
        findings.ok("clock", format_args!("{now:.0} (compare it with a clock that you trust)"));
    } else {
        findings.fail("clock", now).hint("set the clock, and run a time service such as chrony");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_before_this_program_existed_fails() {
        for (time, status) in [
            ("1970-01-01T00:00:10Z", Status::Fail),
            ("2150-01-01T00:00:00Z", Status::Fail),
            ("2027-03-04T05:06:07Z", Status::Ok),
        ] {
            let mut findings = Findings::default();
            check_clock(time.parse().expect("a time"), &mut findings);
            assert_eq!(findings.0[0].status, status, "{time}");
        }
    }

    #[test]
    fn every_finding_is_a_line_and_says_what_to_do() {
        let mut findings = Findings::default();
        findings.ok("clock", "fine");
        findings.fail("module", "not there").hint("install it");
        let text = findings.to_string();
        assert!(text.contains("ok    clock               fine\n"), "{text}");
        assert!(text.contains("FAIL  module              not there\n"), "{text}");
        assert!(text.contains("do: install it\n"), "{text}");
    }
}
