//! RotateKey: the next version is born, published, and signs after the publish lead; in an emergency without it.

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Grant, Hsm, Key, KeyId, KeyVersion, Kms, Store,
    Unsettled,
    catalog::Entry,
    class::PERIOD_MAX,
    error::Kind,
    key::{Purpose, TakeOver, later},
    kms::VersionView,
    proposal::Change,
    replica::LeaseToken,
    store::{RememberedRequest, Transaction, Write},
    time::{Deadline, SignedDuration, Timestamp},
    timeline,
    verbs::{
        birth::Attempt,
        due::rotation_due,
        requests::{Fingerprint, Request, Terms},
        resumption::still_being_made,
    },
};

/// Most versions of one key that stand in its JWKS at once: verifiers limit the size of what they fetch.
pub const PUBLISHED_VERSIONS_MAX: usize = 8;

/// How long a birth may take, in the promise of when the lead is over.
const BIRTH_ALLOWANCE: SignedDuration = SignedDuration::from_secs(60);

/// How often a rotation is tried again when somebody else changes the key meanwhile.
const COMMIT_ATTEMPTS_MAX: usize = 32;

/// A key to be rotated.
#[derive(Debug, Clone)]
pub struct RotateKey {
    /// The key.
    pub id: KeyId,
    /// When the next version takes over. [`TakeOver::AtOnce`] is an action of its own, and takes a version that waits
    /// for its time before it makes another.
    pub takes_over: TakeOver,
    /// The guards.
    pub request: Request,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Makes the next version. It is published at once and signs after the key's publish lead, or later when it is
    /// asked to; the version before it signs until then. Run it detached: it must not be cut off.
    pub async fn rotate_key(
        &self,
        caller: &Caller,
        request: RotateKey,
        deadline: Deadline,
    ) -> Result<VersionView, Error> {
        let (now, seen) = (self.clock.now(), self.last_number(&request.id));
        let mut admission = self.gate.begin(caller, request.action(), Some(&request.id), now).await?;
        let result = async {
            if request.action() == Action::EmergencyRotateKey {
                let (key, etag) = (request.id.clone(), request.request.etag);
                let change = || Change::EmergencyRotateKey { key, etag };
                self.unless_approval_is_needed(&mut admission, caller, change).await?;
            }
            self.rotate_admitted(&mut admission, caller, &request, seen, deadline).await
        }
        .await;
        let result = self.in_effect(result.and_then(|number| self.version_view(&request.id, number))).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Of rotations at once one makes the version, wherever they were asked for, and the others answer with it. `seen`
    /// is the last version that stood there when this one was asked for: one behind it was made for us too.
    pub(super) async fn rotate_admitted(
        &self,
        admission: &mut Admission<A>,
        caller: &Caller,
        request: &RotateKey,
        seen: u32,
        deadline: Deadline,
    ) -> Result<u32, Error> {
        let id = &request.id;
        let fingerprint = Fingerprint::of("RotateKey", &[id.as_str(), &format!("{:?}", request.takes_over)]);
        let at_once = request.takes_over == TakeOver::AtOnce;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let remembered = self.replayed(caller, &request.request, &fingerprint).await?;
            if let Some(number) = remembered.and_then(|remembered| remembered.version) {
                admission.uses_version(number);
                self.see_born(admission, id, number, deadline).await?;
                return Ok(number);
            }
            // Before anything is begun, so that a wrong clock leaves no birth behind that only it could end.
            let now = self.time_for_all().await?;
            let entry = self.catalog.entry(id)?;
            request.request.check_etag(&entry.key)?;
            let remember = |number| request.request.remember(caller, &fingerprint, id, Some(number), now);
            if at_once && let Some(waiting) = timeline::pending(&entry, now) {
                let number = waiting.number;
                match self.promote(&entry, waiting, remember(number)).await {
                    Err(error) if error.kind() == Kind::Conflict && attempts < COMMIT_ATTEMPTS_MAX => {
                        continue;
                    }
                    Err(error) => return Err(error),
                    Ok(()) => {
                        admission.uses_version(number);
                        return Ok(number);
                    }
                }
            }
            if let Some(number) = made_since(&entry, seen) {
                let made = &entry.version(number)?.row;
                let soon = later(later(now, entry.lead(now, self.sets_kept())), BIRTH_ALLOWANCE);
                let is_asked_for = match (request.takes_over, made.takes_over) {
                    (asked @ TakeOver::At(_), made) => made == asked,
                    // Planned for about now, as the scheduler does, is what was asked for.
                    (TakeOver::AfterLead, TakeOver::At(planned)) => planned <= soon,
                    (TakeOver::AfterLead | TakeOver::AtOnce, _) => true,
                };
                if !is_asked_for {
                    return Err(rotated_meanwhile(id));
                }
                if at_once && made.takes_over != TakeOver::AtOnce && made.born.is_none() {
                    // It is somebody's who has time: from now on it has none, and asks no predecessor.
                    let hastened = KeyVersion { takes_over: TakeOver::AtOnce, ..made.clone() };
                    match self
                        .write_versions("hasten a birth", &entry.key, vec![hastened], None::<LeaseToken>)
                        .await
                    {
                        Err(error) if error.kind() != Kind::Conflict || attempts >= COMMIT_ATTEMPTS_MAX => {
                            return Err(error);
                        }
                        _ => continue,
                    }
                }
                let Some(adopted) = remember(number) else {
                    admission.uses_version(number);
                    self.see_born(admission, id, number, deadline).await?;
                    return Ok(number);
                };
                // From now on it is a replay.
                self.remember_adopted(adopted).await?;
                continue;
            }
            check_asked(&entry, request.takes_over, now, self.sets_kept())?;
            let number = next_number(&entry)?;
            let Some(at_work) = self.begin_work(id, number, None) else {
                self.wait_for_change(deadline, || still_being_made(id, number)).await?;
                continue;
            };
            match self.insert_version(&entry, number, request.takes_over, remember(number)).await {
                Err(error) if error.kind() == Kind::Conflict && attempts < COMMIT_ATTEMPTS_MAX => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    admission.uses_version(number);
                    self.give_birth(admission, at_work, Attempt::Fresh, deadline).await?;
                    return Ok(number);
                }
            }
        }
    }

    /// So that a retry answers with the same version and makes none. Whoever was faster with the same id is found by
    /// its request.
    async fn remember_adopted(&self, request: RememberedRequest) -> Result<(), Error> {
        let transaction = Transaction::new("adopt a rotation", vec![]);
        match self.commit(Transaction { request: Some(request), ..transaction }).await {
            Err(error) if error.kind() == Kind::Conflict => Ok(()),
            outcome => outcome,
        }
    }

    /// Makes the next version of a key if its period is over.
    pub(super) async fn rotate_on_schedule(
        &self,
        grant: &Grant,
        id: &KeyId,
        lease: LeaseToken,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let entry = self.catalog.entry(id)?;
        // Somebody may have rotated it since the decision was made.
        let now = self.clock.now();
        if lacks_successor(&entry, now) {
            return Ok(());
        }
        let takes_over = match rotation_due(&entry, now) {
            _ if self.must_rotate_early(&entry, now) => self.early_takeover(&entry, now),
            Some(activates_at) => TakeOver::At(activates_at),
            None => return Ok(()),
        };
        let number = next_number(&entry)?;
        let Some(at_work) = self.begin_work(id, number, Some(lease)) else { return Ok(()) };
        self.insert_version(&entry, number, takes_over, Some(lease)).await?;
        self.give_birth(grant, at_work, Attempt::Fresh, deadline).await
    }

    /// Makes a version for a key that has none left because of what was revoked, and lets it sign at once.
    pub(super) async fn give_successor(
        &self,
        grant: &Grant,
        id: &KeyId,
        lease: Option<LeaseToken>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let entry = self.catalog.entry(id)?;
        if !lacks_successor(&entry, self.clock.now()) {
            return Ok(());
        }
        let number = next_number(&entry)?;
        let Some(at_work) = self.begin_work(id, number, lease) else { return Ok(()) };
        self.insert_version(&entry, number, TakeOver::AtOnce, lease).await?;
        self.give_birth(grant, at_work, Attempt::Fresh, deadline).await
    }

    /// Lets a version sign that waits for its time.
    async fn promote(
        &self,
        entry: &Entry,
        waiting: &KeyVersion,
        remembered: Option<RememberedRequest>,
    ) -> Result<(), Error> {
        let now = self.time_for_all().await?;
        let changed = timeline::with(entry, &[timeline::promoted(waiting, now)], now);
        self.write_versions_moving("promote a version", &entry.key, changed, remembered).await
    }

    async fn insert_version(
        &self,
        entry: &Entry,
        number: u32,
        takes_over: TakeOver,
        terms: impl Into<Terms> + Send,
    ) -> Result<(), Error> {
        check_room(entry, self.clock.now())?;
        let name = "begin birth of a version";
        let mut transaction = self.versions_written(name, &entry.key, vec![], terms);
        transaction
            .writes
            .push(Write::InsertVersion(entry.key.id.clone(), self.new_version(number, takes_over)?));
        self.commit(transaction).await
    }

    pub(super) fn last_number(&self, id: &KeyId) -> u32 {
        self.catalog.entry(id).map_or(0, |entry| last_number(&entry))
    }

    fn version_view(&self, id: &KeyId, number: u32) -> Result<VersionView, Error> {
        let entry = self.catalog.entry(id)?;
        Ok(VersionView::of(&entry, entry.version(number)?, self.clock.now()))
    }
}

