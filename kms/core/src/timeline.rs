//! How the times of a key's versions depend on each other.
//!
//! Two rules hold after every change, in the same transaction: a version signs only after it has stood in the JWKS
//! for the key's lead, and a version retires exactly when a successor that can sign takes over. So nothing retires
//! without one, also when the successor is disabled before its time.

use crate::{
    Key, KeyState, KeyVersion,
    catalog::Entry,
    key::{Born, Purpose, TakeOver, Timeline, later},
    time::{SignedDuration, Timestamp},
};

/// The times of a version that is being born. The first version of a key signs at once, also where the clock is behind
/// ours: its times lie that far back, and so do those of one that takes over at once. Any other signs after the lead,
/// not before it was asked to, and at least a fence after the version before it. `kept` is how long verifiers may keep a
/// set that they have.
pub(crate) fn of_next(entry: &Entry, now: Timestamp, takes_over: TakeOver, kept: SignedDuration) -> Timeline {
    let latest = entry.versions.iter().filter_map(|version| version.row.born.as_ref()).next_back();
    let asked = match (latest, takes_over) {
        (None, _) | (_, TakeOver::AtOnce) => {
            let at = at_once(now);
            return Timeline { published_at: at, activates_at: at, ..UNENDING };
        }
        (Some(latest), takes_over) => {
            let after = later(latest.timeline.activates_at, Key::FENCE);
            if let TakeOver::At(asked) = takes_over { after.max(asked) } else { after }
        }
    };
    let led = later(now, entry.lead(now, kept));
    Timeline { published_at: now, activates_at: led.max(asked), ..UNENDING }
}

/// Now, also where the clock is behind ours.
fn at_once(now: Timestamp) -> Timestamp {
    later(now, -Key::CLOCKS_APART)
}

/// The version that is published and waits for its time, if there is one whose time will come.
pub(crate) fn pending(entry: &Entry, now: Timestamp) -> Option<&KeyVersion> {
    let rows = entry.versions.iter().rev().map(|version| &version.row);
    let will_sign = |row: &KeyVersion| {
        let timeline = row.born.as_ref().map(|born| born.timeline);
        timeline.is_some_and(|timeline| timeline.retires_at.is_none_or(|at| at > timeline.activates_at))
    };
    rows.filter(|row| row.may_ever_sign() && will_sign(row))
        .find(|row| row.state(now) == KeyState::PreActivation)
}

/// When the next version takes over: the one that waits, or the one that the key's period asks for.
pub(crate) fn next_rotation(entry: &Entry, now: Timestamp) -> Option<Timestamp> {
    let waiting = pending(entry, now).and_then(|row| row.born.as_ref());
    waiting.map(|born| born.timeline.activates_at).or_else(|| scheduled(entry))
}

/// When the version after the last one is to take over, by the key's period. What was revoked does not count: its
/// successor was made in its place.
pub(crate) fn scheduled(entry: &Entry) -> Option<Timestamp> {
    let last = entry.versions.iter().rfind(|version| version.row.compromise.is_none())?;
    last.row.born.as_ref().and_then(|_| planned(entry))
}

/// The same, also while that version is being made.
pub(crate) fn planned(entry: &Entry) -> Option<Timestamp> {
    let period = entry.key.rotation_period?;
    let mut rows = entry.versions.iter().rev().map(|version| &version.row);
    let last = rows.find(|row| row.compromise.is_none() && row.born.is_some())?.born.as_ref()?;
    last.timeline.activates_at.saturating_add(period).ok()
}

/// The same version, signing from now on.
pub(crate) fn promoted(row: &KeyVersion, now: Timestamp) -> KeyVersion {
    let mut row = KeyVersion { takes_over: TakeOver::AtOnce, ..row.clone() };
    if let Some(born) = &mut row.born {
        born.timeline.activates_at = at_once(now);
        born.timeline.published_at = born.timeline.published_at.min(born.timeline.activates_at);
    }
    row
}

/// The times of a suspended version that comes back. It left the JWKS, so while another version signs it must
/// stand there for the lead again before it takes over.
pub(crate) fn of_returning(
    entry: &Entry,
    row: &KeyVersion,
    born: &Born,
    now: Timestamp,
    kept: SignedDuration,
) -> Timeline {
    let takes_over = entry.find_primary(now).is_some_and(|primary| primary.row.number < row.number);
    let led = if takes_over { later(now, entry.lead(now, kept)) } else { Timestamp::MIN };
    Timeline { activates_at: born.timeline.activates_at.max(led), ..born.timeline }
}

/// Every row that changes when each of `changed` takes the place of the row of its number: itself, and the versions
/// whose retirement follows from it. A retirement that has passed stays as it is.
pub(crate) fn with(entry: &Entry, changed: &[KeyVersion], now: Timestamp) -> Vec<KeyVersion> {
    let before = entry.versions.iter().map(|version| &version.row);
    let changed = |row: &KeyVersion| changed.iter().find(|changed| changed.number == row.number);
    let after: Vec<&KeyVersion> = before.clone().map(|row| changed(row).unwrap_or(row)).collect();
    // Of the many that a key may have had, those that have retired are not even looked at twice.
    let open = before.zip(&after).filter(|(old, row)| changed(row).is_some() || is_open(old, now));
    let retimed = open.map(|(old, row)| (old, retimed(&entry.key, row, &after, now)));
    retimed.filter(|(old, row)| row != *old).map(|(_, row)| row).collect()
}

const UNENDING: Timeline = Timeline {
    published_at: Timestamp::UNIX_EPOCH,
    activates_at: Timestamp::UNIX_EPOCH,
    retires_at: None,
    withdrawn_at: None,
    destroys_at: None,
};

/// Whether its retirement may still change.
fn is_open(row: &KeyVersion, now: Timestamp) -> bool {
    row.born.as_ref().is_some_and(|born| born.timeline.retires_at.is_none_or(|at| at > now))
}

fn retimed(key: &Key, row: &KeyVersion, all: &[&KeyVersion], now: Timestamp) -> KeyVersion {
    let mut row = row.clone();
    if is_open(&row, now)
        && let Some(born) = &mut row.born
    {
        let successors = all.iter().filter(|other| other.number > row.number && other.may_ever_sign());
        let takes_over =
            successors.filter_map(|other| Some(other.born.as_ref()?.timeline.activates_at)).min();
        let retires_at = takes_over.map(|at| at.max(now));
        if born.timeline.retires_at != retires_at {
            born.timeline.retires_at = retires_at;
            // What was wrapped is unwrapped for ever.
            let is_withdrawn = key.purpose != Purpose::Wrap;
            born.timeline.withdrawn_at =
                retires_at.filter(|_| is_withdrawn).map(|at| key.withdrawal_after(at));
        }
    }
    row
}
