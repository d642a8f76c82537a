//! The store on SQLite: one connection writes, others read beside it, and a lock keeps a second server out.

use std::{path::Path, sync::Arc, time::Duration};

use kms_core::{
    Failpoint, Store,
    pin_latch::{Place, State},
    replica::{Beat, Lease, LeaseToken, Pulse, Replica, ReplicaId},
    store::{Fault, Generation, RememberedRequest, Snapshot, Transaction},
    time::Timestamp,
};
use sqlx::{
    Connection as _, Sqlite, SqliteConnection, SqlitePool, Transaction as Open, pool::PoolConnection,
    sqlite::SqliteRow,
};

use self::open::Writer;
pub(crate) use self::source::Source;
pub use self::{open::Options, source::moved};
use crate::{
    OpenError, commit, pin_latch, pulse, requests,
    session::{Session as _, session},
    snapshot,
    statement::Statement,
};

mod fault;
mod lock;
mod open;
mod source;

session!(SqliteConnection, SqliteRow, fault::statement);

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

    /// Runs `work` on the one writing connection to its end even if the caller goes away: half a transaction is nobody's
    /// wish.
    async fn detached<T, F>(
        &self,
        work: impl FnOnce(PoolConnection<Sqlite>) -> F + Send + 'static,
    ) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let writer = self
            .writer
            .clone()
            .ok_or_else(|| Fault::Unavailable("it was opened for reading only".to_owned()))?;
        let task = tokio::spawn(async move {
            // The lock is held as long as anything may be written.
            let connection = writer.pool.acquire().await.map_err(fault::statement)?;
            work(connection).await
        });
        task.await.unwrap_or_else(|stopped| Err(Fault::Unknown(stopped.to_string())))
    }

    async fn reader(&self) -> Result<PoolConnection<Sqlite>, Fault> {
        self.readers.acquire().await.map_err(fault::statement)
    }
}

impl Store for SqliteStore {
    async fn load(&self, since: Option<Generation>) -> Result<Snapshot, Fault> {
        // One read transaction: WAL shows it one state of the database, whatever is written meanwhile.
        let mut open = self.readers.begin().await.map_err(fault::statement)?;
        snapshot::load(&mut *open, since).await
    }

    /// There is no other server: the lease was never another's.
    async fn commit(&self, transaction: Transaction) -> Result<Generation, Fault> {
        self.detached(|mut connection| async move {
            let outcome = async {
                let mut open = begin(&mut connection).await?;
                let generation = commit::write(&mut *open, &transaction).await?;
                Failpoint::Committing.reached();
                open.commit().await.map_err(fault::at_commit)?;
                Failpoint::Committed.reached();
                Ok(generation)
            };
            let outcome = outcome.await;
            ended(transaction.name, connection, outcome)
        })
        .await
    }

    async fn request(&self, id: &str) -> Result<Option<RememberedRequest>, Fault> {
        requests::find(&mut *self.reader().await?, id).await
    }

    async fn forget_requests(&self, before: Timestamp) -> Result<u64, Fault> {
        self.detached(move |mut connection| async move { requests::forget(&mut *connection, before).await })
            .await
    }

    async fn pin_latch(&self, place: &Place) -> Result<State, Fault> {
        pin_latch::read(&mut *self.reader().await?, place).await
    }

    async fn set_pin_latch(&self, place: &Place, expected: State, new: State) -> Result<(), Fault> {
        let place = place.clone();
        self.detached(|mut connection| async move {
            let outcome = async {
                let mut open = begin(&mut connection).await?;
                pin_latch::write(&mut *open, &place, &expected, &new).await?;
                open.commit().await.map_err(fault::at_commit)
            };
            let outcome = outcome.await;
            ended("set a PIN latch", connection, outcome)
        })
        .await
    }

    /// Goes through to the disk and leaves everything as it is.
    async fn check(&self) -> Result<Generation, Fault> {
        self.detached(|mut connection| async move {
            let mut open = begin(&mut connection).await?;
            let rewrite = Statement::new("UPDATE generation SET value = value RETURNING value");
            let generation = commit::generation(&mut *open, rewrite).await?;
            open.commit().await.map_err(fault::at_commit)?;
            Ok(generation)
        })
        .await
    }

    /// The lock makes this the only server: what it has is confirmed by being read, and the lease is its own.
    async fn pulse(&self, beat: Beat) -> Result<Pulse, Fault> {
        let select = "SELECT value, CAST(unixepoch('subsec') * 1000000 AS INTEGER) AS now_us FROM generation";
        let found = self.reader().await?.fetch(Statement::new(select)).await.map_err(fault::statement)?;
        let (generation, now) = pulse::generation_and_now(&found)?;
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

async fn begin(connection: &mut PoolConnection<Sqlite>) -> Result<Open<'_, Sqlite>, Fault> {
    // When it is dropped, it rolls back before the connection is used again.
    connection.begin_with("BEGIN IMMEDIATE").await.map_err(fault::statement)
}

fn ended<T>(
    transaction: &'static str,
    mut connection: PoolConnection<Sqlite>,
    outcome: Result<T, Fault>,
) -> Result<T, Fault> {
    if let Err(fault @ (Fault::Unavailable(_) | Fault::Unknown(_) | Fault::Corrupt(_))) = &outcome {
        tracing::error!(transaction, %fault, "a transaction failed");
        // After such an error SQLite may have rolled back by itself: begin again with a clean connection.
        connection.close_on_drop();
    }
    outcome
}
