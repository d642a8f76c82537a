//! The epoch at work: compared at start, moved with each change that matters, followed by the token, and set past the
//! token's by an administrator who accepts an older store. What it is for stands in `crate::epoch`.
//!
//! A change never waits for the HSM to be there: it is effective with its commit. Then the token is brought to the
//! store's epoch in three steps, each of which may be cut and is taken again: make the new mark, confirm it in the
//! store, destroy the marks that it replaces.

use std::{
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    Action, AuditLog, Caller, Clock, Error, Failpoint, Hsm, Kms, Store, Unsettled,
    epoch::{AcceptanceCode, Epoch, Installation, Mark, Recovery, Standing, Step},
    error::Kind,
    gate::SystemWork,
    hsm::Fault,
    proposal::{Change, Proposal, State},
    replica::LeaseToken,
    store::{Transaction, Write},
    time::{Deadline, Timestamp},
};

/// How long a change that is effective already may still wait for the token to follow.
const FOLLOW_TIME_MAX: Duration = Duration::from_secs(1);
/// How long one look at the token's marks may take at start, and how many there are.
const COMPARE_TIME_MAX: Duration = Duration::from_secs(10);
const COMPARE_ATTEMPTS: usize = 3;

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Which epochs differ, while the service is in recovery mode.
    pub fn recovery(&self) -> Option<Recovery> {
        self.gate.recovery()
    }

    /// By how many moves the token is behind the store.
    pub fn epoch_pending(&self) -> u64 {
        self.catalog.now().epoch.map_or(0, |epoch| epoch.value.saturating_sub(epoch.in_token))
    }

    /// Lets the token follow the store's epoch, if it is behind and the lease is ours. In recovery mode it stays as it is.
    pub async fn follow_epoch(&self, deadline: Deadline) -> Result<(), Error> {
        let _one_at_a_time = self.following.lock().await;
        match self.unfollowed().zip(self.lease()) {
            Some((epoch, lease)) => self.mark_token(epoch, Some(lease), deadline).await,
            None => Ok(()),
        }
    }

    /// Takes the store as it is, although the token has seen a later epoch, and leaves recovery mode. `confirm` is
    /// the code in the server's log. Returns the new epoch. Run it detached: it must not be cut off.
    pub async fn accept_older_store(
        &self,
        caller: &Caller,
        confirm: &str,
        deadline: Deadline,
    ) -> Result<u64, Error> {
        let now = self.clock.now();
        let mut admission = self.gate.begin(caller, Action::AcceptOlderStore, None, now).await?;
        let result = async {
            let Recovery { store, token } = self.check_acceptance(confirm)?;
            let change = || Change::AcceptOlderStore { store, token };
            self.unless_approval_is_needed(&mut admission, caller, change).await?;
            self.accept_recovery(store, token, deadline).await
        }
        .await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// At start. Only an answer of the token tells whether the store may be used for everything.
    pub(crate) async fn compare_epochs(&self) -> Result<(), Error> {
        let marks = self.look_at_marks().await?;
        // A mark is made after its epoch was committed: another replica may have done both since the catalog was read.
        self.refresh().await?;
        let epoch = match self.catalog.now().epoch {
            Some(epoch) => epoch,
            None => self.begin_epoch(&marks).await?,
        };
        let deadline = self.clock.within(COMPARE_TIME_MAX);
        match epoch.against(&marks) {
            Standing::Behind(recovery) => {
                self.enter_recovery(recovery);
                return Ok(());
            }
            Standing::Level if epoch.in_token == epoch.value => {
                self.destroy_replaced(epoch, &marks, deadline).await;
                return Ok(());
            }
            Standing::Level | Standing::Ahead => {}
            Standing::Lost => tracing::error!(
                epoch = epoch.in_token,
                "the HSM does not hold the database's epoch any more: somebody removed it, or the token was \
                 restored from an older copy; it is put back"
            ),
        }
        // The service may start: what the token does not hold yet stays pending.
        self.mark_token(epoch, None, deadline).await.unwrap_or_else(|error| report(&error));
        Ok(())
    }

    /// Commits a change that moves the epoch, and lets the token follow if it can. In recovery mode changes do not
    /// count: enough of them would reach the token's epoch, and the store would no longer look older.
    pub(super) async fn commit_moving(&self, mut transaction: Transaction) -> Result<(), Error> {
        if self.recovery().is_none() {
            transaction.writes.push(Write::MoveEpoch { past: 0, nonce: self.random()? });
        }
        self.commit(transaction).await?;
        if self.hsm.health().workers_ready > 0 {
            let deadline = self.clock.within(FOLLOW_TIME_MAX);
            self.follow_or_leave(deadline).await.unwrap_or_else(|error| report(&error));
        }
        Ok(())
    }

    /// Lets the token follow, unless somebody is at it: who looks once more when done, so that nothing is missed. To
    /// wait for them could take as long as their deadline.
    async fn follow_or_leave(&self, deadline: Deadline) -> Result<(), Error> {
        while self.unfollowed().is_some() {
            let Some(_one_at_a_time) = self.following.try_lock() else { return Ok(()) };
            if let Some(epoch) = self.unfollowed() {
                self.mark_token(epoch, None, deadline).await?;
            }
        }
        Ok(())
    }

    /// The store's epoch, if the token has to follow it.
    fn unfollowed(&self) -> Option<Epoch> {
        self.catalog.now().epoch.filter(|epoch| epoch.in_token < epoch.value && self.recovery().is_none())
    }

    /// What was proposed on the store as it was may have been done since: nobody shall have it done again.
    fn proposals_voided(&self, now: Timestamp) -> Vec<Write> {
        let picture = self.catalog.now();
        let open = picture.proposals().filter(|proposal| proposal.state == State::Open);
        let voided = open.map(|proposal| Proposal {
            state: State::Rejected,
            state_at: now,
            reason: Some("STORE_RESTORED".to_owned()),
            revision: proposal.revision + 1,
            ..proposal.clone()
        });
        // The one that asks for this is being executed, and not open any more.
        voided.map(Write::UpdateProposal).collect()
    }

    async fn begin_epoch(&self, marks: &[Mark]) -> Result<Epoch, Error> {
        if !marks.is_empty() && !self.catalog.now().keys.is_empty() {
            tracing::warn!(
                "this database has keys and no epoch, and the HSM holds epochs: unless another installation uses \
                 the token, it was restored from a backup that is older than the epoch itself"
            );
        }
        let epoch = Epoch::first(Installation(self.random()?), self.random()?);
        let writes = vec![Write::InsertEpoch(epoch)];
        match self.commit(Transaction::new("begin the epoch", writes)).await {
            // Another replica was faster: it is that one's.
            Err(error) if error.kind() == Kind::Conflict => self.catalog.now().epoch.ok_or(error),
            outcome => outcome.map(|()| epoch),
        }
    }

    async fn look_at_marks(&self) -> Result<Vec<Mark>, Error> {
        let mut tried = 1;
        loop {
            match self.step(Step::Read, self.clock.within(COMPARE_TIME_MAX)).await {
                Ok(marks) => return Ok(marks),
                Err(fault) if tried == COMPARE_ATTEMPTS => {
                    return Err(Error::unavailable(
                        "EPOCH_UNKNOWN",
                        format!("the HSM does not tell which epoch it has seen: {fault}"),
                    ));
                }
                Err(fault) => tracing::warn!(%fault, "the HSM's epoch could not be read; trying again"),
            }
            tried += 1;
        }
    }

    /// The three steps. Another replica may take them at the same time, for this epoch or a later one: a second mark of
    /// the same bytes goes with the first, and one that was replaced before it was made goes with the next.
    async fn mark_token(
        &self,
        epoch: Epoch,
        lease: Option<LeaseToken>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        if self.recovery().is_some() {
            return Ok(());
        }
        let marks = self.step(Step::Create(epoch.mark()), deadline).await?;
        Failpoint::EpochMarked.reached();
        let mut now = epoch;
        if let Standing::Behind(_) = now.against(&marks) {
            self.refresh().await?;
            now = self.catalog.now().epoch.unwrap_or(epoch);
        }
        if let Standing::Behind(recovery) = now.against(&marks) {
            // Another service has gone on with another copy of this store.
            self.enter_recovery(recovery);
            // Nor must that one take ours for a reason to stop.
            if let Err(fault) = self.step(Step::Destroy(epoch.mark()), deadline).await {
                tracing::warn!(epoch = epoch.value, %fault, "the epoch of this copy stays in the HSM for now");
            }
            return Err(recovery.refusal());
        }
        let held = Epoch { value: now.in_token_of(&marks), ..now };
        if held.value > now.in_token {
            let writes = vec![Write::ConfirmEpoch { value: held.value }];
            self.commit(Transaction { lease, ..Transaction::new("confirm an epoch", writes) }).await?;
        }
        self.destroy_replaced(held, &marks, deadline).await;
        Ok(())
    }

    /// What stays behind harms nobody, and is tried again with the next move.
    async fn destroy_replaced(&self, epoch: Epoch, marks: &[Mark], deadline: Deadline) {
        for mark in epoch.replaced(marks) {
            if let Err(fault) = self.step(Step::Destroy(*mark), deadline).await {
                tracing::warn!(epoch = mark.value, %fault, "a replaced epoch stays in the HSM for now");
            }
        }
    }

    /// Before anything else: a guess costs a record, and the HSM nothing.
    fn check_acceptance(&self, confirm: &str) -> Result<Recovery, Error> {
        let known = self.recovery().ok_or_else(nothing_to_accept)?;
        if !self.acceptance().as_ref().is_some_and(|code| code.is(confirm)) {
            return Err(Error::invalid("confirm", "this is not the code in the server's log"));
        }
        Ok(known)
    }

    /// Accepts the store of epoch `store`, with a token that has seen `token`, and no other.
    pub(super) async fn accept_recovery(
        &self,
        store: u64,
        token: u64,
        deadline: Deadline,
    ) -> Result<u64, Error> {
        let _one_at_a_time = self.following.lock().await;
        let known = self.recovery().ok_or_else(nothing_to_accept)?;
        if (known.store, known.token) != (store, token) {
            return Err(known.refusal());
        }
        let marks = self.step(Step::Read, deadline).await?;
        self.refresh().await?;
        self.recovery_ended_elsewhere();
        let epoch =
            self.catalog.now().epoch.filter(|_| self.recovery().is_some()).ok_or_else(nothing_to_accept)?;
        if let Standing::Behind(now) = epoch.against(&marks)
            && now.token > known.token
        {
            // Somebody has gone on with the newer store meanwhile: that is to be decided anew.
            self.enter_recovery(now);
            return Err(now.refusal());
        }
        let mut writes = self.destructions_put_off(self.clock.now());
        writes.extend(self.proposals_voided(self.clock.now()));
        writes.push(Write::MoveEpoch { past: token, nonce: self.random()? });
        writes.extend(self.budgets_voided(self.clock.now()));
        self.commit(Transaction::new("accept an older store", writes)).await?;
        let epoch = self.catalog.now().epoch.unwrap_or(epoch);
        self.gate.set_recovery(None);
        *self.acceptance() = None;
        tracing::warn!(epoch = epoch.value, "an older database was accepted; recovery mode is over");
        self.mark_token(epoch, None, deadline).await.unwrap_or_else(|error| report(&error));
        Ok(epoch.value)
    }

    fn enter_recovery(&self, recovery: Recovery) {
        self.gate.set_recovery(Some(recovery));
        self.uses.forget_blocks();
        let code = self.random().map(AcceptanceCode::new);
        match &code {
            Ok(code) => tracing::error!("{recovery}: `--confirm {}`", code.as_str()),
            Err(error) => {
                tracing::error!(%error, "{recovery}; none could be drawn, so restart the server first")
            }
        }
        *self.acceptance() = code.ok();
    }

    /// An administrator may accept this store at any replica: who sees its epoch past the token's leaves recovery mode
    /// too. No other change moves the epoch so far, for in recovery mode none moves it at all.
    pub(crate) fn recovery_ended_elsewhere(&self) {
        let (Some(known), Some(epoch)) = (self.recovery(), self.catalog.now().epoch) else { return };
        if epoch.value > known.token {
            self.gate.set_recovery(None);
            self.uses.forget_blocks();
            *self.acceptance() = None;
            tracing::warn!(
                epoch = epoch.value,
                "an older database was accepted at another server; recovery mode is over"
            );
        }
    }

    fn acceptance(&self) -> MutexGuard<'_, Option<AcceptanceCode>> {
        self.acceptance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn step(&self, step: Step, deadline: Deadline) -> Result<Vec<Mark>, Fault> {
        let grant = self.gate.system(SystemWork::Epoch, None, self.clock.now());
        self.hsm.epoch(&grant, step, deadline).await
    }
}

