//! Who may do what: default deny, four roles. Cedar policies will stand where this match stands now.

use crate::{
    Action, Caller, KeyId,
    caller::{KeyScope, Role},
};

/// What policy says, with the rule that said no, for the audit log only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Allowed.
    Allow,
    /// Denied.
    Deny {
        /// The rule that denied: for the audit log, never for the caller.
        rule: &'static str,
    },
}

/// Decides in memory, without waiting.
pub fn decide(caller: &Caller, action: Action, key: Option<&KeyId>) -> Decision {
    let Some(own) = caller.own_role() else { return Decision::Deny { rule: "NO_ROLE" } };
    let out_of_scope = match key {
        Some(key) => !own.keys.contains(key),
        // Who makes access tokens could make one that reaches every key, and the token holds every key.
        None => needs_every_key(action) && own.keys != KeyScope::All,
    };
    if out_of_scope {
        return Decision::Deny { rule: "KEY_OUT_OF_SCOPE" };
    }
    let allowed = match own.role {
        Role::Administrator => !is_ours_alone(action),
        Role::User => is_use(action) && key.is_some(),
        Role::RawSigner => (is_use(action) || action == Action::SignRaw) && key.is_some(),
        Role::Recoverer => (is_use(action) || action == Action::Recover) && key.is_some(),
        Role::KeyAdmin | Role::Auditor | Role::Approver | Role::Unsealer => false,
    };
    if allowed { Decision::Allow } else { Decision::Deny { rule: "ROLE_LACKS_ACTION" } }
}

/// Using a key, as against managing it.
fn is_use(action: Action) -> bool {
    matches!(
        action,
        Action::Sign
            | Action::SignJwt
            | Action::SignKeySetBundle
            | Action::Verify
            | Action::WrapKey
            | Action::UnwrapKey
            | Action::RewrapKey
            | Action::GenerateDataKey
            | Action::GenerateDataKeyWithoutPlaintext
            | Action::Encrypt
            | Action::Decrypt
            | Action::ReportUsage
            | Action::GetKeyUsage
            | Action::GetPublicKey
            | Action::GetKey
    )
}

/// Managing who may come in, the store and the token as a whole.
fn needs_every_key(action: Action) -> bool {
    matches!(
        action,
        Action::CreateAccessToken
            | Action::ListAccessTokens
            | Action::RevokeAccessToken
            | Action::AcceptOlderStore
            | Action::GetInventory
            | Action::QuarantineObject
            | Action::UpdateKeyClass
            | Action::GetStatus
    )
}

/// Work that only the service itself does.
fn is_ours_alone(action: Action) -> bool {
    matches!(
        action,
        Action::ResumeBirth
            | Action::CrossSignSuccessor
            | Action::ExecuteDestroy
            | Action::Canary
            | Action::FollowEpoch
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> KeyId {
        name.parse().expect("a test's own name")
    }

    #[test]
    fn a_user_may_use_only_the_keys_of_its_scope_and_manage_none() {
        let caller = Caller::new("access-token:u", Role::User, KeyScope::Only([key("mine")].into()));
        for action in Action::ALL {
            let on_mine = decide(&caller, action, Some(&key("mine")));
            assert_eq!(on_mine == Decision::Allow, is_use(action), "{action} on the user's key");
            assert_ne!(decide(&caller, action, Some(&key("other"))), Decision::Allow, "{action} elsewhere");
            assert_ne!(decide(&caller, action, None), Decision::Allow, "{action} on no key");
        }
    }

    #[test]
    fn a_raw_signer_and_a_recoverer_may_do_one_thing_more_than_a_user() {
        let scope = KeyScope::Only([key("mine")].into());
        let user = Caller::new("c", Role::User, scope.clone());
        for (role, one_more) in [(Role::RawSigner, Action::SignRaw), (Role::Recoverer, Action::Recover)] {
            let other = Caller::new("c", role, scope.clone());
            for action in Action::ALL {
                for on in [Some(key("mine")), Some(key("other")), None] {
                    let [user, other] = [&user, &other].map(|caller| decide(caller, action, on.as_ref()));
                    let more = action == one_more && on == Some(key("mine"));
                    assert_eq!(
                        other == Decision::Allow,
                        user == Decision::Allow || more,
                        "{role}: {action} on {on:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_administrator_of_some_keys_manages_those_and_neither_access_tokens_nor_the_hsm() {
        let scope = KeyScope::Only([key("mine")].into());
        let caller = Caller::new("access-token:a", Role::Administrator, scope);
        for action in Action::ALL {
            assert_ne!(decide(&caller, action, Some(&key("other"))), Decision::Allow, "{action} elsewhere");
            let on_none = decide(&caller, action, None) == Decision::Allow;
            assert_eq!(on_none, !needs_every_key(action) && !is_ours_alone(action), "{action} on no key");
        }
    }

    #[test]
    fn nobody_may_do_the_services_own_work() {
        let caller = Caller::new("access-token:a", Role::Administrator, KeyScope::All);
        for action in Action::ALL {
            let allowed = decide(&caller, action, Some(&key("k"))) == Decision::Allow;
            assert_eq!(allowed, !is_ours_alone(action), "{action}");
        }
    }
}
