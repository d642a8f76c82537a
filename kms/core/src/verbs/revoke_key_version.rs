//! RevokeKeyVersion: a version is known or feared to be in other hands. It is refused everywhere at once, and another
//! one signs in its place.

use crate::{
    Action, AuditLog, Caller, Clock, Error, Grant, Hsm, KeyState, KeyVersion, Kms, Store, Unsettled,
    audit::Subject,
    catalog::Entry,
    key::{Compromise, TakeOver},
    kms::VersionView,
    store::CHANGED_MEANWHILE,
    time::{Deadline, Timestamp},
    timeline,
    verbs::{
        requests::{ChangeVersion, Fingerprint},
        version_states::COMMIT_ATTEMPTS_MAX,
    },
};

/// A version to be declared compromised.
#[derive(Debug, Clone)]
pub struct RevokeKeyVersion {
    /// Which.
    pub change: ChangeVersion,
    /// Why: 1 to [`Compromise::REASON_LEN_MAX`] bytes.
    pub reason: String,
}

/// What came of a revocation.
#[derive(Debug, Clone)]
pub struct Revoked {
    /// The version, compromised.
    pub version: VersionView,
    /// The version that signs now. `None` when it could not be made yet: it will be, without a request.
    pub successor: Option<VersionView>,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Declares a version compromised, for good: it leaves the JWKS, and neither signs nor verifies any more. A version
    /// that waits for its time signs at once; where there is none, one is made. The revocation does not wait for that,
    /// nor for the HSM. Run it detached: it must not be cut off.
    pub async fn revoke_key_version(
        &self,
        caller: &Caller,
        request: RevokeKeyVersion,
        deadline: Deadline,
    ) -> Result<Revoked, Error> {
        let ChangeVersion { id, number, .. } = &request.change;
        let subject = Subject::of_version(id, *number);
        let now = self.clock.now();
        let admission = self.gate.begin_about(caller, Action::RevokeKeyVersion, subject, now).await?;
        let result = self.revoke_version_admitted(&admission, caller, &request, deadline).await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    async fn revoke_version_admitted(
        &self,
        grant: &Grant,
        caller: &Caller,
        request: &RevokeKeyVersion,
        deadline: Deadline,
    ) -> Result<Revoked, Error> {
        check_reason(&request.reason)?;
        let ChangeVersion { id, number, .. } = &request.change;
        let fingerprint =
            Fingerprint::of("RevokeKeyVersion", &[id.as_str(), &number.to_string(), &request.reason]);
        let mut attempts = 1;
        while let Err(error) = self.revoke_once(caller, request, &fingerprint).await {
            // Nobody must be able to hinder it by changing something.
            if error.reason() != CHANGED_MEANWHILE || attempts == COMMIT_ATTEMPTS_MAX {
                return Err(error);
            }
            attempts += 1;
        }
        // The scheduler makes good what fails here: the HSM may be the very thing that is wrong.
        let given = match self.recovery() {
            Some(recovery) => Err(recovery.refusal()),
            None => self.give_successor(grant, id, None, deadline).await,
        };
        if let Err(error) = given {
            tracing::error!(key = %id, %error, "a revoked version has no successor yet; it will be tried again");
        }
        let (entry, now) = (self.catalog.entry(id)?, self.clock.now());
        let version = VersionView::of(&entry, entry.version(*number)?, now);
        let successor = entry.find_primary(now).map(|primary| VersionView::of(&entry, primary, now));
        Ok(Revoked { version, successor })
    }
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    async fn revoke_once(
        &self,
        caller: &Caller,
        request: &RevokeKeyVersion,
        fingerprint: &Fingerprint,
    ) -> Result<(), Error> {
        let ChangeVersion { id, number, request: guards } = &request.change;
        if self.replayed(caller, guards, fingerprint).await?.is_some() {
            return Ok(());
        }
        let now = self.time_for_all().await?;
        let entry = self.catalog.entry(id)?;
        guards.check_etag(&entry.key)?;
        let changed = revoked(&entry, *number, &request.reason, now)?;
        let remembered = guards.remember(caller, fingerprint, id, Some(*number), now);
        if !changed.is_empty() {
            return self.write_versions_moving("revoke a version", &entry.key, changed, remembered).await;
        }
        if remembered.is_some() {
            return self.write_versions("revoke a version again", &entry.key, changed, remembered).await;
        }
        Ok(())
    }
}

/// The rows that change: the version, and where nothing else signs the one that was to take over later and now does at
/// once, and whose retirement follows.
fn revoked(entry: &Entry, number: u32, reason: &str, now: Timestamp) -> Result<Vec<KeyVersion>, Error> {
    let version = entry.version(number)?;
    version.born()?;
    let row = &version.row;
    match row.state(now) {
        KeyState::Destroyed => {
            return Err(Error::precondition("DESTROYED", "this version is destroyed; nobody can use it"));
        }
        // The first reason stands.
        KeyState::Compromised => return Ok(vec![]),
        _ => {}
    }
    let another_signs = entry.find_primary(now).is_some_and(|primary| primary.row.number != number);
    let compromise = Some(Compromise { at: now, reason: reason.to_owned() });
    let mut changed = vec![KeyVersion { compromise, ..row.clone() }];
    if !another_signs {
        let waiting = timeline::pending(entry, now).filter(|waiting| waiting.number != number);
        let on_its_way =
            || entry.unborn().map(|row| KeyVersion { takes_over: TakeOver::AtOnce, ..row.clone() });
        changed.extend(waiting.map(|waiting| timeline::promoted(waiting, now)).or_else(on_its_way));
    }
    Ok(timeline::with(entry, &changed, now))
}

fn check_reason(reason: &str) -> Result<(), Error> {
    if reason.trim().is_empty()
        || reason.len() > Compromise::REASON_LEN_MAX
        || reason.chars().any(char::is_control)
    {
        let most = Compromise::REASON_LEN_MAX;
        return Err(Error::invalid(
            "reason",
            format!("say why, in 1 to {most} bytes without control characters"),
        ));
    }
    Ok(())
}
