//! What policy decides on.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An action on a key, or on the service. The operations bear their RFC 7517 §4.3 `key_ops` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Sign bytes or a digest with a key of signatures.
    Sign,
    /// Sign them with a key of tokens.
    SignRaw,
    /// Sign a JWT: the header is ours.
    SignJwt,
    /// Sign a key set, for caches that answer while we do not.
    SignKeySetBundle,
    /// Verify a signature.
    Verify,
    /// Wrap a key.
    WrapKey,
    /// Unwrap it.
    UnwrapKey,
    /// Wrap it under another version, without seeing it.
    RewrapKey,
    /// Make a data key, and see it.
    GenerateDataKey,
    /// Make a data key, and see it wrapped only.
    GenerateDataKeyWithoutPlaintext,
    /// Encrypt a payload.
    Encrypt,
    /// Decrypt it.
    Decrypt,
    /// Unwrap, rewrap or decrypt what a compromised version has wrapped.
    Recover,
    /// Say how many envelopes a consumer holds.
    ReportUsage,
    /// See what lives on which version.
    GetKeyUsage,
    /// Say that a consumer is no more.
    RemoveConsumer,
    /// Read a public key.
    GetPublicKey,
    /// Read a key and its versions.
    GetKey,
    /// List keys.
    ListKeys,
    /// Make a key.
    CreateKey,
    /// Change owner, labels, class, periods or claim rules.
    UpdateKey,
    /// Read the classes of keys.
    ListKeyClasses,
    /// Change the periods of a class, and of the keys that have them from it.
    UpdateKeyClass,
    /// Make the next version.
    RotateKey,
    /// Make the next version sign at once, without the lead.
    EmergencyRotateKey,
    /// Declare a version compromised.
    RevokeKeyVersion,
    /// Take a version out of use.
    DisableKeyVersion,
    /// Bring it back.
    EnableKeyVersion,
    /// Schedule its destruction.
    DestroyKeyVersion,
    /// Call that off.
    RestoreKeyVersion,
    /// Make an access token.
    CreateAccessToken,
    /// List access tokens.
    ListAccessTokens,
    /// Revoke one.
    RevokeAccessToken,
    /// Move the end of one's own access token.
    RenewAccessToken,
    /// Ask who one is, and what one has.
    GetCaller,
    /// Give somebody a role.
    CreateRoleBinding,
    /// List role bindings.
    ListRoleBindings,
    /// Take a role away.
    RevokeRoleBinding,
    /// Read the policy document and its versions.
    GetPolicy,
    /// Change it.
    SetPolicy,
    /// Ask what policy would say, and why.
    ExplainPolicy,
    /// Read proposals.
    ListProposals,
    /// Approve what somebody proposes, or reject it.
    ApproveProposal,
    /// Compare what the token holds with what the store knows.
    GetInventory,
    /// Put an object in the token on record as one to be left alone.
    QuarantineObject,
    /// See every replica, and what is wrong with it.
    GetStatus,
    /// Finish a birth that was cut short (our own work).
    ResumeBirth,
    /// Let a version of a key of bundles say which one succeeds it (our own work).
    CrossSignSuccessor,
    /// Carry out a destruction that is due (our own work).
    ExecuteDestroy,
    /// Test the HSM link (our own work).
    Canary,
    /// Let the token follow the store's epoch (our own work).
    FollowEpoch,
    /// Accept a store that is older than the token has seen.
    AcceptOlderStore,
}

impl Action {
    /// Every action, for tables and matrices.
    pub const ALL: [Self; 52] = [
        Self::Sign,
        Self::SignRaw,
        Self::SignJwt,
        Self::SignKeySetBundle,
        Self::Verify,
        Self::WrapKey,
        Self::UnwrapKey,
        Self::RewrapKey,
        Self::GenerateDataKey,
        Self::GenerateDataKeyWithoutPlaintext,
        Self::Encrypt,
        Self::Decrypt,
        Self::Recover,
        Self::ReportUsage,
        Self::GetKeyUsage,
        Self::RemoveConsumer,
        Self::GetPublicKey,
        Self::GetKey,
        Self::ListKeys,
        Self::CreateKey,
        Self::UpdateKey,
        Self::ListKeyClasses,
        Self::UpdateKeyClass,
        Self::RotateKey,
        Self::EmergencyRotateKey,
        Self::RevokeKeyVersion,
        Self::DisableKeyVersion,
        Self::EnableKeyVersion,
        Self::DestroyKeyVersion,
        Self::RestoreKeyVersion,
        Self::CreateAccessToken,
        Self::ListAccessTokens,
        Self::RevokeAccessToken,
        Self::RenewAccessToken,
        Self::GetCaller,
        Self::CreateRoleBinding,
        Self::ListRoleBindings,
        Self::RevokeRoleBinding,
        Self::GetPolicy,
        Self::SetPolicy,
        Self::ExplainPolicy,
        Self::ListProposals,
        Self::ApproveProposal,
        Self::GetInventory,
        Self::QuarantineObject,
        Self::GetStatus,
        Self::ResumeBirth,
        Self::CrossSignSuccessor,
        Self::ExecuteDestroy,
        Self::Canary,
        Self::FollowEpoch,
        Self::AcceptOlderStore,
    ];
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The serde name is the name: one spelling in log, policy and metric.
        self.serialize(f)
    }
}
