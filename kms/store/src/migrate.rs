//! A store that moves: every row of a SQLite file into an empty PostgreSQL.
//!
//! Half of it is never served: the database cannot be used before it is complete, and the file not after. The file gets
//! its other name before the commit that completes the database: so there is no moment at which both could be served.
//! Whatever was cut off, the same call again does the rest, from the beginning.

use std::path::{Path, PathBuf};

use kms_core::store::Fault;

use crate::{
    Contents, OpenError, PostgresOptions,
    postgres::{Filling, Found, Origin},
    sqlite::Source,
    tables::{TABLES, digest_of},
};

/// How many rows are written by one statement: well below the 65,535 values that one may have.
const BATCH_ROWS_MAX: usize = 500;

/// Why rows were not moved. The file is as it was, or has its new name already; the same call again takes either.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// There is no such file.
    #[error("{0} is not there; name the file that is store.path of the server that is to move")]
    NoSource(PathBuf),
    /// A server uses the file.
    #[error("a kms server uses {path}: it holds {lock}; stop it first")]
    InUse {
        /// The file.
        path: PathBuf,
        /// Its lock file.
        lock: PathBuf,
    },
    /// The file's new name is taken.
    #[error(
        "{path} would be called {moved_to} in the end, and that is there already; move it out of the way"
    )]
    InTheWay {
        /// The file.
        path: PathBuf,
        /// Its new name.
        moved_to: PathBuf,
    },
    /// Somebody reads the file, so that it cannot be made complete.
    #[error("another process reads {0}; wait for its end, and run the same command again")]
    Read(PathBuf),
    /// The file cannot be used.
    #[error(transparent)]
    Source(OpenError),
    /// The database cannot be used.
    #[error(transparent)]
    Target(OpenError),
    /// The database is another's.
    #[error("the database is not empty: it holds {0}; name an empty one in store.url. Nothing was written")]
    NotEmpty(String),
    /// The database is half filled from elsewhere.
    #[error(
        "the database holds a migration from {0} that is not complete; complete that one, or name an empty database \
         in store.url. Nothing was written"
    )]
    OfAnother(String),
    /// What was read back is not what was written.
    #[error("the database does not hold what was written to it: {0}; it cannot be served")]
    Differs(String),
    /// Rows could not be read or written.
    #[error(transparent)]
    Rows(#[from] Fault),
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub step: Step,
    /// Rows of which it is done.
    pub done: u64,
    /// Rows in all.
    pub of: u64,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Rows are written.
    Copy,
    /// They are read back.
    Verify,
}

/// What was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// What the file is called now.
    pub moved_to: PathBuf,
    /// What both sides hold.
    pub tables: Vec<Contents>,
    /// The database was complete before.
    pub before: bool,
}

/// Moves all rows of the SQLite file `from`, which no server may use, into the empty database `to`.
pub async fn sqlite_to_postgres(
    from: &Path,
    to: &PostgresOptions,
    mut progress: impl FnMut(Progress),
) -> Result<Migrated, MigrateError> {
    let source = Source::open(from).await?;
    let rows = source.load().await?;
    let contents = source.contents().await?;
    let origin = Origin {
        file: source.path().display().to_string(),
        installation: rows.epoch.as_ref().map(|epoch| epoch.installation.0),
        digest: digest_of(rows.generation, &contents),
    };
    let migrated =
        |before| Migrated { moved_to: source.moved_to().to_owned(), tables: contents.clone(), before };
    let mut filling = match Filling::begin(to, &origin).await? {
        Found::Empty(filling) => filling,
        Found::Filled => {
            source.retire().await?;
            return Ok(migrated(true));
        }
    };
    let mut progress = Counter::new(contents.iter().map(|table| table.rows).sum(), &mut progress);
    for table in &TABLES {
        let mut batch = Vec::new();
        source
            .each(table, async |cells| {
                batch.push(cells);
                if batch.len() == BATCH_ROWS_MAX {
                    filling.append(table, std::mem::take(&mut batch)).await?;
                    progress.add(Step::Copy, BATCH_ROWS_MAX as u64);
                }
                Ok(())
            })
            .await?;
        if !batch.is_empty() {
            let rows = batch.len() as u64;
            filling.append(table, batch).await?;
            progress.add(Step::Copy, rows);
        }
    }
    let read = |rows| progress.add(Step::Verify, rows);
    filling.finish(&origin, &rows, &contents, read, source.retire()).await?;
    Ok(migrated(false))
}

struct Counter<'a> {
    step: Step,
    done: u64,
    of: u64,
    tell: &'a mut dyn FnMut(Progress),
}

impl<'a> Counter<'a> {
    fn new(of: u64, tell: &'a mut dyn FnMut(Progress)) -> Self {
        Self { step: Step::Copy, done: 0, of, tell }
    }

    fn add(&mut self, step: Step, rows: u64) {
        if self.step != step {
            (self.step, self.done) = (step, 0);
        }
        self.done += rows;
        (self.tell)(Progress { step, done: self.done, of: self.of });
    }
}
