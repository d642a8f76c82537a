//! What waits for the consent of others. The change is kept as the very text over which its SHA-256 runs, which is what
//! others approve: a text that does not give it any more is not loaded.

use aws_lc_rs::digest::{SHA256, digest};
use kms_core::{
    proposal::{Change, Id, Proposal, Vote},
    store::Fault,
};

use crate::{
    cells::Cells,
    commit::one_row,
    rows::{instant, parse_text},
    session::{Row, Session},
    statement::Statement,
};

pub(crate) async fn insert<S: Session>(
    session: &mut S,
    proposal: &Proposal,
    generation: i64,
) -> Result<(), Fault> {
    let change =
        proposal.change.canonical().map_err(|_| corrupt(proposal, "its change cannot be written down"))?;
    if digest(&SHA256, change.as_bytes()).as_ref() != proposal.sha256 {
        return Err(corrupt(proposal, "its SHA-256 is of another change"));
    }
    let insert = Statement::new(
        "INSERT INTO proposals (id, change, sha256, proposed_by, proposed_at_us, expires_at_us, required, votes,
            state, state_at_us, reason, revision, generation)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(proposal.id.as_str())
    .bind(change)
    .bind(&proposal.sha256[..])
    .bind(&proposal.proposed_by)
    .bind(proposal.proposed_at.as_microsecond())
    .bind(proposal.expires_at.as_microsecond())
    .bind(i64::from(proposal.required))
    .bind(votes(proposal)?)
    .bind(proposal.state.as_str())
    .bind(proposal.state_at.as_microsecond())
    .bind(proposal.reason.as_ref())
    .bind(revision(proposal)?)
    .bind(generation);
    one_row(session, insert, || format!("proposal {}", proposal.id)).await
}

/// Only what may change.
pub(crate) async fn update<S: Session>(
    session: &mut S,
    proposal: &Proposal,
    generation: i64,
) -> Result<(), Fault> {
    let update = Statement::new(
        "UPDATE proposals SET votes = $2, state = $3, state_at_us = $4, reason = $5, revision = $6, generation = $7
         WHERE id = $1 AND revision = $6 - 1",
    )
    .bind(proposal.id.as_str())
    .bind(votes(proposal)?)
    .bind(proposal.state.as_str())
    .bind(proposal.state_at.as_microsecond())
    .bind(proposal.reason.as_ref())
    .bind(revision(proposal)?)
    .bind(generation);
    one_row(session, update, || format!("proposal {}", proposal.id)).await
}

/// Sorted here: the databases do not agree on the order of texts.
pub(crate) fn proposals<R: Row>(rows: &[R]) -> Result<Vec<Proposal>, Fault> {
    let mut proposals = rows.iter().map(|row| proposal(row)).collect::<Result<Vec<_>, _>>()?;
    proposals.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(proposals)
}

fn proposal(row: &dyn Row) -> Result<Proposal, Fault> {
    let cells = Cells::of(row, "proposal", "id")?;
    let (change, sha256) = change(&cells)?;
    Ok(Proposal {
        id: cells.parse("id", |id: String| Id::try_from(id).ok())?,
        change,
        sha256,
        proposed_by: cells.get("proposed_by")?,
        proposed_at: cells.parse("proposed_at_us", instant)?,
        expires_at: cells.parse("expires_at_us", instant)?,
        required: cells.parse("required", |number: i64| u32::try_from(number).ok())?,
        votes: cells.parse("votes", |json: String| serde_json::from_str::<Vec<Vote>>(&json).ok())?,
        state: cells.parse("state", parse_text)?,
        state_at: cells.parse("state_at_us", instant)?,
        reason: cells.get("reason")?,
        revision: cells.parse("revision", |revision: i64| u64::try_from(revision).ok())?,
    })
}

fn change(cells: &Cells<'_>) -> Result<(Change, [u8; 32]), Fault> {
    let text: String = cells.get("change")?;
    let sha256: [u8; 32] = cells.parse("sha256", |bytes: Vec<u8>| bytes.try_into().ok())?;
    if digest(&SHA256, text.as_bytes()).as_ref() != sha256 {
        return Err(cells.corrupt("change", "it is not what was proposed: its SHA-256 is another"));
    }
    let change = serde_json::from_str(&text).map_err(|error| cells.corrupt("change", error))?;
    Ok((change, sha256))
}

fn votes(proposal: &Proposal) -> Result<String, Fault> {
    serde_json::to_value(&proposal.votes)
        .map(|votes| votes.to_string())
        .map_err(|_| corrupt(proposal, "its votes cannot be written down"))
}

fn revision(proposal: &Proposal) -> Result<i64, Fault> {
    i64::try_from(proposal.revision).map_err(|_| corrupt(proposal, "its revision is out of range"))
}

fn corrupt(proposal: &Proposal, why: &str) -> Fault {
    Fault::Corrupt(format!("proposal {}: {why}", proposal.id))
}
