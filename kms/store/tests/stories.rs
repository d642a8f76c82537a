//! What the store promises beyond the suite: through restarts, crashes, second servers, a full disk and
//! databases that are not as this program left them.
#![expect(clippy::expect_used, reason = "a test's own steps must succeed")]

use std::{
    collections::HashSet,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use kms_core::{
    Key, Store as _,
    caller::Role,
    fakes::{a_key, a_token},
    proposal::{Change, Id, Proposal, State},
    store::{AccessToken, Fault, Transaction, Write},
    time::Timestamp,
};
use kms_store::{OpenError, Options, SqliteStore};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

/// Where a test that runs as a child keeps its store.
const CHILD_DIR: &str = "KMS_STORE_TEST_DIR";

#[tokio::test]
async fn a_second_server_is_refused_by_the_lock_file_but_a_reader_is_not() {
    let dir = Dir::new();
    let first = dir.open().await;
    let refused = SqliteStore::open(dir.db()).await.expect_err("there is a server");
    assert!(matches!(refused, OpenError::InUse(_)));
    assert!(refused.to_string().contains("kms.lock"), "{refused}");

    let reader = SqliteStore::open_read_only(dir.db()).await.expect("readers are welcome");
    first.commit(insert("a")).await.expect("it is written");
    assert_eq!(reader.load(None).await.expect("it reads"), first.load(None).await.expect("it reads"));
    let fault = reader.commit(insert("b")).await.expect_err("it only reads");
    assert!(matches!(&fault, Fault::Unavailable(why) if why.contains("for reading only")), "{fault}");

    drop(first);
    dir.open().await;
}

#[tokio::test]
async fn a_schema_of_a_later_release_is_refused_and_not_touched() {
    let dir = Dir::new();
    dir.open().await.close().await;
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9000, 'from the future', 1, x'00', 0)";
    dir.sql(later).await;
    let refused = SqliteStore::open(dir.db()).await.expect_err("it is newer");
    assert!(matches!(refused, OpenError::Newer { found: 9000, .. }), "{refused}");
    assert!(refused.to_string().contains("upgrade the program"), "{refused}");
    let refused = SqliteStore::open_read_only(dir.db()).await.expect_err("it is newer");
    assert!(matches!(refused, OpenError::Newer { found: 9000, .. }), "{refused}");
}

#[tokio::test]
async fn a_schema_that_somebody_altered_is_refused() {
    let dir = Dir::new();
    dir.open().await.close().await;
    dir.sql("UPDATE _sqlx_migrations SET checksum = x'00'").await;
    let refused = SqliteStore::open(dir.db()).await.expect_err("it is not ours");
    assert!(matches!(refused, OpenError::Migration { .. }), "{refused}");
}

#[tokio::test]
async fn a_reader_refuses_a_database_that_was_never_migrated() {
    let dir = Dir::new();
    dir.sql("CREATE TABLE other (x)").await;
    let refused = SqliteStore::open_read_only(dir.db()).await.expect_err("it is not ours");
    assert!(matches!(refused, OpenError::Older { found: 0, .. }), "{refused}");
}

#[tokio::test]
async fn a_read_only_database_is_refused_at_once() {
    let dir = Dir::new();
    dir.open().await.close().await;
    fs::set_permissions(dir.db(), fs::Permissions::from_mode(0o400)).expect("it is ours");
    let refused = SqliteStore::open(dir.db()).await.expect_err("it is read-only");
    assert!(matches!(refused, OpenError::ReadOnly { .. }), "{refused}");
}

#[tokio::test]
async fn what_is_not_a_database_or_has_no_directory_is_refused() {
    let dir = Dir::new();
    fs::write(dir.db(), "these are not the bytes of a database, however long one looks at them")
        .expect("ours");
    let refused = SqliteStore::open(dir.db()).await.expect_err("it is no database");
    assert!(refused.to_string().contains("not a database"), "{refused}");
    let refused =
        SqliteStore::open(dir.0.path().join("missing/kms.db")).await.expect_err("there is no directory");
    assert!(refused.to_string().contains("missing"), "{refused}");
}

