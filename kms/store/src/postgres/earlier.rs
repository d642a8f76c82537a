//! Programs of earlier releases beside this one: what they could not read would stop them, and what they know nothing of
//! they would not obey.

use kms_core::{
    Key,
    caller::Role,
    class::KeyClass,
    key::Purpose,
    store::{AccessToken, Fault, Snapshot, Transaction, Write},
};
use sqlx::PgConnection;

use super::{beats, fault};
use crate::{cells::Cells, session::Session as _, statement::Statement};

/// Every program knows it.
const ALWAYS: i64 = 0;
/// The migration since which programs know keys that wrap.
const WRAPPING: i64 = 4;
/// The one since which they know the policy, role bindings, approvals, and tokens that these serve.
const ACCESS: i64 = 5;

/// Of a transaction that writes what not every program knows: refuses it while a replica is at work that does not, and lets
/// none be started after it. Wants the generation's lock, which a beat shares: no such replica comes up unseen.
pub(super) async fn mind(open: &mut PgConnection, transaction: &Transaction) -> Result<(), Fault> {
    let needs = transaction.writes.iter().map(of_write).max().unwrap_or(ALWAYS);
    if needs == ALWAYS {
        return Ok(());
    }
    let earlier = "SELECT id FROM replicas WHERE known IS NOT NULL AND coalesce(schema, 0) < $1
        AND seen_at_us >= (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT - $2 ORDER BY id";
    let earlier = Statement::new(earlier).bind(needs).bind(beats::live_us());
    if let Some(row) = open.fetch(earlier).await.map_err(fault::statement)?.first() {
        let id: String = Cells::named(row, "replica").get("id")?;
        let why = match needs {
            ACCESS => {
                "which would not obey the policy, a role binding or a class's approvals, or not know this access token"
            }
            _ => "which a key that wraps, or a role to recover, would stop",
        };
        return Err(Fault::Unavailable(format!(
            "replica {id} is of an earlier release, {why}; upgrade it, and try again then"
        )));
    }
    end(open, needs).await
}

/// Lets no program be started that does not know all of `rows`.
pub(super) async fn end_for(open: &mut PgConnection, rows: &Snapshot) -> Result<(), Fault> {
    let keys = rows.keys.iter().map(|(key, _)| of_key(key));
    let tokens = rows.access_tokens.iter().map(of_token);
    let classes = rows.classes.iter().map(of_class);
    let bindings = rows.role_bindings.iter().map(|_| ACCESS);
    let policies = rows.policies.iter().map(|_| ACCESS);
    let needs = keys.chain(tokens).chain(classes).chain(bindings).chain(policies).max();
    end(open, needs.unwrap_or(ALWAYS)).await
}

async fn end(open: &mut PgConnection, needs: i64) -> Result<(), Fault> {
    let end = "UPDATE schema_compatibility SET oldest_program = $1 WHERE oldest_program < $1";
    open.execute(Statement::new(end).bind(needs)).await.map(drop).map_err(fault::statement)
}

/// The migration that a program must know beside which it is written.
fn of_write(write: &Write) -> i64 {
    match write {
        Write::InsertKey(key) => of_key(key),
        Write::InsertAccessToken(token) => of_token(token),
        Write::PutClass(class) => of_class(class),
        Write::InsertRoleBinding(_) | Write::InsertPolicy(_) => ACCESS,
        _ => ALWAYS,
    }
}

fn of_key(key: &Key) -> i64 {
    match key.purpose {
        Purpose::Wrap => WRAPPING,
        _ => ALWAYS,
    }
}

fn of_token(token: &AccessToken) -> i64 {
    let is_plain = token.period.is_none() && token.renewable_until.is_none() && token.bound_to.is_none();
    match token.own.as_ref().map(|own| own.role) {
        Some(Role::Administrator | Role::User | Role::RawSigner) if is_plain => ALWAYS,
        Some(Role::Recoverer) if is_plain => WRAPPING,
        _ => ACCESS,
    }
}

fn of_class(class: &KeyClass) -> i64 {
    if class.approvals == KeyClass::built_in(class.name).approvals { ALWAYS } else { ACCESS }
}
