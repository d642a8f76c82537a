//! What must be ours alone before anything is done: the audit log and the store, each under its lock.

use std::sync::Arc;

use anyhow::Context as _;
use kms_audit::{FileLog, Options};
use kms_core::{
    Clock as _,
    verbs::{self, Bootstrap},
};
use kms_store::{AnyStore, PostgresStore, SqliteStore};

use crate::{
    clock::{SystemClock, entropy},
    config::{Config, Postgres, Store},
};

/// Makes an administrator and returns its credential, which is shown this once. With SQLite the server must not be
/// running; a second first one is an error.
pub async fn bootstrap(config: &Config, which: Bootstrap) -> anyhow::Result<String> {
    let (store, audit) = open(config).await?;
    let credential = verbs::bootstrap(&store, Arc::clone(&audit), which, SystemClock.now(), entropy).await?;
    store.close().await;
    audit.flush_and_close();
    Ok(credential)
}

/// Opens the database. SQLite is then this process's alone.
pub async fn open_store(config: &Config) -> anyhow::Result<AnyStore> {
    Ok(match &config.store {
        Store::Sqlite { path } => AnyStore::Sqlite(SqliteStore::open(path).await.context("store.path")?),
        Store::Postgres(postgres) => {
            AnyStore::Postgres(PostgresStore::open(&postgres.options()?).await.context("store.url")?)
        }
    })
}

/// Connects to the PostgreSQL of the configuration without touching its schema: for doctor, beside servers that may be
/// of another release.
pub async fn look_at_store(postgres: &Postgres) -> anyhow::Result<PostgresStore> {
    PostgresStore::look_at(&postgres.options()?).await.context("store.url")
}

/// Opens both. The store first: with SQLite its lock is what tells a second server that it is one.
pub(crate) async fn open(config: &Config) -> anyhow::Result<(AnyStore, Arc<FileLog>)> {
    let store = open_store(config).await?;
    let options = Options { free_bytes_min: config.audit.free_bytes_min, ..Options::new(&config.audit.dir) };
    let audit = FileLog::open(&options).context("audit.dir")?;
    Ok((store, Arc::new(audit)))
}
