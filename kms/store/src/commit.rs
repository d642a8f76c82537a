//! Applying a transaction: each write with its expectation, then the generation, then COMMIT.

use kms_core::{
    Failpoint, Key, KeyId, KeyVersion,
    store::{AccessToken, Fault, Generation, QuarantinedObject, RememberedRequest, Transaction, Write},
};
use sqlx::{Connection as _, Sqlite, SqliteConnection, SqlitePool, query::Query, sqlite::SqliteArguments};

use crate::{fault, rows};

pub(crate) async fn commit(pool: &SqlitePool, transaction: &Transaction) -> Result<Generation, Fault> {
    let mut connection = pool.acquire().await.map_err(fault::statement)?;
    let outcome = run(&mut connection, transaction).await;
    if let Err(fault @ (Fault::Unavailable(_) | Fault::Unknown(_) | Fault::Corrupt(_))) = &outcome {
        tracing::error!(transaction = transaction.name, %fault, "a transaction failed");
        // After such an error SQLite may have rolled back by itself: begin again with a clean connection.
        connection.close_on_drop();
    }
    outcome
}

/// A transaction that goes through to the disk and leaves everything as it is.
pub(crate) async fn check(pool: &SqlitePool) -> Result<Generation, Fault> {
    let mut open = pool.begin_with("BEGIN IMMEDIATE").await.map_err(fault::statement)?;
    let rewrite = sqlx::query_scalar("UPDATE generation SET value = value RETURNING value");
    let generation = rows::generation(rewrite.fetch_one(&mut *open).await.map_err(fault::statement)?)?;
    open.commit().await.map_err(fault::at_commit)?;
    Ok(generation)
}

async fn run(connection: &mut SqliteConnection, transaction: &Transaction) -> Result<Generation, Fault> {
    let mut open = connection.begin_with("BEGIN IMMEDIATE").await.map_err(fault::statement)?;
    // On an early return `open` is dropped, which rolls back before the connection is used again.
    for write in &transaction.writes {
        apply(&mut open, write).await?;
    }
    if let Some(request) = &transaction.request {
        remember(&mut open, request).await?;
    }
    let next = sqlx::query_scalar("UPDATE generation SET value = value + 1 RETURNING value");
    let generation = rows::generation(next.fetch_one(&mut *open).await.map_err(fault::statement)?)?;
    Failpoint::Committing.reached();
    open.commit().await.map_err(fault::at_commit)?;
    Failpoint::Committed.reached();
    Ok(generation)
}

async fn apply(connection: &mut SqliteConnection, write: &Write) -> Result<(), Fault> {
    match write {
        Write::InsertKey(key) => insert_key(connection, key).await,
        Write::UpdateKey(key) => update_key(connection, key).await,
        Write::InsertVersion(id, version) => insert_version(connection, id, version).await,
        Write::UpdateVersion(id, version) => update_version(connection, id, version).await,
        Write::InsertAccessToken(token) => insert_access_token(connection, token).await,
        Write::RevokeAccessToken { name, at } => {
            let update =
                "UPDATE access_tokens SET revoked_at_us = $2 WHERE name = $1 AND revoked_at_us IS NULL";
            let query = sqlx::query(update).bind(name).bind(at.as_microsecond());
            one_row(connection, query, || format!("access token {name}")).await
        }
        Write::InsertEpoch(epoch) => {
            let insert =
                "INSERT INTO epoch (one, installation, value, nonce, in_token) VALUES (1, $1, $2, $3, $4)";
            one_row(connection, rows::bind_epoch(sqlx::query(insert), epoch)?, the_epoch).await
        }
        Write::MoveEpoch { past, nonce } => {
            let update = "UPDATE epoch SET value = max(value, $1) + 1, nonce = $2";
            one_row(connection, sqlx::query(update).bind(rows::count(*past)?).bind(&nonce[..]), the_epoch)
                .await
        }
        Write::ConfirmEpoch { value } => {
            let update = "UPDATE epoch SET in_token = $1 WHERE value >= $1";
            one_row(connection, sqlx::query(update).bind(rows::count(*value)?), the_epoch).await
        }
        Write::Quarantine(object) => insert_quarantined(connection, object).await,
    }
}

fn the_epoch() -> String {
    "the epoch".to_owned()
}

