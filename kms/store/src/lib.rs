//! Rows: keys, versions and the use that is made of them, access tokens, role bindings, the policy, proposals, quarantined
//! objects, remembered requests and PIN latches, as plain columns.
//!
//! Two stores implement [`kms_core::Store`]. [`SqliteStore`] is for one server: one connection writes (WAL,
//! `synchronous=FULL`, `BEGIN IMMEDIATE`), others read beside it, and `kms.lock` beside the database keeps a second
//! server out. [`PostgresStore`] is for several. They share the statements and the reading of rows. Times are kept to the
//! microsecond: finer ones are truncated.

mod access;
mod any;
mod cells;
mod commit;
mod migrate;
mod pin_latch;
mod postgres;
mod proposals;
mod pulse;
mod requests;
mod rows;
mod session;
mod snapshot;
mod sqlite;
mod statement;
mod tables;
mod uses;

use std::path::PathBuf;

pub use any::AnyStore;
pub use migrate::{MigrateError, Migrated, Progress, Step, sqlite_to_postgres};
pub use postgres::{JoinError, PostgresOptions, PostgresStore};
pub use sqlite::{Options, SqliteStore, moved};
pub use tables::Contents;

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the lock file.
    #[error(
        "another kms server uses this store: it holds {0}; stop it first, or give this one a store of its own"
    )]
    InUse(PathBuf),
    /// The database has migrations that this program does not know.
    #[error(
        "{path} has schema version {found}, and this program knows only {known}; upgrade the program, or \
         restore a backup of the earlier version"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its newest migration.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Its rows were migrated to PostgreSQL.
    #[error(
        "{path} is not there, and {to} is: its rows are in PostgreSQL, by `kms migrate sqlite-to-postgres`; name that \
         database in store.url instead of store.path"
    )]
    Moved {
        /// The database.
        path: PathBuf,
        /// What it is called now.
        to: PathBuf,
    },
    /// Opened read-only, when migrations are still to be run.
    #[error(
        "{path} has schema version {found}, and this program wants {known}; start the server once to migrate it"
    )]
    Older {
        /// The database.
        path: PathBuf,
        /// Its newest migration; 0 for a database that is not ours.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The database is not as its migrations made it.
    #[error("{path} cannot be migrated: {why}; restore a backup")]
    Migration {
        /// The database.
        path: PathBuf,
        /// What the migration said.
        why: String,
    },
    /// The file may not be written.
    #[error("{path} cannot be written: {why}; the server needs a store that it may write")]
    ReadOnly {
        /// The database.
        path: PathBuf,
        /// How that shows.
        why: String,
    },
    /// The disk, or the limit on the database's size, is full.
    #[error("{0} cannot grow: the disk is full, or the limit on its size is reached")]
    Full(PathBuf),
    /// What is wrong with a PostgreSQL, or with the way to it.
    #[error("the database {0}")]
    Database(String),
    /// Anything else that SQLite or the file system said.
    #[error("{path}: {why}")]
    Unusable {
        /// Database, lock file or directory.
        path: PathBuf,
        /// What it said.
        why: String,
    },
}
