//! What still lives on which version of a key that wraps: consumers report it, operators read it, and a destruction
//! waits for it.

use std::collections::BTreeMap;

use crate::{
    Action, AuditLog, Caller, Clock, Error, Hsm, KeyId, KeyState, KeyVersion, Kms, Store, Unsettled,
    catalog::{Entry, Picture},
    key::{Key, later},
    store::{Transaction, UsageReport, VersionUse, Write},
    time::Timestamp,
    verbs::wrapping::check_purpose,
};

/// Most consumers of one key, and most versions in one report.
pub const CONSUMERS_MAX: usize = 256;
/// See [`CONSUMERS_MAX`].
pub const REPORTED_VERSIONS_MAX: usize = 1_024;
/// Longest attestation in bytes.
pub const ATTESTATION_LEN_MAX: usize = 1_024;

/// What a consumer holds.
#[derive(Debug, Clone)]
pub struct ReportUsage {
    /// The key.
    pub id: KeyId,
    /// Who holds it.
    pub consumer: KeyId,
    /// How many envelopes by version: a whole report, a version that is not named has none.
    pub envelopes: BTreeMap<u32, u64>,
}

/// What lives on which version.
#[derive(Debug, Clone)]
pub struct KeyUsage {
    /// The key.
    pub key: KeyId,
    /// Versions, oldest first.
    pub versions: Vec<VersionUsage>,
    /// What the consumers said last, by name.
    pub consumers: Vec<UsageReport>,
}

/// What lives on one version.
#[derive(Debug, Clone)]
pub struct VersionUsage {
    /// Its number.
    pub number: u32,
    /// Its state; `None` while it is still being made.
    pub state: Option<KeyState>,
    /// Whether it is the one that wraps now.
    pub is_primary: bool,
    /// How much it was used; `None` for not at all, or not yet written.
    pub used: Option<VersionUse>,
    /// Most wraps that it may make.
    pub wraps_max: u64,
    /// Envelopes under it by the last reports of all consumers.
    pub envelopes: u64,
    /// What keeps it from being destroyed, beside the attestation.
    pub blockers: Vec<String>,
}

/// What whoever destroys a version says to it.
#[derive(Debug, Clone, Copy)]
pub struct Confirmation<'a> {
    /// The version's full name once more.
    pub name: &'a str,
    /// For keys that wrap: that somebody has looked at what nobody reports, such as backups.
    pub attestation: &'a str,
}

