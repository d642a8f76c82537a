//! What each role may do.

use crate::{Action, caller::Role};

/// Whether `role` has `action`, on the keys that it is bound to or on the service.
pub fn role_has(role: Role, action: Action) -> bool {
    match role {
        Role::Administrator => !is_ours_alone(action),
        Role::KeyAdmin => manages_keys(action) || reads_keys(action) || action == Action::ListProposals,
        Role::User => is_use(action),
        Role::RawSigner => is_use(action) || action == Action::SignRaw,
        Role::Recoverer => is_use(action) || action == Action::Recover,
        Role::Unsealer => unseals(action),
        Role::Auditor => reads_keys(action) || reads_access(action) || reads_service(action),
        Role::Approver => reads_keys(action) || reads_access(action) || action == Action::ApproveProposal,
    }
}

/// Whether it gives power over others or over the life of keys: to give it away needs four eyes.
pub fn manages(role: Role) -> bool {
    match role {
        Role::Administrator | Role::KeyAdmin | Role::Approver => true,
        Role::User | Role::RawSigner | Role::Recoverer | Role::Unsealer | Role::Auditor => false,
    }
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

fn unseals(action: Action) -> bool {
    matches!(
        action,
        Action::WrapKey
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

fn manages_keys(action: Action) -> bool {
    matches!(
        action,
        Action::CreateKey
            | Action::UpdateKey
            | Action::UpdateKeyClass
            | Action::RotateKey
            | Action::EmergencyRotateKey
            | Action::RevokeKeyVersion
            | Action::DisableKeyVersion
            | Action::EnableKeyVersion
            | Action::DestroyKeyVersion
            | Action::RestoreKeyVersion
            | Action::RemoveConsumer
    )
}

fn reads_keys(action: Action) -> bool {
    matches!(
        action,
        Action::GetKey
            | Action::GetPublicKey
            | Action::ListKeys
            | Action::ListKeyClasses
            | Action::GetKeyUsage
    )
}

fn reads_access(action: Action) -> bool {
    matches!(
        action,
        Action::ListAccessTokens
            | Action::ListRoleBindings
            | Action::GetPolicy
            | Action::ExplainPolicy
            | Action::ListProposals
    )
}

fn reads_service(action: Action) -> bool {
    matches!(action, Action::GetInventory | Action::GetStatus)
}

/// Work that only the service itself does.
pub(super) fn is_ours_alone(action: Action) -> bool {
    matches!(
        action,
        Action::ResumeBirth
            | Action::CrossSignSuccessor
            | Action::ExecuteDestroy
            | Action::Canary
            | Action::FollowEpoch
    )
}

/// What every caller may do, for itself.
pub(super) fn is_everybodys(action: Action) -> bool {
    matches!(action, Action::RenewAccessToken | Action::GetCaller)
}

/// Whether it is about a key, and never about the service.
pub fn is_about_a_key(action: Action) -> bool {
    use Action as A;
    match action {
        A::Sign
        | A::SignRaw
        | A::SignJwt
        | A::SignKeySetBundle
        | A::Verify
        | A::WrapKey
        | A::UnwrapKey
        | A::RewrapKey
        | A::GenerateDataKey
        | A::GenerateDataKeyWithoutPlaintext
        | A::Encrypt
        | A::Decrypt
        | A::Recover
        | A::ReportUsage
        | A::GetKeyUsage
        | A::RemoveConsumer
        | A::GetPublicKey
        | A::GetKey
        | A::CreateKey
        | A::UpdateKey
        | A::RotateKey
        | A::EmergencyRotateKey
        | A::RevokeKeyVersion
        | A::DisableKeyVersion
        | A::EnableKeyVersion
        | A::DestroyKeyVersion
        | A::RestoreKeyVersion => true,
        A::ListKeys
        | A::ListKeyClasses
        | A::UpdateKeyClass
        | A::CreateAccessToken
        | A::ListAccessTokens
        | A::RevokeAccessToken
        | A::RenewAccessToken
        | A::GetCaller
        | A::CreateRoleBinding
        | A::ListRoleBindings
        | A::RevokeRoleBinding
        | A::GetPolicy
        | A::SetPolicy
        | A::ExplainPolicy
        | A::ListProposals
        | A::ApproveProposal
        | A::GetInventory
        | A::QuarantineObject
        | A::GetStatus
        | A::ResumeBirth
        | A::CrossSignSuccessor
        | A::ExecuteDestroy
        | A::Canary
        | A::FollowEpoch
        | A::AcceptOlderStore => false,
    }
}

/// About the service, and allowed also to who has its role on some keys only: what it answers is about those.
pub(super) fn is_for_some_keys_too(action: Action) -> bool {
    matches!(action, Action::ListKeys | Action::ListKeyClasses | Action::ListProposals)
}

/// About an encryption context.
pub(super) fn has_context(action: Action) -> bool {
    matches!(
        action,
        Action::WrapKey
            | Action::UnwrapKey
            | Action::RewrapKey
            | Action::GenerateDataKey
            | Action::GenerateDataKeyWithoutPlaintext
            | Action::Encrypt
            | Action::Decrypt
            | Action::Recover
    )
}