async fn insert_key(connection: &mut SqliteConnection, key: &Key) -> Result<(), Fault> {
    let query = sqlx::query(
        "INSERT INTO keys (id, uid, algorithm, owner, labels, rotation_period_us, publish_lead_us,
            max_token_ttl_us, created_at_us, updated_at_us, revision, tokens_until_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    );
    one_row(connection, rows::bind_key(query, key)?, || format!("key {}", key.id)).await
}

async fn update_key(connection: &mut SqliteConnection, key: &Key) -> Result<(), Fault> {
    // Name, uid, algorithm and birthday never change; a row that has others is not the one that was meant.
    let query = sqlx::query(
        "UPDATE keys SET owner = $4, labels = $5, rotation_period_us = $6, publish_lead_us = $7,
            max_token_ttl_us = $8, updated_at_us = $10, revision = $11, tokens_until_us = $12
         WHERE id = $1 AND uid = $2 AND algorithm = $3 AND created_at_us = $9 AND revision = $11 - 1",
    );
    one_row(connection, rows::bind_key(query, key)?, || format!("key {}", key.id)).await
}

async fn insert_version(
    connection: &mut SqliteConnection,
    id: &KeyId,
    version: &KeyVersion,
) -> Result<(), Fault> {
    let query = sqlx::query(
        "INSERT INTO key_versions (key_id, number, cka_id, earlier_attempts, token_serial, created_at_us,
            spki, kid, published_at_us, activates_at_us, retires_at_us, withdrawn_at_us, destroys_at_us,
            suspended, compromised_at_us, destroyed_at_us, maker)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
    );
    let what = || format!("version {} of key {id}, or one on its way,", version.number);
    one_row(connection, rows::bind_version(query, id, version), what).await
}

async fn update_version(
    connection: &mut SqliteConnection,
    id: &KeyId,
    version: &KeyVersion,
) -> Result<(), Fault> {
    let query = sqlx::query(
        "UPDATE key_versions SET cka_id = $3, earlier_attempts = $4, token_serial = $5, created_at_us = $6,
            spki = $7, kid = $8, published_at_us = $9, activates_at_us = $10, retires_at_us = $11,
            withdrawn_at_us = $12, destroys_at_us = $13, suspended = $14, compromised_at_us = $15,
            destroyed_at_us = $16, maker = $17
         WHERE key_id = $1 AND number = $2",
    );
    let what = || format!("version {} of key {id}", version.number);
    one_row(connection, rows::bind_version(query, id, version), what).await
}

async fn insert_access_token(connection: &mut SqliteConnection, token: &AccessToken) -> Result<(), Fault> {
    let query = sqlx::query(
        "INSERT INTO access_tokens (name, sha256, role, keys, bootstrap, created_at_us, expires_at_us, revoked_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    );
    let what = || match token.bootstrap {
        true => format!("access token {}, or the one of an earlier bootstrap,", token.name),
        false => format!("access token {}", token.name),
    };
    one_row(connection, rows::bind_access_token(query, token), what).await
}

async fn insert_quarantined(
    connection: &mut SqliteConnection,
    object: &QuarantinedObject,
) -> Result<(), Fault> {
    let query = sqlx::query(
        "INSERT INTO quarantined_objects (token_serial, cka_id, note, \"by\", at_us) VALUES ($1, $2, $3, $4, $5)",
    );
    let what = || "the record of this quarantined object".to_owned();
    one_row(connection, rows::bind_quarantined(query, object), what).await
}

async fn remember(connection: &mut SqliteConnection, request: &RememberedRequest) -> Result<(), Fault> {
    let query = sqlx::query(
        "INSERT INTO requests (id, fingerprint, key_id, version, at_us) VALUES ($1, $2, $3, $4, $5)",
    );
    one_row(connection, rows::bind_request(query, request), || format!("request {}", request.id)).await
}

/// Runs a statement that must change exactly one row; `what` names it.
async fn one_row(
    connection: &mut SqliteConnection,
    query: Query<'_, Sqlite, SqliteArguments>,
    what: impl Fn() -> String,
) -> Result<(), Fault> {
    match query.execute(connection).await {
        Ok(done) if done.rows_affected() == 1 => Ok(()),
        Ok(_) => Err(Fault::Changed(what())),
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(Fault::Exists(what())),
        // A version of a key that is not there.
        Err(sqlx::Error::Database(error)) if error.is_foreign_key_violation() => Err(Fault::Changed(what())),
        Err(error) => Err(fault::statement(error)),
    }
}
