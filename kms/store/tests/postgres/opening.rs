//! Which databases are opened, and what becomes of their schema.

use std::fs;

use kms_core::{Store as _, store::Fault};
use kms_store::{PostgresOptions, PostgresStore};

use crate::{World, beat, insert};

const OPENERS: usize = 8;

impl World {
    /// Changes a setting of the database; sessions that are there keep theirs.
    fn alter(&self, what: &str) {
        // From elsewhere: a session of a read-only database may not.
        let alter = format!("ALTER DATABASE {} {what}", self.database.name);
        self.cluster.sql("postgres", &alter).expect("it is set");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_eight_that_open_an_empty_database_at_once_all_serve_one_schema() {
    let world = World::new();
    let options = world.options();
    let opens = (0..OPENERS).map(|_| PostgresStore::open(&options));
    let stores = futures::future::try_join_all(opens).await.expect("all open");
    for (number, store) in stores.iter().enumerate() {
        store.commit(insert(&format!("k{number}"))).await.expect("it is written");
    }
    let rows = stores[0].load(None).await.expect("it reads");
    assert_eq!((rows.generation.0, rows.keys.len()), (OPENERS as u64, OPENERS));
    for store in &stores {
        assert_eq!(store.load(None).await.expect("it reads"), rows);
    }
    let files = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/postgres");
    let migrations = fs::read_dir(files).expect("migrations").count();
    let applied = world.sql("SELECT count(*), count(DISTINCT version) FROM _sqlx_migrations WHERE success");
    assert_eq!(applied, format!("{migrations}|{migrations}"), "each was run once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_database_is_refused_with_what_to_do() {
    let world = World::new();
    world.open().await.close().await;
    world.alter("SET default_transaction_read_only = on");
    for refused in refusals(&world.options()).await {
        assert!(refused.contains("read-only") && refused.contains("store.url"), "{refused}");
    }
    world.alter("RESET default_transaction_read_only");
    world.open().await.check().await.expect("it works");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_unsafe_setting_is_refused_until_the_operator_names_it() {
    let world =
        World::with(&[("synchronous_commit", "local"), ("fsync", "off"), ("full_page_writes", "off")]);
    let mut options = world.options();
    for setting in ["synchronous_commit", "fsync", "full_page_writes"] {
        let refused = PostgresStore::open(&options).await.expect_err("it is unsafe").to_string();
        assert!(refused.contains(&format!("the database has {setting} = ")), "{refused}");
        assert!(refused.contains("store.unsafe_settings"), "{refused}");
        assert!(
            world.sql("SELECT to_regclass('keys') IS NULL") == "t",
            "it was migrated before it was refused"
        );
        options.unsafe_settings.insert(setting.to_owned());
    }
    let store = PostgresStore::open(&options).await.expect("all are named");
    store.commit(insert("a")).await.expect("it is written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_becomes_unsafe_is_found_out_by_the_next_connection() {
    let world = World::new();
    let store = world.open().await;
    let known = store.commit(insert("before")).await.expect("it is written");
    world.alter("SET synchronous_commit = off");
    world.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
    let fault = store.pulse(beat("a", known)).await.expect_err("it is unsafe");
    let refused = matches!(&fault, Fault::Unavailable(why) if why.contains("synchronous_commit = off"));
    assert!(refused, "{fault}");
    let fault = store.commit(insert("during")).await.expect_err("it is unsafe");
    assert!(matches!(fault, Fault::Unavailable(_)), "{fault}");
    let mut accepts = world.options();
    accepts.unsafe_settings.insert("synchronous_commit".to_owned());
    let accepts = PostgresStore::open(&accepts).await.expect("it is named");
    assert_eq!(accepts.load(None).await.expect("it reads").generation, known, "it was written");

    world.alter("RESET synchronous_commit");
    store.commit(insert("after")).await.expect("it is safe again");
    store.pulse(beat("a", known)).await.expect("it is safe again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_schema_is_served_when_it_allows_that_and_refused_when_it_does_not() {
    let world = World::new();
    let store = world.open().await;
    store.commit(insert("before")).await.expect("it is written");
    // A later release has come by: rows may have columns that this one does not know.
    world.sql(
        "ALTER TABLE generation ADD COLUMN later TEXT; ALTER TABLE keys ADD COLUMN later TEXT;
         ALTER TABLE key_versions ADD COLUMN later TEXT; ALTER TABLE replicas ADD COLUMN later TEXT;
         UPDATE keys SET later = 'kept';
         INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9000, 'from the future', true, '\\x00', 0);",
    );
    let second = world.open().await;
    for (store, name) in [(&store, "by-who-was-there"), (&second, "by-who-came-later")] {
        let known = store.commit(insert(name)).await.expect("it is written");
        assert_eq!(store.pulse(beat(name, known)).await.expect("a pulse").generation, known);
    }
    let rows = second.load(None).await.expect("it reads");
    assert_eq!(rows, store.load(None).await.expect("it reads"));
    assert_eq!(rows.keys.len(), 3);
    PostgresStore::look_at(&world.options()).await.expect("it may be looked at");
    assert_eq!(world.sql("SELECT later FROM keys WHERE id = 'before'"), "kept");
    assert_eq!(world.sql("SELECT count(*) FROM _sqlx_migrations WHERE version = 9000"), "1");

    // And a still later one, which took something away.
    world.sql("UPDATE schema_compatibility SET oldest_program = 9001");
    for refused in refusals(&world.options()).await {
        assert!(refused.contains("9001") && refused.contains("upgrade the program"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_somebody_altered_is_refused_and_one_that_is_not_there_is_not_made_by_a_look() {
    let world = World::new();
    let refused = PostgresStore::look_at(&world.options()).await.expect_err("it is empty").to_string();
    assert!(refused.contains("nothing of kms yet") && refused.contains("kms bootstrap"), "{refused}");
    assert_eq!(world.sql("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"), "0");
    world.open().await.close().await;
    world.sql("UPDATE _sqlx_migrations SET checksum = '\\x00'");
    let refused = PostgresStore::open(&world.options()).await.expect_err("it is not ours").to_string();
    assert!(refused.contains("cannot be migrated") && refused.contains("restore a backup"), "{refused}");
}

/// Of who would serve, and of who would only look.
async fn refusals(options: &PostgresOptions) -> [String; 2] {
    let serve = PostgresStore::open(options).await.expect_err("it is refused");
    let look = PostgresStore::look_at(options).await.expect_err("it is refused");
    [serve, look].map(|refused| refused.to_string())
}
