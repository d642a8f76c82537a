//! RotateKey: the next version is born, published, and signs after the publish lead.

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Grant, Hsm, Key, KeyId, KeyVersion, Kms, Store,
    Unsettled,
    catalog::Entry,
    error::Kind,
    key::later,
    kms::VersionView,
    replica::LeaseToken,
    store::{RememberedRequest, Transaction, Write},
    time::{Deadline, Timestamp},
    verbs::{
        birth::Attempt,
        due::rotation_due,
        requests::{Fingerprint, Request, Terms},
        resumption::still_being_made,
    },
};

/// Most versions of one key that stand in its JWKS at once: verifiers limit the size of what they fetch.
pub const PUBLISHED_VERSIONS_MAX: usize = 8;

/// How often a rotation is tried again when somebody else changes the key meanwhile.
const COMMIT_ATTEMPTS_MAX: usize = 32;

/// A key to be rotated.
#[derive(Debug, Clone)]
pub struct RotateKey {
    /// The key.
    pub id: KeyId,
    /// The guards.
    pub request: Request,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Makes the next version. It is published at once and signs after the key's publish lead; the version
    /// before it signs until then. Run it detached: it must not be cut off.
    pub async fn rotate_key(
        &self,
        caller: &Caller,
        request: RotateKey,
        deadline: Deadline,
    ) -> Result<VersionView, Error> {
        let (now, seen) = (self.clock.now(), self.last_number(&request.id));
        let mut admission = self.gate.begin(caller, Action::RotateKey, Some(&request.id), now).await?;
        let result = self.rotate_admitted(&mut admission, caller, &request, seen, deadline).await;
        let result = self.in_effect(result.and_then(|number| self.version_view(&request.id, number))).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Of rotations at once one makes the version, wherever they were asked for, and the others answer with it. `seen`
    /// is the last version that stood there when this one was asked for: one behind it was made for us too.
    async fn rotate_admitted(
        &self,
        admission: &mut Admission<A>,
        caller: &Caller,
        request: &RotateKey,
        seen: u32,
        deadline: Deadline,
    ) -> Result<u32, Error> {
        let id = &request.id;
        let fingerprint = Fingerprint::of("RotateKey", &[id.as_str()]);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let remembered = self.replayed(caller, &request.request, &fingerprint).await?;
            if let Some(number) = remembered.and_then(|remembered| remembered.version) {
                admission.uses_version(number);
                self.see_born(admission, id, number, deadline).await?;
                return Ok(number);
            }
            let entry = self.catalog.entry(id)?;
            request.request.check_etag(&entry.key)?;
            let now = self.clock.now();
            let remember = |number| request.request.remember(caller, &fingerprint, id, Some(number), now);
            if let Some(number) = made_since(&entry, seen) {
                let Some(adopted) = remember(number) else {
                    admission.uses_version(number);
                    self.see_born(admission, id, number, deadline).await?;
                    return Ok(number);
                };
                // From now on it is a replay.
                self.remember_adopted(adopted).await?;
                continue;
            }
            let number = next_number(&entry)?;
            let Some(at_work) = self.begin_work(id, number, None) else {
                self.wait_for_change(deadline, || still_being_made(id, number)).await?;
                continue;
            };
            match self.insert_version(&entry, number, remember(number)).await {
                Err(error) if error.kind() == Kind::Conflict && attempts < COMMIT_ATTEMPTS_MAX => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    admission.uses_version(number);
                    self.give_birth(admission, at_work, Attempt::Fresh, None, deadline).await?;
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
        let Some(activates_at) = rotation_due(&entry, self.clock.now()) else { return Ok(()) };
        let number = next_number(&entry)?;
        let Some(at_work) = self.begin_work(id, number, Some(lease)) else { return Ok(()) };
        self.insert_version(&entry, number, Some(lease)).await?;
        self.give_birth(grant, at_work, Attempt::Fresh, Some(activates_at), deadline).await
    }

    async fn insert_version(
        &self,
        entry: &Entry,
        number: u32,
        terms: impl Into<Terms> + Send,
    ) -> Result<(), Error> {
        check_room(entry, self.clock.now())?;
        let name = "begin birth of a version";
        let mut transaction = self.versions_written(name, &entry.key, vec![], terms);
        transaction.writes.push(Write::InsertVersion(entry.key.id.clone(), self.new_version(number)?));
        self.commit(transaction).await
    }

    fn last_number(&self, id: &KeyId) -> u32 {
        self.catalog.entry(id).map_or(0, |entry| last_number(&entry))
    }

    fn version_view(&self, id: &KeyId, number: u32) -> Result<VersionView, Error> {
        let entry = self.catalog.entry(id)?;
        Ok(VersionView::of(&entry, entry.version(number)?, self.clock.now()))
    }
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
        let gone = row.destroyed_at.is_some() || row.compromised_at.is_some();
        row.born.is_some() && !gone && leaves_at(row).is_none_or(|at| now < at)
    };
    let published: Vec<_> = entry.versions.iter().map(|version| &version.row).filter(takes_room).collect();
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
