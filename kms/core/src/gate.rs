//! The one gate: every verb passes it on the way in and on the way out.
//!
//! On the way in, [`Gate::admit`] asks policy and takes a place in the audit log; what comes back derefs to a
//! [`Grant`], without which no method of [`crate::Hsm`] can be called. On the way out, [`Admission::settle`]
//! makes the record durable *before* it opens the result: nothing leaves unrecorded. An admission that is
//! dropped unsettled (its client went away) is recorded as abandoned.
//!
//! Behind the [`crate::fence`] nobody is admitted: what this process knows may be out of date, so it does not even
//! decide. Only how it is can be asked of it then too (`policy::is_allowed_behind_fence` says why). A process that has slept between the two ways finds the fence at the second one: what was computed or read
//! is withheld. The answer about a change that was committed is not: it tells of a fact, and whoever does not hear it
//! may do it twice, or lose a credential that is shown once.

mod limited;

use std::{
    borrow::Cow,
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use kms_envelope::EncryptionContext;

use crate::{
    Action, Caller, Error, KeyId,
    audit::{AuditLog, Event, OperationId, Outcome, Phase, Subject},
    catalog::Catalog,
    epoch::Recovery,
    fence::{Fence, Fenced},
    lane::Lane,
    limits::Limits,
    policy::{self, About, Ask, Decision, Traits},
    time::Timestamp,
};

/// Decides, and keeps the book. One per process.
pub struct Gate<A> {
    log: Arc<A>,
    prefix: u64,
    counter: AtomicU64,
    recovery: ArcSwapOption<Recovery>,
    fence: Option<Arc<Fence>>,
    /// Whose rules decide.
    catalog: Arc<Catalog>,
    limits: Option<Arc<Limits>>,
}

/// Proof that policy allowed one operation. Only the gate makes one.
#[derive(Debug)]
pub struct Grant {
    operation: OperationId,
    caller: Arc<str>,
    action: Action,
    subject: Subject,
    /// Why our own work is done, where that is not plain.
    reason: Option<&'static str>,
    lane: Lane,
    at: Timestamp,
}

/// A grant with its reserved place in the audit log. Settle it, or it is recorded as abandoned.
#[must_use = "an admission that is not settled is recorded as abandoned"]
pub struct Admission<A: AuditLog> {
    grant: Grant,
    log: Arc<A>,
    slot: Option<A::Slot>,
    /// What the result depends on; `None` for a change of state, which is answered for by its commit, and for what the
    /// fence does not keep out.
    fence: Option<Arc<Fence>>,
}

/// What policy is told beside caller, action and key.
#[derive(Default)]
struct Asked<'a> {
    context: Option<&'a EncryptionContext>,
    /// Of a key that is only asked for.
    traits: Option<Traits<'a>>,
}

/// A result that nobody outside core may see before its audit record is durable.
#[must_use = "a result that is not settled never leaves"]
pub struct Unsettled<T>(T);

/// Our own work: a closed list. Its grants come without a caller, and each is restricted in its verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemWork {
    /// Finishing a birth: searching for its objects, generating, and the challenge that a new key signs.
    Birth,
    /// Letting a version of a key of bundles say which one succeeds it.
    CrossSignature,
    /// Proving that the HSM link works. Writes no record.
    Canary,
    /// Rotating what is due.
    Rotation,
    /// Giving a successor to a key whose versions are all compromised.
    Succession,
    /// Giving a key the periods of its class.
    Class,
    /// Scheduling the destruction of what has been withdrawn for long enough.
    Expiry,
    /// Destroying what is due.
    Destruction,
    /// Letting the token follow the store's epoch. Writes no record: the change that moved it has one.
    Epoch,
    /// Comparing what the token holds with what the store knows.
    Reconciliation,
    /// Taking a version out of service whose objects in the token differ; the reason, for the record.
    AttributeAudit(&'static str),
}

