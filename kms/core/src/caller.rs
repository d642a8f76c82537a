//! Who is asking: the authenticated principal, parsed once at the edge.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Error, KeyId, principal::Principal};

/// An authenticated principal. Made by authentication in `kms/server`, never from a request's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    name: Arc<str>,
    own: Option<OwnRole>,
}

/// The role that an access token has by itself, without any binding.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OwnRole {
    /// Which.
    pub role: Role,
    /// On which keys.
    pub keys: KeyScope,
}

/// What a caller may do: a named set of actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Manages keys and access tokens, and may use every key.
    Administrator,
    /// Uses the keys of its scope: signs tokens with keys of tokens and bytes with keys of signatures, verifies, wraps and
    /// unwraps, reads.
    User,
    /// The same, and signs bytes of its own choice with keys of tokens, too: it could make a token that never ends.
    RawSigner,
    /// As a user, and unwraps what a compromised version has wrapped: to move it away.
    Recoverer,
    /// Manages keys and uses none of them.
    KeyAdmin,
    /// Reads everything that is no secret, and changes nothing.
    Auditor,
    /// Approves and rejects what others propose.
    Approver,
    /// Wraps and unwraps with the keys of its scope, in a lane of its own: a vault, a cluster.
    Unsealer,
}

/// The keys that a caller's role extends to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyScope {
    /// Every key, also those not yet made.
    All,
    /// Exactly these.
    Only(Arc<[KeyId]>),
}

impl Caller {
    /// A caller of this name with a role of its own. `name` is what the audit log shows.
    pub fn new(name: impl Into<Arc<str>>, role: Role, keys: KeyScope) -> Self {
        Self { name: name.into(), own: Some(OwnRole { role, keys }) }
    }

    /// A caller that has what role bindings and policy give to its name.
    pub fn named(principal: &Principal) -> Self {
        Self { name: principal.shared(), own: None }
    }

    /// The canonical name, e.g. `access-token:admin`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// A caller of this name that has `own` by itself.
    pub(crate) fn with(name: impl Into<Arc<str>>, own: Option<OwnRole>) -> Self {
        Self { name: name.into(), own }
    }

    /// What it has without any binding.
    pub fn own_role(&self) -> Option<&OwnRole> {
        self.own.as_ref()
    }
}

impl KeyScope {
    /// Whether `key` lies in the scope.
    pub fn contains(&self, key: &KeyId) -> bool {
        match self {
            Self::All => true,
            Self::Only(keys) => keys.contains(key),
        }
    }
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Administrator,
        Self::KeyAdmin,
        Self::User,
        Self::RawSigner,
        Self::Recoverer,
        Self::Unsealer,
        Self::Auditor,
        Self::Approver,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Administrator => "administrator",
            Self::KeyAdmin => "key-admin",
            Self::User => "user",
            Self::RawSigner => "raw-signer",
            Self::Recoverer => "recoverer",
            Self::Unsealer => "unsealer",
            Self::Auditor => "auditor",
            Self::Approver => "approver",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            Error::invalid("role", format!("a role is one of {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}
