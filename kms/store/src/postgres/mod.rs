//! The store on PostgreSQL, for any number of servers at once.
//!
//! Every commit begins by moving the generation's row, whose lock makes commits one after another; every pulse reads it
//! under a share lock. Everything is bounded in time, for a network that is cut says nothing: a connection that was
//! waited for in vain is dropped, never used again.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kms_core::{
    Failpoint, Store,
    pin_latch::{Place, State},
    replica::{Beat, Pulse, ReplicaId},
    store::{Fault, Generation, RememberedRequest, Snapshot, Transaction},
    time::Timestamp,
};
use sqlx::{Connection as _, PgConnection, PgPool, Postgres, pool::PoolConnection, postgres::PgRow};
use tokio::{sync::Mutex, time::timeout};

pub(crate) use self::filling::{Filling, Found, Origin};
pub use self::{join::JoinError, options::PostgresOptions};
use self::{news::News, open::Door, options::STATEMENT_MAX};
use crate::{OpenError, commit, pin_latch, requests, session::session, snapshot, statement::Statement};

mod beats;
mod earlier;
mod fault;
mod filling;
mod join;
mod news;
mod open;
mod options;

session!(PgConnection, PgRow, fault::statement);

/// How long one operation may take: a few statements.
const OPERATION_MAX: Duration = STATEMENT_MAX.saturating_mul(2);

/// How long a beat may take: several must have their chance before the fence.
const BEAT_MAX: Duration = Duration::from_secs(3);

/// How often [`Store::propagated`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A store on one PostgreSQL database. Its methods need a tokio runtime. Clones share its connections.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    pool: PgPool,
    door: Arc<Door>,
    /// The connection for beats: they must not wait for others.
    beats: Arc<Mutex<Option<PgConnection>>>,
    news: Arc<News>,
}

impl PostgresStore {
    /// Connects, refuses a database that is unsafe, and brings its schema up to date, beside servers that may be
    /// running.
    pub async fn open(options: &PostgresOptions) -> Result<Self, OpenError> {
        let door = Door::new(options)?;
        door.migrate().await?;
        door.refuse_half_filled().await?;
        Ok(Self::through(door))
    }

    /// The same, but leaves the schema as it is, and refuses one that this program cannot use.
    pub async fn look_at(options: &PostgresOptions) -> Result<Self, OpenError> {
        let door = Door::new(options)?;
        door.refuse_other_schema().await?;
        door.refuse_half_filled().await?;
        Ok(Self::through(door))
    }

    fn through(door: Door) -> Self {
        let door = Arc::new(door);
        let news = Arc::new(News::follow(Arc::clone(&door)));
        Self { pool: door.pool(), door, beats: Arc::default(), news }
    }

    /// Closes the connections. Later calls get [`Fault::Unavailable`].
    pub async fn close(&self) {
        *self.beats.lock().await = None;
        let _ = timeout(OPERATION_MAX, self.pool.close()).await;
    }

    async fn connection(&self) -> Result<PoolConnection<Postgres>, Fault> {
        self.pool.acquire().await.map_err(fault::statement)
    }

    /// Runs `work` in a transaction and commits it, to its end even if the caller goes away: half a transaction is
    /// nobody's wish.
    async fn writing<T, W>(&self, name: &'static str, work: W) -> Result<T, Fault>
    where
        T: Send + 'static,
        W: Work<T>,
    {
        let mut connection = self.connection().await?;
        let task = tokio::spawn(async move {
            let committing = AtomicBool::new(false);
            let write = async {
                let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
                let mut open = connection.begin_with(begin).await.map_err(fault::statement)?;
                let written = work.run(&mut open).await?;
                Failpoint::Committing.reached();
                committing.store(true, Ordering::Relaxed);
                open.commit().await.map_err(fault::at_commit)?;
                Failpoint::Committed.reached();
                Ok(written)
            };
            let outcome = timeout(OPERATION_MAX, write).await.unwrap_or_else(|_| {
                Err(match committing.load(Ordering::Relaxed) {
                    true => Fault::Unknown("the database did not answer the COMMIT".to_owned()),
                    false => fault::too_slow("a transaction"),
                })
            });
            if let Err(fault @ (Fault::Unavailable(_) | Fault::Unknown(_) | Fault::Corrupt(_))) = &outcome {
                tracing::error!(transaction = name, %fault, "a transaction failed");
                // In the middle of something: not even closed in order, which could wait for ever.
                drop(connection.detach());
            }
            outcome
        });
        task.await.unwrap_or_else(|stopped| Err(Fault::Unknown(stopped.to_string())))
    }

    /// Runs statements that write nothing.
    async fn reading<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut connection = self.connection().await?;
        let outcome = timeout(OPERATION_MAX, work(&mut connection)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(fault::too_slow("a query")));
        if outcome.is_err() {
            drop(connection.detach());
        }
        outcome
    }
}

