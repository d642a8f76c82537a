//! What time itself asks for: rotations and destructions that are due. The server's scheduler calls this.

use crate::{
    AuditLog, Clock, Error, Failpoint, Hsm, Key, KeyId, KeyVersion, Kms, Store, Unsettled,
    audit::Subject,
    catalog::{Entry, Picture, Version},
    class::{AskedPeriods, Periods},
    gate::SystemWork,
    key::{Purpose, TakeOver, later},
    replica::LeaseToken,
    store::Write,
    time::{Deadline, SignedDuration, Timestamp},
    timeline,
};

use super::{
    requests::Terms,
    rotate_key::lacks_successor,
    update_key::{extend_withdrawals, with_periods},
    version_states::with_destruction,
};

/// How long a `request_id` is remembered.
const REQUESTS_KEPT: SignedDuration = SignedDuration::from_hours(24);

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Does what is due now, each step once, if the lease is ours. Returns how many steps succeeded; failures are logged and come up
    /// again at the next call.
    pub async fn run_due(&self, deadline: Deadline) -> usize {
        // Also so that a clock that has just been set is noticed before anything is done by it.
        if let Err(error) = self.beat_again().await {
            tracing::warn!(%error, "the store could not be read");
            return 0;
        }
        let Some(lease) = self.lease() else { return 0 };
        let now = self.clock.now();
        let picture = self.catalog.now();
        let mut done = 0;
        // What is due by an older store may be done already, or may have been called off.
        let entries = picture.keys.values().filter(|_| self.recovery().is_none());
        for entry in entries {
            let id = &entry.key.id;
            if periods_due(&picture, entry).is_some() {
                done += usize::from(report("following the class", id, self.follow_class(id, lease).await));
            }
            if entry.due.was_revoked && lacks_successor(entry, now) {
                let succeeded = self.succeed(id, lease, deadline).await;
                self.note_rotation(id, &succeeded);
                done += usize::from(report("succession", id, succeeded));
            } else if rotation_due(entry, now).is_some() || self.must_rotate_early(entry, now) {
                let rotated = self.rotate_due(id, lease, deadline).await;
                self.note_rotation(id, &rotated);
                done += usize::from(report("rotation", id, rotated));
            }
            let has_come =
                |at: Option<Timestamp>| self.settings.allow_destroy && at.is_some_and(|at| at <= now);
            let delay = self.settings.destroy_delay;
            if has_come(entry.due.expires_at.map(|at| later(at, -delay))) {
                for (version, _) in withdrawn(entry, now, delay) {
                    let number = version.row.number;
                    done += usize::from(report("expiry", id, self.expire(id, number, lease).await));
                }
            }
            if !has_come(entry.due.destroys_at) {
                continue;
            }
            for version in entry.versions.iter().filter(|version| destruction_due(&version.row, now)) {
                if let Err(error) = self.check_still_unused(&picture, entry, &version.row, now) {
                    tracing::error!(key = %id, version = version.row.number, %error, "a destruction is due and held back");
                    continue;
                }
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

    /// Whether the version that wraps has few wraps left, and nothing comes after it yet.
    pub(super) fn must_rotate_early(&self, entry: &Entry, now: Timestamp) -> bool {
        if entry.key.purpose != Purpose::Wrap || entry.unborn().is_some() {
            return false;
        }
        let is_short = |row: &KeyVersion| self.is_short_of_wraps(&entry.key.id, row.number);
        let soon = later(now, entry.lead(now, self.sets_kept()));
        let comes_soon =
            |row: &KeyVersion| row.born.as_ref().is_some_and(|born| born.timeline.activates_at <= soon);
        let relieved = timeline::pending(entry, now).is_some_and(|row| comes_soon(row) && !is_short(row));
        entry.find_primary(now).is_some_and(|primary| is_short(&primary.row)) && !relieved
    }

    /// How the next version takes over that is made early: at once where there is nothing left to wait with, or where
    /// another one waits for a later time.
    pub(super) fn early_takeover(&self, entry: &Entry, now: Timestamp) -> TakeOver {
        let primary = entry.find_primary(now);
        let is_used_up =
            primary.is_some_and(|primary| self.is_out_of_wraps(&entry.key.id, primary.row.number));
        match is_used_up || timeline::pending(entry, now).is_some() {
            true => TakeOver::AtOnce,
            false => TakeOver::AfterLead,
        }
    }

    /// What consumers said, and who unwrapped, since a destruction was scheduled holds it back.
    fn check_still_unused(
        &self,
        picture: &Picture,
        entry: &Entry,
        row: &KeyVersion,
        now: Timestamp,
    ) -> Result<(), Error> {
        if entry.key.purpose != Purpose::Wrap {
            return Ok(());
        }
        match self.destruction_blockers(picture, entry, row, now).first() {
            None => Ok(()),
            Some(blocker) => Err(Error::precondition(
                "VERSION_IN_USE",
                format!("{blocker}; call the destruction off (`kms keys restore`), or clear this away"),
            )),
        }
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
    async fn expire(&self, id: &KeyId, number: u32, lease: LeaseToken) -> Result<(), Error> {
        let now = self.clock.now();
        let subject = Subject::of_version(id, number);
        let admission = self.gate.begin_system(SystemWork::Expiry, subject, now).await?;
        let result = async {
            let (latest, delay) = (self.time_for_all().await?, self.settings.destroy_delay);
            let entry = self.catalog.entry(id)?;
            let expired = withdrawn(&entry, now, delay);
            let Some((version, at)) = expired.into_iter().find(|(version, _)| version.row.number == number)
            else {
                return Ok(());
            };
            let at = at.max(later(latest, delay));
            let expired = with_destruction(version, |scheduled| scheduled.or(Some(at)));
            self.write_versions_moving("schedule a destruction", &entry.key, vec![expired], Some(lease)).await
        }
        .await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// A key that was made, or moved to a class, just while the class was changed has the periods of before.
    async fn follow_class(&self, id: &KeyId, lease: LeaseToken) -> Result<(), Error> {
        let admission = self.gate.begin_system(SystemWork::Class, Some(id).into(), self.clock.now()).await?;
        let result = async {
            let now = self.time_for_all().await?;
            let picture = self.catalog.now();
            let entry = picture.entry(id)?;
            let Some(periods) = periods_due(&picture, entry) else { return Ok(()) };
            let key = with_periods(entry.key.clone(), periods, Self::bundles(&picture), now);
            let extended = extend_withdrawals(entry, &key, now);
            self.write_versions("follow a class", &key, extended, Some(lease)).await
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
            // By every clock: what is done cannot be undone.
            let now = now.min(self.beat_again().await?.now);
            let entry = self.catalog.entry(id)?;
            let row = &entry.version(number)?.row;
            if !destruction_due(row, now) {
                return Ok(());
            }
            self.write_versions("begin a destruction", &entry.key, vec![], Some(lease)).await?;
            Failpoint::DestructionBegun.reached();
            let picture = self.catalog.now();
            let entry = picture.entry(id)?;
            let row = &entry.version(number)?.row;
            self.check_still_unused(&picture, entry, row, self.clock.now())?;
            self.hsm.destroy(&admission, row.cka_id, deadline).await?;
            Failpoint::DestructionDone.reached();
            let destroyed = KeyVersion { destroyed_at: Some(self.clock.now()), ..row.clone() };
            self.write_versions_moving("destroy a version", &entry.key, vec![destroyed], Some(lease)).await
        }
        .await;
        admission.settle(result.map(Unsettled::new)).await
    }
}

/// The periods that a key should have from its class, if it has others, and if they fit those of its own.
fn periods_due(picture: &Picture, entry: &Entry) -> Option<Periods> {
    let (periods, _) = AskedPeriods::of(&entry.key).under(&picture.class(entry.key.class).periods);
    (periods != entry.key.periods() && periods.check().is_ok()).then_some(periods)
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

/// What has left the JWKS and is to be destroyed within `delay`, with the time for that. What somebody has put aside is
/// left to them: also what was called back from a destruction and not enabled since, and what is evidence.
fn withdrawn(entry: &Entry, now: Timestamp, delay: SignedDuration) -> Vec<(&Version, Timestamp)> {
    let Some(after) = entry.key.destroy_after else { return vec![] };
    let of = |version: &Version| {
        let timeline = version.row.born.as_ref()?.timeline;
        let at = timeline.withdrawn_at.filter(|at| *at <= now)?;
        let destroys_at = later(at, after);
        (version.row.may_ever_sign() && later(destroys_at, -delay) <= now).then_some(destroys_at)
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
