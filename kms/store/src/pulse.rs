//! What a pulse says, read from rows.

use kms_core::{
    replica::{Replica, ReplicaId},
    store::{Fault, Generation},
    time::Timestamp,
};

use crate::{cells::Cells, rows, session::Row};

/// The columns `value` and `now_us` of the first row.
pub(crate) fn generation_and_now<R: Row>(found: &[R]) -> Result<(Generation, Timestamp), Fault> {
    let row = found.first().ok_or_else(|| Fault::Corrupt("there is no generation".to_owned()))?;
    let now = Cells::named(row, "the pulse").parse("now_us", rows::instant)?;
    Ok((rows::generation(row)?, now))
}

/// A row of `replicas`.
pub(crate) fn replica(row: &dyn Row) -> Result<Replica, Fault> {
    let cells = Cells::of(row, "replica", "id")?;
    Ok(Replica {
        id: ReplicaId::new(cells.get::<String>("id")?),
        seen_at: cells.parse("seen_at_us", rows::instant)?,
        generation: cells.parse_some("known", |value: i64| u64::try_from(value).ok().map(Generation))?,
        report: cells.get("report")?,
    })
}
