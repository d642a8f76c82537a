//! The attribute audit: every key of ours is read back and compared with its template and its public key. A version
//! whose objects differ is taken out of service, durably. A token that is away, or shows nothing, changes nothing.

use std::sync::{MutexGuard, PoisonError};

use crate::{
    AuditLog, Clock, Error, Grant, Hsm, KeyId, KeyVersion, Kms, Store, Unsettled,
    audit::Subject,
    error::Kind,
    gate::SystemWork,
    hsm::hex,
    inventory::{Counts, Finding, State, examine},
    replica::LeaseToken,
    time::{Deadline, Timestamp},
    timeline,
    verbs::requests::ChangeVersion,
};

/// How often a suspension is tried again when somebody else changes the key meanwhile.
const COMMIT_ATTEMPTS_MAX: usize = 8;

/// What is known of the audits of this process, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttributeAudits {
    /// What the last look at the token found; `None` before the first.
    pub counts: Option<Counts>,
    /// When an audit last came to its end.
    pub last_success: Option<Timestamp>,
    /// Versions that audits took out of service.
    pub suspended: u64,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Lists the token once, takes the inventory, and takes out of service what differs, if the lease is ours. The server's scheduler
    /// calls this. Cutting it off at any point is safe: the next audit finds the same.
    pub async fn audit_attributes(&self, deadline: Deadline) -> Result<Counts, Error> {
        let admission = self.gate.admit_system(SystemWork::Reconciliation, self.clock.now())?;
        let result = self.take_inventory(&admission, deadline).await;
        let inventory = admission.settle(result.map(Unsettled::new)).await?;
        let mut outcome = Ok(());
        for item in &inventory.items {
            let difference = item.finding.filter(|finding| finding.is_difference());
            let (Some((id, number)), Some(finding)) = (&item.version, difference) else { continue };
            let cka_id = hex(&item.cka_id);
            tracing::error!(key = %id, version = number, cka_id, %finding, "a key in the token is not as it was made");
            // Another replica's audit finds the same, and it does what is to be done.
            let Some(lease) = self.lease() else { continue };
            if let Err(error) = self.take_out_of_service(id, *number, finding, lease).await {
                tracing::error!(key = %id, version = number, %error, "a deviating version is still in service");
                outcome = Err(error);
            }
        }
        let counts = inventory.counts();
        let (orphans, dangling) = (counts.of(State::Orphan), counts.of(State::Dangling));
        if orphans + dangling > 0 {
            tracing::warn!(orphans, dangling, "token and store do not agree; see `kms hsm inventory`");
        }
        outcome?;
        self.audits().last_success = Some(self.clock.now());
        Ok(counts)
    }

    /// What audits have found, for metrics.
    pub fn attribute_audits(&self) -> AttributeAudits {
        *self.audits()
    }

    async fn take_out_of_service(
        &self,
        id: &KeyId,
        number: u32,
        finding: Finding,
        lease: LeaseToken,
    ) -> Result<(), Error> {
        let row = |entry: &crate::catalog::Entry| entry.version(number).map(|version| version.row.clone());
        if !is_in_service(&row(&*self.catalog.entry(id)?)?) {
            return Ok(());
        }
        let work = SystemWork::AttributeAudit(finding.reason());
        let subject = Subject::of_version(id, number);
        let admission = self.gate.begin_system(work, subject, self.clock.now()).await?;
        let result = async {
            let mut attempts = 1;
            loop {
                let entry = self.catalog.entry(id)?;
                let row = row(&entry)?;
                if !is_in_service(&row) {
                    return Ok(false);
                }
                let suspended = KeyVersion { suspended: true, ..row };
                let changed = timeline::with(&entry, &[suspended], self.clock.now());
                match self
                    .write_versions_moving("suspend a deviating version", &entry.key, changed, Some(lease))
                    .await
                {
                    Err(error) if error.kind() == Kind::Conflict && attempts < COMMIT_ATTEMPTS_MAX => {
                        attempts += 1
                    }
                    outcome => return outcome.map(|()| true),
                }
            }
        }
        .await;
        if admission.settle(result.map(Unsettled::new)).await? {
            self.audits().suspended += 1;
            tracing::error!(key = %id, version = number, %finding, "a version was taken out of service");
        }
        Ok(())
    }

    /// Before a version comes back: its objects must be as they must be now.
    pub(super) async fn check_objects(
        &self,
        grant: &Grant,
        request: &ChangeVersion,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let entry = self.catalog.entry(&request.id)?;
        let row = &entry.version(request.number)?.row;
        let Some(born) = row.born.as_ref().filter(|_| row.suspended && row.destroyed_at.is_none()) else {
            return Ok(());
        };
        let found = self.hsm.find(grant, row.cka_id, deadline).await?;
        match examine(entry.key.algorithm.usage(), &born.material, &found) {
            None => Ok(()),
            Some(finding) => Err(Error::precondition(
                finding.reason(),
                format!(
                    "keys/{}/versions/{} stays disabled, for its objects in the HSM are not as they must be: {finding}; \
                     rotate the key, and see `kms hsm inventory`",
                    request.id, request.number
                ),
            )),
        }
    }
}

impl<H, S, A, C> Kms<H, S, A, C> {
    pub(super) fn audits(&self) -> MutexGuard<'_, AttributeAudits> {
        // Plain numbers, whole even if their holder panicked.
        self.audits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a suspension would change anything: it signs, verifies or stands in the JWKS, now or later.
fn is_in_service(row: &KeyVersion) -> bool {
    let ends = row.born.as_ref().is_none_or(|born| born.timeline.destroys_at.is_some());
    !row.suspended && row.compromise.is_none() && row.destroyed_at.is_none() && !ends
}
