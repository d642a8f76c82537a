//! Applying a transaction: the next generation, then each write with its expectation. The backend commits.

use kms_core::{
    Key, KeyId, KeyVersion,
    class::KeyClass,
    store::{Fault, Generation, QuarantinedObject, RememberedRequest, Transaction, Write},
};

use crate::{access, proposals, rows, session::Session, statement::Statement, uses};

/// Takes the next generation and writes under it. On PostgreSQL the first statement also takes the lock that makes
/// commits one after another: so the order of generations is the order of commits.
pub(crate) async fn write<S: Session>(
    session: &mut S,
    transaction: &Transaction,
) -> Result<Generation, Fault> {
    let next = "UPDATE generation SET value = value + 1 RETURNING value";
    let generation = generation(session, Statement::new(next)).await?;
    let mark = rows::generation_cell(generation)?;
    for write in &transaction.writes {
        apply(session, write, mark).await?;
    }
    if let Some(request) = &transaction.request {
        remember(session, request).await?;
    }
    Ok(generation)
}

/// The one cell `value` of a statement that reads or writes the generation.
pub(crate) async fn generation<S: Session>(
    session: &mut S,
    statement: Statement,
) -> Result<Generation, Fault> {
    let found = session.fetch(statement).await.map_err(S::fault)?;
    // Neither has a database that is being filled.
    let none = "there is no generation; where a migration from SQLite was cut off, run it again";
    rows::generation(found.first().ok_or_else(|| Fault::Corrupt(none.to_owned()))?)
}

async fn apply<S: Session>(session: &mut S, write: &Write, generation: i64) -> Result<(), Fault> {
    match write {
        Write::InsertKey(key) => insert_key(session, key, generation).await,
        Write::UpdateKey(key) => update_key(session, key, generation).await,
        Write::InsertVersion(id, version) => {
            insert_version(session, id, version).await?;
            mark_key(session, id, generation).await
        }
        Write::UpdateVersion(id, version) => {
            update_version(session, id, version).await?;
            mark_key(session, id, generation).await
        }
        Write::PutClass(class) => put_class(session, class, generation).await,
        Write::InsertAccessToken(token) => access::insert_token(session, token, generation).await,
        Write::RevokeAccessToken { name, at } => access::revoke_token(session, name, *at, generation).await,
        Write::RenewAccessToken { name, from, to } => {
            access::renew_token(session, name, (*from, *to), generation).await
        }
        Write::InsertRoleBinding(binding) => access::insert_binding(session, binding, generation).await,
        Write::RevokeRoleBinding { name, at } => access::revoke_binding(session, name, *at, generation).await,
        Write::InsertPolicy(document) => access::insert_policy(session, document, generation).await,
        Write::InsertProposal(proposal) => proposals::insert(session, proposal, generation).await,
        Write::UpdateProposal(proposal) => proposals::update(session, proposal, generation).await,
        Write::InsertEpoch(epoch) => {
            let insert = "INSERT INTO epoch (one, installation, value, nonce, in_token, generation) VALUES (1, $1, $2, $3, $4, $5)";
            one_row(session, rows::bind_epoch(Statement::new(insert), epoch)?.bind(generation), the_epoch)
                .await
        }
        Write::MoveEpoch { past, nonce } => {
            let update = "UPDATE epoch SET value = CASE WHEN value < $1 THEN $1 ELSE value END + 1, nonce = $2, generation = $3";
            let query = Statement::new(update).bind(rows::count(*past)?).bind(&nonce[..]).bind(generation);
            one_row(session, query, the_epoch).await
        }
        Write::ConfirmEpoch { value } => {
            let update = "UPDATE epoch SET in_token = CASE WHEN in_token < $1 THEN $1 ELSE in_token END, generation = $2 WHERE value >= $1";
            let query = Statement::new(update).bind(rows::count(*value)?).bind(generation);
            one_row(session, query, the_epoch).await
        }
        Write::ReserveWraps { key, version, from, to } => {
            uses::reserve(session, key, *version, (*from, *to), generation).await
        }
        Write::NoteUse { key, version, wrapped_at, unwrapped_at } => {
            uses::note(session, key, *version, (*wrapped_at, *unwrapped_at), generation).await
        }
        Write::PutUsageReport(report) => uses::put_report(session, report, generation).await,
        Write::Quarantine(object) => insert_quarantined(session, object, generation).await,
    }
}

fn the_epoch() -> String {
    "the epoch".to_owned()
}

async fn insert_key<S: Session>(session: &mut S, key: &Key, generation: i64) -> Result<(), Fault> {
    let query = Statement::new(
        "INSERT INTO keys (id, uid, algorithm, owner, labels, rotation_period_us, publish_lead_us,
            max_token_ttl_us, created_at_us, updated_at_us, revision, tokens_until_us, purpose, class, inherited,
            overlap_us, destroy_after_us, claim_rules, bundles_until_us, required_context, generation)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
            $21)",
    );
    one_row(session, rows::bind_key(query, key)?.bind(generation), || format!("key {}", key.id)).await
}

