//! How the times of a key's versions depend on each other.
//!
//! Two rules hold after every change, in the same transaction: a version signs only after it has stood in the JWKS
//! for the key's lead, and a version retires exactly when a successor that can sign takes over. So nothing retires
//! without one, also when the successor is disabled before its time.

use crate::{
    Key, KeyVersion,
    catalog::Entry,
    key::{Born, Timeline, later},
    time::Timestamp,
};

/// The times of a version that is being born. The first version of a key signs at once, also where the clock is behind
/// ours: its times lie that far back. A later one signs after the lead, not before `asked`, and at least a fence after
/// the version before it.
pub(crate) fn of_next(entry: &Entry, now: Timestamp, asked: Option<Timestamp>) -> Timeline {
    let latest = entry.versions.iter().filter_map(|version| version.row.born.as_ref()).next_back();
    let Some(latest) = latest else {
        let at = later(now, -Key::CLOCKS_APART);
        return Timeline { published_at: at, activates_at: at, ..UNENDING };
    };
    let led = later(now, entry.lead(now));
    let after = later(latest.timeline.activates_at, Key::FENCE);
    let activates_at = led.max(after).max(asked.unwrap_or(Timestamp::MIN));
    Timeline { published_at: now, activates_at, ..UNENDING }
}

/// The times of a suspended version that comes back. It left the JWKS, so while another version signs it must
/// stand there for the lead again before it takes over.
pub(crate) fn of_returning(entry: &Entry, row: &KeyVersion, born: &Born, now: Timestamp) -> Timeline {
    let takes_over = entry.find_primary(now).is_some_and(|primary| primary.row.number < row.number);
    let led = if takes_over { later(now, entry.lead(now)) } else { Timestamp::MIN };
    Timeline { activates_at: born.timeline.activates_at.max(led), ..born.timeline }
}

/// Every row that changes when `changed` takes the place of the row of its number: itself, and the versions whose
/// retirement follows from it. A retirement that has passed stays as it is.
pub(crate) fn with(entry: &Entry, changed: KeyVersion, now: Timestamp) -> Vec<KeyVersion> {
    let before = entry.versions.iter().map(|version| &version.row);
    let after: Vec<&KeyVersion> =
        before.clone().map(|row| if row.number == changed.number { &changed } else { row }).collect();
    // Of the many that a key may have had, those that have retired are not even looked at twice.
    let open = before.zip(&after).filter(|(old, row)| row.number == changed.number || is_open(old, now));
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
        let successors = all.iter().filter(|other| other.number > row.number && may_ever_sign(other));
        let takes_over =
            successors.filter_map(|other| Some(other.born.as_ref()?.timeline.activates_at)).min();
        let retires_at = takes_over.map(|at| at.max(now));
        if born.timeline.retires_at != retires_at {
            born.timeline.retires_at = retires_at;
            born.timeline.withdrawn_at = retires_at.map(|at| key.withdrawal_after(at));
        }
    }
    row
}

fn may_ever_sign(row: &KeyVersion) -> bool {
    let out_of_use = row.suspended || row.compromised_at.is_some() || row.destroyed_at.is_some();
    !out_of_use && row.born.as_ref().is_some_and(|born| born.timeline.destroys_at.is_none())
}
