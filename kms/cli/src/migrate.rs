//! `kms migrate`: a store moves to another database.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use kms_server::config::Store;
use kms_store::{MigrateError, OpenError, Progress, Step};
use serde::Serialize;

use crate::{
    configuration::{self, Overrides},
    failure::{Code, Failure},
    output::{self, Format},
    progress::Bar,
};

/// Move a store to another database, while no server runs
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    SqliteToPostgres(SqliteToPostgres),
}

/// Move all that a SQLite file holds into the empty PostgreSQL of store.url
///
/// Stop the server first. Both sides are compared at the end, and FILE becomes FILE.migrated. Cut off at any point, the
/// same command does the rest; until it has, no server uses the database.
#[derive(Debug, Args)]
struct SqliteToPostgres {
    /// The file, which was store.path of the server
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The configuration to come, with store.url
    #[arg(long, env = "KMS_CONFIG", value_name = "FILE", default_value = configuration::DEFAULT_CONFIG)]
    config: PathBuf,
}

/// What both sides hold of a table, as it is printed.
#[derive(Debug, Serialize)]
struct Moved {
    table: &'static str,
    rows: u64,
    sha256: String,
}

impl Migrate {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let Verb::SqliteToPostgres(command) = self.verb;
        command.run(format).await
    }
}

impl SqliteToPostgres {
    async fn run(self, format: Format) -> Result<(), Failure> {
        let config = configuration::load(&self.config, &Overrides::default())?;
        let Store::Postgres(postgres) = &config.store else {
            let from = self.config.display();
            return Err(Failure::usage(format!("{from} names no PostgreSQL"))
                .hint("name the empty database in store.url, instead of store.path"));
        };
        let mut shown = Shown { bar: Bar::of_counts("rows"), line: String::new() };
        let migrated =
            kms_store::sqlite_to_postgres(&self.from, &postgres.options()?, |progress| shown.show(progress))
                .await;
        drop(shown);
        let migrated = migrated.map_err(failure)?;
        let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let moved: Vec<_> = migrated
            .tables
            .iter()
            .map(|table| Moved { table: table.table, rows: table.rows, sha256: hex(table.sha256) })
            .collect();
        format.print_list(&moved, &["table", "rows", "sha256"])?;
        let was = if migrated.before { "had them already" } else { "has them, read back and compared" };
        output::note(&format!(
            "The database {was}. {} is out of use: keep it as a backup of this moment, and start the servers.",
            migrated.moved_to.display()
        ));
        Ok(())
    }
}

/// The progress: a bar for people, lines for a log.
struct Shown {
    bar: Bar,
    /// The last one.
    line: String,
}

impl Shown {
    fn show(&mut self, progress: Progress) {
        let Progress { step, done, of } = progress;
        self.bar.show(doing(step), done, of);
        let line = plain(progress);
        if !output::watched() && self.line != line {
            output::note(&line);
            self.line = line;
        }
    }
}

/// Changes with each tenth.
fn plain(progress: Progress) -> String {
    let Progress { step, done, of } = progress;
    format!("{}: {} % of {of} rows", doing(step), done * 10 / of.max(1) * 10)
}

fn doing(step: Step) -> &'static str {
    match step {
        Step::Copy => "copying",
        Step::Verify => "verifying",
    }
}

/// Says what to do where the error does not.
fn failure(error: MigrateError) -> Failure {
    let code = match &error {
        MigrateError::NoSource(_) => Code::Usage,
        MigrateError::Target(_) | MigrateError::Rows(_) | MigrateError::Read(_) => Code::Unavailable,
        MigrateError::InUse { .. }
        | MigrateError::InTheWay { .. }
        | MigrateError::NotEmpty(_)
        | MigrateError::OfAnother(_)
        | MigrateError::Source(OpenError::Newer { .. }) => Code::Precondition,
        MigrateError::Source(_) | MigrateError::Differs(_) => Code::Other,
    };
    let again = matches!(error, MigrateError::Rows(_) | MigrateError::Differs(_));
    let failure = Failure::new(code, error.to_string());
    if again {
        failure.hint(
            "run the same command again: it begins anew. Until it is through, no server uses the database",
        )
    } else {
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_changes_with_each_tenth_and_never_divides_by_nothing() {
        let at = |done, of| plain(Progress { step: Step::Copy, done, of });
        assert_eq!(at(599, 1000), "copying: 50 % of 1000 rows");
        assert_eq!(at(10, 10), "copying: 100 % of 10 rows");
        assert_eq!(at(0, 0), "copying: 0 % of 0 rows");
    }
}
