//! Token profiles: the one place for what a token does differently.
//!
//! A quirk is a field here, never an `if` elsewhere. The built-in ones are found by the module's own description:
//! `SOFTHSM` was measured with SoftHSM 2.6.1 and `KRYOPTIC` with Kryoptic 1.5.4; `CAUTIOUS` assumes the worst of a
//! module that nobody has measured. For such a module `kms hsm probe` measures and writes a file ([`Profile::read`]),
//! which `hsm.profile_file` names.

mod class;
mod file;

use std::{borrow::Cow, num::NonZeroU32};

use cryptoki::{
    error::{Error, RvError},
    slot::TokenInfo,
};
use kms_core::hsm::Fault;
use serde::{Deserialize, Serialize};

pub(crate) use self::class::code_name;
pub use self::class::{Class, Overrides};
use crate::mechanism;

/// What a token does differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// For logs and `kms doctor`.
    pub name: Cow<'static, str>,
    /// Whether a process may be killed between C_Initialize and the end of C_Login. SoftHSM rewrites the file that
    /// holds the token's PINs during C_Login; a kill there has destroyed whole tokens. (Inside C_Login itself no worker
    /// is killed, whatever its profile says: the token may have counted the try.)
    #[serde(default)]
    pub may_die_starting: bool,
    /// Whether generating and destroying must exclude searches, over all processes. With SoftHSM a search that meets
    /// a half-written object made 2 to 12 % of generations fail.
    #[serde(default = "yes")]
    pub changes_exclude_finds: bool,
    /// How CKA_EC_PARAMS names Ed25519. Absent: by name.
    pub edwards_params: Option<EdwardsParams>,
    /// Most sessions that one process may have, the one that holds the login among them. Absent: as CK_TOKEN_INFO says.
    pub sessions_max: Option<NonZeroU32>,
    /// Whose IV CKM_AES_GCM encrypts under. Absent: the caller's.
    pub iv_source: Option<IvSource>,
    /// Hashes that CKM_RSA_PKCS_OAEP takes. Without SHA-256 there is no RSA-OAEP-256.
    #[serde(default)]
    pub oaep_hashes: Cow<'static, [OaepHash]>,
    /// What it was measured on, and where alone it holds.
    #[serde(rename = "token")]
    pub measured_on: MeasuredOn,
    /// Return values that mean something else here than on most tokens.
    #[serde(default, skip_serializing_if = "Overrides::is_empty")]
    pub errors: Overrides,
}

/// The module and the token that a profile is for. What is absent fits anything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredOn {
    /// CK_INFO.manufacturerID.
    pub module_manufacturer: Option<Cow<'static, str>>,
    /// CK_INFO.libraryDescription.
    pub module_description: Option<Cow<'static, str>>,
    /// CK_TOKEN_INFO.manufacturerID.
    pub token_manufacturer: Option<Cow<'static, str>>,
    /// CK_TOKEN_INFO.model.
    pub token_model: Option<Cow<'static, str>>,
}

/// How CKA_EC_PARAMS names a curve of Edwards' (PKCS#11 v3.1 §6.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EdwardsParams {
    /// As a PrintableString, e.g. `edwards25519`.
    Name,
    /// As an OBJECT IDENTIFIER (RFC 8410 §3).
    Oid,
}

/// Whose initialisation vector an encryption uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IvSource {
    /// The one that the caller gives.
    Caller,
    /// One that the HSM makes.
    Hsm,
}

/// A hash of CKM_RSA_PKCS_OAEP, with MGF1 over the same and, but for SHA-1, with a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OaepHash {
    /// SHA-1.
    #[serde(rename = "SHA-1")]
    Sha1,
    /// SHA-256.
    #[serde(rename = "SHA-256")]
    Sha256,
    /// SHA-384.
    #[serde(rename = "SHA-384")]
    Sha384,
    /// SHA-512.
    #[serde(rename = "SHA-512")]
    Sha512,
}

impl OaepHash {
    /// As FIPS 180-4 writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
        }
    }
}

/// SoftHSM 2.6.1.
pub const SOFTHSM: Profile = Profile {
    name: Cow::Borrowed("SoftHSM"),
    measured_on: MeasuredOn::module("SoftHSM"),
    may_die_starting: false,
    changes_exclude_finds: true,
    edwards_params: Some(EdwardsParams::Name),
    sessions_max: None,
    iv_source: Some(IvSource::Caller),
    oaep_hashes: Cow::Borrowed(&[OaepHash::Sha1]),
    errors: Overrides::NONE,
};

