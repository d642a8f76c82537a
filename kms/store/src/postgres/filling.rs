//! A database while it is filled with the rows of another one.
//!
//! It begins by taking the row of `generation` away, without which nobody can do anything here, whatever was opened
//! before; and it ends by putting one back, in the transaction that has read all rows again and found them equal. Each
//! transaction in between holds the row of `migrated_from` and has its attempt's number: of an attempt that was cut
//! off nothing arrives later.

use std::{future::Future, time::Duration};

use futures::TryStreamExt as _;
use kms_core::{
    replica::LIVE_MAX,
    store::{Fault, Generation, Snapshot},
};
use sqlx::{Connection as _, PgConnection, Postgres, QueryBuilder, Transaction as Open};
use tokio::time::timeout;

use super::{LOCK, PostgresOptions, beats, earlier, fault, open::Door};
use crate::{
    MigrateError,
    cells::Cells,
    rows,
    session::Session as _,
    snapshot,
    statement::{Statement, Value},
    tables::{Contents, TABLES, Table, Tally},
};

/// How long one statement may take: nobody else is at work here, and some read a whole table.
const STATEMENT_MAX: Duration = Duration::from_secs(600);
/// How long what an earlier attempt has under way may take to end.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(60);

/// Who fills it.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Absolute path of the SQLite file.
    pub(crate) file: String,
    /// Of its epoch, if it has one.
    pub(crate) installation: Option<[u8; 16]>,
    /// Over all its rows.
    pub(crate) digest: [u8; 32],
}

/// How a database was found.
#[derive(Debug)]
pub(crate) enum Found {
    /// Empty, or half filled from the same file and now emptied.
    Empty(Filling),
    /// Filled from these very rows of the same file.
    Filled,
}

/// A database that is being filled.
#[derive(Debug)]
pub(crate) struct Filling {
    connection: PgConnection,
    attempt: i64,
}

impl Filling {
    /// Takes the database for `origin`, unless it holds anything else.
    pub(crate) async fn begin(options: &PostgresOptions, origin: &Origin) -> Result<Found, MigrateError> {
        let door = Door::new(options).map_err(MigrateError::Target)?;
        door.migrate().await.map_err(MigrateError::Target)?;
        let connection = door.connect().await.map_err(fault::statement).map_err(MigrateError::Rows)?;
        let mut filling = Self { connection, attempt: 0 };
        let attempt = bounded(async {
            filling.lift_limits().await?;
            take(&mut filling.connection, origin).await
        });
        Ok(match attempt.await? {
            Some(attempt) => Found::Empty(Self { attempt, ..filling }),
            None => Found::Filled,
        })
    }

    async fn lift_limits(&mut self) -> Result<(), MigrateError> {
        for (setting, limit) in [
            ("statement_timeout", STATEMENT_MAX),
            ("idle_in_transaction_session_timeout", STATEMENT_MAX),
            ("lock_timeout", LOCK_WAIT_MAX),
        ] {
            let set = Statement::new("SELECT set_config($1, $2, false)")
                .bind(setting)
                .bind(limit.as_millis().to_string());
            run(&mut self.connection, set).await?;
        }
        Ok(())
    }

    /// Writes rows, durably.
    pub(crate) async fn append(&mut self, table: &Table, rows: Vec<Vec<Value>>) -> Result<(), Fault> {
        bounded(async {
            let mut open = self.open().await?;
            let mut insert = QueryBuilder::<Postgres>::new(table.insert_into());
            insert.push_values(rows, |mut tuple, row| {
                for value in row {
                    match value {
                        Value::Int(value) => tuple.push_bind(value),
                        Value::Text(value) => tuple.push_bind(value),
                        Value::Bytes(value) => tuple.push_bind(value),
                        Value::Bool(value) => tuple.push_bind(value),
                    };
                }
            });
            insert.build().execute(&mut *open).await.map_err(fault::statement)?;
            open.commit().await.map_err(fault::at_commit)
        })
        .await
    }

