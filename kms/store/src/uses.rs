//! What use is made of versions that wrap: wraps taken out of their budget, when they were used last, and what consumers
//! say. Sorted here: the databases do not agree on the order of texts.

use std::collections::BTreeMap;

use kms_core::{
    KeyId,
    store::{Fault, UsageReport, VersionUse},
    time::Timestamp,
};

use crate::{
    cells::Cells,
    commit::one_row,
    rows::{instant, parse_text},
    session::{Row, Session},
    statement::Statement,
};

/// Takes wraps out of a budget: from what was reserved before, to what is from now on.
pub(crate) async fn reserve<S: Session>(
    session: &mut S,
    key: &KeyId,
    version: u32,
    (from, to): (u64, u64),
    generation: i64,
) -> Result<(), Fault> {
    let wraps = |wraps| {
        i64::try_from(wraps).map_err(|_| Fault::Corrupt(format!("a budget of {wraps} wraps is out of range")))
    };
    // One that was never used has no row; one that was used, and reserved nothing, has.
    let sql = if from == 0 {
        "INSERT INTO version_uses (key_id, version, reserved, generation) VALUES ($1, $2, $4, $5)
         ON CONFLICT (key_id, version) DO UPDATE SET reserved = excluded.reserved, generation = excluded.generation
         WHERE version_uses.reserved = $3"
    } else {
        "UPDATE version_uses SET reserved = $4, generation = $5 WHERE key_id = $1 AND version = $2 AND reserved = $3"
    };
    let statement = Statement::new(sql)
        .bind(key.as_str())
        .bind(i64::from(version))
        .bind(wraps(from)?)
        .bind(wraps(to)?)
        .bind(generation);
    one_row(session, statement, || format!("the budget of version {version} of key {key}")).await
}

/// Keeps the later of what is stored and of when it wrapped and unwrapped now.
pub(crate) async fn note<S: Session>(
    session: &mut S,
    key: &KeyId,
    version: u32,
    (wrapped_at, unwrapped_at): (Option<Timestamp>, Option<Timestamp>),
    generation: i64,
) -> Result<(), Fault> {
    let statement = Statement::new(
        "INSERT INTO version_uses (key_id, version, reserved, wrapped_at_us, unwrapped_at_us, generation)
         VALUES ($1, $2, 0, $3, $4, $5)
         ON CONFLICT (key_id, version) DO UPDATE SET
            wrapped_at_us = CASE WHEN excluded.wrapped_at_us <= version_uses.wrapped_at_us
                THEN version_uses.wrapped_at_us
                ELSE coalesce(excluded.wrapped_at_us, version_uses.wrapped_at_us) END,
            unwrapped_at_us = CASE WHEN excluded.unwrapped_at_us <= version_uses.unwrapped_at_us
                THEN version_uses.unwrapped_at_us
                ELSE coalesce(excluded.unwrapped_at_us, version_uses.unwrapped_at_us) END,
            generation = excluded.generation",
    )
    .bind(key.as_str())
    .bind(i64::from(version))
    .bind(wrapped_at.map(Timestamp::as_microsecond))
    .bind(unwrapped_at.map(Timestamp::as_microsecond))
    .bind(generation);
    one_row(session, statement, || format!("the use of version {version} of key {key}")).await
}

/// Puts what a consumer says in the place of what it said before.
pub(crate) async fn put_report<S: Session>(
    session: &mut S,
    report: &UsageReport,
    generation: i64,
) -> Result<(), Fault> {
    let UsageReport { key, consumer, envelopes, by, at, removed_at } = report;
    let what = || format!("the report of {consumer} on key {key}");
    let envelopes = serde_json::to_value(envelopes)
        .map_err(|error| Fault::Corrupt(format!("{}: {error}", what())))?
        .to_string();
    let statement = Statement::new(
        "INSERT INTO usage_reports (key_id, consumer, envelopes, \"by\", at_us, removed_at_us, generation)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (key_id, consumer) DO UPDATE SET envelopes = excluded.envelopes, \"by\" = excluded.\"by\",
            at_us = excluded.at_us, removed_at_us = excluded.removed_at_us, generation = excluded.generation",
    )
    .bind(key.as_str())
    .bind(consumer.as_str())
    .bind(envelopes)
    .bind(by)
    .bind(at.as_microsecond())
    .bind(removed_at.map(Timestamp::as_microsecond))
    .bind(generation);
    one_row(session, statement, what).await
}

pub(crate) fn version_uses<R: Row>(rows: &[R]) -> Result<Vec<VersionUse>, Fault> {
    let mut uses = rows.iter().map(|row| version_use(row)).collect::<Result<Vec<_>, _>>()?;
    uses.sort_by(|a, b| (&a.key, a.version).cmp(&(&b.key, b.version)));
    Ok(uses)
}

pub(crate) fn usage_reports<R: Row>(rows: &[R]) -> Result<Vec<UsageReport>, Fault> {
    let mut reports = rows.iter().map(|row| usage_report(row)).collect::<Result<Vec<_>, _>>()?;
    reports.sort_by(|a, b| (&a.key, &a.consumer).cmp(&(&b.key, &b.consumer)));
    Ok(reports)
}

fn version_use(row: &dyn Row) -> Result<VersionUse, Fault> {
    let cells = Cells::of(row, "use of a version of key", "key_id")?;
    Ok(VersionUse {
        key: cells.parse("key_id", parse_text)?,
        version: cells.parse("version", |number: i64| u32::try_from(number).ok())?,
        reserved: cells.parse("reserved", |wraps: i64| u64::try_from(wraps).ok())?,
        wrapped_at: cells.parse_some("wrapped_at_us", instant)?,
        unwrapped_at: cells.parse_some("unwrapped_at_us", instant)?,
    })
}

fn usage_report(row: &dyn Row) -> Result<UsageReport, Fault> {
    let cells = Cells::of(row, "usage report on key", "key_id")?;
    let envelopes = |json: String| serde_json::from_str::<BTreeMap<u32, u64>>(&json).ok();
    Ok(UsageReport {
        key: cells.parse("key_id", parse_text)?,
        consumer: cells.parse("consumer", parse_text)?,
        envelopes: cells.parse("envelopes", envelopes)?,
        by: cells.get("by")?,
        at: cells.parse("at_us", instant)?,
        removed_at: cells.parse_some("removed_at_us", instant)?,
    })
}
