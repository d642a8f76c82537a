//! Who was given what: role bindings, and the versions of the policy document.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    Action, Error, Key, KeyId, caller::Role, class::ClassName, principal::Principal, time::Timestamp,
};

/// Longest policy document in bytes.
pub const POLICY_LEN_MAX: usize = 64 * 1024;
/// Longest note in bytes that is kept with a change of policy or with a vote.
pub const NOTE_LEN_MAX: usize = 512;
/// Most entries of the encryption context that a binding may require.
pub const REQUIRED_CONTEXT_MAX: usize = 16;

/// A role that somebody has, on some keys, for some time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleBinding {
    /// Unique name; not reused, not even after it was revoked.
    pub name: KeyId,
    /// Who.
    pub principal: Principal,
    /// What.
    pub role: Role,
    /// Only these of the role's actions, sorted; all of them when empty.
    pub only: Vec<Action>,
    /// On which keys.
    pub on: Scope,
    /// What the encryption context of an operation must hold, for this binding to allow it.
    pub required_context: BTreeMap<String, String>,
    /// From when on; `None` for at once.
    pub not_before: Option<Timestamp>,
    /// Until when; `None` for until it is revoked.
    pub expires_at: Option<Timestamp>,
    /// Canonical name of whoever made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// The keys that a binding is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// Every key, also those not yet made, and the service itself.
    All,
    /// One key.
    Key(KeyId),
    /// The keys of a class.
    Class(ClassName),
    /// The keys that have this label.
    Label {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
}

/// One version of the policy document. The latest one holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyDocument {
    /// Counts from 1.
    pub version: u32,
    /// Cedar policies, at most [`POLICY_LEN_MAX`] bytes; empty for none.
    pub text: String,
    /// Why it was changed.
    pub note: String,
    /// Canonical name of whoever changed it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

impl RoleBinding {
    /// Whether it gives anything at `now`.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none()
            && self.not_before.is_none_or(|at| at <= now)
            && self.expires_at.is_none_or(|at| now < at)
    }
}

impl PolicyDocument {
    /// The empty one that stands before the first.
    pub(crate) fn none() -> Self {
        let (text, note, by) = Default::default();
        Self { version: 0, text, note, by, at: Timestamp::UNIX_EPOCH }
    }
}

impl Scope {
    /// Whether `key` lies in it.
    pub fn contains(&self, key: &Key) -> bool {
        match self {
            Self::All => true,
            Self::Key(id) => key.id == *id,
            Self::Class(class) => key.class == *class,
            Self::Label { name, value } => key.labels.get(name) == Some(value),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Key(id) => write!(f, "key:{id}"),
            Self::Class(class) => write!(f, "class:{class}"),
            Self::Label { name, value } => write!(f, "label:{name}={value}"),
        }
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::invalid("on", "say on what: *, key:NAME, class:NAME or label:NAME=VALUE");
        if text == "*" {
            return Ok(Self::All);
        }
        match text.split_once(':').ok_or_else(wrong)? {
            ("key", id) => id.parse().map(Self::Key).map_err(|_| wrong()),
            ("class", class) => {
                class.parse().map(Self::Class).map_err(|error: Error| Error::invalid("on", error.to_string()))
            }
            ("label", label) => {
                let (name, value) = label.split_once('=').ok_or_else(wrong)?;
                Key::check_label(name, value).map_err(|error| Error::invalid("on", error.to_string()))?;
                Ok(Self::Label { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_read_back_as_it_is_written_and_nothing_else_is_read() {
        for text in ["*", "key:k", "class:root", "label:env=prod", "label:env="] {
            assert_eq!(text.parse::<Scope>().map(|scope| scope.to_string()), Ok(text.to_owned()));
        }
        for odd in [
            "",
            "**",
            "key",
            "key:",
            "key:K",
            "keys/k",
            "class:Root",
            "class:",
            "label:env",
            "label:=x",
            "Key:k",
        ] {
            assert_eq!(odd.parse::<Scope>().map_err(|error| error.field()), Err(Some("on")), "{odd}");
        }
    }
}
