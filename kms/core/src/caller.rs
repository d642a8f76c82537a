//! Who is asking: the authenticated principal, parsed once at the edge.

use std::{fmt, sync::Arc};

use crate::{Error, KeyId};

/// An authenticated principal. Made by authentication in `kms/server`, never from a request's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    name: Arc<str>,
    role: Role,
    keys: KeyScope,
}

/// What a caller may do, until roles are bound by policy documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
}

/// The keys that a caller's role extends to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyScope {
    /// Every key, also those not yet made.
    All,
    /// Exactly these.
    Only(Arc<[KeyId]>),
}

impl Caller {
    /// A caller of this name, role and scope. `name` is what the audit log shows.
    pub fn new(name: impl Into<Arc<str>>, role: Role, keys: KeyScope) -> Self {
        Self { name: name.into(), role, keys }
    }

    /// The canonical name, e.g. `access-token:admin`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// The role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The keys it extends to.
    pub fn keys(&self) -> &KeyScope {
        &self.keys
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

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Administrator => "administrator",
            Self::User => "user",
            Self::RawSigner => "raw-signer",
            Self::Recoverer => "recoverer",
        })
    }
}

impl std::str::FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "administrator" => Ok(Self::Administrator),
            "user" => Ok(Self::User),
            "raw-signer" => Ok(Self::RawSigner),
            "recoverer" => Ok(Self::Recoverer),
            _ => {
                Err(Error::invalid("role", "unknown role; use administrator, user, raw-signer or recoverer"))
            }
        }
    }
}