impl<'a> From<&'a str> for Confirmation<'a> {
    fn from(name: &'a str) -> Self {
        Self { name, attestation: "" }
    }
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Takes a consumer's report, which registers it if it is new.
    pub async fn report_usage(&self, caller: &Caller, request: ReportUsage) -> Result<KeyUsage, Error> {
        let now = self.clock.now();
        let admission = self.gate.begin(caller, Action::ReportUsage, Some(&request.id), now).await?;
        let result = self.report_admitted(caller, request, now).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Shows what lives on which version.
    pub async fn key_usage(&self, caller: &Caller, id: &KeyId) -> Result<KeyUsage, Error> {
        let now = self.clock.now();
        let admission = self.gate.admit(caller, Action::GetKeyUsage, Some(id), now).await?;
        let result = self.usage_of(id, now);
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Says that a consumer is no more.
    pub async fn remove_consumer(
        &self,
        caller: &Caller,
        id: &KeyId,
        consumer: &KeyId,
    ) -> Result<KeyUsage, Error> {
        let now = self.clock.now();
        let admission = self.gate.begin(caller, Action::RemoveConsumer, Some(id), now).await?;
        let result = async {
            let picture = self.catalog.now();
            let mut reports = picture.usage_reports(id).filter(|report| report.removed_at.is_none());
            let report = reports
                .find(|report| report.consumer == *consumer)
                .ok_or_else(|| Error::not_found(format_args!("consumer {consumer} of keys/{id}")))?;
            let removed = UsageReport { removed_at: Some(now), ..report.clone() };
            self.commit(Transaction::new("remove a consumer", vec![Write::PutUsageReport(removed)])).await?;
            self.usage_of(id, now)
        }
        .await;
        admission.settle(result.map(Unsettled::new)).await
    }

    async fn report_admitted(
        &self,
        caller: &Caller,
        request: ReportUsage,
        now: Timestamp,
    ) -> Result<KeyUsage, Error> {
        let ReportUsage { id, consumer, envelopes } = request;
        let picture = self.catalog.now();
        let entry = picture.entry(&id)?;
        check_purpose(&entry.key)?;
        if envelopes.len() > REPORTED_VERSIONS_MAX {
            let text = format!("a report names at most {REPORTED_VERSIONS_MAX} versions");
            return Err(Error::invalid("envelopes", text));
        }
        if let Some(number) = envelopes.keys().find(|number| entry.version(**number).is_err()) {
            let text = format!("keys/{id} has no version {number}");
            return Err(Error::invalid("envelopes", text));
        }
        let mut consumers = picture.usage_reports(&id).filter(|report| report.removed_at.is_none());
        let is_known = consumers.any(|report| report.consumer == consumer);
        if !is_known && picture.usage_reports(&id).count() >= CONSUMERS_MAX {
            let text = format!(
                "keys/{id} has {CONSUMERS_MAX} consumers already; report under one name for each store"
            );
            return Err(Error::precondition("TOO_MANY_CONSUMERS", text));
        }
        let by = caller.name().to_owned();
        let report = UsageReport { key: id.clone(), consumer, envelopes, by, at: now, removed_at: None };
        self.commit(Transaction::new("report usage", vec![Write::PutUsageReport(report)])).await?;
        self.usage_of(&id, now)
    }

    fn usage_of(&self, id: &KeyId, now: Timestamp) -> Result<KeyUsage, Error> {
        let picture = self.catalog.now();
        let entry = picture.entry(id)?;
        check_purpose(&entry.key)?;
        let consumers: Vec<_> = consumers(&picture, id).cloned().collect();
        let versions = entry.versions.iter().map(|version| {
            let row = &version.row;
            VersionUsage {
                number: row.number,
                state: row.born.as_ref().map(|_| row.state(now)),
                is_primary: entry.is_primary(row.number, now),
                used: picture.use_of(id, row.number).cloned(),
                wraps_max: self.settings.wrap_limits.hard,
                envelopes: consumers.iter().filter_map(|said| said.envelopes.get(&row.number)).sum(),
                blockers: self.destruction_blockers(&picture, entry, row, now),
            }
        });
        Ok(KeyUsage { key: id.clone(), versions: versions.collect(), consumers })
    }

    /// What speaks against the destruction of a version that wraps, for people. What nobody reports is asked for by the
    /// attestation.
    pub(super) fn destruction_blockers(
        &self,
        picture: &Picture,
        entry: &Entry,
        row: &KeyVersion,
        now: Timestamp,
    ) -> Vec<String> {
        let key = &entry.key.id;
        let Some(since) = stopped_wrapping(row, now) else {
            return vec![
                "it wraps, or may wrap again: rotate the key and wait for the new version first".to_owned(),
            ];
        };
        let mut blockers = Vec::new();
        for report in consumers(picture, key) {
            let UsageReport { consumer, at, .. } = report;
            match report.envelopes.get(&row.number) {
                Some(count) if *count > 0 => blockers.push(format!(
                    "{consumer} reported {count} envelopes under it at {at:.0}: rewrap them, and let it report again"
                )),
                // A replica may have wrapped a little longer, and the store may have written it later still.
                _ if *at < later(since, Key::FENCE + Key::CLOCKS_APART) => blockers.push(format!(
                    "{consumer} has not reported since it stopped wrapping at {since:.0}: let it report, or remove it"
                )),
                _ => {}
            }
        }
        let stored = picture.use_of(key, row.number).and_then(|used| used.unwrapped_at);
        let last = stored.max(self.uses.unwrapped_at(key, row.number));
        let quiet_from = later(last.unwrap_or(since).max(since), self.settings.unwrap_quiet_period);
        if quiet_from > now {
            blockers.push(match last {
                Some(at) => format!(
                    "it unwrapped at {at:.0}: somebody still holds what it wrapped; it may be destroyed when it has not \
                     unwrapped until {quiet_from:.0}"
                ),
                None => format!("it stopped wrapping at {since:.0}: wait until {quiet_from:.0}"),
            });
        }
        blockers
    }

    /// Refuses the destruction of a version that wraps while something speaks against it, or nobody has looked at what
    /// nobody reports.
    pub(super) fn check_unused(
        &self,
        picture: &Picture,
        entry: &Entry,
        row: &KeyVersion,
        attestation: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        let blockers = self.destruction_blockers(picture, entry, row, now);
        if !blockers.is_empty() {
            let text =
                format!("keys/{}/versions/{} is needed: {}", entry.key.id, row.number, blockers.join("; "));
            return Err(Error::precondition("VERSION_IN_USE", text));
        }
        let is_text = !attestation.trim().is_empty() && !attestation.chars().any(char::is_control);
        if !is_text || attestation.len() > ATTESTATION_LEN_MAX {
            let text = format!(
                "say in 1 to {ATTESTATION_LEN_MAX} bytes who has looked at what nobody reports: backups, exports, other stores \
                 with envelopes of this version cannot be opened any more"
            );
            return Err(Error::invalid("attestation", text));
        }
        Ok(())
    }
}

fn consumers<'a>(picture: &'a Picture, key: &'a KeyId) -> impl Iterator<Item = &'a UsageReport> {
    picture.usage_reports(key).filter(|report| report.removed_at.is_none())
}

/// Since when a version has not wrapped and will not again.
fn stopped_wrapping(row: &KeyVersion, now: Timestamp) -> Option<Timestamp> {
    let retired_at = row.born.as_ref()?.timeline.retires_at.filter(|at| *at <= now);
    let compromised_at = row.compromise.as_ref().map(|compromise| compromise.at);
    match (retired_at, compromised_at) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
