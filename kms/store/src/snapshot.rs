//! Reading everything, or what was written since, as of one generation. The backend sees to it that all statements see
//! the same state. Columns are named: a newer program beside this one may have added some.

use std::collections::BTreeMap;

use kms_core::{
    Key, KeyId, KeyVersion,
    store::{Fault, Generation, Snapshot},
};

use crate::{access, commit, proposals, rows, session::Session, statement::Statement, uses};

pub(crate) async fn load<S: Session>(session: &mut S, since: Option<Generation>) -> Result<Snapshot, Fault> {
    let generation = commit::generation(session, Statement::new("SELECT value FROM generation")).await?;
    // The generation of the first commit is 1, and what was there before generations were kept has 0.
    let since = since.map_or(Ok(-1), rows::generation_cell)?;
    let mut written = async |sql| session.fetch(Statement::new(sql).bind(since)).await.map_err(S::fault);
    let keys = written(
        "SELECT id, uid, algorithm, owner, labels, rotation_period_us, publish_lead_us, max_token_ttl_us,
            tokens_until_us, created_at_us, updated_at_us, revision, purpose, class, inherited, overlap_us,
            destroy_after_us, claim_rules, bundles_until_us, required_context
         FROM keys WHERE generation > $1",
    )
    .await?;
    let versions = written(
        "SELECT key_id, number, cka_id, earlier_attempts, token_serial, created_at_us, spki, kid, published_at_us,
            activates_at_us, retires_at_us, withdrawn_at_us, destroys_at_us, suspended, compromised_at_us,
            destroyed_at_us, maker, compromise_reason, at_once, asked_for_us, cross_signature, known_answer
         FROM key_versions WHERE key_id IN (SELECT id FROM keys WHERE generation > $1)
         ORDER BY key_id, number",
    )
    .await?;
    let classes = written(
        "SELECT name, rotation_period_us, publish_lead_us, max_token_ttl_us, overlap_us, destroy_after_us, revision,
            updated_at_us, approvals
         FROM key_classes WHERE generation > $1 ORDER BY name",
    )
    .await?;
    let tokens = written(
        "SELECT name, sha256, role, keys, bootstrap, created_at_us, expires_at_us, revoked_at_us, period_us,
            renewable_until_us, bound_to
         FROM access_tokens WHERE generation > $1 ORDER BY name",
    )
    .await?;
    let bindings = written(
        "SELECT name, principal, role, \"only\", \"on\", required_context, not_before_us, expires_at_us, created_by,
            created_at_us, revoked_at_us
         FROM role_bindings WHERE generation > $1",
    )
    .await?;
    let policies = written(
        "SELECT version, text, note, \"by\", at_us
         FROM policies WHERE generation > $1 ORDER BY version",
    )
    .await?;
    let proposed = written(
        "SELECT id, change, sha256, proposed_by, proposed_at_us, expires_at_us, required, votes, state, state_at_us,
            reason, revision
         FROM proposals WHERE generation > $1",
    )
    .await?;
    let epoch = written(
        "SELECT installation, value, nonce, in_token
         FROM epoch WHERE generation > $1",
    )
    .await?;
    let quarantined = written(
        "SELECT token_serial, cka_id, note, \"by\", at_us
         FROM quarantined_objects WHERE generation > $1 ORDER BY token_serial, cka_id",
    )
    .await?;
    let version_uses = written(
        "SELECT key_id, version, reserved, wrapped_at_us, unwrapped_at_us
         FROM version_uses WHERE generation > $1",
    )
    .await?;
    let usage_reports = written(
        "SELECT key_id, consumer, envelopes, \"by\", at_us, removed_at_us
         FROM usage_reports WHERE generation > $1",
    )
    .await?;

    let mut by_name: BTreeMap<KeyId, (Key, Vec<KeyVersion>)> = BTreeMap::new();
    for row in &keys {
        let key = rows::key(row)?;
        by_name.insert(key.id.clone(), (key, Vec::new()));
    }
    for row in &versions {
        let (id, version) = rows::version(row)?;
        let (_, versions) = by_name
            .get_mut(&id)
            .ok_or_else(|| Fault::Corrupt(format!("a version of key {id}, which is not there")))?;
        versions.push(version);
    }
    Ok(Snapshot {
        generation,
        keys: by_name.into_values().collect(),
        classes: classes.iter().map(|row| rows::class(row)).collect::<Result<_, _>>()?,
        access_tokens: access::tokens(&tokens)?,
        role_bindings: access::bindings(&bindings)?,
        policies: access::policies(&policies)?,
        proposals: proposals::proposals(&proposed)?,
        epoch: epoch.first().map(|row| rows::epoch(row)).transpose()?,
        quarantined: quarantined.iter().map(|row| rows::quarantined(row)).collect::<Result<_, _>>()?,
        uses: uses::version_uses(&version_uses)?,
        usage_reports: uses::usage_reports(&usage_reports)?,
    })
}
