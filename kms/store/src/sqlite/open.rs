//! Opening a database: lock, file, connections, migrations, and a first write that proves it all.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{fault, lock, moved};
use crate::OpenError;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a connection waits for another process's lock, and a caller for a connection.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS_MAX: u32 = 4;

/// Which database, and how large it may grow.
#[derive(Debug, Clone)]
pub struct Options {
    /// The database file; made with mode 0600 when it is not there. Its directory must exist.
    pub path: PathBuf,
    /// Most pages (of 4,096 bytes) of the database; `None` for what the disk holds.
    pub pages_max: Option<u32>,
}

impl Options {
    /// The database at `path`, which may grow as it likes.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), pages_max: None }
    }
}

/// The one writing connection, and the lock that makes it the only one.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) pool: SqlitePool,
    _lock: File,
}

/// Opens for reading and writing; migrates.
pub(crate) async fn read_write(options: &Options) -> Result<(Writer, SqlitePool), OpenError> {
    let path = &options.path;
    let lock = lock::take(path)?;
    refuse_moved(path)?;
    make_file(path)?;
    let mut connect = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT);
    if let Some(pages) = options.pages_max {
        connect = connect.pragma("max_page_count", pages.to_string());
    }
    let pool = pool(1).connect_with(connect.clone()).await.map_err(|error| open_error(path, error))?;
    migrate(path, &pool).await?;
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&pool)
        .await
        .map_err(|error| open_error(path, error))?;
    if mode != "wal" {
        let why =
            format!("its file system does not do write-ahead logging (journal mode {mode}); use a local one");
        return Err(OpenError::Unusable { path: path.clone(), why });
    }
    let readers = pool_of_readers(connect.pragma("query_only", "ON"));
    Ok((Writer { pool, _lock: lock }, readers))
}

/// Opens for reading, beside a server that may be running.
pub(crate) async fn read_only(path: &Path) -> Result<SqlitePool, OpenError> {
    refuse_moved(path)?;
    let connect = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT);
    let readers = pool_of_readers(connect);
    let found = version(path, &readers).await?;
    let (path, known) = (path.to_owned(), known_version());
    match found.cmp(&known) {
        std::cmp::Ordering::Less => Err(OpenError::Older { path, found, known }),
        std::cmp::Ordering::Equal => Ok(readers),
        std::cmp::Ordering::Greater => Err(OpenError::Newer { path, found, known }),
    }
}

/// Refuses a database that is none of ours: to migrate it would make it one. The lock keeps servers out meanwhile.
pub(super) async fn refuse_foreign(path: &Path) -> Result<(), OpenError> {
    let _lock = lock::take(path)?;
    let connect = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT);
    let readers = pool_of_readers(connect);
    let found = version(path, &readers).await;
    readers.close().await;
    match found? {
        0 => Err(OpenError::Unusable { path: path.to_owned(), why: "it is no store of kms".to_owned() }),
        _ => Ok(()),
    }
}

/// The newest migration that it has; 0 for a database that is not ours.
async fn version(path: &Path, pool: &SqlitePool) -> Result<i64, OpenError> {
    let found: Result<Option<i64>, _> =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(pool).await;
    match found {
        Ok(found) => Ok(found.unwrap_or(0)),
        Err(error) if error.to_string().contains("no such table") => Ok(0),
        Err(error) => Err(open_error(path, error)),
    }
}

/// An empty store in the place of one that has moved would be another service.
fn refuse_moved(path: &Path) -> Result<(), OpenError> {
    moved(path).map_or(Ok(()), |to| Err(OpenError::Moved { path: path.to_owned(), to }))
}

/// SQLite would make it with the umask's mode. Its WAL and SHM files follow the mode of the database.
fn make_file(path: &Path) -> Result<(), OpenError> {
    let read_only = |why: String| OpenError::ReadOnly { path: path.to_owned(), why };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            read_only(error.to_string())
        }
        _ => OpenError::Unusable { path: path.to_owned(), why: error.to_string() },
    })?;
    let unusable =
        |error: std::io::Error| OpenError::Unusable { path: path.to_owned(), why: error.to_string() };
    // root may write everything; but who took the write bits away meant it.
    if file.metadata().map_err(unusable)?.permissions().readonly() {
        return Err(read_only("its mode has no write bit".to_owned()));
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(unusable)
}

fn pool(connections_max: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(BUSY_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
}

fn pool_of_readers(connect: SqliteConnectOptions) -> SqlitePool {
    pool(READERS_MAX).connect_lazy_with(connect)
}

async fn migrate(path: &Path, pool: &SqlitePool) -> Result<(), OpenError> {
    let error = match MIGRATIONS.run(pool).await {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let path = path.to_owned();
    Err(match error {
        MigrateError::VersionMissing(found) => OpenError::Newer { path, found, known: known_version() },
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => open_error(&path, error),
        other => OpenError::Migration { path, why: other.to_string() },
    })
}

fn known_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

fn open_error(path: &Path, error: sqlx::Error) -> OpenError {
    let path = path.to_owned();
    if fault::is_full(&error) {
        OpenError::Full(path)
    } else if fault::is_read_only(&error) {
        OpenError::ReadOnly { path, why: error.to_string() }
    } else {
        OpenError::Unusable { path, why: error.to_string() }
    }
}
