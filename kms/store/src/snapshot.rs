//! Reading everything as of one generation.

use std::collections::BTreeMap;

use kms_core::{
    Key, KeyId, KeyVersion,
    store::{Fault, Generation, Snapshot},
    time::Timestamp,
};
use sqlx::SqlitePool;

use crate::{fault, rows};

/// The generation, and the time.
pub(crate) async fn pulse(readers: &SqlitePool) -> Result<(Generation, Timestamp), Fault> {
    let pulse = "SELECT value, CAST(unixepoch('subsec') * 1000000 AS INTEGER) FROM generation";
    let (generation, now) = sqlx::query_as(pulse).fetch_one(readers).await.map_err(fault::statement)?;
    let now = Timestamp::from_microsecond(now).map_err(|error| Fault::Corrupt(error.to_string()))?;
    Ok((rows::generation(generation)?, now))
}

pub(crate) async fn load(readers: &SqlitePool) -> Result<Snapshot, Fault> {
    // One read transaction: WAL shows it one state of the database, whatever is written meanwhile.
    let mut tx = readers.begin().await.map_err(fault::statement)?;
    let generation = sqlx::query_scalar("SELECT value FROM generation").fetch_one(&mut *tx).await;
    let keys = sqlx::query("SELECT * FROM keys").fetch_all(&mut *tx).await.map_err(fault::statement)?;
    let versions =
        sqlx::query("SELECT * FROM key_versions ORDER BY key_id, number").fetch_all(&mut *tx).await;
    let tokens = sqlx::query("SELECT * FROM access_tokens ORDER BY name").fetch_all(&mut *tx).await;
    let epoch = sqlx::query("SELECT * FROM epoch").fetch_optional(&mut *tx).await;
    let quarantined = sqlx::query("SELECT * FROM quarantined_objects ORDER BY token_serial, cka_id")
        .fetch_all(&mut *tx)
        .await;
    drop(tx);

    let mut by_name: BTreeMap<KeyId, (Key, Vec<KeyVersion>)> = BTreeMap::new();
    for row in &keys {
        let key = rows::key(row)?;
        by_name.insert(key.id.clone(), (key, Vec::new()));
    }
    for row in &versions.map_err(fault::statement)? {
        let (id, version) = rows::version(row)?;
        let (_, versions) = by_name
            .get_mut(&id)
            .ok_or_else(|| Fault::Corrupt(format!("a version of key {id}, which is not there")))?;
        versions.push(version);
    }
    Ok(Snapshot {
        generation: rows::generation(generation.map_err(fault::statement)?)?,
        keys: by_name.into_values().collect(),
        access_tokens: tokens
            .map_err(fault::statement)?
            .iter()
            .map(rows::access_token)
            .collect::<Result<_, _>>()?,
        epoch: epoch.map_err(fault::statement)?.as_ref().map(rows::epoch).transpose()?,
        quarantined: quarantined
            .map_err(fault::statement)?
            .iter()
            .map(rows::quarantined)
            .collect::<Result<_, _>>()?,
    })
}
