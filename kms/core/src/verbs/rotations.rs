//! How rotation stands, key by key and in all: for metrics. A pure function of the catalog, of what failed in this
//! process, and of now.

use std::{
    collections::BTreeMap,
    sync::{MutexGuard, PoisonError},
};

use crate::{
    AuditLog, Clock, Error, Hsm, KeyId, KeyVersion, Kms, Store,
    catalog::{Entry, Picture},
    error::Kind,
    key::{TakeOver, later},
    time::{SignedDuration, Timestamp},
    timeline,
};

use super::{due::publish_at, rotate_key::lacks_successor};

/// From when a rotation is due until it is called overdue: the scheduler must come by, and large keys take their time.
pub const OVERDUE_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// How rotation stands at one moment. The numbers are of all keys, also of those that are not listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotations {
    /// That moment.
    pub at: Timestamp,
    /// The first keys by name, as many as were asked for.
    pub keys: Vec<KeyRotation>,
    /// How many keys there are.
    pub total: usize,
    /// Keys whose next version should have been made by now.
    pub overdue: usize,
    /// Keys whose due rotation failed when it was last tried here.
    pub failing: usize,
    /// Keys of which something is left, and of which nothing signs.
    pub without_active_version: usize,
    /// Keys that have nothing left to sign with because of what was revoked.
    pub without_successor: usize,
    /// The earliest [`KeyRotation::expires_at`].
    pub earliest_expiry: Option<Timestamp>,
    /// Failed attempts since this process started.
    pub failures: u64,
}

/// How the rotation of one key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRotation {
    /// The key.
    pub id: KeyId,
    /// Whether it is neither overdue nor failed when it was last tried.
    pub succeeds: bool,
    /// When the version that signs now is to be replaced: past when that is late, `None` without a plan.
    pub expires_at: Option<Timestamp>,
    /// Since when the version signs that signs now.
    pub active_since: Option<Timestamp>,
    /// When the next version is to be made and published: past when that is due and not done.
    pub next_publish_at: Option<Timestamp>,
    /// When the next version begins to sign; where it is not made yet, the earliest time at which it can.
    pub next_activate_at: Option<Timestamp>,
    /// When the version that signs now stops. `None` until the next one is made: nothing retires without one.
    pub retires_at: Option<Timestamp>,
    /// Versions in the JWKS.
    pub published: usize,
    /// Failed attempts since this process started.
    pub failures: u64,
}

/// Due rotations that failed in this process.
#[derive(Debug, Default)]
pub(crate) struct RotationFailures(BTreeMap<KeyId, Failures>);

#[derive(Debug, Clone, Copy, Default)]
struct Failures {
    count: u64,
    /// The newest version that was there when the last attempt failed: while it still is, nobody has succeeded since.
    newest: u32,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// How rotation stands now, with at most `keys_max` keys one by one.
    pub fn rotations(&self, keys_max: usize) -> Rotations {
        let (picture, kept) = (self.catalog.now(), self.sets_kept());
        Rotations::of(&picture, &self.rotation_failures(), kept, self.clock.now(), keys_max)
    }

    /// Counts a failure to make a key's next version. That somebody else was faster is none, nor is the failure to
    /// make the first one, which somebody is told who asked for it.
    pub(super) fn note_rotation(&self, id: &KeyId, result: &Result<(), Error>) {
        let Err(error) = result else { return };
        let newest = self.catalog.entry(id).ok().and_then(|entry| newest(&entry));
        if let Some(newest) = newest
            && error.kind() != Kind::Conflict
        {
            let mut failures = self.rotation_failures();
            let failures = failures.0.entry(id.clone()).or_default();
            *failures = Failures { count: failures.count + 1, newest };
        }
    }

