//! What must be ours alone before anything is done: the audit log and the store, each under its lock.

use std::sync::Arc;

use anyhow::Context as _;
use kms_audit::{FileLog, Options};
use kms_core::{Clock as _, verbs};
use kms_store::SqliteStore;

use crate::{
    clock::{SystemClock, entropy},
    config::Config,
};

/// Makes the first administrator and returns its credential, which is shown this once. The server must not be
/// running; a second time is an error.
pub async fn bootstrap(config: &Config) -> anyhow::Result<String> {
    let (store, audit) = open(config).await?;
    let credential = verbs::bootstrap(&store, Arc::clone(&audit), SystemClock.now(), entropy).await?;
    store.close().await;
    audit.flush_and_close();
    Ok(credential)
}

/// Opens both. The store first: its lock is what tells a second server that it is one.
pub(crate) async fn open(config: &Config) -> anyhow::Result<(SqliteStore, Arc<FileLog>)> {
    let store = SqliteStore::open(&config.store.path).await.context("store.path")?;
    let options = Options { free_bytes_min: config.audit.free_bytes_min, ..Options::new(&config.audit.dir) };
    let audit = FileLog::open(&options).context("audit.dir")?;
    Ok((store, Arc::new(audit)))
}
