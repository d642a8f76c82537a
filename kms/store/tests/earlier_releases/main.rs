//! Rows of earlier releases: a newer schema has them all, and on PostgreSQL the release before goes on beside this one.
#![expect(clippy::expect_used, reason = "a test's own steps must succeed")]

mod access;

use kms_core::{
    Algorithm, Key, KeyVersion, Kid, Store,
    claim_rules::ClaimRules,
    class::{ClassName, Inherited},
    fakes::a_key,
    hsm::{CkaId, KnownAnswer},
    key::{Born, Compromise, Material, Purpose, TakeOver, Timeline},
    replica::{Beat, ReplicaId},
    store::{Fault, Generation, Transaction, Write},
    time::{SignedDuration, Timestamp},
};
use kms_store::{PostgresOptions, PostgresStore, SqliteStore};
use kms_test_postgres::{Cluster, Database};
use sqlx::{
    Connection as _, PgConnection, SqliteConnection, migrate::Migrator, postgres::PgConnectOptions,
    sqlite::SqliteConnectOptions,
};

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");
/// The newest migration that the release before keys that wrap knows.
const BEFORE_WRAPPING: i64 = 3;

/// Columns that were there from the beginning.
const KEY: &str = "(id, uid, algorithm, owner, labels, rotation_period_us, publish_lead_us, max_token_ttl_us,
    created_at_us, updated_at_us, revision)";
const VERSION: &str = "(key_id, number, cka_id, earlier_attempts, token_serial, created_at_us, spki, kid,
    published_at_us, activates_at_us, suspended)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_file_of_any_earlier_release_has_all_its_rows_and_rules() {
    for known in SQLITE.iter().map(|migration| migration.version) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kms.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options).await.expect("it connects");
        up_to(&SQLITE, known).run(&mut connection).await.expect("it is made");
        for insert in [
            format!(
                "INSERT INTO keys {KEY} VALUES ('k', x'{UID}', 'ES256', 'o', '{{}}', NULL, 1, 2, 3, 4, 5)"
            ),
            format!(
                "INSERT INTO key_versions {VERSION} VALUES ('k', 1, x'{FIRST}', x'', 't', 6, x'07', 'kid', 8, 9, 1)"
            ),
            format!(
                "INSERT INTO key_versions {VERSION}
                 VALUES ('k', 2, x'{SECOND}', x'{FIRST}', 't', 7, NULL, NULL, NULL, NULL, 0)"
            ),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(insert)).execute(&mut connection).await.expect("it is written");
        }
        if known >= 7 {
            for update in [
                "UPDATE key_versions SET retires_at_us = 10, withdrawn_at_us = 11, destroys_at_us = 12,
                    compromised_at_us = 13, compromise_reason = 'r', destroyed_at_us = 14, asked_for_us = 15,
                    cross_signature = 'a.b.c' WHERE number = 1",
                "UPDATE key_versions SET maker = 'm', at_once = 1 WHERE number = 2",
            ] {
                sqlx::query(update).execute(&mut connection).await.expect("it is written");
            }
        }
        connection.close().await.expect("it ends");

        let store = SqliteStore::open(&path).await.expect("it is brought forward");
        let rows = store.load(None).await.expect("it reads").keys;
        let versions = if known < 7 { [the_born(), the_unborn()] } else { [the_full(), the_made()] };
        assert_eq!(rows, [(the_key(), versions.to_vec())], "from {known}");
        the_rules_stand(&store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgresql_the_release_before_goes_on_and_each_reads_what_the_other_wrote() {
    let cluster = Cluster::start().expect("PostgreSQL starts");
    let database = cluster.create_database().expect("a database");
    let before = Before { cluster: &cluster, database: &database };
    before.open(BEFORE_WRAPPING).await;
    before.do_as_it_does(&format!(
        "INSERT INTO keys {KEY_BEFORE} VALUES ('k', '\\x{UID}', 'ES256', 'o', '{{}}', NULL, 1, 2, 3, 4, 5, NULL,
            'jwt', 'jwt-signing', '{{}}', 0, NULL, '{{}}', NULL, 1)"
    ));

    let mut options = PostgresOptions::new(database.url_at(cluster.addr()));
    options.password = Some(database.password().to_owned());
    let store = PostgresStore::open(&options).await.expect("it is brought forward");
    // A birth by the release before, after the migration.
    let values = |number, cka_id: &str, earlier: &str, created: i64, suspended| {
        format!(
            "('k', {number}, '\\x{cka_id}', '\\x{earlier}', 't', {created}, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                {suspended}, NULL, NULL, NULL, NULL, FALSE, NULL, NULL)"
        )
    };
    let insert = |values: String| format!("INSERT INTO key_versions {VERSION_BEFORE} VALUES {values}");
    before.do_as_it_does(&insert(values(1, FIRST, "", 6, true)));
    let second = insert(values(2, SECOND, FIRST, 7, false));
    cluster.sql(&database.name, &second).expect_err("there is one on its way");
    before.do_as_it_does(
        "UPDATE key_versions SET spki = '\\x07', kid = 'kid', published_at_us = 8, activates_at_us = 9
         WHERE key_id = 'k' AND number = 1",
    );
    before.do_as_it_does(&second);
    let half =
        "UPDATE key_versions SET spki = '\\x07', published_at_us = 8, activates_at_us = 9 WHERE number = 2";
    cluster.sql(&database.name, half).expect_err("a pair has a kid");
    assert_eq!(
        store.load(None).await.expect("it reads").keys,
        [(the_key(), vec![the_born(), the_unborn()])],
        "this release reads what the one before wrote"
    );

    // What this release knows of a key, and the one before does not, outlives a change by that one.
    let required_context = vec!["table".to_owned()];
    let changed = Key { required_context: required_context.clone(), revision: 6, ..the_key() };
    store.commit(transaction(vec![Write::UpdateKey(changed)])).await.expect("it is written");
    before.do_as_it_does("UPDATE keys SET owner = 'p', revision = 7 WHERE id = 'k' AND revision = 7 - 1");
    let (key, _) = &store.load(None).await.expect("it reads").keys[0];
    assert_eq!((&key.required_context, key.owner.as_str()), (&required_context, "p"));

    // A key that wraps would stop it: none is made while it is at work, and it is not started again after the first.
    before.serves("NULL");
    let ours = Beat {
        replica: ReplicaId::new("ours"),
        generation: Some(Generation(1)),
        leads: true,
        report: "{}".to_owned(),
    };
    store.pulse(ours).await.expect("a pulse");
    let generation = store.check().await.expect("it works");
    let kek = Key { algorithm: Algorithm::A256GcmKw, purpose: Purpose::Wrap, ..a_key("too-early") };
    let refused = store.commit(transaction(vec![Write::InsertKey(kek)])).await.expect_err("it would stop it");
    assert!(matches!(&refused, Fault::Unavailable(why) if why.contains("replica before is")), "{refused}");
    assert_eq!(store.check().await.expect("it works"), generation, "nothing was written");
    store.commit(transaction(vec![Write::InsertKey(a_key("signs"))])).await.expect("it knows these");
    let oldest = || cluster.sql(&database.name, "SELECT oldest_program FROM schema_compatibility");
    assert_eq!(oldest().expect("it reads"), "1");
    before.do_as_it_does("DELETE FROM replicas WHERE id = 'before'");
    the_rules_stand(&store).await;
    assert_eq!(oldest().expect("it reads"), "4");
    let read = format!(
        "SELECT count(*) FROM (SELECT {} FROM key_versions) v",
        &VERSION_BEFORE[1..VERSION_BEFORE.len() - 1]
    );
    assert_eq!(cluster.sql(&database.name, &read).expect("it reads"), "3");
}