#[tokio::test]
async fn a_full_store_says_so_writes_nothing_and_goes_on_once_there_is_room() {
    let dir = Dir::new();
    dir.open().await.close().await;
    let cramped = Options { pages_max: Some(1), ..Options::new(dir.db()) };
    let store = SqliteStore::open_with(&cramped).await.expect("the schema fits");
    let long = |name: &str| {
        let owner = "x".repeat(Key::OWNER_LEN_MAX);
        transaction(
            [0, 1, 2, 3]
                .map(|n| Write::InsertKey(Key { owner: owner.clone(), ..a_key(&format!("{name}{n}")) })),
        )
    };
    let mut kept = store.load(None).await.expect("it reads");
    let fault = loop {
        match store.commit(long(&format!("k{}-", kept.generation.0))).await {
            Ok(_) => kept = store.load(None).await.expect("it reads"),
            Err(fault) => break fault,
        }
    };
    assert!(matches!(&fault, Fault::Unavailable(why) if why.contains("full")), "{fault}");
    assert_eq!(store.load(None).await.expect("it reads"), kept, "half a transaction was written");
    store.check().await.expect("a rewrite needs no room");
    store.close().await;
    drop(store);

    let store = dir.open().await;
    assert_eq!(store.load(None).await.expect("it reads"), kept);
    store.commit(long("more-")).await.expect("there is room now");
}

#[tokio::test]
async fn a_row_that_makes_no_sense_is_named() {
    for (edit, named) in [
        ("UPDATE keys SET algorithm = 'ROT13'", "key odd, column algorithm"),
        ("UPDATE keys SET labels = '[]'", "key odd, column labels"),
        ("UPDATE keys SET id = 'No Name'", "key No Name, column id"),
        ("UPDATE generation SET value = -1", "generation"),
    ] {
        let dir = Dir::new();
        let store = dir.open().await;
        store.commit(insert("odd")).await.expect("it is written");
        dir.sql(edit).await;
        let fault = store.load(None).await.expect_err("it makes no sense");
        assert!(matches!(&fault, Fault::Corrupt(why) if why.contains(named)), "{edit}: {fault}");
    }
}

#[tokio::test]
async fn a_change_that_is_not_what_others_approve_and_a_token_of_half_a_role_are_not_loaded() {
    for (edit, named) in [
        ("UPDATE proposals SET change = replace(change, '41', '42')", "column change: it is not what was"),
        ("UPDATE proposals SET sha256 = zeroblob(32)", "column change: it is not what was"),
        ("UPDATE proposals SET state = 'approved'", "column state"),
        ("UPDATE proposals SET votes = '{}'", "column votes"),
        ("UPDATE access_tokens SET keys = '[]'", "access token bound, column keys"),
        ("UPDATE access_tokens SET role = 'root'", "access token bound, column role"),
        ("UPDATE access_tokens SET bound_to = 'somebody'", "access token bound, column bound_to"),
    ] {
        let dir = Dir::new();
        let store = dir.open().await;
        let token = AccessToken { own: None, ..a_token("bound", Role::User) };
        let writes = vec![Write::InsertProposal(a_proposal()), Write::InsertAccessToken(token)];
        store.commit(Transaction::new("a story", writes)).await.expect("it is written");
        store.load(None).await.expect("it makes sense");
        dir.sql(edit).await;
        let fault = store.load(None).await.expect_err("it makes no sense");
        assert!(matches!(&fault, Fault::Corrupt(why) if why.contains(named)), "{edit}: {fault}");
    }
}

#[tokio::test]
async fn a_proposal_under_the_hash_of_another_change_is_not_written() {
    let dir = Dir::new();
    let store = dir.open().await;
    let proposal = Proposal { sha256: [0; 32], ..a_proposal() };
    let write = Write::InsertProposal(proposal);
    let fault = store.commit(Transaction::new("a story", vec![write])).await.expect_err("it is another");
    assert!(matches!(&fault, Fault::Corrupt(why) if why.contains("of another change")), "{fault}");
    assert!(store.load(None).await.expect("it reads").proposals.is_empty());
}

fn a_proposal() -> Proposal {
    let change = Change::AcceptOlderStore { store: 41, token: 43 };
    let at = a_key("any").created_at;
    Proposal {
        id: Id::new([5; 16]),
        sha256: change.sha256().expect("a hash"),
        change,
        proposed_by: "unix:0".to_owned(),
        proposed_at: at,
        expires_at: at,
        required: 1,
        votes: Vec::new(),
        state: State::Open,
        state_at: at,
        reason: None,
        revision: 1,
    }
}

