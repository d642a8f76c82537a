//! RotateKey: the next version is born, published, and signs after the publish lead.

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Grant, Hsm, Key, KeyId, KeyVersion, Kms, Store,
    Unsettled,
    catalog::Entry,
    error::Kind,
    kms::VersionView,
    store::{RememberedRequest, Transaction, Write},
    time::{Deadline, Timestamp},
    verbs::{
        birth::Attempt,
        due::rotation_due,
        requests::{Fingerprint, Request},
    },
};

/// Most versions of one key that stand in its JWKS at once: verifiers limit the size of what they fetch.
pub const PUBLISHED_VERSIONS_MAX: usize = 8;

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
        let now = self.clock.now();
        let mut admission = self.gate.begin(caller, Action::RotateKey, Some(&request.id), now).await?;
        let result = self.rotate_admitted(&mut admission, caller, &request, deadline).await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    async fn rotate_admitted(
        &self,
        admission: &mut Admission<A>,
        caller: &Caller,
        request: &RotateKey,
        deadline: Deadline,
    ) -> Result<VersionView, Error> {
        let id = &request.id;
        let fingerprint = Fingerprint::of("RotateKey", &[id.as_str()]);
        let remembered = self.replayed(caller, &request.request, &fingerprint).await?;
        let (at_work, number, attempt) = match remembered.and_then(|remembered| remembered.version) {
            Some(number) => (self.begin_work(id, number)?, number, Attempt::Resumed),
            None => {
                let entry = self.catalog.entry(id)?;
                request.request.check_etag(&entry.key)?;
                let now = self.clock.now();
                let number = next_number(&entry)?;
                let at_work = self.begin_work(id, number)?;
                let remembered = request.request.remember(caller, &fingerprint, id, Some(number), now);
                self.insert_version(&entry, number, remembered).await?;
                (at_work, number, Attempt::Fresh)
            }
        };
        admission.uses_version(number);
        self.give_birth(admission, at_work, attempt, None, deadline).await?;
        let entry = self.catalog.entry(id)?;
        Ok(VersionView::of(&entry, entry.version(number)?, self.clock.now()))
    }

    /// Makes the next version of a key if its period is over.
    pub(super) async fn rotate_on_schedule(
        &self,
        grant: &Grant,
        id: &KeyId,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let entry = self.catalog.entry(id)?;
        // Somebody may have rotated it since the decision was made.
        let Some(activates_at) = rotation_due(&entry, self.clock.now()) else { return Ok(()) };
        let number = next_number(&entry)?;
        let at_work = self.begin_work(id, number)?;
        self.insert_version(&entry, number, None).await?;
        self.give_birth(grant, at_work, Attempt::Fresh, Some(activates_at), deadline).await
    }

    async fn insert_version(
        &self,
        entry: &Entry,
        number: u32,
        request: Option<RememberedRequest>,
    ) -> Result<(), Error> {
        let now = self.clock.now();
        check_room(entry, now)?;
        let key = Key { revision: entry.key.revision + 1, updated_at: now, ..entry.key.clone() };
        let id = key.id.clone();
        let writes = vec![Write::UpdateKey(key), Write::InsertVersion(id, self.new_version(number)?)];
        self.commit(Transaction { request, ..Transaction::new("begin birth of a version", writes) }).await
    }
}

fn next_number(entry: &Entry) -> Result<u32, Error> {
    if let Some(unborn) = entry.versions.iter().find(|version| version.row.born.is_none()) {
        return Err(Error::new(
            Kind::Conflict,
            "ROTATION_IN_PROGRESS",
            format!(
                "version {} of keys/{} is being made; wait for it instead of rotating again",
                unborn.row.number, entry.key.id
            ),
        ));
    }
    let last = entry.versions.last().map_or(0, |version| version.row.number);
    last.checked_add(1).ok_or_else(|| Error::internal("version numbers are used up"))
}

/// A key that still verifies is never dropped to make room: the rotation waits instead.
fn check_room(entry: &Entry, now: Timestamp) -> Result<(), Error> {
    // Suspended ones count: they come back when they are enabled.
    let takes_room = |row: &&KeyVersion| {
        let withdrawn = row.born.as_ref().and_then(|born| born.timeline.withdrawn_at);
        let gone = row.destroyed_at.is_some() || row.compromised_at.is_some();
        row.born.is_some() && !gone && withdrawn.is_none_or(|at| now < at)
    };
    let published: Vec<_> = entry.versions.iter().map(|version| &version.row).filter(takes_room).collect();
    if published.len() < PUBLISHED_VERSIONS_MAX {
        return Ok(());
    }
    let withdrawals = published.iter().filter_map(|row| row.born.as_ref()?.timeline.withdrawn_at);
    let when = match withdrawals.min() {
        Some(at) => format!("the earliest time for it is {at}"),
        None => "disable a version first".to_owned(),
    };
    Err(Error::precondition(
        "TOO_MANY_PUBLISHED_VERSIONS",
        format!(
            "keys/{} has {PUBLISHED_VERSIONS_MAX} versions in its JWKS; a rotation now would drop one that \
             still verifies: {when}",
            entry.key.id
        ),
    ))
}
