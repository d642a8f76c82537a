//! A SQLite database whose rows go elsewhere: read to the end, then renamed, so that nobody serves it again.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use futures::TryStreamExt as _;
use kms_core::{
    Store as _,
    store::{Fault, Snapshot},
};
use sqlx::Row as _;

use super::{SqliteStore, fault, open};
use crate::{
    MigrateError, OpenError,
    statement::Value,
    tables::{Contents, TABLES, Table, Tally},
};

/// The database at `path` under the name that it has after its rows have moved, if that is what happened to it.
pub fn moved(path: &Path) -> Option<PathBuf> {
    let to = moved_name(path);
    (!path.exists() && to.exists()).then_some(to)
}

fn moved_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".migrated");
    name.into()
}

/// The database, under its lock.
#[derive(Debug)]
pub(crate) struct Source {
    store: SqliteStore,
    /// Absolute, as the operator calls it.
    path: PathBuf,
    moved_to: PathBuf,
    /// An earlier attempt came as far as to rename it.
    is_moved: bool,
}

impl Source {
    /// Opens it and brings its schema up to date. No server may use it.
    pub(crate) async fn open(path: &Path) -> Result<Self, MigrateError> {
        let path = std::path::absolute(path).map_err(|error| refused(path, error))?;
        let moved_to = moved_name(&path);
        let is_moved = moved(&path).is_some();
        if !is_moved && !path.exists() {
            return Err(MigrateError::NoSource(path));
        }
        if !is_moved && moved_to.exists() {
            return Err(MigrateError::InTheWay { path, moved_to });
        }
        let now = if is_moved { &moved_to } else { &path };
        let opened = async {
            open::refuse_foreign(now).await?;
            SqliteStore::open(now).await
        };
        let store = opened.await.map_err(|error| match error {
            OpenError::InUse(lock) => MigrateError::InUse { path: path.clone(), lock },
            error => MigrateError::Source(error),
        })?;
        Ok(Self { store, path, moved_to, is_moved })
    }

    /// Its absolute path, before it was renamed.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is called in the end.
    pub(crate) fn moved_to(&self) -> &Path {
        &self.moved_to
    }

    /// All that a service would load.
    pub(crate) async fn load(&self) -> Result<Snapshot, Fault> {
        self.store.load(None).await
    }

    /// Hands each row of a table to `take`.
    pub(crate) async fn each(
        &self,
        table: &Table,
        mut take: impl AsyncFnMut(Vec<Value>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut reader = self.store.reader().await?;
        let mut rows = sqlx::query(table.select()).fetch(&mut *reader);
        while let Some(row) = rows.try_next().await.map_err(fault::statement)? {
            take(table.cells(&row)?).await?;
        }
        Ok(())
    }

    /// What all tables hold.
    pub(crate) async fn contents(&self) -> Result<Vec<Contents>, Fault> {
        let mut all = Vec::new();
        for table in &TABLES {
            let mut tally = Tally::default();
            self.each(table, async |cells| {
                tally.add(&cells);
                Ok(())
            })
            .await?;
            all.push(tally.contents(table));
        }
        Ok(all)
    }

    /// Writes everything into the one file, and gives that its new name. The lock stays until the source is dropped.
    pub(crate) async fn retire(&self) -> Result<(), MigrateError> {
        if self.is_moved {
            self.store.close().await;
            return Ok(());
        }
        let refused = |error: std::io::Error| refused(&self.path, error);
        let busy = self.checkpoint().await.map_err(MigrateError::Rows)?;
        if busy {
            return Err(MigrateError::Read(self.path.clone()));
        }
        self.store.close().await;
        if self.moved_to.exists() {
            return Err(MigrateError::InTheWay { path: self.path.clone(), moved_to: self.moved_to.clone() });
        }
        fs::rename(&self.path, &self.moved_to).map_err(refused)?;
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(refused)
    }

    /// Whether another process kept it from being complete.
    async fn checkpoint(&self) -> Result<bool, Fault> {
        self.store
            .detached(|mut connection| async move {
                let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *connection);
                let row = row.await.map_err(fault::statement)?;
                row.try_get::<i64, _>("busy").map(|busy| busy != 0).map_err(fault::statement)
            })
            .await
    }
}

fn refused(path: &Path, error: std::io::Error) -> MigrateError {
    MigrateError::Source(OpenError::Unusable { path: path.to_owned(), why: error.to_string() })
}
