//! One connection inside a transaction, as both databases have it.

use std::future::Future;

use kms_core::store::Fault;

use crate::statement::Statement;

/// Runs statements one after another.
pub(crate) trait Session: Send {
    /// A row of a result.
    type Row: Row + Send + Sync;

    /// Runs it; returns how many rows it changed.
    fn execute(&mut self, statement: Statement) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Runs it; returns its result.
    fn fetch(
        &mut self,
        statement: Statement,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// A statement failed; nothing was written.
    fn fault(error: sqlx::Error) -> Fault;
}

/// A row, whose cells are read by the names of their columns.
pub(crate) trait Row {
    fn int(&self, column: &str) -> Result<Option<i64>, sqlx::Error>;
    fn text(&self, column: &str) -> Result<Option<String>, sqlx::Error>;
    fn bytes(&self, column: &str) -> Result<Option<Vec<u8>>, sqlx::Error>;
    fn bool(&self, column: &str) -> Result<Option<bool>, sqlx::Error>;
}

/// Implements both traits for a database of sqlx.
macro_rules! session {
    ($connection:ty, $row:ty, $fault:path) => {
        impl crate::session::Session for $connection {
            type Row = $row;

            async fn execute(&mut self, statement: crate::statement::Statement) -> Result<u64, sqlx::Error> {
                Ok(crate::session::bound!(statement).execute(self).await?.rows_affected())
            }

            async fn fetch(
                &mut self,
                statement: crate::statement::Statement,
            ) -> Result<Vec<$row>, sqlx::Error> {
                crate::session::bound!(statement).fetch_all(self).await
            }

            fn fault(error: sqlx::Error) -> kms_core::store::Fault {
                $fault(error)
            }
        }

        impl crate::session::Row for $row {
            fn int(&self, column: &str) -> Result<Option<i64>, sqlx::Error> {
                sqlx::Row::try_get(self, column)
            }

            fn text(&self, column: &str) -> Result<Option<String>, sqlx::Error> {
                sqlx::Row::try_get(self, column)
            }

            fn bytes(&self, column: &str) -> Result<Option<Vec<u8>>, sqlx::Error> {
                sqlx::Row::try_get(self, column)
            }

            fn bool(&self, column: &str) -> Result<Option<bool>, sqlx::Error> {
                sqlx::Row::try_get(self, column)
            }
        }
    };
}

/// A query of sqlx with the statement's values.
macro_rules! bound {
    ($statement:expr) => {{
        let statement: crate::statement::Statement = $statement;
        statement.values.into_iter().fold(sqlx::query(statement.sql), |query, value| match value {
            crate::statement::Value::Int(value) => query.bind(value),
            crate::statement::Value::Text(value) => query.bind(value),
            crate::statement::Value::Bytes(value) => query.bind(value),
            crate::statement::Value::Bool(value) => query.bind(value),
        })
    }};
}

pub(crate) use {bound, session};