impl<A: AuditLog> Gate<A> {
    /// A gate that records to `log`. `prefix` is random, so that operation ids of several runs differ. Callers have their own
    /// roles, and nothing else.
    pub fn new(log: Arc<A>, prefix: u64) -> Self {
        let (counter, recovery) = (AtomicU64::new(0), ArcSwapOption::empty());
        let catalog = Arc::new(Catalog::empty());
        Self { log, prefix, counter, recovery, fence: None, catalog, limits: None }
    }

    /// The same, deciding by the rules of `catalog`.
    pub(crate) fn ruled_by(self, catalog: Arc<Catalog>) -> Self {
        Self { catalog, ..self }
    }

    /// The same, closed while `fence` is up.
    pub(crate) fn behind(self, fence: Arc<Fence>) -> Self {
        Self { fence: Some(fence), ..self }
    }

    /// Admits `caller` to `action` on `key`, or records the denial and says only "denied".
    pub async fn admit(
        &self,
        caller: &Caller,
        action: Action,
        key: Option<&KeyId>,
        now: Timestamp,
    ) -> Result<Admission<A>, Error> {
        self.admit_about(caller, action, key.into(), now).await
    }

    /// Like [`Gate::admit`], for an operation that has an encryption context.
    pub(crate) async fn admit_in(
        &self,
        caller: &Caller,
        action: Action,
        key: &KeyId,
        context: &EncryptionContext,
        now: Timestamp,
    ) -> Result<Admission<A>, Error> {
        let asked = Asked { context: Some(context), traits: None };
        self.admit_asked(caller, action, Some(key).into(), asked, now).await
    }

    /// Like [`Gate::admit`], about something that is no key, or about more than a key.
    pub(crate) async fn admit_about(
        &self,
        caller: &Caller,
        action: Action,
        subject: Subject,
        now: Timestamp,
    ) -> Result<Admission<A>, Error> {
        self.admit_asked(caller, action, subject, Asked::default(), now).await
    }

    async fn admit_asked(
        &self,
        caller: &Caller,
        action: Action,
        subject: Subject,
        asked: Asked<'_>,
        now: Timestamp,
    ) -> Result<Admission<A>, Error> {
        let slot = self.reserve(action)?;
        let mut grant = self.grant(caller.shared_name(), action, subject, now);
        let (decision, class) = {
            let picture = self.catalog.now();
            let about = match (&grant.subject.key, asked.traits) {
                (Some(key), Some(traits)) => About::Key(key, Some(traits)),
                (key, _) => picture.about(key.as_ref()),
            };
            let ask = Ask { action, about, context: asked.context };
            (policy::decide(&picture, caller, &ask, now), about.class())
        };
        match decision {
            Decision::Allow { lane } => {
                grant.lane = lane;
                let admission = self.unless_limited(self.admission(grant, slot), class).await?;
                self.unless_in_recovery(admission).await
            }
            Decision::Deny { rule } => self.admission(grant, slot).deny(rule, Error::denied()).await,
        }
    }

    /// Like [`Gate::admit`], for a change of state: the intent is durable before this returns.
    pub async fn begin(
        &self,
        caller: &Caller,
        action: Action,
        key: Option<&KeyId>,
        now: Timestamp,
    ) -> Result<Admission<A>, Error> {
        self.begin_about(caller, action, key.into(), now).await
    }

    /// Like [`Gate::begin`], for a change to something that is no key, or to one version.
    pub async fn begin_about(
        &self,
        caller: &Caller,
        action: Action,
        subject: Subject,
        now: Timestamp,
    ) -> Result<Admission<A>, Error> {
        let admission = self.admit_about(caller, action, subject, now).await?;
        self.intend(admission).await
    }

    /// Like [`Gate::begin`], for a key that is not there yet: policy looks at what it is to be.
    pub(crate) async fn begin_making(
        &self,
        caller: &Caller,
        action: Action,
        key: &KeyId,
        traits: Traits<'_>,
        now: Timestamp,
    ) -> Result<Admission<A>, Error> {
        let asked = Asked { context: None, traits: Some(traits) };
        let admission = self.admit_asked(caller, action, Some(key).into(), asked, now).await?;
        self.intend(admission).await
    }

