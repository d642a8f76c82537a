//! The PIN latches: one row each, compared and set in a transaction of its own that makes no generation.

use kms_core::{
    pin_latch::{Place, State},
    store::Fault,
};
use sqlx::{SqliteExecutor, SqlitePool};

use crate::{fault, rows};

/// What stands at `place`.
pub(crate) async fn read(executor: impl SqliteExecutor<'_>, place: &Place) -> Result<State, Fault> {
    let row = sqlx::query("SELECT * FROM pin_latches WHERE token_serial = $1 AND pin_generation = $2")
        .bind(&place.token_serial)
        .bind(i64::from(place.pin_generation))
        .fetch_optional(executor)
        .await
        .map_err(fault::statement)?;
    row.as_ref().map_or(Ok(State::UNTRIED), rows::pin_latch)
}

/// Writes `new` where `expected` stands.
pub(crate) async fn write(
    pool: &SqlitePool,
    place: &Place,
    expected: &State,
    new: &State,
) -> Result<(), Fault> {
    let mut open = pool.begin_with("BEGIN IMMEDIATE").await.map_err(fault::statement)?;
    if read(&mut *open, place).await? != *expected {
        return Err(Fault::Changed(place.to_string()));
    }
    let query = sqlx::query(
        "INSERT OR REPLACE INTO pin_latches (token_serial, pin_generation, state, trying_by, trying_since_us, deaths,
            refused_text, refused_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    );
    rows::bind_pin_latch(query, place, new).execute(&mut *open).await.map_err(fault::statement)?;
    open.commit().await.map_err(fault::at_commit)
}