impl RotateKey {
    /// A rotation that takes over after the lead.
    pub fn new(id: KeyId) -> Self {
        Self { id, takes_over: TakeOver::AfterLead, request: Request::default() }
    }

    fn action(&self) -> Action {
        match self.takes_over {
            TakeOver::AfterLead | TakeOver::At(_) => Action::RotateKey,
            TakeOver::AtOnce => Action::EmergencyRotateKey,
        }
    }
}

/// Whether everything that signed was revoked, and nothing has come in its place.
pub(super) fn lacks_successor(entry: &Entry, now: Timestamp) -> bool {
    let rows = || entry.versions.iter().map(|version| &version.row);
    let Some(revoked) = rows().rfind(|row| row.compromise.is_some()) else { return false };
    // Whoever has put a version after it out of use that had taken over may have meant the key.
    let had_taken_over =
        |row: &KeyVersion| row.born.as_ref().is_some_and(|born| born.timeline.activates_at <= now);
    let is_put_aside = |row: &KeyVersion| row.number > revoked.number && row.suspended && had_taken_over(row);
    !rows().any(|row| row.born.is_none() || is_put_aside(row) || row.signs_from_now(now))
}

/// A time that was asked for is kept, or refused: what somebody has planned for must not happen at another time.
fn check_asked(
    entry: &Entry,
    takes_over: TakeOver,
    now: Timestamp,
    kept: SignedDuration,
) -> Result<(), Error> {
    let TakeOver::At(asked) = takes_over else { return Ok(()) };
    let led = |at| timeline::of_next(entry, at, TakeOver::AfterLead, kept).activates_at;
    let (earliest, latest) = (led(later(now, BIRTH_ALLOWANCE)), later(now, PERIOD_MAX));
    if asked < earliest || asked > latest {
        // Whoever reads it needs a moment to ask again, and a part of a second is not shown.
        let earliest = later(earliest, BIRTH_ALLOWANCE + SignedDuration::from_secs(1));
        return Err(Error::invalid(
            "activate_time",
            format!(
                "the next version of keys/{} can take over from {earliest:.0} to {latest:.0}",
                entry.key.id
            ),
        ));
    }
    Ok(())
}