    /// Reads everything back, and when it is equal, does `before`, and lets the database be served.
    pub(crate) async fn finish(
        mut self,
        origin: &Origin,
        rows: &Snapshot,
        contents: &[Contents],
        mut read: impl FnMut(u64),
        before: impl Future<Output = Result<(), MigrateError>>,
    ) -> Result<(), MigrateError> {
        bounded(async {
            let mut open = self.open().await.map_err(MigrateError::Rows)?;
            let insert = Statement::new("INSERT INTO generation (one, value) VALUES (1, $1)")
                .bind(rows::generation_cell(rows.generation).map_err(MigrateError::Rows)?);
            run(&mut open, insert).await?;
            for (table, expected) in TABLES.iter().zip(contents) {
                let found = contents_of(&mut open, table, &mut read).await.map_err(MigrateError::Rows)?;
                if found != *expected {
                    return Err(MigrateError::Differs(format!(
                        "table {} has {} rows there and {} here",
                        table.name, found.rows, expected.rows
                    )));
                }
            }
            if snapshot::load(&mut *open, None).await.map_err(MigrateError::Rows)? != *rows {
                return Err(MigrateError::Differs("a server would load others there than here".to_owned()));
            }
            earlier::end_for(&mut open, rows).await.map_err(MigrateError::Rows)?;
            let filled = "UPDATE migrated_from SET digest = $1";
            run(&mut open, Statement::new(filled).bind(&origin.digest[..])).await?;
            before.await?;
            open.commit().await.map_err(fault::at_commit).map_err(MigrateError::Rows)
        })
        .await?;
        let _ = timeout(LOCK_WAIT_MAX, self.connection.close()).await;
        Ok(())
    }

    /// A transaction of this attempt, while it is the latest.
    async fn open(&mut self) -> Result<Open<'_, Postgres>, Fault> {
        let attempt = Statement::new(
            "SELECT attempt FROM migrated_from WHERE attempt = $1 AND digest IS NULL FOR UPDATE",
        )
        .bind(self.attempt);
        let mut open = begin(&mut self.connection).await?;
        match open.fetch(attempt).await.map_err(fault::statement)?.is_empty() {
            true => Err(Fault::Changed("the migration, by another one,".to_owned())),
            false => Ok(open),
        }
    }
}

/// The file from which the database was begun to be filled, when it was not to the end.
pub(super) async fn unfinished(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let present: Option<String> =
        sqlx::query_scalar("SELECT to_regclass('migrated_from')::TEXT").fetch_one(&mut *connection).await?;
    match present {
        // A schema of before there was such a thing.
        None => Ok(None),
        Some(_) => {
            let select = "SELECT file FROM migrated_from WHERE digest IS NULL";
            sqlx::query_scalar(select).fetch_optional(connection).await
        }
    }
}

/// The number of this attempt; none when the database is filled from this file as it is.
async fn take(connection: &mut PgConnection, origin: &Origin) -> Result<Option<i64>, MigrateError> {
    let mut open = begin(connection).await.map_err(MigrateError::Rows)?;
    // Of two that begin at once the second sees what the first did.
    let generation = fetch(&mut open, Statement::new(LOCK)).await?;
    let generation = generation.first().map(|row| rows::generation(row)).transpose();
    let generation = generation.map_err(MigrateError::Rows)?;
    let earlier = "SELECT file, installation, attempt, digest FROM migrated_from FOR UPDATE";
    let earlier = fetch(&mut open, Statement::new(earlier)).await?;
    let earlier = earlier.first().map(|row| Earlier::of(&Cells::named(row, "the migration"))).transpose();
    let attempt = match earlier.map_err(MigrateError::Rows)? {
        Some(Earlier { file, digest: Some(digest), .. })
            if file == origin.file && digest == origin.digest =>
        {
            return Ok(None);
        }
        Some(earlier) if earlier.digest.is_none() => earlier.again(origin)?,
        _ => {
            refuse_used(&mut open, generation).await?;
            1
        }
    };
    run(&mut open, Statement::new("DELETE FROM generation")).await?;
    run(&mut open, Statement::new("DELETE FROM migrated_from")).await?;
    for table in TABLES.iter().rev() {
        sqlx::query(table.delete())
            .execute(&mut *open)
            .await
            .map_err(fault::statement)
            .map_err(MigrateError::Rows)?;
    }
    let insert = "INSERT INTO migrated_from (one, file, installation, attempt) VALUES (1, $1, $2, $3)";
    let insert = Statement::new(insert)
        .bind(&origin.file)
        .bind(origin.installation.as_ref().map(|installation| &installation[..]))
        .bind(attempt);
    run(&mut open, insert).await?;
    open.commit().await.map_err(fault::at_commit).map_err(MigrateError::Rows)?;
    Ok(Some(attempt))
}

