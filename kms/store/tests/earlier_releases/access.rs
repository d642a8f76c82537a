//! Access tokens and classes of before role bindings, policy and approvals: they mean what they meant. And what the
//! release before these would not obey, or could not read, is not written while it is at work.

use std::sync::Arc;

use kms_core::{
    Store,
    access::{PolicyDocument, RoleBinding, Scope},
    caller::{KeyScope, OwnRole, Role},
    class::{ClassName, KeyClass, Periods},
    fakes::a_token,
    store::{AccessToken, Fault, Write},
    time::SignedDuration,
};
use kms_store::{PostgresOptions, PostgresStore, SqliteStore};
use kms_test_postgres::Cluster;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{Before, SQLITE, at, transaction, up_to};

/// The newest migration that the release before this one knows, in PostgreSQL and in SQLite.
const BEFORE: i64 = 4;
const BEFORE_IN_SQLITE: i64 = 8;

/// What that release names when it writes; in {1} and {2} go the hashes.
const WRITTEN: [&str; 4] = [
    "INSERT INTO access_tokens (name, sha256, role, keys, bootstrap, created_at_us, expires_at_us, revoked_at_us,
        generation) VALUES ('admin', {1}, 'administrator', NULL, TRUE, 1, NULL, NULL, 1)",
    "INSERT INTO access_tokens (name, sha256, role, keys, bootstrap, created_at_us, expires_at_us, revoked_at_us,
        generation) VALUES ('user', {2}, 'user', '[\"a\",\"b\"]', FALSE, 1, 2, 3, 1)",
    "INSERT INTO key_classes (name, rotation_period_us, publish_lead_us, max_token_ttl_us, overlap_us,
        destroy_after_us, revision, updated_at_us, generation) VALUES ('development', NULL, 1, 2, 3, NULL, 1, 4, 1)",
    "INSERT INTO key_classes (name, rotation_period_us, publish_lead_us, max_token_ttl_us, overlap_us,
        destroy_after_us, revision, updated_at_us, generation) VALUES ('root', NULL, 1, 2, 3, NULL, 1, 4, 1)",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_classes_of_a_sqlite_file_of_before_approvals_mean_what_they_meant() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("kms.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options).await.expect("it connects");
    up_to(&SQLITE, BEFORE_IN_SQLITE).run(&mut connection).await.expect("it is made");
    for insert in WRITTEN {
        let insert = hashed(insert, |hex| format!("x'{hex}'"));
        sqlx::query(sqlx::AssertSqlSafe(insert)).execute(&mut connection).await.expect("it is written");
    }
    connection.close().await.expect("it ends");
    let store = SqliteStore::open(&path).await.expect("it is brought forward");
    they_mean_what_they_meant(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgresql_nothing_is_written_that_the_release_before_would_not_obey_while_it_serves() {
    let cluster = Cluster::start().expect("PostgreSQL starts");
    let database = cluster.create_database().expect("a database");
    let before = Before { cluster: &cluster, database: &database };
    before.open(BEFORE).await;
    for insert in WRITTEN {
        before.do_as_it_does(&hashed(insert, |hex| format!("'\\x{hex}'")));
    }
    let mut options = PostgresOptions::new(database.url_at(cluster.addr()));
    options.password = Some(database.password().to_owned());
    let store = PostgresStore::open(&options).await.expect("it is brought forward");
    they_mean_what_they_meant(&store).await;

    // How many must approve outlives a change by the release before.
    let asked = "UPDATE key_classes SET approvals = 3 WHERE name = 'root'";
    cluster.sql(&database.name, asked).expect("it is written");
    before.do_as_it_does(
        "UPDATE key_classes SET overlap_us = 5, revision = 2 WHERE name = 'root' AND revision = 1",
    );
    let root = class_of(&store, ClassName::Root).await;
    assert_eq!((root.approvals, root.revision), (3, 2));

    before.serves(&BEFORE.to_string());
    let generation = store.check().await.expect("it works");
    let development = class_of(&store, ClassName::Development).await;
    for write in not_obeyed(development) {
        let what = format!("{write:?}");
        let refused = store.commit(transaction(vec![write])).await.expect_err(&what);
        let says = matches!(&refused, Fault::Unavailable(why) if why.contains("replica before is"));
        assert!(says && refused.to_string().contains("upgrade it"), "{what}: {refused}");
    }
    assert_eq!(store.check().await.expect("it works"), generation, "nothing was written");
    for role in [Role::Administrator, Role::User, Role::RawSigner, Role::Recoverer] {
        let known = Write::InsertAccessToken(a_token(&format!("known-{role}"), role));
        store.commit(transaction(vec![known])).await.expect("it knows these");
    }
    let classes = [
        KeyClass { revision: 2, ..development },
        KeyClass { updated_at: Some(at(1)), revision: 1, ..KeyClass::built_in(ClassName::Api) },
    ];
    store.commit(transaction(classes.map(Write::PutClass).into())).await.expect("it does so anyhow");
    let oldest = || cluster.sql(&database.name, "SELECT oldest_program FROM schema_compatibility");
    assert_eq!(oldest().expect("it reads"), "4", "it may be started again");

    before.do_as_it_does("DELETE FROM replicas WHERE id = 'before'");
    for write in not_obeyed(KeyClass { revision: 2, ..development }) {
        let what = format!("{write:?}");
        cluster
            .sql(&database.name, "UPDATE schema_compatibility SET oldest_program = 4")
            .expect("as if it were the first");
        store.commit(transaction(vec![write])).await.expect(&what);
        assert_eq!(oldest().expect("it reads"), "5", "{what}");
    }
}

/// Everything of which the release before knows nothing.
fn not_obeyed(class: KeyClass) -> Vec<Write> {
    let policy = PolicyDocument {
        version: 1,
        text: String::new(),
        note: String::new(),
        by: "unix:0".to_owned(),
        at: at(1),
    };
    let binding = RoleBinding {
        name: "a-binding".parse().expect("a name"),
        principal: "unix:0".parse().expect("a principal"),
        role: Role::User,
        only: Vec::new(),
        on: Scope::All,
        required_context: Default::default(),
        not_before: None,
        expires_at: None,
        created_by: "unix:0".to_owned(),
        created_at: at(1),
        revoked_at: None,
    };
    let user = |name| a_token(name, Role::User);
    let minute = Some(SignedDuration::from_mins(1));
    let bound_to = Some("unix:7".parse().expect("a principal"));
    let mut tokens = vec![
        AccessToken { own: None, ..user("without-a-role") },
        AccessToken { period: minute, expires_at: Some(at(9)), ..user("that-is-renewed") },
        AccessToken { renewable_until: Some(at(9)), ..user("with-a-bound") },
        AccessToken { bound_to, ..user("that-is-bound") },
    ];
    for role in [Role::KeyAdmin, Role::Auditor, Role::Approver, Role::Unsealer] {
        tokens.push(a_token(role.as_str(), role));
    }
    let approvals = class.approvals + 1;
    let class = KeyClass { approvals, revision: class.revision + 1, updated_at: Some(at(5)), ..class };
    let others = [Write::InsertPolicy(policy), Write::InsertRoleBinding(binding), Write::PutClass(class)];
    tokens.into_iter().map(Write::InsertAccessToken).chain(others).collect()
}

async fn they_mean_what_they_meant<S: Store>(store: &S) {
    let rows = store.load(None).await.expect("it reads");
    let keys = ["a", "b"].map(|name| name.parse().expect("a name"));
    let admin = AccessToken {
        sha256: [1; 32],
        bootstrap: true,
        created_at: at(1),
        ..a_token("admin", Role::Administrator)
    };
    let user = AccessToken {
        sha256: [2; 32],
        own: Some(OwnRole { role: Role::User, keys: KeyScope::Only(Arc::from(keys)) }),
        created_at: at(1),
        expires_at: Some(at(2)),
        revoked_at: Some(at(3)),
        ..a_token("user", Role::User)
    };
    assert_eq!(rows.access_tokens, [admin, user]);
    let micros = SignedDuration::from_micros;
    let periods = Periods {
        rotation_period: None,
        publish_lead: micros(1),
        max_token_ttl: micros(2),
        overlap: micros(3),
        destroy_after: None,
    };
    let class = |name, approvals| KeyClass { name, periods, approvals, revision: 1, updated_at: Some(at(4)) };
    assert_eq!(rows.classes, [class(ClassName::Development, 0), class(ClassName::Root, 1)]);
    assert!(rows.role_bindings.is_empty() && rows.policies.is_empty() && rows.proposals.is_empty());
}

async fn class_of<S: Store>(store: &S, name: ClassName) -> KeyClass {
    let classes = store.load(None).await.expect("it reads").classes;
    classes.into_iter().find(|class| class.name == name).expect("it was changed")
}

/// With the hashes in their places.
fn hashed(insert: &str, hash: impl Fn(String) -> String) -> String {
    insert.replace("{1}", &hash("01".repeat(32))).replace("{2}", &hash("02".repeat(32)))
}
