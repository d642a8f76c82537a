//! Opening a database: its settings, its schema, and connections that are checked one by one.

use std::{fmt, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Row as _,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

use super::{PostgresOptions, filling};
use crate::OpenError;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// How long a caller waits for a connection, and a connection for the server.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long the schema may take to be brought up to date, with the wait for another server that is at it.
const MIGRATE_MAX: Duration = Duration::from_secs(600);

/// What a connection is made with.
#[derive(Clone)]
pub(super) struct Door {
    options: PgConnectOptions,
    settings: Arc<PostgresOptions>,
}

/// sqlx would show the password.
impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Door {
    pub(super) fn new(settings: &PostgresOptions) -> Result<Self, OpenError> {
        Ok(Self { options: settings.connect_options()?, settings: Arc::new(settings.clone()) })
    }

    /// One connection of its own.
    pub(super) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let connect = async {
            let mut connection = self.options.connect().await?;
            check(&mut connection, &self.settings).await?;
            Ok(connection)
        };
        timeout(CONNECT_MAX, connect).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    /// Connections as they are needed.
    pub(super) fn pool(&self) -> PgPool {
        self.pool_of(self.settings.connections_max.max(1))
    }

    /// For a listener, which takes its connection from a pool.
    pub(super) fn pool_of_one(&self) -> PgPool {
        self.pool_of(1)
    }

    fn pool_of(&self, connections_max: u32) -> PgPool {
        let settings = Arc::clone(&self.settings);
        PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(CONNECT_MAX)
            .after_connect(move |connection, _| {
                let settings = Arc::clone(&settings);
                Box::pin(async move { check(connection, &settings).await })
            })
            .connect_lazy_with(self.options.clone())
    }

    /// Refuses a schema that is too new, or not there yet.
    pub(super) async fn refuse_other_schema(&self) -> Result<(), OpenError> {
        let look = async {
            let mut connection = self.connect().await.map_err(|error| open_error(&error))?;
            if refuse_newer(&mut connection).await? {
                return Ok(());
            }
            Err(OpenError::Database(
                "holds nothing of kms yet; `kms bootstrap` or a server makes it".to_owned(),
            ))
        };
        let outcome = timeout(CONNECT_MAX * 2, look).await;
        outcome.unwrap_or_else(|_| Err(open_error(&sqlx::Error::PoolTimedOut)))
    }

    /// Refuses a database that a migration from SQLite has not filled to its end.
    pub(super) async fn refuse_half_filled(&self) -> Result<(), OpenError> {
        let look = async {
            let mut connection = self.connect().await.map_err(|error| open_error(&error))?;
            let file = filling::unfinished(&mut connection).await.map_err(|error| open_error(&error))?;
            file.map_or(Ok(()), |file| {
                Err(OpenError::Database(format!(
                    "holds a migration from SQLite that is not complete; run `kms migrate sqlite-to-postgres --from \
                     {file}` to its end, before anything uses the database"
                )))
            })
        };
        let outcome = timeout(CONNECT_MAX * 2, look).await;
        outcome.unwrap_or_else(|_| Err(open_error(&sqlx::Error::PoolTimedOut)))
    }

    /// Brings the schema up to date, one server at a time, and refuses one that is too new.
    pub(super) async fn migrate(&self) -> Result<(), OpenError> {
        let mut connection = self.connect().await.map_err(|error| open_error(&error))?;
        let migrate = async {
            // The wait for another server's migration counts as one statement, and for a lock.
            for lift in ["SET statement_timeout = 0", "SET lock_timeout = 0"] {
                sqlx::query(lift).execute(&mut connection).await.map_err(|error| open_error(&error))?;
            }
            refuse_newer(&mut connection).await?;
            let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
            // Those of a later release, with which this one can live.
            migrator.set_ignore_missing(true);
            migrator.run(&mut connection).await.map_err(|error| match error {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => open_error(&error),
                other => OpenError::Database(format!("cannot be migrated: {other}; restore a backup")),
            })?;
            refuse_newer(&mut connection).await.map(drop)
        };
        let outcome = timeout(MIGRATE_MAX, migrate).await;
        outcome.unwrap_or_else(|_| {
            Err(OpenError::Database("is being migrated by another server, which does not end".to_owned()))
        })?;
        let _ = timeout(CONNECT_MAX, connection.close()).await;
        Ok(())
    }
}

/// A connection that could lose what is acknowledged, or that cannot write, is none.
async fn check(connection: &mut PgConnection, accepted: &PostgresOptions) -> Result<(), sqlx::Error> {
    let row = sqlx::query(
        "SELECT current_setting('transaction_read_only') AS read_only,
            coalesce(current_setting('synchronous_commit', true), 'on') AS synchronous_commit,
            coalesce(current_setting('fsync', true), 'on') AS fsync,
            coalesce(current_setting('full_page_writes', true), 'on') AS full_page_writes",
    )
    .fetch_one(connection)
    .await?;
    let refuse = |text: String| Err(sqlx::Error::Configuration(text.into()));
    if row.try_get::<&str, _>("read_only")? == "on" {
        return refuse(
            "the database is read-only: a standby, or set so; name the primary in store.url".to_owned(),
        );
    }
    for (setting, unsafe_values) in
        [("synchronous_commit", &["off", "local"][..]), ("fsync", &["off"]), ("full_page_writes", &["off"])]
    {
        let value: &str = row.try_get(setting)?;
        if unsafe_values.contains(&value) && !accepted.accepts_unsafe(setting) {
            return refuse(format!(
                "the database has {setting} = {value}, with which a crash or a failover loses keys that were \
                 acknowledged; set it to on, or name it in store.unsafe_settings to accept that"
            ));
        }
    }
    Ok(())
}

/// Whether there is a schema; one that is too new is an error.
async fn refuse_newer(connection: &mut PgConnection) -> Result<bool, OpenError> {
    let present: Option<String> = sqlx::query_scalar("SELECT to_regclass('schema_compatibility')::TEXT")
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| open_error(&error))?;
    if present.is_none() {
        return Ok(false);
    }
    let oldest: Option<i64> = sqlx::query_scalar("SELECT oldest_program FROM schema_compatibility")
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| open_error(&error))?;
    let known = known_version();
    match oldest {
        Some(oldest) if oldest > known => Err(OpenError::Database(format!(
            "has a schema for programs that know version {oldest}, and this program knows only {known}; upgrade the \
             program, or restore a backup of the earlier version"
        ))),
        _ => Ok(true),
    }
}

/// The newest migration that this program knows.
pub(super) fn known_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

pub(super) fn open_error(error: &sqlx::Error) -> OpenError {
    let text = match error {
        sqlx::Error::Configuration(why) => why.to_string(),
        sqlx::Error::PoolTimedOut => format!("does not answer within {} s", CONNECT_MAX.as_secs()),
        other => other.to_string(),
    };
    OpenError::Database(text)
}
