//! What still lives on which version of a key that wraps: consumers report it, operators read it, and a destruction
//! waits for it.

use std::{collections::BTreeMap, future::Future};

use crate::{
    Action, AuditLog, Caller, Clock, Error, Hsm, KeyId, KeyState, KeyVersion, Kms, Store, Unsettled,
    audit::Subject,
    catalog::{Entry, Picture},
    key::{Key, later},
    policy,
    store::{CHANGED_MEANWHILE, UsageReport, VersionUse, Write},
    time::{SignedDuration, Timestamp},
    verbs::{requests::Terms, version_states::COMMIT_ATTEMPTS_MAX, wrapping::check_purpose},
};

/// Most consumers of one key, and most versions in one report.
pub const CONSUMERS_MAX: usize = 256;
/// See [`CONSUMERS_MAX`].
pub const REPORTED_VERSIONS_MAX: usize = 1_024;
/// Most envelopes under one version that a report tells.
const ENVELOPES_MAX: u64 = 1 << 53;
/// How long after its end as the one that wraps a version's reports count: an SDK that keeps data keys in memory seals
/// under them meanwhile.
const REPORT_MARGIN: SignedDuration = SignedDuration::from_hours(1);
/// Most reasons that one refusal tells.
const BLOCKERS_SHOWN_MAX: usize = 8;
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
        let subject = Subject::from(Some(&request.id)).saying(&request.words());
        let admission = self.gate.begin_about(caller, Action::ReportUsage, subject, now).await?;
        let result = self.until_unchanged(|| self.report_once(caller, &request)).await;
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
        let subject = Subject::from(Some(id)).saying(consumer.as_str());
        let admission = self.gate.begin_about(caller, Action::RemoveConsumer, subject, now).await?;
        let remove = || async {
            let picture = self.catalog.now();
            let mut reports = picture.usage_reports(id).filter(|report| report.removed_at.is_none());
            let report = reports
                .find(|report| report.consumer == *consumer)
                .ok_or_else(|| Error::not_found(format_args!("consumer {consumer} of keys/{id}")))?;
            let removed = UsageReport { removed_at: Some(now), ..report.clone() };
            self.put_report("remove a consumer", picture.entry(id)?, removed).await?;
            self.usage_of(id, now)
        };
        let result = self.until_unchanged(remove).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Once more when somebody else changes the key meanwhile.
    async fn until_unchanged<T, F: Future<Output = Result<T, Error>>>(
        &self,
        once: impl Fn() -> F,
    ) -> Result<T, Error> {
        for _ in 1..COMMIT_ATTEMPTS_MAX {
            match once().await {
                Err(error) if error.reason() == CHANGED_MEANWHILE => {}
                outcome => return outcome,
            }
        }
        once().await
    }

    /// Together with the key's revision: so a destruction that is decided at the same time, anywhere, sees the report or
    /// is decided anew, and of two words about one consumer the later one was said with the earlier one known.
    async fn put_report(&self, name: &'static str, entry: &Entry, report: UsageReport) -> Result<(), Error> {
        let mut transaction = self.versions_written(name, &entry.key, vec![], Terms::default());
        transaction.writes.push(Write::PutUsageReport(report));
        self.commit(transaction).await
    }

    async fn report_once(&self, caller: &Caller, request: &ReportUsage) -> Result<KeyUsage, Error> {
        let now = self.clock.now();
        let ReportUsage { id, consumer, envelopes } = request.clone();
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
        if envelopes.values().any(|count| *count > ENVELOPES_MAX) {
            return Err(Error::invalid(
                "envelopes",
                format!("a version has at most {ENVELOPES_MAX} envelopes"),
            ));
        }
        let known = consumers(&picture, &id).find(|report| report.consumer == consumer);
        // Whoever may use the key could else say in another's name that it needs nothing any more.
        let owner = known.map_or(caller.name(), |report| report.by.as_str());
        let may_remove = policy::may(&picture, caller, Action::RemoveConsumer, Some(&id), now);
        if owner != caller.name() && !may_remove {
            let text = format!(
                "{consumer} was registered by {owner}, who alone reports for it; use another name, or let an administrator \
                 remove it first"
            );
            return Err(Error::precondition("CONSUMER_OF_ANOTHER", text));
        }
        if known.is_none() && consumers(&picture, &id).count() >= CONSUMERS_MAX {
            let text = format!(
                "keys/{id} has {CONSUMERS_MAX} consumers already; report under one name for each store"
            );
            return Err(Error::precondition("TOO_MANY_CONSUMERS", text));
        }
        let by = owner.to_owned();
        let report = UsageReport { key: id.clone(), consumer, envelopes, by, at: now, removed_at: None };
        self.put_report("report usage", entry, report).await?;
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
                envelopes: consumers
                    .iter()
                    .filter_map(|said| said.envelopes.get(&row.number))
                    .fold(0, |sum: u64, count| sum.saturating_add(*count)),
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
        let settled =
            REPORT_MARGIN.min(self.settings.unwrap_quiet_period).max(Key::FENCE + Key::CLOCKS_APART);
        let mut blockers = Vec::new();
        for report in consumers(picture, key) {
            let UsageReport { consumer, at, .. } = report;
            match report.envelopes.get(&row.number) {
                Some(count) if *count > 0 => blockers.push(format!(
                    "{consumer} reported {count} envelopes under it at {at:.0}: rewrap them, and let it report again"
                )),
                // Whoever keeps data keys in memory seals under them for a while.
                _ if *at < later(since, settled) => blockers.push(format!(
                    "{consumer} has not reported since {:.0}: let it report, or remove it",
                    later(since, settled)
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
            let more = match blockers.len().saturating_sub(BLOCKERS_SHOWN_MAX) {
                0 => String::new(),
                more => format!("; and {more} more reasons"),
            };
            let shown = blockers[..blockers.len().min(BLOCKERS_SHOWN_MAX)].join("; ");
            let text = format!("keys/{}/versions/{} is needed: {shown}{more}", entry.key.id, row.number);
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

impl ReportUsage {
    /// For the audit log, as far as a record holds it.
    fn words(&self) -> String {
        let mut words = format!("{}:", self.consumer);
        for (number, count) in &self.envelopes {
            let said = format!(" {number}={count}");
            if words.len() + said.len() + 4 > ATTESTATION_LEN_MAX {
                words.push_str(" ...");
                break;
            }
            words.push_str(&said);
        }
        words
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
