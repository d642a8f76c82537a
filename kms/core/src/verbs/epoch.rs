//! The epoch at work: compared at start, moved with each change that matters, followed by the token, and set past the
//! token's by an administrator who accepts an older store. What it is for stands in `crate::epoch`.
//!
//! A change never waits for the HSM to be there: it is effective with its commit. Then the token is brought to the
//! store's epoch in three steps, each of which may be cut and is taken again: make the new mark, confirm it in the
//! store, destroy the marks that it replaces.

use std::time::Duration;

use crate::{
    Action, AuditLog, Caller, Clock, Error, Failpoint, Hsm, Kms, Store, Unsettled,
    epoch::{Epoch, Installation, Mark, Recovery, Standing, Step},
    gate::SystemWork,
    hsm::Fault,
    store::{Transaction, Write},
    time::Deadline,
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

    /// Lets the token follow the store's epoch, if it is behind. In recovery mode it stays as it is.
    pub async fn follow_epoch(&self, deadline: Deadline) -> Result<(), Error> {
        let _one_at_a_time = self.following.lock().await;
        match self.catalog.now().epoch {
            Some(epoch) if epoch.in_token < epoch.value => self.mark_token(epoch, deadline).await,
            _ => Ok(()),
        }
    }

    /// Takes the store as it is, although the token has seen a later epoch, and leaves recovery mode. `confirm` is
    /// the token's epoch. Returns the new one. Run it detached: it must not be cut off.
    pub async fn accept_older_store(
        &self,
        caller: &Caller,
        confirm: u64,
        deadline: Deadline,
    ) -> Result<u64, Error> {
        let now = self.clock.now();
        let admission = self.gate.begin(caller, Action::AcceptOlderStore, None, now).await?;
        let result = self.accept_admitted(confirm, deadline).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// At start. Only an answer of the token tells whether the store may be used for everything.
    pub(crate) async fn compare_epochs(&self) -> Result<(), Error> {
        let marks = self.look_at_marks().await?;
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
        self.mark_token(epoch, deadline).await.unwrap_or_else(|error| report(&error));
        Ok(())
    }

    /// Commits a change that moves the epoch, and lets the token follow if it can. In recovery mode changes do not
    /// count: enough of them would reach the token's epoch, and the store would no longer look older.
    pub(super) async fn commit_moving(&self, mut transaction: Transaction) -> Result<(), Error> {
        if self.recovery().is_none() {
            transaction.writes.push(Write::MoveEpoch { past: 0 });
        }
        self.commit(transaction).await?;
        if self.hsm.health().workers_ready > 0 {
            let deadline = self.clock.within(FOLLOW_TIME_MAX);
            self.follow_epoch(deadline).await.unwrap_or_else(|error| report(&error));
        }
        Ok(())
    }

    async fn begin_epoch(&self, marks: &[Mark]) -> Result<Epoch, Error> {
        if !marks.is_empty() && !self.catalog.now().keys.is_empty() {
            tracing::warn!(
                "this database has keys and no epoch, and the HSM holds epochs: unless another installation uses \
                 the token, it was restored from a backup that is older than the epoch itself"
            );
        }
        let epoch = Epoch::first(Installation(self.random()?));
        let writes = vec![Write::InsertEpoch(epoch)];
        self.commit(Transaction { name: "begin the epoch", writes, request: None }).await?;
        Ok(epoch)
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

    /// The three steps.
    async fn mark_token(&self, epoch: Epoch, deadline: Deadline) -> Result<(), Error> {
        if self.recovery().is_some() {
            return Ok(());
        }
        let marks = self.step(Step::Create(epoch.mark()), deadline).await?;
        Failpoint::EpochMarked.reached();
        if let Standing::Behind(recovery) = epoch.against(&marks) {
            // Another service has gone on with another copy of this store.
            self.enter_recovery(recovery);
            return Err(recovery.refusal());
        }
        let writes = vec![Write::ConfirmEpoch { value: epoch.value }];
        self.commit(Transaction { name: "confirm an epoch", writes, request: None }).await?;
        self.destroy_replaced(epoch, &marks, deadline).await;
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

    async fn accept_admitted(&self, confirm: u64, deadline: Deadline) -> Result<u64, Error> {
        let _one_at_a_time = self.following.lock().await;
        let (Some(known), Some(epoch)) = (self.recovery(), self.catalog.now().epoch) else {
            return Err(Error::precondition(
                "NOT_IN_RECOVERY_MODE",
                "the database is as new as the HSM has seen; there is nothing to accept",
            ));
        };
        // Somebody may have gone on with the newer store meanwhile.
        let marks = self.step(Step::Read, deadline).await?;
        let token = match epoch.against(&marks) {
            Standing::Behind(Recovery { token, .. }) => token.max(known.token),
            Standing::Level | Standing::Ahead | Standing::Lost => known.token,
        };
        self.gate.set_recovery(Some(Recovery { token, ..known }));
        if confirm != token {
            return Err(Error::invalid("confirm", format!("to accept it, confirm the HSM's epoch, {token}")));
        }
        let mut writes = self.destructions_put_off(self.clock.now());
        writes.push(Write::MoveEpoch { past: token });
        self.commit(Transaction { name: "accept an older store", writes, request: None }).await?;
        let epoch = self.catalog.now().epoch.unwrap_or(epoch);
        self.gate.set_recovery(None);
        tracing::warn!(epoch = epoch.value, "an older database was accepted; recovery mode is over");
        self.mark_token(epoch, deadline).await.unwrap_or_else(|error| report(&error));
        Ok(epoch.value)
    }

    fn enter_recovery(&self, recovery: Recovery) {
        tracing::error!("{recovery}");
        self.gate.set_recovery(Some(recovery));
    }

    async fn step(&self, step: Step, deadline: Deadline) -> Result<Vec<Mark>, Fault> {
        let grant = self.gate.system(SystemWork::Epoch, None, self.clock.now());
        self.hsm.epoch(&grant, step, deadline).await
    }
}

fn report(error: &Error) {
    tracing::warn!(%error, "the HSM does not hold the database's epoch yet; it will be tried again");
}
