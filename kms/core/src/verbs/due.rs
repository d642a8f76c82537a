//! What time itself asks for: rotations and destructions that are due. The server's scheduler calls this.

use crate::{
    AuditLog, Clock, Error, Failpoint, Hsm, Key, KeyId, KeyVersion, Kms, Store, Unsettled,
    audit::Subject,
    catalog::{Entry, Version},
    gate::SystemWork,
    key::later,
    replica::LeaseToken,
    store::Write,
    time::{Deadline, SignedDuration, Timestamp},
    timeline,
};

use super::{requests::Terms, rotate_key::lacks_successor, version_states::with_destruction};

/// How long a `request_id` is remembered.
const REQUESTS_KEPT: SignedDuration = SignedDuration::from_hours(24);

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Does what is due now, each step once, if the lease is ours. Returns how many steps succeeded; failures are logged and come up
    /// again at the next call.
    pub async fn run_due(&self, deadline: Deadline) -> usize {
        if let Err(error) = self.catch_up().await {
            tracing::warn!(%error, "the store could not be read");
        }
        let Some(lease) = self.lease() else { return 0 };
        let now = self.clock.now();
        let picture = self.catalog.now();
        let mut done = 0;
        // What is due by an older store may be done already, or may have been called off.
        let entries = picture.keys.values().filter(|_| self.recovery().is_none());
        for entry in entries {
            let id = &entry.key.id;
            if rotation_due(entry, now).is_some() {
                let rotated = self.rotate_due(id, lease, deadline).await;
                self.note_rotation(id, &rotated);
                done += usize::from(report("rotation", id, rotated));
            }
            if entry.due.was_revoked && lacks_successor(entry, now) {
                let succeeded = self.succeed(id, lease, deadline).await;
                self.note_rotation(id, &succeeded);
                done += usize::from(report("succession", id, succeeded));
            }
            let has_come =
                |at: Option<Timestamp>| self.settings.allow_destroy && at.is_some_and(|at| at <= now);
            if has_come(entry.due.expires_from) {
                done += usize::from(report("expiry", id, self.expire(id, lease).await));
            }
            if !has_come(entry.due.destroys_at) {
                continue;
            }
            for version in entry.versions.iter().filter(|version| destruction_due(&version.row, now)) {
                let number = version.row.number;
                done += usize::from(report(
                    "destruction",
                    id,
                    self.destroy_due(id, number, lease, deadline).await,
                ));
            }
        }
        if let Ok(before) = now.checked_sub(REQUESTS_KEPT)
            && let Err(fault) = self.store.forget_requests(before).await
        {
            tracing::warn!(%fault, "old requests could not be forgotten");
        }
        done
    }

    /// Puts every pending destruction off to at least the delay that a new one has. What a restored backup brings
    /// back may have been called off since: there must be time to do that again.
    pub(super) fn destructions_put_off(&self, now: Timestamp) -> Vec<Write> {
        let earliest = later(now, self.settings.destroy_delay);
        let mut writes = vec![];
        for entry in self.catalog.now().keys.values() {
            let pending = entry.versions.iter().filter(|version| destruction_due(&version.row, earliest));
            let put_off: Vec<_> =
                pending.map(|version| with_destruction(version, |at| at.max(Some(earliest)))).collect();
            if !put_off.is_empty() {
                writes.extend(
                    self.versions_written("put destructions off", &entry.key, put_off, Terms::default())
                        .writes,
                );
            }
        }
        writes
    }

    async fn rotate_due(&self, id: &KeyId, lease: LeaseToken, deadline: Deadline) -> Result<(), Error> {
        let admission =
            self.gate.begin_system(SystemWork::Rotation, Some(id).into(), self.clock.now()).await?;
        let result = self.rotate_on_schedule(&admission, id, lease, deadline).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    async fn succeed(&self, id: &KeyId, lease: LeaseToken, deadline: Deadline) -> Result<(), Error> {
        let now = self.clock.now();
        let admission = self.gate.begin_system(SystemWork::Succession, Some(id).into(), now).await?;
        let result = self.give_successor(&admission, id, Some(lease), deadline).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Schedules the destruction of what nobody needs any more, where the key asks for that: never sooner than one that
    /// is asked for by hand, so that there is time to call it off.
    async fn expire(&self, id: &KeyId, lease: LeaseToken) -> Result<(), Error> {
        let now = self.clock.now();
        let admission = self.gate.begin_system(SystemWork::Expiry, Some(id).into(), now).await?;
        let result = async {
            let entry = self.catalog.entry(id)?;
            let earliest = later(now, self.settings.destroy_delay);
            let expired = withdrawn(&entry, now).into_iter().map(|(version, at)| {
                with_destruction(version, |scheduled| scheduled.or(Some(at.max(earliest))))
            });
            let expired = expired.collect();
            self.write_versions_moving("schedule destructions", &entry.key, expired, Some(lease)).await
        }
        .await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// First a commit that only one can win, so that a restore and a destruction never both succeed; then the
    /// objects, then the row: a crash in between destroys what is gone already, which succeeds.
    async fn destroy_due(
        &self,
        id: &KeyId,
        number: u32,
        lease: LeaseToken,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let now = self.clock.now();
        let subject = Subject::of_version(id, number);
        let admission = self.gate.begin_system(SystemWork::Destruction, subject, now).await?;
        let result = async {
            let entry = self.catalog.entry(id)?;
            let row = &entry.version(number)?.row;
            if !destruction_due(row, now) {
                return Ok(());
            }
            self.write_versions("begin a destruction", &entry.key, vec![], Some(lease)).await?;
            Failpoint::DestructionBegun.reached();
            let entry = self.catalog.entry(id)?;
            let row = &entry.version(number)?.row;
            self.hsm.destroy(&admission, row.cka_id, deadline).await?;
            Failpoint::DestructionDone.reached();
            let destroyed = KeyVersion { destroyed_at: Some(self.clock.now()), ..row.clone() };
            self.write_versions_moving("destroy a version", &entry.key, vec![destroyed], Some(lease)).await
        }
        .await;
        admission.settle(result.map(Unsettled::new)).await
    }
}

/// When the next version must begin to sign, once it is time to publish it.
pub(super) fn rotation_due(entry: &Entry, now: Timestamp) -> Option<Timestamp> {
    let at = timeline::scheduled(entry)?;
    (publish_at(&entry.key, at)? <= now).then_some(at)
}

/// When a version is to be made and published that begins to sign at `at`.
pub(super) fn publish_at(key: &Key, at: Timestamp) -> Option<Timestamp> {
    at.saturating_sub(key.publish_lead.max(Key::FENCE)).ok()
}

/// What has left the JWKS and is to be destroyed some time after that, with that time. What somebody has put aside is
/// left to them: also what was called back from a destruction, and what is evidence.
fn withdrawn(entry: &Entry, now: Timestamp) -> Vec<(&Version, Timestamp)> {
    let Some(after) = entry.key.destroy_after else { return vec![] };
    let of = |version: &Version| {
        let timeline = version.row.born.as_ref()?.timeline;
        let at = timeline.withdrawn_at.filter(|at| *at <= now)?;
        version.row.may_ever_sign().then(|| later(at, after))
    };
    entry.versions.iter().filter_map(|version| Some((version, of(version)?))).collect()
}

pub(super) fn destruction_due(row: &KeyVersion, now: Timestamp) -> bool {
    row.destruction_due().is_some_and(|at| at <= now)
}

fn report(what: &str, id: &KeyId, result: Result<(), Error>) -> bool {
    match &result {
        Ok(()) => tracing::info!(key = %id, "{what} done"),
        Err(error) => tracing::warn!(key = %id, %error, "{what} is due and failed; it will be tried again"),
    }
    result.is_ok()
}