const UID: &str = "07070707070707070707070707070707";
const FIRST: &str = "01010101010101010101010101010101";
const SECOND: &str = "02020202020202020202020202020202";

/// What the release before keys that wrap names when it writes.
const KEY_BEFORE: &str = "(id, uid, algorithm, owner, labels, rotation_period_us, publish_lead_us, max_token_ttl_us,
    created_at_us, updated_at_us, revision, tokens_until_us, purpose, class, inherited, overlap_us, destroy_after_us,
    claim_rules, bundles_until_us, generation)";
const VERSION_BEFORE: &str = "(key_id, number, cka_id, earlier_attempts, token_serial, created_at_us, spki, kid,
    published_at_us, activates_at_us, retires_at_us, withdrawn_at_us, destroys_at_us, suspended, compromised_at_us,
    destroyed_at_us, maker, compromise_reason, at_once, asked_for_us, cross_signature)";

/// An earlier release, as the database sees it.
struct Before<'a> {
    cluster: &'a Cluster,
    database: &'a Database,
}

impl Before<'_> {
    async fn open(&self, known: i64) {
        let url = self.database.url_at(self.cluster.addr());
        let options: PgConnectOptions = url.parse().expect("a URL");
        let options = options.password(self.database.password());
        let mut connection = PgConnection::connect_with(&options).await.expect("it connects");
        up_to(&POSTGRES, known).run(&mut connection).await.expect("it is made");
        connection.close().await.expect("it ends");
    }

    /// Serves, as one that says of its schema what `schema` is.
    fn serves(&self, schema: &str) {
        self.do_as_it_does(&format!(
            "INSERT INTO replicas (id, seen_at_us, known, report, schema)
             VALUES ('before', (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT, 1, '{{}}', {schema})"
        ));
    }

    fn do_as_it_does(&self, statement: &str) {
        self.cluster.sql(&self.database.name, statement).expect("it fits");
    }
}

