//! Births that were cut short, and births that somebody else is at work on.
//!
//! At most one replica that lives is at work on a birth: its maker. A birth of this replica that nobody here is at work
//! on is resumed here; one of a replica that is not heard of any more is resumed by the holder of the lease, or by
//! whoever is asked for that version. Either first makes itself the maker, by compare-and-set.

use std::{
    collections::{HashMap, HashSet},
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    AuditLog, Clock, Error, Grant, Hsm, KeyId, KeyVersion, Kms, Store, Unsettled,
    audit::Subject,
    error::Kind,
    gate::SystemWork,
    replica::LeaseToken,
    time::{Deadline, SignedDuration, Timestamp},
    verbs::birth::Attempt,
};

/// How long a birth rests after its first failed resumption, and at most. Doubles in between.
const RESUME_PAUSE_MIN: SignedDuration = SignedDuration::from_secs(5);
const RESUME_PAUSE_MAX: SignedDuration = SignedDuration::from_mins(10);

/// How long to wait for a hint that the store has changed before looking.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What this process knows of births under way.
#[derive(Default)]
pub(crate) struct Births {
    /// At work in this process: the resumer leaves them alone.
    at_work: HashSet<(KeyId, u32)>,
    /// Failed resumptions, and when the next is due.
    failed: HashMap<(KeyId, u32), (u32, Timestamp)>,
}

/// Marks a birth as being at work in this process, until dropped.
pub(super) struct AtWork<'a, H, S, A, C> {
    kms: &'a Kms<H, S, A, C>,
    birth: (KeyId, u32),
    /// Under which it is done, if nobody asked for it.
    lease: Option<LeaseToken>,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Finishes every birth that was cut short and is ours to finish. Returns how many were finished; failures are
    /// logged and will be tried again.
    pub async fn resume_births(&self, deadline: Deadline) -> usize {
        if self.recovery().is_some() || self.fenced().is_some() {
            return 0;
        }
        let mut finished = 0;
        for (id, number, lease) in self.unborn() {
            let result = self.resume_birth(&id, number, lease, deadline).await;
            if let Err(error) = &result {
                tracing::warn!(key = %id, version = number, %error, "a birth could not be resumed yet");
            }
            self.note_rotation(&id, &result);
            finished += usize::from(result.is_ok());
            self.births().resumed((id, number), result.is_ok(), self.clock.now());
        }
        finished
    }

    /// Our own need no lease: they are nobody else's as long as we live.
    fn unborn(&self) -> Vec<(KeyId, u32, Option<LeaseToken>)> {
        let (now, lease) = (self.clock.now(), self.lease());
        let picture = self.catalog.now();
        let births = self.births();
        let mut unborn = vec![];
        for entry in picture.keys.values() {
            let Some(row) = entry.unborn() else { continue };
            let ours = row.maker.as_ref() == Some(&self.replica);
            let may_resume = births.may_resume(&(entry.key.id.clone(), row.number), now);
            if may_resume && self.may_make(row) && (ours || lease.is_some()) {
                unborn.push((entry.key.id.clone(), row.number, lease.filter(|_| !ours)));
            }
        }
        unborn
    }

    async fn resume_birth(
        &self,
        id: &KeyId,
        number: u32,
        lease: Option<LeaseToken>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let at_work = self.begin_work(id, number, lease).ok_or_else(|| in_progress(id, number))?;
        let subject = Subject::of_version(id, number);
        let admission = self.gate.begin_system(SystemWork::Birth, subject, self.clock.now()).await?;
        let result = self.give_birth(&admission, at_work, Attempt::Resumed, deadline).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Waits until a version is born that a live replica is at work on, or makes it when none is. Up to `deadline`.
    pub(super) async fn see_born(
        &self,
        grant: &Grant,
        id: &KeyId,
        number: u32,
        deadline: Deadline,
    ) -> Result<(), Error> {
        loop {
            let entry = self.catalog.entry(id)?;
            let row = &entry.version(number)?.row;
            if row.born.is_some() {
                return Ok(());
            }
            if self.may_make(row)
                && let Some(at_work) = self.begin_work(id, number, None)
            {
                match self.give_birth(grant, at_work, Attempt::Resumed, deadline).await {
                    // Somebody else has taken it over.
                    Err(error) if error.kind() == Kind::Conflict => {}
                    outcome => return outcome,
                }
            }
            self.wait_for_change(deadline, || still_being_made(id, number)).await?;
        }
    }

    /// Lets others go on, then looks at the store. Past `deadline` it is `late`.
    pub(super) async fn wait_for_change(
        &self,
        deadline: Deadline,
        late: impl FnOnce() -> Error,
    ) -> Result<(), Error> {
        let left = deadline.instant().saturating_duration_since(self.clock.instant());
        if left.is_zero() {
            return Err(late());
        }
        let known = self.generation();
        self.store.changed(known, left.min(LOOK_INTERVAL)).await;
        if self.generation() == known { self.catch_up().await } else { Ok(()) }
    }

    /// Makes this replica the maker, if it is not. That the other one does not live is asked for once more: it may have
    /// come, and become the maker, since the last pulse.
    pub(super) async fn take_over(
        &self,
        id: &KeyId,
        number: u32,
        lease: Option<LeaseToken>,
    ) -> Result<(), Error> {
        let is_ours = |row: &KeyVersion| row.born.is_some() || row.maker.as_ref() == Some(&self.replica);
        if is_ours(&self.catalog.entry(id)?.version(number)?.row) {
            return Ok(());
        }
        self.beat_again().await?;
        let entry = self.catalog.entry(id)?;
        let row = &entry.version(number)?.row;
        if is_ours(row) {
            return Ok(());
        }
        if !self.may_make(row) {
            return Err(in_progress(id, number));
        }
        let row = KeyVersion { maker: Some(self.replica.clone()), ..row.clone() };
        self.write_versions("take over a birth", &entry.key, vec![row], lease).await
    }

    /// Marks the birth as ours, before its row is written: the resumer must not take it for one cut short. `None` when
    /// somebody in this process is at work on it.
    pub(super) fn begin_work(
        &self,
        id: &KeyId,
        number: u32,
        lease: Option<LeaseToken>,
    ) -> Option<AtWork<'_, H, S, A, C>> {
        let birth = (id.clone(), number);
        let is_first = self.births().at_work.insert(birth.clone());
        // Only then: who drops it takes the birth off the list.
        is_first.then(|| AtWork { kms: self, birth, lease })
    }

    /// Whether no other replica that lives is at work on it, by the last pulse.
    fn may_make(&self, row: &KeyVersion) -> bool {
        row.maker.as_ref().is_none_or(|maker| *maker == self.replica || !self.lives(maker))
    }
}

