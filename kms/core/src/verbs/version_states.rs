//! Disable, enable, destroy and restore a version: explicit overrides of what its timeline says.

use crate::{
    Action, AuditLog, Caller, Clock, Error, Hsm, Key, KeyState, KeyVersion, Kms, Store, Unsettled,
    audit::Subject,
    catalog::{Entry, Picture, Version},
    error::Kind,
    key::{Born, Purpose, Timeline, later},
    kms::VersionView,
    proposal::Change,
    store::CHANGED_MEANWHILE,
    time::{Deadline, SignedDuration, Timestamp},
    timeline,
    verbs::{
        Confirmation,
        requests::{ChangeVersion, Fingerprint},
    },
};

/// How often a change is tried again when somebody else changes the key meanwhile.
pub(super) const COMMIT_ATTEMPTS_MAX: usize = 32;

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Takes a version out of use: it neither signs nor verifies, and leaves the JWKS. If it was to take over
    /// from another version, that one signs on.
    pub async fn disable_key_version(
        &self,
        caller: &Caller,
        request: ChangeVersion,
    ) -> Result<VersionView, Error> {
        self.change_version(caller, Action::DisableKeyVersion, "disable a version", request, suspend).await
    }

    /// Brings a disabled version back, if its objects in the token are as they must be. While another version
    /// signs, it first stands in the JWKS for the lead.
    pub async fn enable_key_version(
        &self,
        caller: &Caller,
        request: ChangeVersion,
        deadline: Deadline,
    ) -> Result<VersionView, Error> {
        let now = self.clock.now();
        let subject = Subject::of_version(&request.id, request.number);
        let admission = self.gate.begin_about(caller, Action::EnableKeyVersion, subject, now).await?;
        let result = async {
            self.check_objects(&admission, &request, deadline).await?;
            let kept = self.sets_kept();
            let resume = move |entry: &Entry, version: &Version, now| resume(entry, version, now, kept);
            self.change_admitted(caller, "enable a version", request, resume).await
        }
        .await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Schedules a version's destruction. It must be confirmed with its full name: destruction cannot be undone. One that
    /// wraps is destroyed only when nothing lives on it any more, by what its consumers say and by an attestation.
    pub async fn destroy_key_version(
        &self,
        caller: &Caller,
        request: ChangeVersion,
        confirm: impl Into<Confirmation<'_>> + Send,
    ) -> Result<VersionView, Error> {
        let Confirmation { name: confirm, attestation } = confirm.into();
        let subject = Subject::of_version(&request.id, request.number).saying(attestation);
        let now = self.clock.now();
        let mut admission = self.gate.begin_about(caller, Action::DestroyKeyVersion, subject, now).await?;
        let result = async {
            let now = self.time_for_all().await?;
            self.check_destruction(&request, confirm, attestation, now)?;
            // A retry of one that is scheduled already asks nobody again.
            let is_scheduled = self.is_destruction_scheduled(&request);
            if !is_scheduled {
                let change = || Change::DestroyKeyVersion {
                    key: request.id.clone(),
                    version: request.number,
                    attestation: attestation.to_owned(),
                    etag: request.request.etag,
                };
                self.unless_approval_is_needed(&mut admission, caller, change).await?;
            }
            self.destroy_admitted(caller, request, attestation, !is_scheduled).await
        }
        .await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// What can be told before anybody is asked for an approval: a proposal that could not be executed helps nobody.
    fn check_destruction(
        &self,
        request: &ChangeVersion,
        confirm: &str,
        attestation: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        if !self.settings.allow_destroy {
            return Err(not_allowed());
        }
        let picture = self.catalog.now();
        let entry = picture.entry(&request.id)?;
        let version = entry.version(request.number)?;
        let name = format!("keys/{}/versions/{}", entry.key.id, version.row.number);
        if confirm != name {
            return Err(Error::invalid("confirm", format!("to destroy, confirm with the name {name}")));
        }
        version.born()?;
        if version.row.state(now) == KeyState::Destroyed {
            return Err(destroyed());
        }
        self.check_out_of_use(&picture, entry, version, attestation, now)
    }

    fn is_destruction_scheduled(&self, request: &ChangeVersion) -> bool {
        let scheduled = |version: &Version| {
            version.row.born.as_ref().is_some_and(|born| born.timeline.destroys_at.is_some())
        };
        let entry = self.catalog.entry(&request.id);
        entry.is_ok_and(|entry| entry.version(request.number).is_ok_and(scheduled))
    }

    fn check_out_of_use(
        &self,
        picture: &Picture,
        entry: &Entry,
        version: &Version,
        attestation: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        match entry.key.purpose {
            Purpose::Wrap => self.check_unused(picture, entry, &version.row, attestation, now),
            _ => check_out_of_use(version, now),
        }
    }

    pub(super) async fn destroy_admitted(
        &self,
        caller: &Caller,
        request: ChangeVersion,
        attestation: &str,
        may_schedule: bool,
    ) -> Result<VersionView, Error> {
        let (allowed, delay) = (self.settings.allow_destroy, self.settings.destroy_delay);
        let change = move |entry: &Entry, version: &Version, now: Timestamp| {
            if !allowed {
                return Err(not_allowed());
            }
            self.check_out_of_use(&self.catalog.now(), entry, version, attestation, now)?;
            let scheduled = version.row.born.as_ref().and_then(|born| born.timeline.destroys_at);
            if !may_schedule && scheduled.is_none() {
                // It was called off meanwhile: the consent of before is used up.
                let text = "its destruction was called off in the meantime; ask for it again";
                return Err(Error::new(Kind::Conflict, "CALLED_OFF", text));
            }
            let at = now.saturating_add(delay).unwrap_or(Timestamp::MAX);
            Ok(with_destruction(version, |scheduled| scheduled.or(Some(at))))
        };
        self.change_admitted(caller, "schedule a destruction", request, change).await
    }

    /// Calls a scheduled destruction off. The version comes back disabled.
    pub async fn restore_key_version(
        &self,
        caller: &Caller,
        request: ChangeVersion,
    ) -> Result<VersionView, Error> {
        self.change_version(caller, Action::RestoreKeyVersion, "restore a version", request, restore).await
    }

    async fn change_version(
        &self,
        caller: &Caller,
        action: Action,
        transaction: &'static str,
        request: ChangeVersion,
        change: impl Fn(&Entry, &Version, Timestamp) -> Result<KeyVersion, Error> + Send + Sync,
    ) -> Result<VersionView, Error> {
        let subject = Subject::of_version(&request.id, request.number);
        let admission = self.gate.begin_about(caller, action, subject, self.clock.now()).await?;
        let result = self.change_admitted(caller, transaction, request, change).await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Once more when somebody else changes the key meanwhile: nobody must be able to hinder it by changing something.
    async fn change_admitted(
        &self,
        caller: &Caller,
        transaction: &'static str,
        request: ChangeVersion,
        change: impl Fn(&Entry, &Version, Timestamp) -> Result<KeyVersion, Error> + Send + Sync,
    ) -> Result<VersionView, Error> {
        let mut attempts = 1;
        loop {
            match self.change_once(caller, transaction, &request, &change).await {
                Err(error) if error.reason() == CHANGED_MEANWHILE && attempts < COMMIT_ATTEMPTS_MAX => {
                    attempts += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn change_once(
        &self,
        caller: &Caller,
        transaction: &'static str,
        request: &ChangeVersion,
        change: &(impl Fn(&Entry, &Version, Timestamp) -> Result<KeyVersion, Error> + Sync),
    ) -> Result<VersionView, Error> {
        let now = self.time_for_all().await?;
        let fingerprint = Fingerprint::of(transaction, &[request.id.as_str(), &request.number.to_string()]);
        let replayed = self.replayed(caller, &request.request, &fingerprint).await?.is_some();
        let entry = self.catalog.entry(&request.id)?;
        if replayed {
            return Ok(VersionView::of(&entry, entry.version(request.number)?, now));
        }
        let remembered =
            request.request.remember(caller, &fingerprint, &request.id, Some(request.number), now);
        request.request.check_etag(&entry.key)?;
        let version = entry.version(request.number)?;
        version.born()?;
        if version.row.state(now) == KeyState::Destroyed {
            return Err(destroyed());
        }
        let changed = timeline::with(&entry, &[change(&entry, version, now)?], now);
        // A request that changes nothing is remembered all the same: its retry must not change anything later.
        if !changed.is_empty() {
            self.write_versions_moving(transaction, &entry.key, changed, remembered).await?;
        } else if remembered.is_some() {
            self.write_versions(transaction, &entry.key, changed, remembered).await?;
        }
        let entry = self.catalog.entry(&request.id)?;
        Ok(VersionView::of(&entry, entry.version(request.number)?, self.clock.now()))
    }
}

fn destroyed() -> Error {
    Error::precondition("DESTROYED", "this version is destroyed; nothing can bring it back")
}

fn not_allowed() -> Error {
    Error::precondition(
        "DESTROY_NOT_ALLOWED",
        "this server does not allow destruction; set keys.allow_destroy = true in its config first",
    )
}

fn suspend(_: &Entry, version: &Version, _: Timestamp) -> Result<KeyVersion, Error> {
    Ok(KeyVersion { suspended: true, ..version.row.clone() })
}

fn resume(
    entry: &Entry,
    version: &Version,
    now: Timestamp,
    kept: SignedDuration,
) -> Result<KeyVersion, Error> {
    let row = version.row.clone();
    if row.compromise.is_some() {
        return Err(Error::precondition(
            "COMPROMISED",
            "this version was revoked; nothing can bring it back",
        ));
    }
    if row.born.as_ref().is_some_and(|born| born.timeline.destroys_at.is_some()) {
        return Err(Error::precondition(
            "DESTRUCTION_SCHEDULED",
            "this version is scheduled for destruction; restore it first",
        ));
    }
    if !row.suspended {
        return Ok(row);
    }
    let born = row
        .born
        .clone()
        .map(|born| Born { timeline: timeline::of_returning(entry, &row, &born, now, kept), ..born });
    Ok(KeyVersion { suspended: false, born, ..row })
}

fn restore(_: &Entry, version: &Version, now: Timestamp) -> Result<KeyVersion, Error> {
    match version.row.born.as_ref().and_then(|born| born.timeline.destroys_at) {
        // Another replica's clock may be ahead of this one.
        Some(at) if at <= later(now, Key::CLOCKS_APART) => Err(Error::precondition(
            "DESTRUCTION_DUE",
            "the destruction of this version is due in some seconds, or may have begun; it cannot be called off",
        )),
        Some(_) => Ok(KeyVersion { suspended: true, ..with_destruction(version, |_| None) }),
        None => Err(Error::precondition(
            "NO_DESTRUCTION_SCHEDULED",
            "no destruction is scheduled for this version; there is nothing to restore",
        )),
    }
}

/// Only what nobody can need any more may be destroyed: withdrawn from the JWKS, or disabled by hand.
fn check_out_of_use(version: &Version, now: Timestamp) -> Result<(), Error> {
    let withdrawn = version.row.born.as_ref().and_then(|born| born.timeline.withdrawn_at);
    if version.row.suspended || version.row.compromise.is_some() || withdrawn.is_some_and(|at| at <= now) {
        return Ok(());
    }
    Err(Error::precondition(
        "VERSION_IN_USE",
        match withdrawn {
            Some(at) => format!("tokens of this version may be in use until {at}; wait, or disable it first"),
            None => "this version is in use; rotate the key, or disable the version first".to_owned(),
        },
    ))
}

pub(super) fn with_destruction(
    version: &Version,
    change: impl Fn(Option<Timestamp>) -> Option<Timestamp>,
) -> KeyVersion {
    let mut row = version.row.clone();
    row.born = row.born.map(|born| {
        let timeline = Timeline { destroys_at: change(born.timeline.destroys_at), ..born.timeline };
        Born { timeline, ..born }
    });
    row
}
