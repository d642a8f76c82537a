//! What PostgreSQL says, in core's terms.

use kms_core::store::Fault;

/// A statement failed; nothing was written: without a COMMIT nothing is.
pub(super) fn statement(error: sqlx::Error) -> Fault {
    match &error {
        sqlx::Error::PoolTimedOut => unavailable("no connection to the database was to be had", &error),
        sqlx::Error::Io(_) => unavailable("the connection to the database broke, or cannot be made", &error),
        sqlx::Error::Tls(_) => unavailable("TLS to the database failed; see sslmode and sslrootcert", &error),
        sqlx::Error::Database(answer) => match answer.code().as_deref() {
            Some("25006") => unavailable("it is read-only: a standby, or set so", &error),
            Some("28P01" | "28000") => unavailable("the database refuses user or password", &error),
            Some("3D000") => unavailable("there is no such database", &error),
            Some("53100" | "53200") => unavailable("the database's disk or memory is full", &error),
            Some("53300") => unavailable("the database has too many connections", &error),
            Some("57014" | "55P03" | "25P03") => unavailable("the database is too slow", &error),
            Some("57P01" | "57P02" | "57P03") => unavailable("the database starts or stops", &error),
            _ => Fault::Unavailable(error.to_string()),
        },
        _ => Fault::Unavailable(error.to_string()),
    }
}

/// A COMMIT failed. Only where PostgreSQL itself refuses the transaction is the outcome known.
pub(super) fn at_commit(error: sqlx::Error) -> Fault {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    // Classes 23 (a constraint), 25 (the state of the transaction) and 40 (rolled back, but not 40003: unknown).
    match code.as_deref() {
        Some("40003") => Fault::Unknown(error.to_string()),
        Some(code) if ["23", "25", "40"].contains(&code.get(..2).unwrap_or_default()) => statement(error),
        _ => Fault::Unknown(error.to_string()),
    }
}

/// Nothing came back in time.
pub(super) fn too_slow(what: &str) -> Fault {
    Fault::Unavailable(format!("the database does not answer: {what} took too long"))
}

fn unavailable(what: &str, error: &sqlx::Error) -> Fault {
    Fault::Unavailable(format!("{what} ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_whose_answer_is_lost_has_an_unknown_outcome() {
        assert!(matches!(
            at_commit(sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into())),
            Fault::Unknown(_)
        ));
        assert!(matches!(at_commit(sqlx::Error::WorkerCrashed), Fault::Unknown(_)));
        assert!(matches!(
            statement(sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into())),
            Fault::Unavailable(_)
        ));
    }
}