fn nothing_to_accept() -> Error {
    let text = "the database is as new as the HSM has seen; there is nothing to accept";
    Error::precondition("NOT_IN_RECOVERY_MODE", text)
}

fn report(error: &Error) {
    tracing::warn!(%error, "the HSM does not hold the database's epoch yet; it will be tried again");
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, executor::block_on};

    use crate::{
        caller::{KeyScope, OwnRole, Role},
        fakes::{World, administrator, soon},
        kms::Settings,
        verbs::CreateAccessToken,
    };

    #[test]
    fn a_change_does_not_wait_for_somebody_elses_turn_with_the_token() {
        let kms = block_on(World::default().open(Settings::default())).expect("the service opens");
        let request = CreateAccessToken::new("leaked", OwnRole { role: Role::User, keys: KeyScope::All });
        block_on(kms.create_access_token(&administrator(), request)).expect("made");
        let others_turn = kms.following.try_lock().expect("nobody else is at it");
        let revoked = kms.revoke_access_token(&administrator(), "leaked").now_or_never();
        revoked.expect("it does not wait").expect("revoked");
        drop(others_turn);
        assert_eq!(kms.epoch_pending(), 1);
        block_on(kms.follow_epoch(soon())).expect("it follows");
        assert_eq!(kms.epoch_pending(), 0);
    }
}