/// What is done inside a transaction.
trait Work<T>: Send + 'static {
    fn run(self, open: &mut PgConnection) -> impl Future<Output = Result<T, Fault>> + Send;
}

struct Commit(Transaction);

impl Work<Generation> for Commit {
    async fn run(self, open: &mut PgConnection) -> Result<Generation, Fault> {
        let generation = commit::write(open, &self.0).await?;
        earlier::mind(open, &self.0).await?;
        // Under the generation's lock, which a pulse shares: no lease passes to another before the COMMIT.
        if let Some(lease) = self.0.lease {
            beats::check_lease(open, lease).await?;
        }
        Ok(generation)
    }
}

struct Forget(Timestamp);

impl Work<u64> for Forget {
    async fn run(self, open: &mut PgConnection) -> Result<u64, Fault> {
        requests::forget(open, self.0).await
    }
}

struct SetPinLatch {
    place: Place,
    expected: State,
    new: State,
}

impl Work<()> for SetPinLatch {
    async fn run(self, open: &mut PgConnection) -> Result<(), Fault> {
        commit::generation(open, Statement::new(LOCK)).await?;
        pin_latch::write(open, &self.place, &self.expected, &self.new).await
    }
}

struct Check;

impl Work<Generation> for Check {
    async fn run(self, open: &mut PgConnection) -> Result<Generation, Fault> {
        let rewrite = "UPDATE generation SET value = value RETURNING value";
        commit::generation(open, Statement::new(rewrite)).await
    }
}

/// Keeps every other commit waiting until the end of the transaction.
const LOCK: &str = "SELECT value FROM generation FOR UPDATE";

impl Store for PostgresStore {
    async fn load(&self, since: Option<Generation>) -> Result<Snapshot, Fault> {
        self.reading(async |connection| {
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
            let mut open = connection.begin_with(begin).await.map_err(fault::statement)?;
            let snapshot = snapshot::load(&mut *open, since).await?;
            open.rollback().await.map_err(fault::statement)?;
            Ok(snapshot)
        })
        .await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Generation, Fault> {
        let generation = self.writing(transaction.name, Commit(transaction)).await?;
        self.news.tell(generation, &self.pool);
        Ok(generation)
    }

    async fn request(&self, id: &str) -> Result<Option<RememberedRequest>, Fault> {
        self.reading(async |connection| requests::find(connection, id).await).await
    }

    async fn forget_requests(&self, before: Timestamp) -> Result<u64, Fault> {
        self.writing("forget requests", Forget(before)).await
    }

    async fn pin_latch(&self, place: &Place) -> Result<State, Fault> {
        self.reading(async |connection| pin_latch::read(connection, place).await).await
    }

    async fn set_pin_latch(&self, place: &Place, expected: State, new: State) -> Result<(), Fault> {
        self.writing("set a PIN latch", SetPinLatch { place: place.clone(), expected, new }).await
    }

    async fn check(&self) -> Result<Generation, Fault> {
        self.writing("check", Check).await
    }

    async fn pulse(&self, beat: Beat) -> Result<Pulse, Fault> {
        // Held for the whole beat: two at once would say two things.
        let mut held = self.beats.lock().await;
        let pulse = async {
            let mut connection = match held.take() {
                Some(connection) => connection,
                None => self.door.connect().await.map_err(fault::statement)?,
            };
            // Put back only when it is at rest.
            let pulse = beats::pulse(&mut connection, beat).await?;
            *held = Some(connection);
            Ok(pulse)
        };
        timeout(BEAT_MAX, pulse).await.unwrap_or_else(|_| Err(fault::too_slow("a beat")))
    }

    async fn changed(&self, known: Generation, at_most: Duration) {
        self.news.wait(known, at_most).await;
    }

    async fn propagated(&self, generation: Generation, but: &ReplicaId, at_most: Duration) {
        let all = async {
            loop {
                match self
                    .reading(async |connection| beats::laggards(connection, generation, but).await)
                    .await
                {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(fault) => tracing::warn!(%fault, "not known who has the change"),
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let _ = timeout(at_most, all).await;
    }
}
