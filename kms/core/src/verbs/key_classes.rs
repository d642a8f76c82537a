//! ListKeyClasses and UpdateKeyClass: the periods that keys of one kind share.

use serde::{Deserialize, Serialize};

use crate::{
    Action, AuditLog, Caller, Clock, Error, Hsm, Key, Kms, Store, Unsettled,
    audit::Subject,
    catalog::Picture,
    class::{AskedPeriods, ClassName, KeyClass, PeriodChanges},
    error::Kind,
    policy,
    proposal::{APPROVALS_MAX, Change},
    replica::LeaseToken,
    store::{Transaction, Write},
    time::Timestamp,
    verbs::update_key::{extend_withdrawals, with_periods},
};

/// How often a change is tried again when one of the keys changes meanwhile.
const COMMIT_ATTEMPTS_MAX: usize = 32;

/// How many keys a change of their class reaches in its own transaction: it must not keep others from committing. The
/// scheduler sees to the rest.
const KEYS_AT_ONCE_MAX: usize = 2_000;

/// A class to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateKeyClass {
    /// Which.
    pub name: ClassName,
    /// What is to change; `Some(None)` for what is built in, and zero for a rotation or destruction by hand only.
    pub periods: PeriodChanges,
    /// How many others must approve; `None` leaves it as it is.
    pub approvals: Option<u32>,
    /// The revision that the caller has seen; refused when it is another by now.
    pub etag: Option<u64>,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Every class as it stands.
    pub async fn list_key_classes(&self, caller: &Caller) -> Result<Vec<KeyClass>, Error> {
        let admission = self.gate.admit(caller, Action::ListKeyClasses, None, self.clock.now()).await?;
        let picture = self.catalog.now();
        let classes = ClassName::ALL.into_iter().map(|name| picture.class(name)).collect();
        admission.settle(Ok(Unsettled::new(classes))).await
    }

    /// Changes a class, and with it every key that has one of the periods from it, or none when it does not fit one of
    /// them. Where there are very many keys, some follow later.
    pub async fn update_key_class(
        &self,
        caller: &Caller,
        request: UpdateKeyClass,
    ) -> Result<KeyClass, Error> {
        let now = self.clock.now();
        let subject = Subject::of_class(request.name);
        let mut admission = self.gate.begin_about(caller, Action::UpdateKeyClass, subject, now).await?;
        let result = async {
            self.unless_approval_is_needed(&mut admission, caller, || Change::UpdateKeyClass(request))
                .await?;
            self.update_class_admitted(request, false).await
        }
        .await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    pub(super) async fn update_class_admitted(
        &self,
        request: UpdateKeyClass,
        has_consent: bool,
    ) -> Result<KeyClass, Error> {
        let mut attempts = 1;
        loop {
            let now = self.time_for_all().await?;
            let (class, transaction) = self.class_changed(request, has_consent, now)?;
            match self.commit(transaction).await {
                Err(error) if error.kind() == Kind::Conflict && attempts < COMMIT_ATTEMPTS_MAX => {
                    attempts += 1
                }
                outcome => return outcome.map(|()| class),
            }
        }
    }

    /// The class as `request` would have it, at the revision that it has.
    pub(super) fn class_updated(
        &self,
        picture: &Picture,
        request: &UpdateKeyClass,
    ) -> Result<KeyClass, Error> {
        let class = picture.class(request.name);
        if request.etag.is_some_and(|seen| seen != class.revision) {
            let text =
                format!("the class {} was changed in the meantime; read it again and retry", class.name);
            return Err(Error::new(Kind::Conflict, "ETAG_MISMATCH", text));
        }
        let built_in = KeyClass::built_in(class.name).periods;
        let (periods, _) = AskedPeriods::from(class.periods).changed(request.periods).under(&built_in);
        periods.check()?;
        let approvals = request.approvals.unwrap_or(class.approvals);
        if approvals > APPROVALS_MAX {
            let text = format!("a class asks for at most {APPROVALS_MAX} approvals; 0 for none");
            return Err(Error::invalid("approvals", text));
        }
        // Nobody could lower it again.
        let others = policy::count_approvers(picture, self.clock.now()).saturating_sub(1).max(1);
        let others = u32::try_from(others).unwrap_or(u32::MAX);
        if approvals > class.approvals && approvals > others {
            let text =
                format!("only {others} others may approve; make more approvers first, or ask for fewer");
            return Err(Error::precondition("TOO_FEW_APPROVERS", text));
        }
        Ok(KeyClass { periods, approvals, ..class })
    }

    fn class_changed(
        &self,
        request: UpdateKeyClass,
        has_consent: bool,
        now: Timestamp,
    ) -> Result<(KeyClass, Transaction), Error> {
        let picture = self.catalog.now();
        if !has_consent {
            self.unless_consent_is_missing(&picture, &Change::UpdateKeyClass(request), now)?;
        }
        let class = self.class_updated(&picture, &request)?;
        let class = KeyClass { revision: class.revision + 1, updated_at: Some(now), ..class };
        let bundles = Self::bundles(&picture);
        let (mut writes, mut keys) = (vec![Write::PutClass(class)], 0);
        for entry in picture.keys.values().filter(|entry| entry.key.class == class.name) {
            let (theirs, _) = AskedPeriods::of(&entry.key).under(&class.periods);
            if theirs == entry.key.periods() {
                continue;
            }
            theirs.check().map_err(|error| of_key(&entry.key, &error))?;
            keys += 1;
            if keys > KEYS_AT_ONCE_MAX {
                continue;
            }
            let key = with_periods(entry.key.clone(), theirs, bundles, now);
            let extended = extend_withdrawals(entry, &key, now);
            writes.extend(self.versions_written("", &key, extended, None::<LeaseToken>).writes);
        }
        Ok((class, Transaction::new("update a class", writes)))
    }
}

fn of_key(key: &Key, error: &Error) -> Error {
    let text = format!("keys/{} has this class and periods of its own that do not fit: {error}", key.id);
    Error::precondition("CLASS_DOES_NOT_FIT", text)
}