fn up_to(all: &Migrator, known: i64) -> Migrator {
    let migrations = all.iter().filter(|migration| migration.version <= known).cloned().collect();
    Migrator { migrations, ..Migrator::DEFAULT }
}

/// On rows of an earlier release hold the rules of this one.
async fn the_rules_stand<S: Store>(store: &S) {
    let insert = |id: &str, row: KeyVersion| Write::InsertVersion(id.parse().expect("a name"), row);
    let second_on_its_way = KeyVersion { number: 3, cka_id: CkaId::from_bytes([3; 16]), ..the_unborn() };
    let refused = store.commit(transaction(vec![insert("k", second_on_its_way)])).await;
    assert!(matches!(refused, Err(Fault::Exists(_))), "two are on their way: {refused:?}");
    let kek = Key { algorithm: Algorithm::A256GcmKw, purpose: Purpose::Wrap, ..a_key("kek") };
    let known_answer = KnownAnswer::from_bytes(&[5; KnownAnswer::LEN]).expect("of that length");
    let born = Born { material: Material::Secret { known_answer }, ..the_born().born.expect("it is born") };
    let shared = KeyVersion { born: Some(born.clone()), ..the_born() };
    let write = Write::InsertKey(kek.clone());
    let refused = store.commit(transaction(vec![write.clone(), insert("kek", shared)])).await;
    assert!(matches!(refused, Err(Fault::Exists(_))), "two share an object: {refused:?}");
    let row = KeyVersion { cka_id: CkaId::from_bytes([4; 16]), born: Some(born), ..the_born() };
    store.commit(transaction(vec![write, insert("kek", row.clone())])).await.expect("it is written");
    let unknown = Write::ReserveWraps { key: kek.id.clone(), version: 2, from: 0, to: 1 };
    let refused = store.commit(transaction(vec![unknown])).await;
    assert!(matches!(refused, Err(Fault::Changed(_))), "a budget without a version: {refused:?}");
    let loaded = store.load(None).await.expect("it reads").keys;
    assert!(loaded.contains(&(kek, vec![row])), "{loaded:?}");
    assert_eq!(store.load(Some(Generation(u32::MAX.into()))).await.expect("it reads").keys, []);
}

fn transaction(writes: Vec<Write>) -> Transaction {
    Transaction::new("a story", writes)
}

fn the_key() -> Key {
    Key {
        purpose: Purpose::Jwt,
        class: ClassName::JwtSigning,
        inherited: Inherited::default(),
        owner: "o".to_owned(),
        labels: Default::default(),
        rotation_period: None,
        publish_lead: SignedDuration::from_micros(1),
        max_token_ttl: SignedDuration::from_micros(2),
        overlap: SignedDuration::ZERO,
        destroy_after: None,
        claim_rules: ClaimRules::default(),
        required_context: Vec::new(),
        created_at: at(3),
        updated_at: at(4),
        revision: 5,
        ..a_key("k")
    }
}

fn the_born() -> KeyVersion {
    let timeline = Timeline {
        published_at: at(8),
        activates_at: at(9),
        retires_at: None,
        withdrawn_at: None,
        destroys_at: None,
    };
    let material = Material::Pair { spki: [7][..].into(), kid: Kid::from_stored("kid") };
    KeyVersion {
        number: 1,
        cka_id: CkaId::from_bytes([1; 16]),
        earlier_attempts: Vec::new(),
        created_at: at(6),
        born: Some(Born { material, timeline }),
        suspended: true,
        ..the_unborn()
    }
}

fn the_unborn() -> KeyVersion {
    KeyVersion {
        number: 2,
        cka_id: CkaId::from_bytes([2; 16]),
        earlier_attempts: vec![CkaId::from_bytes([1; 16])],
        token_serial: "t".to_owned(),
        created_at: at(7),
        born: None,
        maker: None,
        takes_over: TakeOver::AfterLead,
        cross_signature: None,
        suspended: false,
        compromise: None,
        destroyed_at: None,
    }
}

/// With all that the later releases added.
fn the_full() -> KeyVersion {
    let born = the_born().born.map(|born| {
        let ends = [10, 11, 12].map(|micros| Some(at(micros)));
        let [retires_at, withdrawn_at, destroys_at] = ends;
        Born { timeline: Timeline { retires_at, withdrawn_at, destroys_at, ..born.timeline }, ..born }
    });
    KeyVersion {
        born,
        compromise: Some(Compromise { at: at(13), reason: "r".to_owned() }),
        destroyed_at: Some(at(14)),
        takes_over: TakeOver::At(at(15)),
        cross_signature: Some("a.b.c".into()),
        ..the_born()
    }
}

fn the_made() -> KeyVersion {
    KeyVersion { maker: Some(ReplicaId::new("m")), takes_over: TakeOver::AtOnce, ..the_unborn() }
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).expect("a time")
}
