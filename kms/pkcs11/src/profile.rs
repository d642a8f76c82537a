//! Token profiles: the one place for what a token does differently.
//!
//! A quirk is a field here, found by the module's own description, never an `if` elsewhere. `SOFTHSM` was measured
//! with SoftHSM 2.6.1; `CAUTIOUS` assumes the worst of a module that nobody has measured yet.

use cryptoki::error::{Error, RvError};
use kms_core::hsm::Fault;

use crate::mechanism;

/// What a token does differently.
#[derive(Debug)]
pub struct Profile {
    /// For logs and `kms doctor`.
    pub name: &'static str,
    /// Whether a process may be killed between C_Initialize and the end of C_Login. SoftHSM rewrites the file that
    /// holds the token's PINs during C_Login; a kill there has destroyed whole tokens. (Inside C_Login itself no worker
    /// is killed, whatever its profile says: the token may have counted the try.)
    pub may_die_starting: bool,
    /// Whether generating and destroying must exclude searches, over all processes. With SoftHSM a search that meets
    /// a half-written object made 2 to 12 % of generations fail.
    pub changes_exclude_finds: bool,
    /// CKA_EC_PARAMS for Ed25519, DER.
    pub edwards_params: &'static [u8],
}

/// What an error means for the process that met it.
#[derive(Debug)]
pub(crate) enum Meaning {
    /// The operation failed; session and link are fine once the session is replaced.
    Failed(Fault),
    /// The operation failed with a code that on some token means a lost link: a canary on a fresh session decides.
    Ambiguous(Fault),
    /// The handle is stale.
    StaleHandle,
    /// The link is gone. Only a fresh process cures it.
    LinkLost(Fault),
}

/// SoftHSM 2.6.1.
pub const SOFTHSM: Profile = Profile {
    name: "SoftHSM",
    may_die_starting: false,
    changes_exclude_finds: true,
    edwards_params: mechanism::ED25519_NAME,
};

/// Any other module.
pub const CAUTIOUS: Profile = Profile {
    name: "cautious",
    may_die_starting: false,
    changes_exclude_finds: true,
    edwards_params: mechanism::ED25519_NAME,
};

impl Profile {
    /// The profile of a module, by `CK_INFO.manufacturerID` and `.libraryDescription`.
    pub fn detect(manufacturer: &str, description: &str) -> &'static Self {
        if manufacturer.contains("SoftHSM") || description.contains("SoftHSM") { &SOFTHSM } else { &CAUTIOUS }
    }

    /// What `error` means.
    pub(crate) fn meaning(&self, error: &Error) -> Meaning {
        use RvError as Rv;
        let Error::Pkcs11(code, _) = error else { return Meaning::Failed(Fault::Failed(error.to_string())) };
        match code {
            Rv::KeyHandleInvalid | Rv::ObjectHandleInvalid => Meaning::StaleHandle,
            Rv::DeviceError
            | Rv::DeviceRemoved
            | Rv::TokenNotPresent
            | Rv::TokenNotRecognized
            | Rv::SessionClosed
            | Rv::SessionHandleInvalid
            | Rv::UserNotLoggedIn
            | Rv::CryptokiNotInitialized
            | Rv::SlotIdInvalid => Meaning::LinkLost(Fault::Unavailable(text(error))),
            Rv::GeneralError | Rv::FunctionFailed => Meaning::Ambiguous(Fault::Failed(text(error))),
            Rv::MechanismInvalid
            | Rv::MechanismParamInvalid
            | Rv::FunctionNotSupported
            | Rv::CurveNotSupported => Meaning::Failed(Fault::Unsupported(text(error))),
            _ => Meaning::Failed(Fault::Failed(text(error))),
        }
    }
}

/// Function and code, for operators.
pub(crate) fn text(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("C_{function:?} gave {code:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    #[test]
    fn ambiguous_codes_do_not_reset_the_link_by_themselves() {
        for code in [RvError::GeneralError, RvError::FunctionFailed] {
            let meaning = SOFTHSM.meaning(&Error::Pkcs11(code, Function::Sign));
            assert!(matches!(meaning, Meaning::Ambiguous(Fault::Failed(_))), "{meaning:?}");
        }
        for code in [RvError::HostMemory, RvError::DeviceMemory] {
            let meaning = SOFTHSM.meaning(&Error::Pkcs11(code, Function::Sign));
            assert!(matches!(meaning, Meaning::Failed(Fault::Failed(_))), "{meaning:?}");
        }
    }

    #[test]
    fn a_lost_link_names_function_and_code() {
        let Meaning::LinkLost(Fault::Unavailable(text)) =
            CAUTIOUS.meaning(&Error::Pkcs11(RvError::DeviceRemoved, Function::Sign))
        else {
            panic!("not a lost link")
        };
        assert_eq!(text, "C_Sign gave DeviceRemoved");
    }

    #[test]
    fn softhsm_is_known_by_its_manufacturer_or_description() {
        assert_eq!(Profile::detect("SoftHSM", "Implementation of PKCS11").name, "SoftHSM");
        assert_eq!(Profile::detect("Acme", "Acme HSM").name, "cautious");
    }
}
