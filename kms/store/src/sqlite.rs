//! The store as core sees it.

use std::{path::Path, sync::Arc, time::Duration};

use kms_core::{
    Store,
    pin_latch::{Place, State},
    replica::{Beat, Lease, LeaseToken, Pulse, Replica, ReplicaId},
    store::{Fault, Generation, RememberedRequest, Snapshot, Transaction},
    time::Timestamp,
};
use sqlx::SqlitePool;

use crate::{
    OpenError, Options, commit, fault,
    open::{self, Writer},
    pin_latch, rows, snapshot,
};

/// A store on one SQLite database. Its methods need a tokio runtime. Clones share it and its lock.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    /// `None` when it was opened for reading only.
    writer: Option<Arc<Writer>>,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the database at `path`, or makes it, and brings its schema up to date. Holds `kms.lock` beside it
    /// until the last clone is dropped.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(&Options::new(path.as_ref())).await
    }

    /// Like [`SqliteStore::open`], with a limit on its size.
    pub async fn open_with(options: &Options) -> Result<Self, OpenError> {
        let (writer, readers) = open::read_write(options).await?;
        Ok(Self { writer: Some(Arc::new(writer)), readers })
    }

    /// Opens the database at `path` for reading, without the lock: for doctor and backup, beside a server that
    /// may be running. Every write is refused.
    pub async fn open_read_only(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Ok(Self { writer: None, readers: open::read_only(path.as_ref()).await? })
    }

    /// Finishes what is under way and closes the connections. Later calls get [`Fault::Unavailable`].
    pub async fn close(&self) {
        self.readers.close().await;
        if let Some(writer) = &self.writer {
            writer.pool.close().await;
        }
    }

    /// Runs `work` to its end even if the caller goes away: half a transaction is nobody's wish.
    async fn detached<T, F>(&self, work: impl FnOnce(SqlitePool) -> F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let writer = self
            .writer
            .clone()
            .ok_or_else(|| Fault::Unavailable("it was opened for reading only".to_owned()))?;
        let work = work(writer.pool.clone());
        let task = tokio::spawn(async move {
            // The lock is held as long as anything may be written.
            let _writer = writer;
            work.await
        });
        task.await.unwrap_or_else(|stopped| Err(Fault::Unknown(stopped.to_string())))
    }
}

impl Store for SqliteStore {
    async fn load(&self, _since: Option<Generation>) -> Result<Snapshot, Fault> {
        snapshot::load(&self.readers).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Generation, Fault> {
        self.detached(|pool| async move { commit::commit(&pool, &transaction).await }).await
    }

    async fn request(&self, id: &str) -> Result<Option<RememberedRequest>, Fault> {
        let row =
            sqlx::query("SELECT * FROM requests WHERE id = $1").bind(id).fetch_optional(&self.readers).await;
        row.map_err(fault::statement)?.as_ref().map(rows::request).transpose()
    }

    async fn forget_requests(&self, before: Timestamp) -> Result<u64, Fault> {
        self.detached(move |pool| async move {
            let delete = sqlx::query("DELETE FROM requests WHERE at_us < $1").bind(before.as_microsecond());
            delete.execute(&pool).await.map(|done| done.rows_affected()).map_err(fault::at_commit)
        })
        .await
    }

    async fn pin_latch(&self, place: &Place) -> Result<State, Fault> {
        pin_latch::read(&self.readers, place).await
    }

    async fn set_pin_latch(&self, place: &Place, expected: State, new: State) -> Result<(), Fault> {
        let place = place.clone();
        self.detached(|pool| async move { pin_latch::write(&pool, &place, &expected, &new).await }).await
    }

    async fn check(&self) -> Result<Generation, Fault> {
        self.detached(|pool| async move { commit::check(&pool).await }).await
    }

    /// The lock makes this the only server: what it has is confirmed by being read, and the lease is its own.
    async fn pulse(&self, beat: Beat) -> Result<Pulse, Fault> {
        let (generation, now) = snapshot::pulse(&self.readers).await?;
        let Beat { replica, generation: known, report, .. } = beat;
        let lease = Some(Lease { holder: replica.clone(), token: LeaseToken(0) });
        let replicas = vec![Replica { id: replica, seen_at: now, generation: known, report }];
        Ok(Pulse { generation, now, lease, replicas })
    }

    async fn changed(&self, _known: Generation, at_most: Duration) {
        tokio::time::sleep(at_most).await;
    }

    /// There is no other server.
    async fn propagated(&self, _generation: Generation, _but: &ReplicaId, _at_most: Duration) {}
}