    /// Like [`Gate::begin`], for our own work.
    pub async fn begin_system(
        &self,
        work: SystemWork,
        subject: Subject,
        now: Timestamp,
    ) -> Result<Admission<A>, Error> {
        let slot = self.reserve(work.action())?;
        let grant = Grant { subject, ..self.system(work, None, now) };
        let admission = self.admission(grant, slot);
        self.intend(self.unless_in_recovery(admission).await?).await
    }

    /// Like [`Gate::admit`], for our own work that reads only and is about no key alone.
    pub fn admit_system(&self, work: SystemWork, now: Timestamp) -> Result<Admission<A>, Error> {
        let slot = self.reserve(work.action())?;
        Ok(self.admission(self.system(work, None, now), slot))
    }

    /// A grant for our own work that writes no record of its own: the canary, the epoch, and the steps inside a
    /// birth whose intent and outcome are recorded already.
    pub fn system(&self, work: SystemWork, key: Option<&KeyId>, now: Timestamp) -> Grant {
        let grant = self.grant(work.caller().into(), work.action(), key.into(), now);
        Grant { reason: work.reason(), ..grant }
    }

    /// Why and since which epoch the service is in recovery mode, if it is.
    pub fn recovery(&self) -> Option<Recovery> {
        self.recovery.load().as_deref().copied()
    }

    /// Enters recovery mode, or leaves it.
    pub(crate) fn set_recovery(&self, recovery: Option<Recovery>) {
        self.recovery.store(recovery.map(Arc::new));
    }

    async fn unless_in_recovery(&self, admission: Admission<A>) -> Result<Admission<A>, Error> {
        match self.recovery() {
            Some(recovery) if !policy::is_allowed_in_recovery(admission.action) => {
                let refusal = recovery.refusal();
                admission.deny(refusal.reason(), refusal).await
            }
            _ => Ok(admission),
        }
    }

    /// A place in the book, for somebody who may come in at all.
    fn reserve(&self, action: Action) -> Result<A::Slot, Error> {
        unless_fenced(self.fence_before(action).map(|fence| &**fence), Ok(()))?;
        Ok(self.log.reserve()?)
    }

    fn admission(&self, grant: Grant, slot: A::Slot) -> Admission<A> {
        let fence = self.fence_before(grant.action).cloned();
        Admission { grant, log: Arc::clone(&self.log), slot: Some(slot), fence }
    }

    /// The fence, unless `action` is one that it does not keep out.
    fn fence_before(&self, action: Action) -> Option<&Arc<Fence>> {
        self.fence.as_ref().filter(|_| !policy::is_allowed_behind_fence(action))
    }

    async fn intend(&self, mut admission: Admission<A>) -> Result<Admission<A>, Error> {
        let slot = self.log.reserve()?;
        let event = admission.grant.event(Phase::Intent, Outcome::Allowed, None);
        self.log.record(vec![(slot, event)]).await?;
        admission.fence = None;
        Ok(admission)
    }

    fn grant(&self, caller: Arc<str>, action: Action, subject: Subject, at: Timestamp) -> Grant {
        let operation = OperationId::new(self.prefix, self.counter.fetch_add(1, Ordering::Relaxed));
        Grant { operation, caller, action, subject, reason: None, lane: Lane::of(action), at }
    }
}

impl<A: AuditLog> Admission<A> {
    /// Notes which version does the work, for the record.
    pub fn uses_version(&mut self, number: u32) {
        self.grant.subject.version = Some(number);
    }

    /// Notes the proposal that came of it, for the record.
    pub(crate) fn is_about(&mut self, target: &str) {
        self.grant.subject.target = Some(target.into());
    }

    /// Makes the record durable, then opens the result. When the record cannot be made, the result is gone, and
    /// likewise when the fence went up since the admission.
    pub async fn settle<T>(mut self, result: Result<Unsettled<T>, Error>) -> Result<T, Error> {
        let result = unless_fenced(self.fence.as_deref(), result);
        if let Some(record) = self.outcome(&result) {
            self.log.record(vec![record]).await?;
        }
        // The disk may have taken long: then the book knows of a result that nobody got.
        unless_fenced(self.fence.as_deref(), result).map(Unsettled::open)
    }

