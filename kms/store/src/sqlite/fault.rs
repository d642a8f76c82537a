//! What SQLite says, in core's terms.

use kms_core::store::Fault;

/// Primary result codes (the low byte of the extended ones), <https://www.sqlite.org/rescode.html>.
const BUSY: u8 = 5;
const LOCKED: u8 = 6;
const READONLY: u8 = 8;
const CORRUPT: u8 = 11;
const FULL: u8 = 13;
const CANTOPEN: u8 = 14;
const NOTADB: u8 = 26;

/// A statement failed; nothing was written.
pub(crate) fn statement(error: sqlx::Error) -> Fault {
    match primary_code(&error) {
        Some(BUSY | LOCKED) => unavailable("another process holds its lock", &error),
        Some(READONLY) => unavailable("it is read-only", &error),
        Some(FULL) => unavailable("the disk is full, or the limit on the database's size is reached", &error),
        Some(CANTOPEN) => unavailable("the database file cannot be opened", &error),
        Some(CORRUPT | NOTADB) => Fault::Corrupt(format!("the database file is damaged: {error}")),
        _ if matches!(error, sqlx::Error::PoolTimedOut) => unavailable("the writer is busy", &error),
        _ => Fault::Unavailable(error.to_string()),
    }
}

/// A COMMIT failed. Only where SQLite says so before its commit record is written is the outcome known.
pub(crate) fn at_commit(error: sqlx::Error) -> Fault {
    match primary_code(&error) {
        Some(BUSY | LOCKED | READONLY | FULL) => statement(error),
        _ => Fault::Unknown(error.to_string()),
    }
}

/// Whether the disk, or the limit on the database's size, is full.
pub(crate) fn is_full(error: &sqlx::Error) -> bool {
    primary_code(error) == Some(FULL)
}

/// Whether the database may not be written.
pub(crate) fn is_read_only(error: &sqlx::Error) -> bool {
    primary_code(error) == Some(READONLY)
}

fn primary_code(error: &sqlx::Error) -> Option<u8> {
    let extended: u32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(extended.to_le_bytes()[0])
}

fn unavailable(what: &str, error: &sqlx::Error) -> Fault {
    Fault::Unavailable(format!("{what} ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_ends_in_anything_but_a_clean_refusal_has_an_unknown_outcome() {
        assert!(matches!(at_commit(sqlx::Error::WorkerCrashed), Fault::Unknown(_)));
        assert!(matches!(at_commit(sqlx::Error::Io(std::io::ErrorKind::Other.into())), Fault::Unknown(_)));
        assert!(matches!(statement(sqlx::Error::WorkerCrashed), Fault::Unavailable(_)));
    }

    #[tokio::test]
    async fn a_write_through_a_read_only_connection_says_so() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("some.db");
        std::fs::write(&path, []).expect("ours");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).read_only(true);
        let pool = sqlx::SqlitePool::connect_with(options).await.expect("it opens");
        let error = sqlx::query("CREATE TABLE t (x)").execute(&pool).await.expect_err("it only reads");
        assert!(is_read_only(&error), "{error}");
        assert!(matches!(at_commit(error), Fault::Unavailable(why) if why.starts_with("it is read-only")));
    }
}