/// Kryoptic 1.5.4 on OpenSSL 3.0. An object that another process destroyed answers CKR_GENERAL_ERROR to everything; one
/// that this process destroyed, CKR_OBJECT_HANDLE_INVALID. The token is one SQLite file, and bears a kill in C_Login.
pub const KRYOPTIC: Profile = Profile {
    name: Cow::Borrowed("Kryoptic"),
    measured_on: MeasuredOn::module("Kryoptic"),
    may_die_starting: true,
    changes_exclude_finds: false,
    edwards_params: None,
    sessions_max: None,
    iv_source: Some(IvSource::Caller),
    oaep_hashes: Cow::Borrowed(&[OaepHash::Sha1, OaepHash::Sha256, OaepHash::Sha384, OaepHash::Sha512]),
    // What RSA-OAEP does not open gives CKR_DEVICE_ERROR.
    errors: Overrides::fixed(&[
        (RvError::DeviceError, Class::Ambiguous),
        (RvError::GeneralError, Class::StaleHandle),
    ]),
};

/// Any other module.
pub const CAUTIOUS: Profile = Profile {
    name: Cow::Borrowed("cautious"),
    measured_on: MeasuredOn::ANY,
    may_die_starting: false,
    changes_exclude_finds: true,
    edwards_params: None,
    sessions_max: None,
    iv_source: None,
    oaep_hashes: Cow::Borrowed(&[]),
    errors: Overrides::NONE,
};

impl Profile {
    /// The built-in profile of a module, by `CK_INFO.manufacturerID` and `.libraryDescription`.
    pub fn detect(manufacturer: &str, description: &str) -> Self {
        let fits = |profile: &Self| profile.measured_on.module_deviation(manufacturer, description).is_none();
        [SOFTHSM, KRYOPTIC].into_iter().find(fits).unwrap_or(CAUTIOUS)
    }

    /// CKA_EC_PARAMS for Ed25519, DER.
    pub(crate) fn ed25519_params(&self) -> &'static [u8] {
        match self.edwards_params {
            None | Some(EdwardsParams::Name) => mechanism::ED25519_NAME,
            Some(EdwardsParams::Oid) => mechanism::ED25519_OID,
        }
    }

    /// Most sessions of one process: the lower of what this says and what the token says.
    pub(crate) fn session_cap(&self, info: &TokenInfo) -> Option<u64> {
        let told = [
            self.sessions_max.map(|max| u64::from(max.get())),
            info.max_session_count().into(),
            info.max_rw_session_count().into(),
        ];
        told.into_iter().flatten().min()
    }

    /// What `error` is about: an error of the binding itself, without a code, is about the operation alone.
    pub(crate) fn class(&self, error: &Error) -> Class {
        match error {
            Error::Pkcs11(code, _) => self.class_of(*code),
            _ => Class::Input,
        }
    }

    /// What `code` is about.
    pub(crate) fn class_of(&self, code: RvError) -> Class {
        self.errors.class_of(code)
    }
}

impl Class {
    /// What a caller gets whose operation ended with `error`.
    pub(crate) fn fault(self, error: &Error) -> Fault {
        match self {
            Self::Input | Self::Ambiguous | Self::StaleHandle => Fault::Failed(text(error)),
            Self::Configuration => Fault::Unsupported(text(error)),
            Self::Capacity => Fault::Full(text(error)),
            Self::Session | Self::Device => Fault::Unavailable(text(error)),
        }
    }
}

impl MeasuredOn {
    const ANY: Self = Self {
        module_manufacturer: None,
        module_description: None,
        token_manufacturer: None,
        token_model: None,
    };

    const fn module(manufacturer: &'static str) -> Self {
        Self { module_manufacturer: Some(Cow::Borrowed(manufacturer)), ..Self::ANY }
    }
}

/// Function and code, for operators.
pub(crate) fn text(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("C_{function:?} gave {code:?}"),
        other => other.to_string(),
    }
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    #[test]
    fn a_lost_link_names_function_and_code() {
        let error = Error::Pkcs11(RvError::DeviceRemoved, Function::Sign);
        let Fault::Unavailable(text) = CAUTIOUS.class(&error).fault(&error) else {
            panic!("not a lost link")
        };
        assert_eq!(text, "C_Sign gave DeviceRemoved");
    }

    #[test]
    fn a_module_is_known_by_its_manufacturer_and_nothing_else() {
        assert_eq!(Profile::detect("SoftHSM", "Implementation of PKCS11").name, "SoftHSM");
        assert_eq!(Profile::detect("Kryoptic", "Kryoptic PKCS11 Module").name, "Kryoptic");
        for (manufacturer, description) in [("Acme", "better than SoftHSM"), ("SoftHSM II", ""), ("", "")] {
            assert_eq!(Profile::detect(manufacturer, description).name, "cautious");
        }
    }

    #[test]
    fn only_kryoptic_takes_a_general_error_for_a_stale_handle() {
        let error = Error::Pkcs11(RvError::GeneralError, Function::Sign);
        assert_eq!(KRYOPTIC.class(&error), Class::StaleHandle);
        assert_eq!(SOFTHSM.class(&error), Class::Ambiguous);
        assert_eq!(CAUTIOUS.class(&error), Class::Ambiguous);
    }
}