#[tokio::test]
async fn the_files_are_private() {
    let dir = Dir::new();
    let store = dir.open().await;
    store.commit(insert("a")).await.expect("it is written");
    for file in ["kms.db", "kms.db-wal", "kms.db-shm", "kms.lock"] {
        let mode = fs::metadata(dir.0.path().join(file)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test]
async fn a_time_is_kept_to_the_microsecond() {
    let dir = Dir::new();
    let store = dir.open().await;
    let fine: Timestamp = "2026-01-02T03:04:05.123456789Z".parse().expect("a time");
    let key = Key { created_at: fine, ..a_key("fine") };
    store.commit(transaction([Write::InsertKey(key)])).await.expect("it is written");
    let (key, _) = store.load(None).await.expect("it reads").keys.remove(0);
    assert_eq!(key.created_at, "2026-01-02T03:04:05.123456Z".parse().expect("a time"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_change_a_key_at_once_one_wins_and_readers_never_wait() {
    let dir = Dir::new();
    let store = Arc::new(dir.open().await);
    let before = store.commit(insert("contended")).await.expect("it is written");
    let changes = (0..16).map(|n| {
        let store = Arc::clone(&store);
        let key = a_key("contended");
        let changed = Key { owner: n.to_string(), revision: key.revision + 1, ..key };
        tokio::spawn(async move { store.commit(transaction([Write::UpdateKey(changed)])).await })
    });
    let outcomes = futures::future::join_all(changes).await;
    let won = outcomes.into_iter().filter(|outcome| matches!(outcome, Ok(Ok(_)))).count();
    assert_eq!(won, 1);
    assert_eq!(store.check().await.expect("it works").0, before.0 + 1);
}

#[tokio::test]
async fn a_commit_whose_caller_goes_away_is_finished() {
    let dir = Dir::new();
    let store = dir.open().await;
    let mut commit = Box::pin(store.commit(insert("abandoned")));
    assert!(futures::poll!(&mut commit).is_pending());
    drop(commit);
    while store.check().await.expect("it works").0 == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.load(None).await.expect("it reads").keys.len(), 1);
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = Dir::new();
    let mut child = Command::new(env::current_exe().expect("this test"))
        .args(["--exact", "child_that_commits_until_it_is_killed", "--ignored", "--nocapture"])
        .env(CHILD_DIR, dir.0.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut said = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let mut acknowledged: Vec<String> =
        said.by_ref().filter(|line| line.starts_with("done ")).take(500).collect();
    child.kill().expect("it runs");
    child.wait().expect("it ran");
    // The pipe still holds what it said before it died; its last words may lack their end.
    acknowledged.extend(said.filter(|line| line.starts_with("done ") && line.ends_with(" .")));

    let snapshot = dir.open().await.load(None).await.expect("it reads");
    assert_eq!(snapshot.generation.0, snapshot.keys.len() as u64, "a transaction is there by half");
    let names: HashSet<&str> = snapshot.keys.iter().map(|(key, _)| key.id.as_str()).collect();
    for line in &acknowledged {
        let name = line.trim_start_matches("done ").trim_end_matches(" .");
        assert!(names.contains(name), "{name} was acknowledged and is lost");
    }
}

#[tokio::test]
#[ignore = "it is the child of the test above"]
async fn child_that_commits_until_it_is_killed() {
    let dir = PathBuf::from(env::var_os(CHILD_DIR).expect("its parent says where"));
    let store = SqliteStore::open(dir.join("kms.db")).await.expect("it opens");
    for n in 0_u64.. {
        let name = format!("k{n}");
        store.commit(insert(&name)).await.expect("it is written");
        std::io::stdout().write_all(format!("done {name} .\n").as_bytes()).expect("its parent listens");
    }
}

fn insert(name: &str) -> Transaction {
    transaction([Write::InsertKey(a_key(name))])
}

fn transaction<const N: usize>(writes: [Write; N]) -> Transaction {
    Transaction::new("a story", writes.into())
}

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn db(&self) -> PathBuf {
        self.0.path().join("kms.db")
    }

    async fn open(&self) -> SqliteStore {
        SqliteStore::open(self.db()).await.expect("it opens")
    }

    /// Edits the database behind the store's back.
    async fn sql(&self, statement: &'static str) {
        let path: &Path = &self.db();
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options).await.expect("it connects");
        sqlx::query(statement).execute(&mut connection).await.expect("it is edited");
        connection.close().await.expect("it closes");
    }
}
