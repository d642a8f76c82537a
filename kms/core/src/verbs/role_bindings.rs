//! Role bindings: who has which role, on which keys, for how long.

use std::collections::BTreeMap;

use kms_envelope::EncryptionContext;
use serde::{Deserialize, Serialize};

use crate::{
    Action, AuditLog, Caller, Clock, Error, Hsm, KeyId, Kms, Store, Unsettled,
    access::{REQUIRED_CONTEXT_MAX, RoleBinding, Scope},
    audit::Subject,
    caller::Role,
    policy,
    principal::Principal,
    proposal::Change,
    store::{Transaction, Write},
    time::Timestamp,
};

/// A role binding to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRoleBinding {
    /// Unique name.
    pub name: KeyId,
    /// Who.
    pub principal: Principal,
    /// What.
    pub role: Role,
    /// Only these of the role's actions; all of them when empty.
    pub only: Vec<Action>,
    /// On which keys.
    pub on: Scope,
    /// What the encryption context of an operation must hold.
    pub required_context: BTreeMap<String, String>,
    /// From when on; `None` for at once.
    pub not_before: Option<Timestamp>,
    /// Until when; `None` for until it is revoked.
    pub expires_at: Option<Timestamp>,
}

/// Who a caller is for this service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerView {
    /// Canonical name.
    pub name: String,
    /// The role that its access token has by itself.
    pub own_role: Option<Role>,
    /// The bindings that hold for it now.
    pub role_bindings: Vec<RoleBinding>,
    /// When its access token ends.
    pub expires_at: Option<Timestamp>,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Who the caller is, and what it has.
    pub async fn caller(&self, caller: &Caller) -> Result<CallerView, Error> {
        let now = self.clock.now();
        let admission = self.gate.admit(caller, Action::GetCaller, None, now).await?;
        let picture = self.catalog.now();
        let bindings = picture
            .role_bindings()
            .filter(|binding| binding.principal.as_str() == caller.name() && binding.holds(now));
        let token = caller.name().strip_prefix("access-token:");
        let token = token.and_then(|name| picture.access_tokens().find(|token| token.name == name));
        let view = CallerView {
            name: caller.name().to_owned(),
            own_role: caller.own_role().map(|own| own.role),
            role_bindings: bindings.map(|binding| RoleBinding::clone(binding)).collect(),
            expires_at: token.and_then(|token| token.expires_at),
        };
        admission.settle(Ok(Unsettled::new(view))).await
    }

    /// Gives somebody a role. One that manages needs the approval of another, once there are two who may approve.
    pub async fn create_role_binding(
        &self,
        caller: &Caller,
        request: CreateRoleBinding,
    ) -> Result<RoleBinding, Error> {
        let subject = Subject::of_access(request.name.as_str());
        let now = self.clock.now();
        let mut admission = self.gate.begin_about(caller, Action::CreateRoleBinding, subject, now).await?;
        let result = async {
            let request = self.check_role_binding(request, now)?;
            if policy::manages(request.role) {
                self.unless_approval_is_needed(&mut admission, caller, || {
                    Change::CreateRoleBinding(Box::new(request.clone()))
                })
                .await?;
            }
            self.bind_admitted(caller.name(), request).await
        }
        .await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Every role binding, revoked ones included, by name.
    pub async fn list_role_bindings(&self, caller: &Caller) -> Result<Vec<RoleBinding>, Error> {
        let admission = self.gate.admit(caller, Action::ListRoleBindings, None, self.clock.now()).await?;
        let bindings =
            self.catalog.now().role_bindings().map(|binding| RoleBinding::clone(binding)).collect();
        admission.settle(Ok(Unsettled::new(bindings))).await
    }

    /// Takes a role away, everywhere, before this returns.
    pub async fn revoke_role_binding(&self, caller: &Caller, name: &KeyId) -> Result<RoleBinding, Error> {
        let (subject, now) = (Subject::of_access(name.as_str()), self.clock.now());
        let admission = self.gate.begin_about(caller, Action::RevokeRoleBinding, subject, now).await?;
        let result = self.in_effect(self.unbind_admitted(name).await).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    fn check_role_binding(
        &self,
        request: CreateRoleBinding,
        now: Timestamp,
    ) -> Result<CreateRoleBinding, Error> {
        let CreateRoleBinding { mut only, .. } = request;
        only.sort_unstable();
        only.dedup();
        if let Some(action) = only.iter().find(|action| !policy::role_has(request.role, **action)) {
            let text = format!(
                "the role {} has no action {action}; leave it out, or give another role",
                request.role
            );
            return Err(Error::invalid("only", text));
        }
        if request.required_context.len() > REQUIRED_CONTEXT_MAX {
            let text = format!(
                "a binding requires at most {REQUIRED_CONTEXT_MAX} entries of the encryption context"
            );
            return Err(Error::invalid("required_context", text));
        }
        EncryptionContext::new(request.required_context.clone())
            .map_err(|error| Error::invalid("required_context", error.to_string()))?;
        if request
            .expires_at
            .is_some_and(|end| end <= now || request.not_before.is_some_and(|start| end <= start))
        {
            return Err(Error::invalid(
                "expire_time",
                "it would never hold: give an end after now and after its start",
            ));
        }
        Ok(CreateRoleBinding { only, ..request })
    }

    pub(super) async fn bind_admitted(
        &self,
        by: &str,
        request: CreateRoleBinding,
    ) -> Result<RoleBinding, Error> {
        let now = self.clock.now();
        let CreateRoleBinding { name, principal, role, only, on, required_context, not_before, expires_at } =
            self.check_role_binding(request, now)?;
        let binding = RoleBinding {
            name,
            principal,
            role,
            only,
            on,
            required_context,
            not_before,
            expires_at,
            created_by: by.to_owned(),
            created_at: now,
            revoked_at: None,
        };
        let writes = vec![Write::InsertRoleBinding(binding.clone())];
        self.commit(Transaction::new("create a role binding", writes)).await?;
        Ok(binding)
    }

    async fn unbind_admitted(&self, name: &KeyId) -> Result<RoleBinding, Error> {
        let find = || {
            let picture = self.catalog.now();
            picture
                .role_bindings()
                .find(|binding| binding.name == *name)
                .map(|binding| RoleBinding::clone(binding))
        };
        let absent = || Error::not_found(format_args!("roleBindings/{name}"));
        let binding = find().ok_or_else(absent)?;
        if binding.revoked_at.is_some() {
            return Ok(binding);
        }
        let without = |other: &policy::Giver<'_>| !matches!(other, policy::Giver::Binding(other) if other.name == *name);
        if !self.remains_an_administrator(without) {
            return Err(last_administrator());
        }
        let writes = vec![Write::RevokeRoleBinding { name: name.clone(), at: self.clock.now() }];
        self.commit_moving(Transaction::new("revoke a role binding", writes)).await?;
        find().ok_or_else(absent)
    }

    /// Whether somebody could still let others in, among those that are `left`. Who expires does not count: it would be
    /// a delay only.
    pub(super) fn remains_an_administrator(&self, left: impl Fn(&policy::Giver<'_>) -> bool) -> bool {
        let picture = self.catalog.now();
        let administers = |giver: &policy::Giver<'_>| giver.administers_for_good();
        let mut all = policy::givers(&picture).filter(administers).peekable();
        // Where there is none already, nothing is lost.
        all.peek().is_none() || all.any(|giver| left(&giver))
    }
}

pub(super) fn last_administrator() -> Error {
    Error::precondition(
        "LAST_ADMINISTRATOR",
        "this is the last one that can let others in; make another administrator first",
    )
}