    fn rotation_failures(&self) -> MutexGuard<'_, RotationFailures> {
        // Each entry is whole even if its holder panicked.
        self.rotation_failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rotations {
    /// `kept`: how long a verifier may keep a key set.
    fn of(
        picture: &Picture,
        failures: &RotationFailures,
        kept: SignedDuration,
        now: Timestamp,
        keys_max: usize,
    ) -> Self {
        let mut all = Self { at: now, total: picture.keys.len(), ..Self::default() };
        for (id, entry) in &picture.keys {
            let failures = failures.0.get(id).copied().unwrap_or_default();
            let due_since = due_since(entry, now);
            let overdue = due_since.is_some_and(|at| later(at, OVERDUE_AFTER) <= now);
            let failing = due_since.is_some() && failures.count > 0 && newest(entry) == Some(failures.newest);
            let expires_at = expires_at(entry, now);
            all.overdue += usize::from(overdue);
            all.failing += usize::from(failing);
            all.without_active_version += usize::from(lacks_active_version(entry, now));
            all.without_successor += usize::from(lacks_successor(entry, now));
            all.earliest_expiry = all.earliest_expiry.into_iter().chain(expires_at).min();
            all.failures += failures.count;
            if all.keys.len() < keys_max {
                let primary = entry.find_primary(now).and_then(|version| version.row.born.as_ref());
                let planned = || publish_at(&entry.key, timeline::planned(entry)?);
                all.keys.push(KeyRotation {
                    id: id.clone(),
                    succeeds: !overdue && !failing,
                    expires_at,
                    active_since: primary.map(|born| born.timeline.activates_at),
                    next_publish_at: due_since.or_else(planned),
                    next_activate_at: next_activate_at(entry, now, kept),
                    retires_at: primary.and_then(|born| born.timeline.retires_at),
                    published: match entry.key.purpose.is_published() {
                        true => entry.versions.iter().filter(|version| version.row.is_published(now)).count(),
                        false => 0,
                    },
                    failures: failures.count,
                });
            }
        }
        all
    }
}

/// Since when the next version should be being made, if it should. What is at work on it, and does not come to an end,
/// changes nothing about that.
fn due_since(entry: &Entry, now: Timestamp) -> Option<Timestamp> {
    let compromised_at =
        || entry.versions.iter().filter_map(|version| Some(version.row.compromise.as_ref()?.at)).max();
    let by_plan = timeline::planned(entry).and_then(|at| publish_at(&entry.key, at)).filter(|at| *at <= now);
    // What was revoked does not count in the plan, which then lies far back.
    let by_plan = by_plan.map(|at| at.max(compromised_at().unwrap_or(at)));
    let begun = unborn(entry).map(|row| row.created_at);
    let revoked = lacks_successor(entry, now).then(compromised_at);
    by_plan.into_iter().chain(begun).chain(revoked.flatten()).min()
}

fn expires_at(entry: &Entry, now: Timestamp) -> Option<Timestamp> {
    let waiting = timeline::pending(entry, now).and_then(|row| row.born.as_ref());
    waiting.map(|born| born.timeline.activates_at).or_else(|| timeline::planned(entry))
}

fn next_activate_at(entry: &Entry, now: Timestamp, kept: SignedDuration) -> Option<Timestamp> {
    if let Some(waiting) = timeline::pending(entry, now).and_then(|row| row.born.as_ref()) {
        return Some(waiting.timeline.activates_at);
    }
    let (made_at, takes_over) = match unborn(entry) {
        Some(row) => (now, row.takes_over),
        None => {
            let at = timeline::planned(entry)?;
            (now.max(publish_at(&entry.key, at)?), TakeOver::At(at))
        }
    };
    Some(timeline::of_next(entry, made_at, takes_over, kept).activates_at.max(now))
}

/// The next version, while it is being made; of a key that has others.
fn unborn(entry: &Entry) -> Option<&KeyVersion> {
    newest(entry)?;
    entry.versions.iter().map(|version| &version.row).rfind(|row| row.born.is_none())
}

fn newest(entry: &Entry) -> Option<u32> {
    entry.versions.iter().rfind(|version| version.row.born.is_some()).map(|version| version.row.number)
}

/// A key whose last version is destroyed, or waits for that, has come to its end.
fn lacks_active_version(entry: &Entry, now: Timestamp) -> bool {
    let is_left = |row: &KeyVersion| {
        let destroys_at = row.born.as_ref().and_then(|born| born.timeline.destroys_at);
        row.destroyed_at.is_none() && destroys_at.is_none()
    };
    entry.find_primary(now).is_none() && entry.versions.iter().any(|version| is_left(&version.row))
}