    /// Settles a batch: one record per item, one wait for all of them.
    pub async fn settle_all<T>(
        batch: Vec<(Self, Result<Unsettled<T>, Error>)>,
    ) -> Result<Vec<Result<T, Error>>, Error> {
        let Some(log) = batch.first().map(|(admission, _)| Arc::clone(&admission.log)) else {
            return Ok(Vec::new());
        };
        let mut records = Vec::with_capacity(batch.len());
        let mut results = Vec::with_capacity(batch.len());
        for (mut admission, result) in batch {
            let result = unless_fenced(admission.fence.as_deref(), result);
            records.extend(admission.outcome(&result));
            results.push((admission.fence.take(), result));
        }
        log.record(records).await?;
        let opened = results.into_iter().map(|(fence, result)| unless_fenced(fence.as_deref(), result));
        Ok(opened.map(|result| result.map(Unsettled::open)).collect())
    }

    /// Records the denial; the caller gets `error`.
    async fn deny<T>(mut self, rule: impl Into<Cow<'static, str>>, error: Error) -> Result<T, Error> {
        if let Some(slot) = self.slot.take() {
            let event = self.grant.event(Phase::Outcome, Outcome::Denied, Some(rule.into()));
            self.log.record(vec![(slot, event)]).await?;
        }
        Err(error)
    }

    fn outcome<T>(&mut self, result: &Result<T, Error>) -> Option<(A::Slot, Event)> {
        let (outcome, reason) = match result {
            Ok(_) => (Outcome::Succeeded, None),
            Err(error) => (Outcome::Failed, Some(error.reason().into())),
        };
        let event = self.grant.event(Phase::Outcome, outcome, reason);
        self.slot.take().map(|slot| (slot, event))
    }
}

/// The result, while the fence is down. A failure stays what it is.
fn unless_fenced<T>(fence: Option<&Fence>, result: Result<T, Error>) -> Result<T, Error> {
    let value = result?;
    fence.map_or(Ok(()), Fence::check).map_err(Fenced::refusal)?;
    Ok(value)
}

impl<A: AuditLog> Deref for Admission<A> {
    type Target = Grant;

    fn deref(&self) -> &Grant {
        &self.grant
    }
}

impl<A: AuditLog> Drop for Admission<A> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let event = self.grant.event(Phase::Outcome, Outcome::Abandoned, None);
            self.log.record_later(slot, event);
        }
    }
}

impl Grant {
    /// What was allowed.
    pub fn action(&self) -> Action {
        self.action
    }

    /// The operation's id, as the audit log shows it.
    pub fn operation(&self) -> OperationId {
        self.operation
    }

    /// Canonical name of whom it was given to.
    pub fn caller(&self) -> &Arc<str> {
        &self.caller
    }

    /// Where it waits for the HSM.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// When it was admitted.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    fn event(&self, phase: Phase, outcome: Outcome, reason: Option<Cow<'static, str>>) -> Event {
        Event {
            at: self.at,
            operation: self.operation,
            phase,
            caller: Arc::clone(&self.caller),
            action: self.action,
            key: self.subject.key.clone(),
            version: self.subject.version,
            target: self.subject.target.clone(),
            outcome,
            reason: reason.or(self.reason.map(Cow::Borrowed)),
        }
    }

    /// A grant for the conformance suites, which have no gate.
    #[cfg(feature = "conformance")]
    pub fn for_conformance(action: Action) -> Self {
        Self {
            operation: OperationId::new(0, 0),
            caller: "system:conformance".into(),
            action,
            subject: Subject::default(),
            reason: None,
            lane: Lane::of(action),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    /// The same, of another caller in another lane, for tests of those who wait.
    #[cfg(feature = "conformance")]
    pub fn in_lane(self, lane: Lane, caller: &str) -> Self {
        Self { lane, caller: caller.into(), ..self }
    }
}

impl<T> Unsettled<T> {
    /// Wraps a fresh result. Anyone may seal; only the gate opens.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    pub(crate) fn try_map<U, E>(self, f: impl FnOnce(T) -> Result<U, E>) -> Result<Unsettled<U>, E> {
        f(self.0).map(Unsettled)
    }

    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> Unsettled<U> {
        Unsettled(f(self.0))
    }

    fn open(self) -> T {
        self.0
    }

    /// Opens what our own work made, for a check of ours: it goes nowhere.
    pub(crate) fn into_ours(self) -> T {
        self.0
    }

    /// Opens it without a record, for the conformance suites.
    #[cfg(feature = "conformance")]
    pub fn open_for_conformance(self) -> T {
        self.0
    }
}