async fn update_key<S: Session>(session: &mut S, key: &Key, generation: i64) -> Result<(), Fault> {
    // Name, uid, algorithm, purpose and birthday never change; a row that has others is not the one that was meant.
    let query = Statement::new(
        "UPDATE keys SET owner = $4, labels = $5, rotation_period_us = $6, publish_lead_us = $7,
            max_token_ttl_us = $8, updated_at_us = $10, revision = $11, tokens_until_us = $12, class = $14,
            inherited = $15, overlap_us = $16, destroy_after_us = $17, claim_rules = $18, bundles_until_us = $19,
            required_context = $20, generation = $21
         WHERE id = $1 AND uid = $2 AND algorithm = $3 AND purpose = $13 AND created_at_us = $9
            AND revision = $11 - 1",
    );
    one_row(session, rows::bind_key(query, key)?.bind(generation), || format!("key {}", key.id)).await
}

async fn insert_version<S: Session>(session: &mut S, id: &KeyId, version: &KeyVersion) -> Result<(), Fault> {
    let query = Statement::new(
        "INSERT INTO key_versions (key_id, number, cka_id, earlier_attempts, token_serial, created_at_us,
            spki, kid, published_at_us, activates_at_us, retires_at_us, withdrawn_at_us, destroys_at_us,
            suspended, compromised_at_us, destroyed_at_us, maker, compromise_reason, at_once, asked_for_us,
            cross_signature, known_answer)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
            $21, $22)",
    );
    let what = || format!("version {} of key {id}, or one on its way,", version.number);
    one_row(session, rows::bind_version(query, id, version), what).await
}

async fn update_version<S: Session>(session: &mut S, id: &KeyId, version: &KeyVersion) -> Result<(), Fault> {
    let query = Statement::new(
        "UPDATE key_versions SET cka_id = $3, earlier_attempts = $4, token_serial = $5, created_at_us = $6,
            spki = $7, kid = $8, published_at_us = $9, activates_at_us = $10, retires_at_us = $11,
            withdrawn_at_us = $12, destroys_at_us = $13, suspended = $14, compromised_at_us = $15,
            destroyed_at_us = $16, maker = $17, compromise_reason = $18, at_once = $19, asked_for_us = $20,
            cross_signature = $21, known_answer = $22
         WHERE key_id = $1 AND number = $2",
    );
    let what = || format!("version {} of key {id}", version.number);
    one_row(session, rows::bind_version(query, id, version), what).await
}

/// A key is loaded anew when any of its versions was written.
async fn mark_key<S: Session>(session: &mut S, id: &KeyId, generation: i64) -> Result<(), Fault> {
    let mark =
        Statement::new("UPDATE keys SET generation = $2 WHERE id = $1").bind(id.as_str()).bind(generation);
    session.execute(mark).await.map(drop).map_err(S::fault)
}

/// A class that was never changed has no row.
async fn put_class<S: Session>(session: &mut S, class: &KeyClass, generation: i64) -> Result<(), Fault> {
    let sql = if class.revision == 1 {
        "INSERT INTO key_classes (name, rotation_period_us, publish_lead_us, max_token_ttl_us, overlap_us,
            destroy_after_us, revision, updated_at_us, approvals, generation)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
    } else {
        "UPDATE key_classes SET rotation_period_us = $2, publish_lead_us = $3, max_token_ttl_us = $4,
            overlap_us = $5, destroy_after_us = $6, revision = $7, updated_at_us = $8, approvals = $9,
            generation = $10
         WHERE name = $1 AND revision = $7 - 1"
    };
    let query = rows::bind_class(Statement::new(sql), class)?.bind(generation);
    one_row(session, query, || format!("key class {}", class.name)).await
}

async fn insert_quarantined<S: Session>(
    session: &mut S,
    object: &QuarantinedObject,
    generation: i64,
) -> Result<(), Fault> {
    let query = Statement::new(
        "INSERT INTO quarantined_objects (token_serial, cka_id, note, \"by\", at_us, generation)
         VALUES ($1, $2, $3, $4, $5, $6)",
    );
    let what = || "the record of this quarantined object".to_owned();
    one_row(session, rows::bind_quarantined(query, object).bind(generation), what).await
}

async fn remember<S: Session>(session: &mut S, request: &RememberedRequest) -> Result<(), Fault> {
    let query = Statement::new(
        "INSERT INTO requests (id, fingerprint, key_id, version, at_us) VALUES ($1, $2, $3, $4, $5)",
    );
    one_row(session, rows::bind_request(query, request), || format!("request {}", request.id)).await
}

/// Runs a statement that must change exactly one row; `what` names it.
pub(crate) async fn one_row<S: Session>(
    session: &mut S,
    statement: Statement,
    what: impl Fn() -> String,
) -> Result<(), Fault> {
    match session.execute(statement).await {
        Ok(1) => Ok(()),
        Ok(_) => Err(Fault::Changed(what())),
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(Fault::Exists(what())),
        // A version of a key that is not there.
        Err(sqlx::Error::Database(error)) if error.is_foreign_key_violation() => Err(Fault::Changed(what())),
        Err(error) => Err(S::fault(error)),
    }
}
