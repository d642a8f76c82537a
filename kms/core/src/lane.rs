//! Lanes: work of different urgency waits for the HSM in different queues, so that no amount of one starves another.

use crate::Action;

/// In which queue an operation waits for the HSM. Inside a lane, callers take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// What a vault or a cluster needs to start at all: callers that are let in as unsealers.
    Unseal,
    /// Wrapping, unwrapping, encrypting and decrypting.
    Wrap,
    /// Signing and verifying.
    Sign,
    /// Managing keys, and our own work.
    Manage,
}

impl Lane {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 4] = [Self::Unseal, Self::Wrap, Self::Sign, Self::Manage];

    /// Where `action` waits, unless its caller is an unsealer.
    pub fn of(action: Action) -> Self {
        match action {
            Action::WrapKey
            | Action::UnwrapKey
            | Action::RewrapKey
            | Action::GenerateDataKey
            | Action::GenerateDataKeyWithoutPlaintext
            | Action::Encrypt
            | Action::Decrypt
            | Action::Recover => Self::Wrap,
            Action::Sign | Action::SignRaw | Action::SignJwt | Action::SignKeySetBundle | Action::Verify => {
                Self::Sign
            }
            _ => Self::Manage,
        }
    }

    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unseal => "unseal",
            Self::Wrap => "wrap",
            Self::Sign => "sign",
            Self::Manage => "manage",
        }
    }
}