/// What an earlier migration has left.
struct Earlier {
    file: String,
    installation: Option<[u8; 16]>,
    attempt: i64,
    digest: Option<[u8; 32]>,
}

impl Earlier {
    fn of(cells: &Cells<'_>) -> Result<Self, Fault> {
        Ok(Self {
            file: cells.get("file")?,
            installation: cells.parse_some("installation", |bytes: Vec<u8>| bytes.try_into().ok())?,
            attempt: cells.get("attempt")?,
            digest: cells.parse_some("digest", |bytes: Vec<u8>| bytes.try_into().ok())?,
        })
    }

    /// The number of the next attempt. A service that was opened since has an epoch that it had not.
    fn again(self, origin: &Origin) -> Result<i64, MigrateError> {
        let same = self.file == origin.file
            && (self.installation.is_none() || self.installation == origin.installation);
        if same { Ok(self.attempt.saturating_add(1)) } else { Err(MigrateError::OfAnother(self.file)) }
    }
}

/// Refuses a database with rows, or with a server at work.
async fn refuse_used(open: &mut PgConnection, generation: Option<Generation>) -> Result<(), MigrateError> {
    let mut held = Vec::new();
    for table in &TABLES {
        let rows = contents_of(open, table, &mut |_| ()).await.map_err(MigrateError::Rows)?.rows;
        if rows > 0 {
            held.push(format!("{rows} rows in {}", table.name));
        }
    }
    let live = "SELECT id FROM replicas
        WHERE seen_at_us >= (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT - $1";
    for row in &fetch(open, Statement::new(live).bind(beats::live_us())).await? {
        let id: String = Cells::named(row, "replica").get("id").map_err(MigrateError::Rows)?;
        held.push(format!("server {id}, seen in the last {} s", LIVE_MAX.as_secs()));
    }
    if generation != Some(Generation(0)) && held.is_empty() {
        held.push("a history, although no rows".to_owned());
    }
    if held.is_empty() { Ok(()) } else { Err(MigrateError::NotEmpty(held.join(", "))) }
}

async fn contents_of(
    open: &mut PgConnection,
    table: &Table,
    read: &mut impl FnMut(u64),
) -> Result<Contents, Fault> {
    let mut tally = Tally::default();
    let mut rows = sqlx::query(table.select()).fetch(open);
    while let Some(row) = rows.try_next().await.map_err(fault::statement)? {
        tally.add(&table.cells(&row)?);
        read(1);
    }
    Ok(tally.contents(table))
}

async fn begin(connection: &mut PgConnection) -> Result<Open<'_, Postgres>, Fault> {
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
    connection.begin_with(begin).await.map_err(fault::statement)
}

async fn run(connection: &mut PgConnection, statement: Statement) -> Result<(), MigrateError> {
    let ran = connection.execute(statement).await;
    ran.map(drop).map_err(|error| MigrateError::Rows(fault::statement(error)))
}

async fn fetch(
    connection: &mut PgConnection,
    statement: Statement,
) -> Result<Vec<sqlx::postgres::PgRow>, MigrateError> {
    connection.fetch(statement).await.map_err(|error| MigrateError::Rows(fault::statement(error)))
}

/// A network that is cut says nothing.
async fn bounded<T, E: From<Fault>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    timeout(STATEMENT_MAX, work).await.unwrap_or_else(|_| Err(fault::too_slow("a migration").into()))
}
