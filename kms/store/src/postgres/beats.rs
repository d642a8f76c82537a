//! Beats and pulses, the lease, and who lags behind.

use kms_core::{
    replica::{Beat, LIVE_MAX, Lease, LeaseToken, Pulse, ReplicaId},
    store::{Fault, Generation},
};
use sqlx::PgConnection;

use super::open;
use crate::{cells::Cells, pulse, rows, session::Session as _, statement::Statement};

/// One statement: the share lock on the generation first, which waits for a commit under way and keeps the next one
/// waiting until the beat is written; then the beat, and the lease. What follows from `locked` is done after it. The
/// lease is judged by its own row alone, so that it is judged again after a wait for it.
const BEAT: &str = "
    WITH locked AS (
        SELECT value, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT AS now_us FROM generation FOR SHARE
    ), beat AS (
        INSERT INTO replicas (id, seen_at_us, known, report, schema)
        SELECT $1, now_us, $2, $3, $6 FROM locked
        ON CONFLICT (id) DO UPDATE SET seen_at_us = excluded.seen_at_us, known = excluded.known,
            report = excluded.report, schema = excluded.schema
    ), lease AS (
        UPDATE leases SET holder = CASE WHEN $4 THEN $1 END,
            token = leases.token + CASE WHEN leases.holder = $1 OR NOT $4 THEN 0 ELSE 1 END,
            expires_at_us = CASE WHEN $4 THEN locked.now_us + $5 ELSE 0 END
        FROM locked
        WHERE leases.holder = $1 OR ($4 AND (leases.holder IS NULL OR leases.expires_at_us < locked.now_us))
    )
    SELECT value, now_us FROM locked";

pub(super) async fn pulse(connection: &mut PgConnection, beat: Beat) -> Result<Pulse, Fault> {
    let known = beat.generation.map(rows::generation_cell).transpose()?;
    let mut report = beat.report;
    if report.len() > Beat::REPORT_LEN_MAX {
        report.clear();
    }
    let live_us = live_us();
    let statement = Statement::new(BEAT)
        .bind(beat.replica.as_str())
        .bind(known)
        .bind(report)
        .bind(beat.leads)
        .bind(live_us)
        .bind(open::known_version());
    let found = connection.fetch(statement).await.map_err(super::fault::statement)?;
    let (generation, now) = pulse::generation_and_now(&found)?;
    let now_us = now.as_microsecond();

    let holder = "SELECT holder, token FROM leases WHERE holder IS NOT NULL AND expires_at_us >= $1";
    let found =
        connection.fetch(Statement::new(holder).bind(now_us)).await.map_err(super::fault::statement)?;
    let lease = found.first().map(|row| {
        let cells = Cells::named(row, "the lease");
        let token = cells.parse("token", |token: i64| u64::try_from(token).ok())?;
        Ok(Lease { holder: ReplicaId::new(cells.get::<String>("holder")?), token: LeaseToken(token) })
    });
    let live = "SELECT id, seen_at_us, known, report FROM replicas WHERE seen_at_us >= $1 ORDER BY id";
    let live = Statement::new(live).bind(now_us.saturating_sub(live_us));
    let found = connection.fetch(live).await.map_err(super::fault::statement)?;
    let replicas = found.iter().map(|row| pulse::replica(row)).collect::<Result<_, _>>()?;
    Ok(Pulse { generation, now, lease: lease.transpose()?, replicas })
}

/// Whether the lease is still this one. No lock is needed: the transaction holds the generation's.
pub(super) async fn check_lease(connection: &mut PgConnection, lease: LeaseToken) -> Result<(), Fault> {
    let token = i64::try_from(lease.0).map_err(|_| Fault::Corrupt("the lease is out of range".to_owned()))?;
    let held = Statement::new("SELECT token FROM leases WHERE token = $1").bind(token);
    let found = connection.fetch(held).await.map_err(super::fault::statement)?;
    if found.is_empty() { Err(Fault::Changed("the lease".to_owned())) } else { Ok(()) }
}

/// How many live replicas that serve have not got `generation`, but one.
pub(super) async fn laggards(
    connection: &mut PgConnection,
    generation: Generation,
    but: &ReplicaId,
) -> Result<usize, Fault> {
    let behind = "SELECT id FROM replicas WHERE id <> $1 AND known < $2
        AND seen_at_us >= (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT - $3";
    let behind =
        Statement::new(behind).bind(but.as_str()).bind(rows::generation_cell(generation)?).bind(live_us());
    connection.fetch(behind).await.map(|found| found.len()).map_err(super::fault::statement)
}

pub(super) fn live_us() -> i64 {
    i64::try_from(LIVE_MAX.as_micros()).unwrap_or(i64::MAX)
}