fn rotated_meanwhile(id: &KeyId) -> Error {
    let text = format!("keys/{id} was rotated in the meantime, for another time; read it again and retry");
    Error::new(Kind::Conflict, "ROTATED_MEANWHILE", text)
}

fn last_number(entry: &Entry) -> u32 {
    entry.versions.last().map_or(0, |version| version.row.number)
}

fn next_number(entry: &Entry) -> Result<u32, Error> {
    last_number(entry).checked_add(1).ok_or_else(|| Error::internal("version numbers are used up"))
}

/// The version that a rotation has begun since `seen` was the last, or that one is at work on.
fn made_since(entry: &Entry, seen: u32) -> Option<u32> {
    let last = entry.versions.last()?;
    (last.row.number > seen || last.row.born.is_none()).then_some(last.row.number)
}

/// A key that still verifies is never dropped to make room: the rotation waits instead.
fn check_room(entry: &Entry, now: Timestamp) -> Result<(), Error> {
    // Where the clock is behind ours, a version leaves the key set so much later.
    let leaves_at = |row: &KeyVersion| {
        let withdrawn_at = row.born.as_ref()?.timeline.withdrawn_at?;
        Some(later(withdrawn_at, Key::CLOCKS_APART))
    };
    // Suspended ones count: they come back when they are enabled.
    let takes_room = |row: &&KeyVersion| {
        let gone = row.destroyed_at.is_some() || row.compromise.is_some();
        row.born.is_some() && !gone && leaves_at(row).is_none_or(|at| now < at)
    };
    let published: Vec<_> = entry.versions.iter().map(|version| &version.row).filter(takes_room).collect();
    // Versions that wrap stand in no JWKS, and none of them ever goes.
    if entry.key.purpose == Purpose::Wrap {
        return Ok(());
    }
    let Some(too_many) = published.len().checked_sub(PUBLISHED_VERSIONS_MAX) else { return Ok(()) };
    // Where clocks went back, more than one must leave.
    let mut leave: Vec<_> = published.iter().filter_map(|row| leaves_at(row)).collect();
    leave.sort_unstable();
    let when = match leave.get(too_many) {
        Some(at) => format!("the earliest time for it is {at}"),
        None => "enable or destroy one that is disabled first".to_owned(),
    };
    Err(Error::precondition(
        "TOO_MANY_PUBLISHED_VERSIONS",
        format!(
            "keys/{} has {} versions in its JWKS, or disabled and not withdrawn; a rotation now would drop one that \
             still verifies: {when}",
            entry.key.id,
            published.len()
        ),
    ))
}