impl<T> fmt::Debug for Unsettled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unsettled(..)")
    }
}

impl SystemWork {
    fn caller(self) -> &'static str {
        match self {
            Self::Birth | Self::CrossSignature => "system:birth",
            Self::Canary => "system:canary",
            Self::Rotation | Self::Succession | Self::Class | Self::Expiry | Self::Destruction => {
                "system:scheduler"
            }
            Self::Epoch => "system:epoch",
            Self::Reconciliation => "system:reconciliation",
            Self::AttributeAudit(_) => "system:attribute-audit",
        }
    }

    fn action(self) -> Action {
        match self {
            Self::Birth => Action::ResumeBirth,
            Self::CrossSignature => Action::CrossSignSuccessor,
            Self::Canary => Action::Canary,
            Self::Rotation => Action::RotateKey,
            Self::Succession => Action::EmergencyRotateKey,
            Self::Class => Action::UpdateKey,
            Self::Expiry => Action::DestroyKeyVersion,
            Self::Destruction => Action::ExecuteDestroy,
            Self::Epoch => Action::FollowEpoch,
            Self::Reconciliation => Action::GetInventory,
            Self::AttributeAudit(_) => Action::DisableKeyVersion,
        }
    }

    fn reason(self) -> Option<&'static str> {
        match self {
            Self::AttributeAudit(reason) => Some(reason),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::fakes::{ManualClock, MemoryLog, administrator};

    /// What an administrator gets for an action on a store that is older than the token has seen.
    const IN_RECOVERY: [(Action, &str); Action::ALL.len()] = [
        (Action::Sign, "RECOVERY_MODE"),
        (Action::SignRaw, "RECOVERY_MODE"),
        (Action::SignJwt, "RECOVERY_MODE"),
        (Action::SignKeySetBundle, "RECOVERY_MODE"),
        (Action::Verify, ""),
        (Action::WrapKey, "RECOVERY_MODE"),
        (Action::UnwrapKey, "RECOVERY_MODE"),
        (Action::RewrapKey, "RECOVERY_MODE"),
        (Action::GenerateDataKey, "RECOVERY_MODE"),
        (Action::GenerateDataKeyWithoutPlaintext, "RECOVERY_MODE"),
        (Action::Encrypt, "RECOVERY_MODE"),
        (Action::Decrypt, "RECOVERY_MODE"),
        (Action::Recover, "RECOVERY_MODE"),
        (Action::ReportUsage, "RECOVERY_MODE"),
        (Action::GetKeyUsage, ""),
        (Action::RemoveConsumer, "RECOVERY_MODE"),
        (Action::GetPublicKey, ""),
        (Action::GetKey, ""),
        (Action::ListKeys, ""),
        (Action::CreateKey, "RECOVERY_MODE"),
        (Action::UpdateKey, "RECOVERY_MODE"),
        (Action::ListKeyClasses, ""),
        (Action::UpdateKeyClass, "RECOVERY_MODE"),
        (Action::RotateKey, "RECOVERY_MODE"),
        (Action::EmergencyRotateKey, "RECOVERY_MODE"),
        (Action::RevokeKeyVersion, ""),
        (Action::DisableKeyVersion, ""),
        (Action::EnableKeyVersion, "RECOVERY_MODE"),
        (Action::DestroyKeyVersion, "RECOVERY_MODE"),
        (Action::RestoreKeyVersion, ""),
        (Action::CreateAccessToken, "RECOVERY_MODE"),
        (Action::ListAccessTokens, ""),
        (Action::RevokeAccessToken, ""),
        (Action::RenewAccessToken, ""),
        (Action::GetCaller, ""),
        (Action::CreateRoleBinding, "RECOVERY_MODE"),
        (Action::ListRoleBindings, ""),
        (Action::RevokeRoleBinding, ""),
        (Action::GetPolicy, ""),
        (Action::SetPolicy, "RECOVERY_MODE"),
        (Action::ExplainPolicy, ""),
        (Action::ListProposals, ""),
        (Action::ApproveProposal, ""),
        (Action::GetInventory, ""),
        (Action::QuarantineObject, "RECOVERY_MODE"),
        (Action::GetStatus, ""),
        (Action::ResumeBirth, "PERMISSION_DENIED"),
        (Action::CrossSignSuccessor, "PERMISSION_DENIED"),
        (Action::ExecuteDestroy, "PERMISSION_DENIED"),
        (Action::Canary, "PERMISSION_DENIED"),
        (Action::FollowEpoch, "PERMISSION_DENIED"),
        (Action::AcceptOlderStore, ""),
    ];

    #[test]
    fn an_older_store_may_be_read_and_lessened_by_callers_and_not_worked_on_by_ourselves() {
        let log = Arc::new(MemoryLog::default());
        let gate = Gate::new(Arc::clone(&log), 0);
        let now = crate::Clock::now(&ManualClock::default());
        let key: KeyId = "k".parse().expect("a key's name");
        let reason = |outcome: Result<Admission<MemoryLog>, Error>| match outcome {
            Ok(_) => "",
            Err(error) => error.reason(),
        };
        gate.set_recovery(Some(Recovery { store: 1, token: 2 }));
        assert_eq!(IN_RECOVERY.map(|(action, _)| action), Action::ALL);
        for (action, expected) in IN_RECOVERY {
            let about = policy::is_about_a_key(action).then_some(&key);
            let admitted = block_on(gate.admit(&administrator(), action, about, now));
            assert_eq!(reason(admitted), expected, "{action}");
        }
        for work in [
            SystemWork::Birth,
            SystemWork::Rotation,
            SystemWork::Succession,
            SystemWork::Class,
            SystemWork::Expiry,
            SystemWork::Destruction,
        ] {
            assert_eq!(
                reason(block_on(gate.begin_system(work, Some(&key).into(), now))),
                "RECOVERY_MODE",
                "{work:?}"
            );
            let last = log.events().pop().expect("a record");
            assert_eq!(
                (last.outcome, last.reason),
                (Outcome::Denied, Some("RECOVERY_MODE".into())),
                "{work:?}"
            );
        }
        gate.set_recovery(None);
        assert_eq!(reason(block_on(gate.admit(&administrator(), Action::Sign, Some(&key), now))), "");
    }

    #[test]
    fn behind_the_fence_nobody_is_told_anything_but_how_the_replica_is_and_that_is_on_record() {
        let (log, clock) = (Arc::new(MemoryLog::default()), Arc::new(ManualClock::default()));
        let now = crate::Clock::now(&clock);
        let gate = Gate::new(Arc::clone(&log), 0).behind(Arc::new(Fence::new(clock)));
        let key: KeyId = "k".parse().expect("a key's name");
        for action in Action::ALL {
            let about = policy::is_about_a_key(action).then_some(&key);
            let admitted = block_on(gate.admit(&administrator(), action, about, now));
            assert_eq!(admitted.is_ok(), action == Action::GetStatus, "{action}");
            let reason = admitted.map(|_| ()).map_err(|error| error.reason());
            assert!(matches!(reason, Ok(()) | Err("FENCED")), "{action}: {reason:?}");
        }
        let admission =
            block_on(gate.admit(&administrator(), Action::GetStatus, None, now)).expect("admitted");
        block_on(admission.settle(Ok(Unsettled::new(())))).expect("not withheld");
        let last = log.events().pop().expect("a record");
        assert_eq!((last.action, last.outcome), (Action::GetStatus, Outcome::Succeeded));
    }
}
