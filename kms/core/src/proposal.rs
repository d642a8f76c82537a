//! Four eyes: what one asks for, others approve, and is then done once.
//!
//! A proposal holds the change itself, whole, and the SHA-256 of how it is written: what is approved is what is done. Its
//! state is a value with a revision: a transaction takes it from one state to the next, so that it is done once, also by
//! several servers. Between [`State::Executing`] and the outcome a crash may lie: then nobody does it again, and an operator
//! looks at what became of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    Action, Error, KeyId,
    algorithm::Hash,
    class::ClassName,
    hsm::hex,
    time::{SignedDuration, Timestamp},
    verbs::{CreateAccessToken, CreateRoleBinding, SetPolicy, UpdateKey, UpdateKeyClass},
};

/// How long a proposal may wait for its approvals, and then for its execution.
pub const PROPOSAL_TTL: SignedDuration = SignedDuration::from_hours(24 * 7);
/// Most proposals that are open at once.
pub const OPEN_MAX: usize = 256;
/// Most of them from one caller.
pub const OPEN_PER_CALLER_MAX: usize = 32;
/// Most approvals that a class may ask for.
pub const APPROVALS_MAX: u32 = 8;

/// Something that needs the consent of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Its name: 32 hexadecimal digits, random.
    pub id: Id,
    /// What is to be done.
    pub change: Change,
    /// SHA-256 of [`Change::canonical`].
    pub sha256: [u8; 32],
    /// Canonical name of whoever asks for it, and who alone may have it done.
    pub proposed_by: String,
    /// When.
    pub proposed_at: Timestamp,
    /// When it ends unless it was done.
    pub expires_at: Timestamp,
    /// How many others must approve.
    pub required: u32,
    /// Who said what, in the order in which it was said.
    pub votes: Vec<Vote>,
    /// Where it stands.
    pub state: State,
    /// When it came there.
    pub state_at: Timestamp,
    /// The reason of the error, after [`State::Failed`].
    pub reason: Option<String>,
    /// Counts changes, from 1.
    pub revision: u64,
}

/// A proposal's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

/// One approval or rejection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// Canonical name.
    pub by: String,
    /// For or against.
    pub approves: bool,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub note: String,
}

/// Where a proposal stands. Whether an open one has enough approvals is worked out anew whenever that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It waits for approvals, or for its execution.
    Open,
    /// Somebody who may approve is against it.
    Rejected,
    /// It was begun. When this stays, a server died in the middle.
    Executing,
    /// It was done.
    Executed,
    /// It was tried once and failed.
    Failed,
}

/// What can be proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// Schedule the destruction of a version.
    DestroyKeyVersion {
        /// The key.
        key: KeyId,
        /// The version.
        version: u32,
        /// What was said about envelopes that may still exist.
        attestation: String,
        /// The revision of the key that the caller had seen, if it said so.
        etag: Option<u64>,
    },
    /// Rotate a key without its lead.
    EmergencyRotateKey {
        /// The key.
        key: KeyId,
        /// The revision that the caller had seen, if it said so.
        etag: Option<u64>,
    },
    /// Change a key in a way that takes protection from it.
    UpdateKey(Box<UpdateKey>),
    /// Change a class in such a way.
    UpdateKeyClass(UpdateKeyClass),
    /// Make an access token that manages.
    CreateAccessToken(CreateAccessToken),
    /// Give somebody a role that manages.
    CreateRoleBinding(Box<CreateRoleBinding>),
    /// Change the policy document.
    SetPolicy(SetPolicy),
    /// Leave recovery mode with a store that is older than the token has seen.
    AcceptOlderStore {
        /// The store's epoch.
        store: u64,
        /// The token's.
        token: u64,
    },
}

impl Change {
    /// What policy decides on.
    pub fn action(&self) -> Action {
        match self {
            Self::DestroyKeyVersion { .. } => Action::DestroyKeyVersion,
            Self::EmergencyRotateKey { .. } => Action::EmergencyRotateKey,
            Self::UpdateKey(_) => Action::UpdateKey,
            Self::UpdateKeyClass(_) => Action::UpdateKeyClass,
            Self::CreateAccessToken(_) => Action::CreateAccessToken,
            Self::CreateRoleBinding(_) => Action::CreateRoleBinding,
            Self::SetPolicy(_) => Action::SetPolicy,
            Self::AcceptOlderStore { .. } => Action::AcceptOlderStore,
        }
    }

    /// The key that it is about; `None` for the service.
    pub fn key(&self) -> Option<&KeyId> {
        match self {
            Self::DestroyKeyVersion { key, .. } | Self::EmergencyRotateKey { key, .. } => Some(key),
            Self::UpdateKey(update) => Some(&update.id),
            Self::UpdateKeyClass(_)
            | Self::CreateAccessToken(_)
            | Self::CreateRoleBinding(_)
            | Self::SetPolicy(_)
            | Self::AcceptOlderStore { .. } => None,
        }
    }

    /// The class that it is about, if it is about one.
    pub fn class(&self) -> Option<ClassName> {
        match self {
            Self::UpdateKeyClass(update) => Some(update.name),
            _ => None,
        }
    }

    /// How it is written: one text for each change.
    pub fn canonical(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(|_| Error::internal("a change cannot be written down"))
    }

    /// The SHA-256 of that.
    pub fn sha256(&self) -> Result<[u8; 32], Error> {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(Hash::Sha256.digest(self.canonical()?.as_bytes()).as_ref());
        Ok(sha256)
    }
}

impl Proposal {
    /// Whether it can still be voted on and done.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.state == State::Open && now < self.expires_at
    }
}

impl Id {
    /// Of 128 random bits.
    pub fn new(bits: [u8; 16]) -> Self {
        Self(hex(&bits))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Id {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let is_digit = |c: u8| c.is_ascii_digit() || matches!(c, b'a'..=b'f');
        if text.len() == 32 && text.bytes().all(is_digit) {
            Ok(Self(text))
        } else {
            Err(Error::invalid("name", "a proposal's name is proposals/ and 32 hexadecimal digits"))
        }
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl State {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Rejected => "rejected",
            Self::Executing => "executing",
            Self::Executed => "executed",
            Self::Failed => "failed",
        }
    }
}

impl std::str::FromStr for State {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Open, Self::Rejected, Self::Executing, Self::Executed, Self::Failed]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| {
                Error::invalid("state", "a proposal's state is open, rejected, executing, executed or failed")
            })
    }
}
