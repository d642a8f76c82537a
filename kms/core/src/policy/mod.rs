//! Who may do what: default deny, decided by Cedar (<https://www.cedarpolicy.com>).
//!
//! Two things make the rules: role bindings, which everyday use is made of and which compile to Cedar policies (`compile`), and one
//! document of policies for what they cannot say (`document`). `rules` holds both for the callers that ask; `role` says what
//! each role may do; `standing` looks at all who have power, for lockouts and for four eyes.

mod compile;
mod document;
mod explain;
mod role;
mod rules;
mod standing;

use std::borrow::Cow;

use kms_envelope::EncryptionContext;

pub use document::{Document, SCHEMA};
pub(crate) use explain::explain;
pub use role::{is_about_a_key, manages, role_has};
pub(crate) use rules::Rules;
pub(crate) use standing::{Giver, count_approvers, givers, two_may_approve, unless_locked_out};

use crate::{
    Action, Algorithm, Caller, Key, KeyId,
    catalog::Picture,
    class::ClassName,
    key::{Labels, Purpose},
    lane::Lane,
    time::Timestamp,
};

/// What policy says, with the rule that said no, for the audit log only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Allowed.
    Allow {
        /// Where the operation waits for the HSM.
        lane: Lane,
    },
    /// Denied.
    Deny {
        /// The rule that denied: for the audit log, never for the caller.
        rule: Cow<'static, str>,
    },
}

/// What is asked of policy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) action: Action,
    pub(crate) about: About<'a>,
    /// The encryption context, where the caller has told it.
    pub(crate) context: Option<&'a EncryptionContext>,
}

/// What an action is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum About<'a> {
    /// The service as a whole.
    Service,
    /// A key, and what is known of it: nothing, when there is none.
    Key(&'a KeyId, Option<Traits<'a>>),
}

impl About<'_> {
    /// The class of the key, where there is one.
    pub(crate) fn class(&self) -> Option<ClassName> {
        match self {
            Self::Key(_, Some(traits)) => Some(traits.class),
            Self::Key(_, None) | Self::Service => None,
        }
    }
}

/// What rules may look at in a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traits<'a> {
    pub(crate) class: ClassName,
    pub(crate) owner: &'a str,
    pub(crate) purpose: Purpose,
    pub(crate) algorithm: Algorithm,
    pub(crate) labels: &'a Labels,
    /// Of a key that is there as it is; `None` for one that is only asked for.
    pub(crate) revision: Option<u64>,
}

impl<'a> Traits<'a> {
    /// Those of a key as it stands.
    pub(crate) fn of(key: &'a Key) -> Self {
        Self { revision: Some(key.revision), ..Self::asked_for(key) }
    }

    /// Those of a key as somebody would have it.
    pub(crate) fn asked_for(key: &'a Key) -> Self {
        let Key { class, owner, purpose, algorithm, labels, .. } = key;
        Self { class: *class, owner, purpose: *purpose, algorithm: *algorithm, labels, revision: None }
    }
}

/// Decides in memory, without waiting.
pub(crate) fn decide(picture: &Picture, caller: &Caller, ask: &Ask<'_>, now: Timestamp) -> Decision {
    match picture.rules.compiled(caller, now) {
        Ok(compiled) => compiled.decide(ask),
        Err(error) => {
            tracing::error!(caller = caller.name(), %error, "the rules of this caller cannot be used");
            Decision::Deny { rule: "POLICY_FAILED".into() }
        }
    }
}

/// Whether `caller` may do `action` on a key as it stands, or on the service.
pub(crate) fn may(
    picture: &Picture,
    caller: &Caller,
    action: Action,
    key: Option<&KeyId>,
    now: Timestamp,
) -> bool {
    let about = picture.about(key);
    matches!(decide(picture, caller, &Ask { action, about, context: None }, now), Decision::Allow { .. })
}

/// Whether `caller` may do `action` on a key as it would become.
pub(crate) fn may_have(
    picture: &Picture,
    caller: &Caller,
    action: Action,
    key: &Key,
    now: Timestamp,
) -> bool {
    let about = About::Key(&key.id, Some(Traits::asked_for(key)));
    matches!(decide(picture, caller, &Ask { action, about, context: None }, now), Decision::Allow { .. })
}

/// Whether it may be done on a store that is older than the token has seen: reading, and what only takes away.
/// Signing and unwrapping may be what somebody was forbidden meanwhile; a new version would take a number that is used already.
pub(crate) fn is_allowed_in_recovery(action: Action) -> bool {
    match action {
        Action::Verify
        | Action::GetPublicKey
        | Action::GetKey
        | Action::ListKeys
        | Action::ListKeyClasses
        | Action::ListAccessTokens
        | Action::RevokeAccessToken
        | Action::RenewAccessToken
        | Action::GetCaller
        | Action::ListRoleBindings
        | Action::RevokeRoleBinding
        | Action::GetPolicy
        | Action::ExplainPolicy
        | Action::ListProposals
        | Action::ApproveProposal
        | Action::DisableKeyVersion
        | Action::RevokeKeyVersion
        | Action::RestoreKeyVersion
        | Action::Canary
        | Action::FollowEpoch
        | Action::GetKeyUsage
        | Action::GetInventory
        | Action::GetStatus
        | Action::AcceptOlderStore => true,
        Action::Sign
        | Action::SignRaw
        | Action::SignJwt
        | Action::SignKeySetBundle
        | Action::WrapKey
        | Action::UnwrapKey
        | Action::RewrapKey
        | Action::GenerateDataKey
        | Action::GenerateDataKeyWithoutPlaintext
        | Action::Encrypt
        | Action::Decrypt
        | Action::Recover
        | Action::ReportUsage
        | Action::RemoveConsumer
        | Action::CreateKey
        | Action::UpdateKey
        | Action::UpdateKeyClass
        | Action::RotateKey
        | Action::EmergencyRotateKey
        | Action::EnableKeyVersion
        | Action::DestroyKeyVersion
        | Action::CreateAccessToken
        | Action::CreateRoleBinding
        | Action::SetPolicy
        | Action::QuarantineObject
        | Action::ResumeBirth
        | Action::CrossSignSuccessor
        | Action::ExecuteDestroy => false,
    }
}

/// Whether it may be done by a replica that cannot confirm what it knows: nothing but to say so. An operator asks how a
/// replica is just when it is fenced, and the answer tells how old it is; it shows no key, and gives nothing that a
/// caller could use. What is given up: whoever was an administrator until a revocation that this replica has not heard
/// of may still read it here. It is on record like everything else.
pub(crate) fn is_allowed_behind_fence(action: Action) -> bool {
    action == Action::GetStatus
}
