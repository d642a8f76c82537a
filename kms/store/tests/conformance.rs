//! Both stores pass core's suite, on a fresh database and on one that was opened again.

use kms_core::{Store as _, conformance};
use kms_store::{PostgresOptions, PostgresStore, SqliteStore};
use kms_test_postgres::Cluster;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_does_what_every_store_must_do() {
    let cluster = Cluster::start().expect("PostgreSQL starts");
    let database = cluster.create_database().expect("a database");
    let mut options = PostgresOptions::new(database.tls_url(&cluster));
    options.password = Some(database.password().to_owned());
    let store = PostgresStore::open(&options).await.expect("it opens");
    conformance::store::run(&store).await;

    let before = store.load(None).await.expect("it reads");
    store.close().await;
    let store = PostgresStore::open(&options).await.expect("it opens again");
    assert_eq!(store.load(None).await.expect("it reads"), before);

    let database = cluster.create_database().expect("another database");
    let mut options = PostgresOptions::new(database.tls_url(&cluster));
    options.password = Some(database.password().to_owned());
    let one = PostgresStore::open(&options).await.expect("it opens");
    let other = PostgresStore::open(&options).await.expect("it opens");
    conformance::store::run_shared(&one, &other).await;
}