impl<H, S, A, C> Kms<H, S, A, C> {
    fn births(&self) -> MutexGuard<'_, Births> {
        // Sets of names are whole even if their holder panicked.
        self.births.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H, S, A, C> AtWork<'_, H, S, A, C> {
    pub(super) fn birth(&self) -> (&KeyId, u32) {
        (&self.birth.0, self.birth.1)
    }

    pub(super) fn lease(&self) -> Option<LeaseToken> {
        self.lease
    }
}

impl<H, S, A, C> Drop for AtWork<'_, H, S, A, C> {
    fn drop(&mut self) {
        self.kms.births().at_work.remove(&self.birth);
    }
}

impl Births {
    fn may_resume(&self, birth: &(KeyId, u32), now: Timestamp) -> bool {
        let waits = self.failed.get(birth).is_some_and(|(_, not_before)| *not_before > now);
        !waits && !self.at_work.contains(birth)
    }

    /// A birth that fails again and again is tried ever less often: each attempt may leave an orphan behind.
    fn resumed(&mut self, birth: (KeyId, u32), finished: bool, now: Timestamp) {
        if finished {
            self.failed.remove(&birth);
            return;
        }
        let failures = self.failed.get(&birth).map_or(0, |(failures, _)| *failures);
        let pause = RESUME_PAUSE_MIN.saturating_mul(1 << failures.min(16)).min(RESUME_PAUSE_MAX);
        let not_before = now.saturating_add(pause).unwrap_or(Timestamp::MAX);
        self.failed.insert(birth, (failures + 1, not_before));
    }
}

fn in_progress(id: &KeyId, number: u32) -> Error {
    let text = format!("keys/{id}/versions/{number} is being made at this moment; retry in a moment");
    Error::new(Kind::Conflict, "CREATION_IN_PROGRESS", text)
}

/// The caller's time is up, and the birth goes on.
pub(super) fn still_being_made(id: &KeyId, number: u32) -> Error {
    let text = format!(
        "keys/{id}/versions/{number} is still being made; retry with the same request_id to wait for it"
    );
    Error::new(Kind::DeadlineExceeded, "CREATION_IN_PROGRESS", text)
}
