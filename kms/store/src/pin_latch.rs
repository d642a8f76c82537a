//! The PIN latches: one row each, compared and set in a transaction of its own that makes no generation.

use kms_core::{
    pin_latch::{Place, State},
    store::Fault,
};

use crate::{rows, session::Session, statement::Statement};

/// What stands at `place`.
pub(crate) async fn read<S: Session>(session: &mut S, place: &Place) -> Result<State, Fault> {
    let select = "SELECT token_serial, state, trying_by, trying_since_us, deaths, refused_text, refused_at_us
         FROM pin_latches WHERE token_serial = $1 AND pin_generation = $2";
    let select = Statement::new(select).bind(&place.token_serial).bind(i64::from(place.pin_generation));
    let found = session.fetch(select).await.map_err(S::fault)?;
    found.first().map_or(Ok(State::UNTRIED), |row| rows::pin_latch(row))
}

/// Writes `new` where `expected` stands. The transaction must keep other writers out.
pub(crate) async fn write<S: Session>(
    session: &mut S,
    place: &Place,
    expected: &State,
    new: &State,
) -> Result<(), Fault> {
    if read(session, place).await? != *expected {
        return Err(Fault::Changed(place.to_string()));
    }
    let upsert = Statement::new(
        "INSERT INTO pin_latches (token_serial, pin_generation, state, trying_by, trying_since_us, deaths,
            refused_text, refused_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (token_serial, pin_generation) DO UPDATE SET state = excluded.state,
            trying_by = excluded.trying_by, trying_since_us = excluded.trying_since_us, deaths = excluded.deaths,
            refused_text = excluded.refused_text, refused_at_us = excluded.refused_at_us",
    );
    session.execute(rows::bind_pin_latch(upsert, place, new)).await.map(drop).map_err(S::fault)
}
