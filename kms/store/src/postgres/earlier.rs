//! Programs of earlier releases, to which a key that wraps is a row that makes no sense: they would serve nothing any more.

use kms_core::{
    caller::Role,
    key::Purpose,
    store::{Fault, Transaction, Write},
};
use sqlx::PgConnection;

use super::{beats, fault};
use crate::{cells::Cells, session::Session as _, statement::Statement};

/// The migration since which programs know keys that wrap.
const WRAPPING: i64 = 4;

/// Of a transaction that makes a key that wraps, or an access token that may recover: refuses it while a replica is at work that does not know such, and lets
/// none be started after it. Wants the generation's lock, which a beat shares: no such replica comes up unseen.
pub(super) async fn mind(open: &mut PgConnection, transaction: &Transaction) -> Result<(), Fault> {
    let wraps = |write: &Write| match write {
        Write::InsertKey(key) => key.purpose == Purpose::Wrap,
        Write::InsertAccessToken(token) => token.role == Role::Recoverer,
        _ => false,
    };
    if !transaction.writes.iter().any(wraps) {
        return Ok(());
    }
    let earlier = "SELECT id FROM replicas WHERE known IS NOT NULL AND coalesce(schema, 0) < $1
        AND seen_at_us >= (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT - $2 ORDER BY id";
    let earlier = Statement::new(earlier).bind(WRAPPING).bind(beats::live_us());
    if let Some(row) = open.fetch(earlier).await.map_err(fault::statement)?.first() {
        let id: String = Cells::named(row, "replica").get("id")?;
        return Err(Fault::Unavailable(format!(
            "replica {id} is of an earlier release, which a key that wraps, or a role to recover, would stop; upgrade it, and try again then"
        )));
    }
    end(open).await
}

/// Lets no program be started that does not know what is there.
pub(super) async fn end(open: &mut PgConnection) -> Result<(), Fault> {
    let end = "UPDATE schema_compatibility SET oldest_program = $1
        WHERE oldest_program < $1 AND (EXISTS (SELECT FROM keys WHERE purpose = $2) OR EXISTS (SELECT FROM access_tokens WHERE role = $3))";
    let end =
        Statement::new(end).bind(WRAPPING).bind(Purpose::Wrap.as_str()).bind(Role::Recoverer.to_string());
    open.execute(end).await.map(drop).map_err(fault::statement)
}
