//! Who may what: access tokens, role bindings, and the versions of the policy document.

use kms_core::{
    KeyId,
    access::{PolicyDocument, RoleBinding},
    caller::{KeyScope, OwnRole, Role},
    store::{AccessToken, Fault},
    time::{SignedDuration, Timestamp},
};

use crate::{
    cells::Cells,
    commit::one_row,
    rows::{instant, parse_text},
    session::{Row, Session},
    statement::Statement,
};

/// What stands in the place of the role of a token that has none of its own: the column has been there for longer than
/// such tokens, and takes no NULL.
const NO_ROLE: &str = "";

pub(crate) async fn insert_token<S: Session>(
    session: &mut S,
    token: &AccessToken,
    generation: i64,
) -> Result<(), Fault> {
    let what = || match token.bootstrap {
        true => format!("access token {}, or the one of an earlier bootstrap,", token.name),
        false => format!("access token {}", token.name),
    };
    let period = token.period.map(|period| {
        i64::try_from(period.as_micros())
            .map_err(|_| Fault::Corrupt(format!("access token {}: period is out of range", token.name)))
    });
    let keys = match token.own.as_ref().map(|own| &own.keys) {
        None | Some(KeyScope::All) => None,
        Some(KeyScope::Only(keys)) => {
            Some(serde_json::Value::from_iter(keys.iter().map(KeyId::as_str)).to_string())
        }
    };
    let insert = Statement::new(
        "INSERT INTO access_tokens (name, sha256, role, keys, bootstrap, created_at_us, expires_at_us, revoked_at_us,
            period_us, renewable_until_us, bound_to, generation)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(&token.name)
    .bind(&token.sha256[..])
    .bind(token.own.as_ref().map_or(NO_ROLE, |own| own.role.as_str()))
    .bind(keys)
    .bind(token.bootstrap)
    .bind(token.created_at.as_microsecond())
    .bind(token.expires_at.map(Timestamp::as_microsecond))
    .bind(token.revoked_at.map(Timestamp::as_microsecond))
    .bind(period.transpose()?)
    .bind(token.renewable_until.map(Timestamp::as_microsecond))
    .bind(token.bound_to.as_ref().map(|principal| principal.as_str()))
    .bind(generation);
    one_row(session, insert, what).await
}

pub(crate) async fn revoke_token<S: Session>(
    session: &mut S,
    name: &str,
    at: Timestamp,
    generation: i64,
) -> Result<(), Fault> {
    let update = Statement::new(
        "UPDATE access_tokens SET revoked_at_us = $2, generation = $3 WHERE name = $1 AND revoked_at_us IS NULL",
    )
    .bind(name)
    .bind(at.as_microsecond())
    .bind(generation);
    one_row(session, update, || format!("access token {name}")).await
}

pub(crate) async fn renew_token<S: Session>(
    session: &mut S,
    name: &str,
    (from, to): (Timestamp, Timestamp),
    generation: i64,
) -> Result<(), Fault> {
    let update = Statement::new(
        "UPDATE access_tokens SET expires_at_us = $3, generation = $4
         WHERE name = $1 AND expires_at_us = $2 AND revoked_at_us IS NULL",
    )
    .bind(name)
    .bind(from.as_microsecond())
    .bind(to.as_microsecond())
    .bind(generation);
    one_row(session, update, || format!("access token {name}")).await
}

pub(crate) async fn insert_binding<S: Session>(
    session: &mut S,
    binding: &RoleBinding,
    generation: i64,
) -> Result<(), Fault> {
    let what = || format!("role binding {}", binding.name);
    let json = |value: serde_json::Result<serde_json::Value>| {
        value.map(|value| value.to_string()).map_err(|error| Fault::Corrupt(format!("{}: {error}", what())))
    };
    let insert = Statement::new(
        "INSERT INTO role_bindings (name, principal, role, \"only\", \"on\", required_context, not_before_us,
            expires_at_us, created_by, created_at_us, revoked_at_us, generation)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(binding.name.as_str())
    .bind(binding.principal.as_str())
    .bind(binding.role.as_str())
    .bind(json(serde_json::to_value(&binding.only))?)
    .bind(binding.on.to_string())
    .bind(json(serde_json::to_value(&binding.required_context))?)
    .bind(binding.not_before.map(Timestamp::as_microsecond))
    .bind(binding.expires_at.map(Timestamp::as_microsecond))
    .bind(&binding.created_by)
    .bind(binding.created_at.as_microsecond())
    .bind(binding.revoked_at.map(Timestamp::as_microsecond))
    .bind(generation);
    one_row(session, insert, what).await
}

