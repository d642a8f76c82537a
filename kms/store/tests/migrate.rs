//! From SQLite to PostgreSQL, below the command: what arrives, what is refused, and being cut off at every step.
#![expect(clippy::expect_used, reason = "a test's own steps must succeed")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kms_core::{
    KeyVersion, Kid, Store as _, conformance,
    fakes::a_key,
    hsm::CkaId,
    key::{Born, Material, TakeOver, Timeline},
    pin_latch::{Place, State},
    store::{Fault, Generation, RememberedRequest, Transaction, Write},
    time::Timestamp,
};
use kms_store::{
    MigrateError, OpenError, PostgresOptions, PostgresStore, Progress, SqliteStore, Step, sqlite_to_postgres,
};
use kms_test_postgres::{Cluster, Database};
use sqlx::{Connection as _, SqliteConnection, migrate::Migrator, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::sync::Notify;

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_and_the_file_is_never_served_again() {
    let (files, cluster) = (Files::new(), Cluster::start().expect("PostgreSQL starts"));
    // With whatever the suite leaves behind in every table, births that are not over among it.
    let store = files.open().await;
    conformance::store::run(&store).await;
    fill(&store).await;
    let rows = store.load(None).await.expect("it reads");
    assert!(rows.epoch.is_some() && !rows.quarantined.is_empty() && !rows.access_tokens.is_empty());
    assert!(rows.keys.iter().any(|(_, versions)| versions.iter().any(|version| version.maker.is_some())));
    assert!(!rows.uses.is_empty() && !rows.usage_reports.is_empty());
    assert!(!rows.role_bindings.is_empty() && !rows.policies.is_empty() && !rows.proposals.is_empty());
    assert!(rows.access_tokens.iter().any(|token| token.bound_to.is_some() && token.period.is_some()));
    let since = Generation(rows.generation.0 / 2);
    let newer = store.load(Some(since)).await.expect("it reads");
    let (request, latch) = (remembered("r"), refused_latch());
    store.close().await;
    drop(store);

    let database = cluster.create_database().expect("a database");
    let options = options_of(&cluster, &database);
    let migrated = sqlite_to_postgres(&files.db(), &options, |_| ()).await.expect("it moves");
    assert!(!migrated.before);
    let oldest = cluster.sql(&database.name, "SELECT oldest_program FROM schema_compatibility");
    assert_eq!(oldest.expect("it reads"), "5", "a program that would not obey the policy is not started");

    let store = PostgresStore::open(&options).await.expect("it is complete");
    assert_eq!(store.load(None).await.expect("it reads"), rows);
    assert_eq!(store.load(Some(since)).await.expect("it reads"), newer);
    assert_eq!(store.request("r").await.expect("it reads"), Some(request));
    assert_eq!(store.pin_latch(&latch.0).await.expect("it reads"), latch.1);
    let next = store.commit(insert("next")).await.expect("it goes on");
    assert_eq!(next, Generation(rows.generation.0 + 1));
    store.close().await;

    assert!(!files.db().exists());
    let mut wal = files.moved().into_os_string();
    wal.push("-wal");
    assert!(fs::metadata(wal).map_or(0, |found| found.len()) == 0, "something is not in the one file");
    for refused in [SqliteStore::open(files.db()).await, SqliteStore::open_read_only(files.db()).await] {
        let refused = refused.expect_err("it has moved");
        assert!(matches!(refused, OpenError::Moved { .. }), "{refused}");
        assert!(refused.to_string().contains("store.url"), "{refused}");
    }
    assert!(!files.db().exists(), "an empty store was made");

    // Again, with servers that have gone on: nothing is touched.
    let again = sqlite_to_postgres(&files.db(), &options, |_| ()).await.expect("it has moved");
    assert!(again.before);
    let store = PostgresStore::open(&options).await.expect("it is complete");
    assert_eq!(store.load(None).await.expect("it reads").generation, next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_off_at_every_step_it_is_not_served_and_the_next_attempt_brings_all() {
    let (files, cluster) = (Files::new(), Cluster::start().expect("PostgreSQL starts"));
    let store = files.open().await;
    conformance::store::run(&store).await;
    fill(&store).await;
    let rows = store.load(None).await.expect("it reads");
    store.close().await;
    drop(store);
    let options = target(&cluster);

    let mut steps = 1;
    loop {
        if cut_off_at(&files, &options, steps).await {
            break;
        }
        let refused = PostgresStore::open(&options).await.expect_err("it is not complete");
        assert!(refused.to_string().contains("kms migrate sqlite-to-postgres --from"), "{refused}");
        let refused = PostgresStore::look_at(&options).await.expect_err("it is not complete");
        assert!(refused.to_string().contains("not complete"), "{refused}");
        assert!(files.db().exists());
        steps *= 2;
    }
    assert!(steps > 8, "it was hardly ever cut off");
    let store = PostgresStore::open(&options).await.expect("it is complete");
    assert_eq!(store.load(None).await.expect("it reads"), rows);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_off_between_the_new_name_and_the_last_commit_it_is_completed_from_there() {
    let (files, cluster) = (Files::new(), Cluster::start().expect("PostgreSQL starts"));
    let store = files.open().await;
    fill(&store).await;
    let rows = store.load(None).await.expect("it reads");
    store.close().await;
    drop(store);
    let options = target(&cluster);
    assert!(!cut_off_at(&files, &options, 5).await);
    fs::rename(files.db(), files.moved()).expect("ours");

    SqliteStore::open(files.db()).await.expect_err("it has moved");
    PostgresStore::open(&options).await.expect_err("it is not complete");
    let migrated = sqlite_to_postgres(&files.db(), &options, |_| ()).await.expect("it moves");
    assert!(!migrated.before && files.moved().exists() && !files.db().exists());
    let store = PostgresStore::open(&options).await.expect("it is complete");
    assert_eq!(store.load(None).await.expect("it reads"), rows);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_not_as_they_were_written_are_noticed_and_never_served() {
    let (files, cluster) = (Files::new(), Cluster::start().expect("PostgreSQL starts"));
    let store = files.open().await;
    fill(&store).await;
    store.close().await;
    drop(store);
    for change in [
        "UPDATE keys SET owner = owner || ' ' WHERE id = 'filled-7'",
        "DELETE FROM requests",
        "UPDATE pin_latches SET pin_generation = 8",
    ] {
        let database = cluster.create_database().expect("a database");
        let options = options_of(&cluster, &database);
        let outcome = sqlite_to_postgres(&files.db(), &options, |progress| {
            if progress.step == Step::Copy && progress.done == progress.of {
                cluster.sql(&database.name, change).expect(change);
            }
        })
        .await;
        assert!(matches!(outcome, Err(MigrateError::Differs(_))), "{change}: {outcome:?}");
        assert!(files.db().exists(), "{change}: the file is out of use");
        PostgresStore::open(&options).await.expect_err(change);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_opened_before_can_do_nothing_with_a_half_filled_database() {
    let (files, cluster) = (Files::new(), Cluster::start().expect("PostgreSQL starts"));
    let store = files.open().await;
    fill(&store).await;
    drop(store);
    let options = target(&cluster);
    let early = PostgresStore::open(&options).await.expect("it is empty, and not begun");
    assert!(!cut_off_at(&files, &options, 1).await);
    for fault in [
        early.load(None).await.expect_err("no rows"),
        early.commit(insert("mine")).await.expect_err("no write"),
        early.check().await.expect_err("no check"),
    ] {
        assert!(matches!(&fault, Fault::Corrupt(why) if why.contains("run it again")), "{fault}");
    }
    sqlite_to_postgres(&files.db(), &options, |_| ()).await.expect("it moves");
    early.commit(insert("mine")).await.expect("it works again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_mix_two_services_is_refused_and_says_what_is_there() {
    let cluster = Cluster::start().expect("PostgreSQL starts");
    let (files, other) = (Files::new(), Files::new());
    let options = target(&cluster);
    let migrate = |from: PathBuf| {
        let options = options.clone();
        async move { sqlite_to_postgres(&from, &options, |_| ()).await.expect_err("refused") }
    };

    let refused = migrate(files.db()).await;
    assert!(matches!(refused, MigrateError::NoSource(_)), "{refused}");
    assert!(!files.db().exists(), "an empty store was made");

    let mut foreign = files.connect(&files.db()).await;
    sqlx::query("CREATE TABLE other (x)").execute(&mut foreign).await.expect("it is written");
    drop(foreign);
    let refused = migrate(files.db()).await;
    assert!(refused.to_string().contains("no store of kms"), "{refused}");
    fs::remove_file(files.db()).expect("ours");

    let running = files.open().await;
    fill(&running).await;
    let refused = migrate(files.db()).await.to_string();
    assert!(refused.contains("kms.lock") && refused.contains("stop it first"), "{refused}");
    running.close().await;
    drop(running);

    fs::write(files.moved(), "").expect("ours");
    let refused = migrate(files.db()).await;
    assert!(matches!(refused, MigrateError::InTheWay { .. }), "{refused}");
    fs::remove_file(files.moved()).expect("ours");

    // Half filled from one file, the database is not another's.
    let store = other.open().await;
    fill(&store).await;
    drop(store);
    assert!(!cut_off_at(&files, &options, 1).await);
    let refused = migrate(other.db()).await;
    assert!(matches!(&refused, MigrateError::OfAnother(file) if *file == files.db().display().to_string()));
    sqlite_to_postgres(&files.db(), &options, |_| ()).await.expect("it moves");

    // Complete, it is neither another's nor, once it has changed, its own.
    let refused = migrate(other.db()).await;
    assert!(matches!(&refused, MigrateError::NotEmpty(held) if held.contains("in keys")), "{refused}");
    fs::rename(files.moved(), files.db()).expect("ours");
    files.open().await.commit(insert("served-again")).await.expect("it is written");
    let refused = migrate(files.db()).await;
    assert!(matches!(&refused, MigrateError::NotEmpty(_)), "{refused}");
    assert!(files.db().exists() && other.db().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_schema_is_brought_forward_and_a_newer_one_refused() {
    let (files, cluster) = (Files::new(), Cluster::start().expect("PostgreSQL starts"));
    // As the release before generations and makers left it.
    let mut connection = files.connect(&files.db()).await;
    let migrations = SQLITE.iter().filter(|migration| migration.version <= 4).cloned().collect();
    let earlier = Migrator { migrations, ..Migrator::DEFAULT };
    earlier.run(&mut connection).await.expect("it is made");
    drop(connection);
    let options = target(&cluster);
    sqlite_to_postgres(&files.db(), &options, |_| ()).await.expect("it moves");

    fs::rename(files.moved(), files.db()).expect("ours");
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9000, 'from the future', 1, x'00', 0)";
    let mut connection = files.connect(&files.db()).await;
    sqlx::query(later).execute(&mut connection).await.expect("it is written");
    drop(connection);
    let options = target(&cluster);
    let refused = sqlite_to_postgres(&files.db(), &options, |_| ()).await.expect_err("it is newer");
    assert!(matches!(refused, MigrateError::Source(OpenError::Newer { .. })), "{refused}");
}

/// The figure of docs/how-to/several-servers.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_keys_move_in_reasonable_time() {
    let (files, cluster) = (Files::new(), Cluster::start().expect("PostgreSQL starts"));
    let store = files.open().await;
    let keys = (0..10_000).map(|number| insert_with_version(&format!("key-{number}")));
    for writes in keys.collect::<Vec<_>>().chunks(1000) {
        let writes = writes.iter().flatten().cloned().collect();
        store.commit(Transaction::new("fill", writes)).await.expect("it is written");
    }
    store.close().await;
    drop(store);
    let options = target(&cluster);
    let began = Instant::now();
    let migrated = sqlite_to_postgres(&files.db(), &options, |_| ()).await.expect("it moves");
    let took = began.elapsed();
    eprintln!("10,000 keys and their versions moved in {took:?}");
    assert_eq!(migrated.tables[0].rows, 10_000);
    assert!(took.as_secs() < 60, "{took:?}");
}

/// Ends the attempt after so many reports; whether it was through before.
async fn cut_off_at(files: &Files, options: &PostgresOptions, reports: usize) -> bool {
    let (enough, db) = (Notify::new(), files.db());
    let mut count = 0;
    let attempt = sqlite_to_postgres(&db, options, |progress: Progress| {
        count += 1;
        assert!(progress.done <= progress.of);
        if count == reports {
            enough.notify_one();
        }
    });
    // Asked first: the attempt is dropped where it next waits.
    let is_through = tokio::select! {
        biased;
        () = enough.notified() => false,
        through = attempt => { through.expect("it moves"); true }
    };
    files.become_free().await;
    is_through
}

/// A row of each sort that the suite does not leave behind.
async fn fill(store: &SqliteStore) {
    let request = Some(remembered("r"));
    let writes = (0..20).flat_map(|number| insert_with_version(&format!("filled-{number}"))).collect();
    store.commit(Transaction { request, ..Transaction::new("fill", writes) }).await.expect("it is written");
    let (place, state) = refused_latch();
    store.set_pin_latch(&place, State::UNTRIED, state).await.expect("it is written");
}

fn insert(id: &str) -> Transaction {
    Transaction::new("insert", vec![Write::InsertKey(a_key(id))])
}

/// A key and its first version, which is born and as large as an RSA key is.
fn insert_with_version(id: &str) -> Vec<Write> {
    let key = a_key(id);
    let mut cka_id = [0; 16];
    let name = id.as_bytes();
    cka_id[..name.len()].copy_from_slice(name);
    let at = key.created_at;
    let timeline = Timeline {
        published_at: at,
        activates_at: at,
        retires_at: None,
        withdrawn_at: None,
        destroys_at: None,
    };
    let material = Material::Pair { spki: vec![7; 550].into(), kid: Kid::from_stored(id) };
    let version = KeyVersion {
        number: 1,
        cka_id: CkaId::from_bytes(cka_id),
        earlier_attempts: Vec::new(),
        token_serial: "1234".to_owned(),
        created_at: at,
        born: Some(Born { material, timeline }),
        maker: None,
        suspended: false,
        compromise: None,
        takes_over: TakeOver::AfterLead,
        cross_signature: None,
        destroyed_at: None,
    };
    vec![Write::InsertKey(key.clone()), Write::InsertVersion(key.id, version)]
}

fn remembered(id: &str) -> RememberedRequest {
    let key = "filled-0".parse().expect("a name");
    RememberedRequest { id: id.to_owned(), fingerprint: [9; 32], key, version: Some(1), at: at() }
}

fn refused_latch() -> (Place, State) {
    let place = Place { token_serial: "migrated".to_owned(), pin_generation: 7 };
    (place, State::Refused { text: "C_Login gave PinIncorrect".to_owned(), at: at() })
}

fn at() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

/// An empty database.
fn target(cluster: &Cluster) -> PostgresOptions {
    options_of(cluster, &cluster.create_database().expect("a database"))
}

fn options_of(cluster: &Cluster, database: &Database) -> PostgresOptions {
    let mut options = PostgresOptions::new(database.tls_url(cluster));
    options.password = Some(database.password().to_owned());
    options
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn db(&self) -> PathBuf {
        self.0.path().join("kms.db")
    }

    /// Until the file's lock is free: what is dropped in this process lets go of it a moment later.
    async fn become_free(&self) {
        let lock = fs::File::options().create(true).append(true).open(self.0.path().join("kms.lock"));
        let lock = lock.expect("the lock's file");
        let began = Instant::now();
        while lock.try_lock().is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "the lock is not let go of");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn moved(&self) -> PathBuf {
        self.0.path().join("kms.db.migrated")
    }

    async fn open(&self) -> SqliteStore {
        SqliteStore::open(self.db()).await.expect("it opens")
    }

    /// Past the store.
    async fn connect(&self, path: &Path) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        SqliteConnection::connect_with(&options).await.expect("it connects")
    }
}
