//! The store passes core's suite, on a fresh database and on one that was opened again.

use kms_core::{Store as _, conformance};
use kms_store::SqliteStore;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_does_what_every_store_must_do() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("kms.db");
    let store = SqliteStore::open(&path).await.expect("it opens");
    conformance::store::run(&store).await;

    let before = store.load(None).await.expect("it reads");
    store.close().await;
    drop(store);
    let store = SqliteStore::open(&path).await.expect("it opens again");
    assert_eq!(store.load(None).await.expect("it reads"), before);
}
