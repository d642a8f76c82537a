//! Roles as arguments.

use clap::ValueEnum;

/// What a caller may do; `kms.v1.RoleBinding` has the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Manages keys and access, and may use keys
    Administrator,
    /// Manages keys, and uses none of them
    KeyAdmin,
    /// Signs, verifies, wraps, unwraps and reads; with keys of tokens signs tokens only
    User,
    /// The same as a user, and signs bytes of its own choice with keys of tokens too
    RawSigner,
    /// The same as a user, and unwraps and rewraps what a compromised version wrapped: for the rewrap after it
    Recoverer,
    /// Wraps and unwraps, in a lane of its own: a vault, a cluster
    Unsealer,
    /// Reads everything that is no secret, and changes nothing
    Auditor,
    /// Approves and rejects what others propose
    Approver,
}

impl Role {
    pub(crate) fn on_the_wire(self) -> &'static str {
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

#[cfg(test)]
mod tests {
    use kms_core::caller;

    use super::*;

    #[test]
    fn every_role_of_the_service_can_be_given_and_no_other() {
        let ours: Vec<_> = Role::value_variants().iter().map(|role| role.on_the_wire()).collect();
        assert_eq!(ours, caller::Role::ALL.map(caller::Role::as_str));
        for role in Role::value_variants() {
            let argument = role.to_possible_value().expect("none is hidden");
            assert_eq!(argument.get_name(), role.on_the_wire());
        }
    }
}
