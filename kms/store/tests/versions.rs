//! One new version per rotation (promise 4), where it is decided: of sixteen sessions that insert a version at once
//! one does. What replicas make of that is core's story.
#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test's own steps must succeed, and say so")]

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use kms_core::{
    KeyVersion, Kid, Store,
    fakes::a_key,
    hsm::CkaId,
    key::{Born, Material, TakeOver, Timeline},
    replica::ReplicaId,
    store::{Fault, Transaction, Write},
};
use kms_store::{PostgresOptions, PostgresStore, SqliteStore};
use kms_test_postgres::Cluster;

const SESSIONS: u32 = 16;
/// In `make test`, and in `make torture`.
const ROUNDS: [u32; 2] = [8, 300];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sixteen_versions_inserted_at_once_one_is_there_on_sqlite() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // A second server is refused: the sessions are callers of one.
    let store = SqliteStore::open(dir.path().join("kms.db")).await.expect("it opens");
    compete(&(0..SESSIONS).map(|_| store.clone()).collect::<Vec<_>>(), "SQLite").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sixteen_versions_inserted_at_once_one_is_there_on_postgresql() {
    let cluster = Cluster::start().expect("PostgreSQL starts");
    let database = cluster.create_database().expect("a database");
    let mut options = PostgresOptions::new(database.url_at(cluster.addr()));
    options.password = Some(database.password().to_owned());
    options.connections_max = 1;
    let mut stores = Vec::new();
    for _ in 0..SESSIONS {
        stores.push(PostgresStore::open(&options).await.expect("it opens"));
    }
    compete(&stores, "PostgreSQL").await;
}

/// Who makes the row is told so, and nobody else.
async fn compete<S: Store + Clone>(stores: &[S], database: &str) {
    let began = Instant::now();
    let is_full = std::env::var_os("KMS_TORTURE").is_some_and(|value| value == "1");
    let rounds = ROUNDS[usize::from(is_full)];
    let key = a_key("rotated");
    stores[0].commit(transaction(Write::InsertKey(key.clone()))).await.expect("commit");
    let insert = |row: &KeyVersion| Write::InsertVersion(key.id.clone(), row.clone());
    let mut number = 0;
    for round in 0..rounds {
        let (next, last) = (number + 1, number + SESSIONS);
        let contests: [(&str, Vec<KeyVersion>); 3] = [
            ("the same number, on its way", (0..SESSIONS).map(|_| on_its_way(next)).collect()),
            ("another number, on its way", (next + 1..=last + 1).map(on_its_way).collect()),
            ("the same number, born", (0..SESSIONS).map(|_| born(on_its_way(last + 2))).collect()),
        ];
        for (what, rows) in contests {
            let commits = stores.iter().zip(&rows).map(|(store, row)| {
                let (store, write) = (store.clone(), insert(row));
                tokio::spawn(async move { store.commit(transaction(write)).await })
            });
            let mut won = Vec::new();
            for (row, outcome) in rows.iter().zip(futures::future::join_all(commits).await) {
                match outcome.expect("it runs") {
                    Ok(_) => won.push(row.clone()),
                    Err(fault) => {
                        assert!(matches!(fault, Fault::Exists(_)), "{what}, round {round}: {fault}")
                    }
                }
            }
            assert_eq!(won.len(), 1, "{what}, round {round}: who was told that it made it");
            let snapshot = stores[0].load(None).await.expect("load");
            let versions = &snapshot.keys[0].1;
            let numbers: BTreeSet<_> = versions.iter().map(|row| row.number).collect();
            assert_eq!(numbers.len(), versions.len(), "{what}, round {round}: a number was used twice");
            assert_eq!(versions.last(), won.last(), "{what}, round {round}: it is the winner's");
            // Room for the next one.
            let done = Write::UpdateVersion(key.id.clone(), born(won.remove(0)));
            stores[0].commit(transaction(done)).await.expect("commit");
        }
        number = last + 2;
    }
    let snapshot = stores[0].load(None).await.expect("load");
    let contests = 3 * rounds;
    assert_eq!(snapshot.keys[0].1.len(), contests as usize, "one for each contest");
    // For the table that `make torture` prints.
    println!(
        "\nPROMISE | 4 | {SESSIONS} sessions insert a version at once, {contests} times, {database} | {contests} \
         versions: 0 duplicates, never 2 on their way | | {} s |",
        began.elapsed().as_secs()
    );
}

fn transaction(write: Write) -> Transaction {
    Transaction::new("compete", vec![write])
}

fn on_its_way(number: u32) -> KeyVersion {
    let mut cka_id = [0; 16];
    kms_core::fakes::entropy(&mut cka_id).expect("entropy");
    KeyVersion {
        number,
        cka_id: CkaId::from_bytes(cka_id),
        earlier_attempts: Vec::new(),
        token_serial: "5eri4l".to_owned(),
        created_at: a_key("any").created_at,
        maker: Some(ReplicaId::new("some-host/1/00000001")),
        born: None,
        suspended: false,
        compromise: None,
        takes_over: TakeOver::AfterLead,
        cross_signature: None,
        destroyed_at: None,
    }
}

fn born(row: KeyVersion) -> KeyVersion {
    let at = row.created_at;
    let timeline = Timeline {
        published_at: at,
        activates_at: at,
        retires_at: None,
        withdrawn_at: None,
        destroys_at: None,
    };
    let material = Material::Pair { spki: Arc::from(&b"spki"[..]), kid: Kid::from_stored("kid") };
    KeyVersion { maker: None, born: Some(Born { material, timeline }), ..row }
}