pub(crate) async fn revoke_binding<S: Session>(
    session: &mut S,
    name: &KeyId,
    at: Timestamp,
    generation: i64,
) -> Result<(), Fault> {
    let update = Statement::new(
        "UPDATE role_bindings SET revoked_at_us = $2, generation = $3 WHERE name = $1 AND revoked_at_us IS NULL",
    )
    .bind(name.as_str())
    .bind(at.as_microsecond())
    .bind(generation);
    one_row(session, update, || format!("role binding {name}")).await
}

/// The version after the last one, and no other.
pub(crate) async fn insert_policy<S: Session>(
    session: &mut S,
    document: &PolicyDocument,
    generation: i64,
) -> Result<(), Fault> {
    let insert = Statement::new(
        "INSERT INTO policies (version, text, note, \"by\", at_us, generation)
         SELECT $1, $2, $3, $4, $5, $6 WHERE $1 = (SELECT coalesce(max(version), 0) + 1 FROM policies)",
    )
    .bind(i64::from(document.version))
    .bind(&document.text)
    .bind(&document.note)
    .bind(&document.by)
    .bind(document.at.as_microsecond())
    .bind(generation);
    match one_row(session, insert, || "the policy".to_owned()).await {
        // Whoever was first has changed it, in whatever way the database notices.
        Err(Fault::Exists(what)) => Err(Fault::Changed(what)),
        outcome => outcome,
    }
}

pub(crate) fn tokens<R: Row>(rows: &[R]) -> Result<Vec<AccessToken>, Fault> {
    rows.iter().map(|row| token(row)).collect()
}

/// Sorted here: the databases do not agree on the order of texts.
pub(crate) fn bindings<R: Row>(rows: &[R]) -> Result<Vec<RoleBinding>, Fault> {
    let mut bindings = rows.iter().map(|row| binding(row)).collect::<Result<Vec<_>, _>>()?;
    bindings.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(bindings)
}

pub(crate) fn policies<R: Row>(rows: &[R]) -> Result<Vec<PolicyDocument>, Fault> {
    rows.iter().map(|row| policy(row)).collect()
}

fn token(row: &dyn Row) -> Result<AccessToken, Fault> {
    let cells = Cells::of(row, "access token", "name")?;
    Ok(AccessToken {
        name: cells.get("name")?,
        sha256: cells.parse("sha256", |bytes: Vec<u8>| bytes.try_into().ok())?,
        own: own(&cells)?,
        bootstrap: cells.get("bootstrap")?,
        created_at: cells.parse("created_at_us", instant)?,
        expires_at: cells.parse_some("expires_at_us", instant)?,
        period: cells.get::<Option<i64>>("period_us")?.map(SignedDuration::from_micros),
        renewable_until: cells.parse_some("renewable_until_us", instant)?,
        bound_to: cells.parse_some("bound_to", parse_text)?,
        revoked_at: cells.parse_some("revoked_at_us", instant)?,
    })
}

fn own(cells: &Cells<'_>) -> Result<Option<OwnRole>, Fault> {
    let keys = cells.parse_some("keys", |json: String| serde_json::from_str::<Vec<KeyId>>(&json).ok())?;
    let role: Option<Role> = cells.parse("role", |role: String| match role.as_str() {
        NO_ROLE => Some(None),
        role => role.parse().ok().map(Some),
    })?;
    match (role, keys) {
        (Some(role), None) => Ok(Some(OwnRole { role, keys: KeyScope::All })),
        (Some(role), Some(keys)) => Ok(Some(OwnRole { role, keys: KeyScope::Only(keys.into()) })),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(cells.corrupt("keys", "they are of a role that is not there")),
    }
}

fn binding(row: &dyn Row) -> Result<RoleBinding, Fault> {
    let cells = Cells::of(row, "role binding", "name")?;
    Ok(RoleBinding {
        name: cells.parse("name", parse_text)?,
        principal: cells.parse("principal", parse_text)?,
        role: cells.parse("role", parse_text)?,
        only: cells.parse("only", |json: String| serde_json::from_str(&json).ok())?,
        on: cells.parse("on", parse_text)?,
        required_context: cells.parse("required_context", |json: String| serde_json::from_str(&json).ok())?,
        not_before: cells.parse_some("not_before_us", instant)?,
        expires_at: cells.parse_some("expires_at_us", instant)?,
        created_by: cells.get("created_by")?,
        created_at: cells.parse("created_at_us", instant)?,
        revoked_at: cells.parse_some("revoked_at_us", instant)?,
    })
}

fn policy(row: &dyn Row) -> Result<PolicyDocument, Fault> {
    let cells = Cells::named(row, "the policy");
    Ok(PolicyDocument {
        version: cells.parse("version", |number: i64| u32::try_from(number).ok())?,
        text: cells.get("text")?,
        note: cells.get("note")?,
        by: cells.get("by")?,
        at: cells.parse("at_us", instant)?,
    })
}
