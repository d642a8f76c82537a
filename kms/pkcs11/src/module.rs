//! Loading a module and finding the one token that is meant. Shared by workers and by `kms hsm` and `kms doctor`.
//!
//! One process loads one module once and never finalises it: two `Pkcs11` of one library are undefined behaviour,
//! and handles repeat after C_Initialize.

use std::path::{Path, PathBuf};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11},
    error::{Error, RvError},
    mechanism::{MechanismInfo, MechanismType},
    slot::{Slot, TokenInfo},
};
use kms_core::Algorithm;

use crate::{
    Uri, mechanism,
    profile::{self, Profile},
    wire::{Refusal, RefusalKind},
};

/// How `CK_INFO.libraryDescription` of the fault shim begins.
const FAULT_SHIM: &str = "kms fault shim";
/// The variable without which the fault shim is refused, whatever it thinks itself.
const DEV_FAULT_INJECTION: &str = "KMS_DEV_FAULT_INJECTION";
/// What a worker calls. A module may announce a version and leave functions out.
const NEEDED: [Function; 18] = [
    Function::Initialize,
    Function::GetInfo,
    Function::GetSlotList,
    Function::GetTokenInfo,
    Function::GetMechanismInfo,
    Function::OpenSession,
    Function::CloseSession,
    Function::GetSessionInfo,
    Function::Login,
    Function::GenerateKeyPair,
    Function::FindObjectsInit,
    Function::FindObjects,
    Function::FindObjectsFinal,
    Function::GetAttributeValue,
    Function::SignInit,
    Function::Sign,
    Function::DestroyObject,
    Function::GenerateRandom,
];

/// What is wrong with module, token or PIN. Each text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No file at module-path.
    #[error("there is no PKCS#11 module at {path}: {why}; correct module-path in the pkcs11: URI")]
    ModuleMissing {
        /// module-path.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The file is not a module.
    #[error("{path} is not a PKCS#11 module: {why}; module-path must name the vendor's shared library")]
    NotAModule {
        /// module-path.
        path: PathBuf,
        /// What the loader said.
        why: String,
    },
    /// The fault shim, outside a test.
    #[error(
        "{path} is the fault shim, a module that fails on purpose: correct module-path in the pkcs11: URI; \
         where a test means it, set {DEV_FAULT_INJECTION}=1 in the environment of kms"
    )]
    TestModule {
        /// module-path.
        path: PathBuf,
    },
    /// C_Initialize failed.
    #[error("the PKCS#11 module does not start: {0}; look at the vendor's configuration and log")]
    Initialize(String),
    /// The module shows no token at all.
    #[error(
        "HSM absent: the PKCS#11 module shows no token; is the HSM connected, and may this user read its \
         configuration?"
    )]
    NoToken,
    /// None of the tokens is the one that the URI names.
    #[error("HSM absent: no token matches {wanted}; present are: {present}")]
    TokenAbsent {
        /// The URI's token part.
        wanted: String,
        /// Labels and serial numbers that are there.
        present: String,
    },
    /// Several tokens match.
    #[error("several tokens match {wanted}: serial numbers {serials}; name one by serial=")]
    TokenAmbiguous {
        /// The URI's token part.
        wanted: String,
        /// Their serial numbers.
        serials: String,
    },
    /// The token can sign with no algorithm of ours.
    #[error(
        "the token has the mechanisms of no algorithm that kms knows, so it can hold no key; name an HSM in hsm.uri, or \
         let the security officer allow CKM_EC_KEY_PAIR_GEN and CKM_ECDSA, or RSA's"
    )]
    NoAlgorithm,
    /// The token was initialised, but no user PIN was set.
    #[error("the token has no user PIN yet; run `kms hsm init`, or set it with the vendor's tool")]
    UserPinUnset,
    /// The URI names no PIN file.
    #[error("the pkcs11: URI has no pin-source; add ?pin-source=/path/of/the/pin/file")]
    PinSourceMissing,
    /// The PIN file cannot be used.
    #[error("the PIN file {path} cannot be used: {why}")]
    PinFile {
        /// pin-source.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The token refused the PIN.
    #[error(
        "the token refused the PIN ({0}); exactly one try was spent and there will be no other; \
         correct the file at pin-source, then log in once with `kms hsm login` to clear the token's warning"
    )]
    PinRefused(String),
    /// The login failed in a way that may have been a PIN try.
    #[error(
        "the login failed ({0}), which may have spent a PIN try, so there will be no other; \
         look at the token and the file at pin-source, then log in once with `kms hsm login`"
    )]
    LoginFailed(String),
    /// C_Login failed on its way: whether the token has seen the PIN is not known.
    #[error(
        "the link to the token broke in the middle of a login ({0}), which may have spent a PIN try; look at the HSM"
    )]
    LoginInDoubt(String),
    /// A wrong PIN was tried since the last login; nothing was tried now.
    #[error(
        "a wrong PIN was tried on this token since the last login ({flag} is set), so none is tried now; \
         correct the file at pin-source, then log in once with `kms hsm login` to clear the warning"
    )]
    PinCountLow {
        /// The flag that is set.
        flag: &'static str,
    },
    /// One more wrong try locks the PIN; nothing was tried, and `kms hsm login` does not try either.
    #[error(
        "one more wrong PIN locks this token (CKF_USER_PIN_FINAL_TRY is set), so kms tries none; log in with the vendor's \
         tool, which clears the flag, or let the security officer set a new PIN, and correct the file at pin-source"
    )]
    PinFinalTry,
    /// The PIN is locked; nothing was tried.
    #[error("the token's user PIN is locked; the security officer must set a new one")]
    PinLocked,
    /// The profile file cannot be used.
    #[error(
        "the profile {path} cannot be used: {why}; correct hsm.profile_file, or write one with `kms hsm probe`"
    )]
    ProfileFile {
        /// hsm.profile_file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The profile file is about another token.
    #[error(
        "the profile {path} is not of this token: {why}; measure the token anew with `kms hsm probe`, or leave \
         hsm.profile_file out"
    )]
    ProfileContradicts {
        /// hsm.profile_file.
        path: PathBuf,
        /// Where they differ.
        why: String,
    },
    /// More sessions are asked for than the token gives.
    #[error(
        "hsm.sessions_per_worker = {wanted} needs one session more than that in every worker, and this token gives a \
         process {cap}; lower hsm.sessions_per_worker"
    )]
    TooManySessions {
        /// hsm.sessions_per_worker.
        wanted: u16,
        /// What the profile or CK_TOKEN_INFO allows.
        cap: u64,
    },
    /// The directory of the locks cannot be used.
    #[error("the lock directory {dir} cannot be used: {why}; give it to the user that runs kms")]
    LockDir {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        why: String,
    },
    /// This process cannot be kept alive while it changes the token.
    #[error("signals cannot be held off: {0}")]
    Signals(String),
    /// The token is not fit to be prepared.
    #[error("{0}")]
    NotPreparable(String),
    /// The token has no room for another session.
    #[error(
        "the token has no room for another session (CKR_SESSION_COUNT); lower hsm.workers, hsm.spare_workers or \
         hsm.sessions_per_worker (a worker takes one session more than that), or end other users of the token"
    )]
    SessionsUsedUp,
    /// Anything else that a PKCS#11 function said.
    #[error("the token failed: {0}")]
    Pkcs11(String),
}

impl TokenError {
    /// Whether a PIN try was spent, or may have been.
    pub fn is_of_the_pin(&self) -> bool {
        self.refusal().kind == RefusalKind::Pin
    }

    /// Whether nobody knows if it has spent a PIN try.
    pub fn leaves_login_in_doubt(&self) -> bool {
        self.refusal().kind == RefusalKind::LoginInDoubt
    }

    /// What follows for a worker that met it.
    pub(crate) fn refusal(&self) -> Refusal {
        let kind = match self {
            Self::PinRefused(_)
            | Self::LoginFailed(_)
            | Self::PinCountLow { .. }
            | Self::PinFinalTry
            | Self::PinLocked => RefusalKind::Pin,
            Self::ModuleMissing { .. }
            | Self::NotAModule { .. }
            | Self::TestModule { .. }
            | Self::TokenAmbiguous { .. }
            | Self::NoAlgorithm
            | Self::UserPinUnset
            | Self::PinSourceMissing
            | Self::PinFile { .. }
            | Self::ProfileFile { .. }
            | Self::ProfileContradicts { .. }
            | Self::TooManySessions { .. }
            | Self::LockDir { .. }
            | Self::NotPreparable(_) => RefusalKind::Configuration,
            Self::SessionsUsedUp => RefusalKind::Capacity,
            Self::LoginInDoubt(_) => RefusalKind::LoginInDoubt,
            Self::Initialize(_)
            | Self::NoToken
            | Self::TokenAbsent { .. }
            | Self::Signals(_)
            | Self::Pkcs11(_) => RefusalKind::Passing,
        };
        Refusal { kind, text: self.to_string() }
    }
}

impl From<Error> for TokenError {
    fn from(error: Error) -> Self {
        match error {
            Error::Pkcs11(RvError::SessionCount, _) => Self::SessionsUsedUp,
            error => Self::Pkcs11(profile::text(&error)),
        }
    }
}

/// A loaded and initialised module.
pub(crate) struct Module {
    pub(crate) pkcs11: Pkcs11,
    pub(crate) profile: Profile,
    /// Whether the profile comes from a file, and so may be wrong about the token.
    told: Option<PathBuf>,
    /// CK_INFO.manufacturerID, trimmed.
    pub(crate) manufacturer: String,
    /// CK_INFO.libraryDescription, trimmed.
    pub(crate) description: String,
    /// Manufacturer, description and version.
    pub(crate) library: String,
}

impl Module {
    /// Loads and initialises the module at `path`.
    pub(crate) fn load(path: &Path) -> Result<Self, TokenError> {
        let meta = std::fs::metadata(path)
            .map_err(|error| TokenError::ModuleMissing { path: path.to_owned(), why: error.to_string() })?;
        let refuse = |why: String| TokenError::NotAModule { path: path.to_owned(), why };
        if !meta.is_file() {
            return Err(refuse("it is not a file".to_owned()));
        }
        let pkcs11 = Pkcs11::new(path).map_err(|error| refuse(error.to_string()))?;
        let missing: Vec<Function> =
            NEEDED.into_iter().filter(|needed| !pkcs11.is_fn_supported(*needed)).collect();
        if let [first, others @ ..] = &missing[..] {
            return Err(refuse(format!(
                "it lacks C_{first:?} and {} other functions that kms calls",
                others.len()
            )));
        }
        let initialized = pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
        let info = pkcs11.get_library_info();
        // The shim says what it is even where it does not start.
        if let Ok(info) = &info
            && info.library_description().starts_with(FAULT_SHIM)
            && std::env::var_os(DEV_FAULT_INJECTION).is_none_or(|flag| flag != "1")
        {
            return Err(TokenError::TestModule { path: path.to_owned() });
        }
        initialized.map_err(|error| TokenError::Initialize(profile::text(&error)))?;
        let info = info?;
        let (manufacturer, description) = (info.manufacturer_id().trim(), info.library_description().trim());
        let library = format!("{manufacturer} {description} {}", info.library_version());
        let profile = Profile::detect(manufacturer, description);
        let (manufacturer, description) = (manufacturer.to_owned(), description.to_owned());
        Ok(Self { pkcs11, profile, told: None, manufacturer, description, library })
    }

    /// With the profile in `file` instead of the built-in one. A profile of another module is refused.
    pub(crate) fn profiled(self, file: Option<&Path>) -> Result<Self, TokenError> {
        let Some(path) = file else { return Ok(self) };
        let profile =
            Profile::read(path).map_err(|why| TokenError::ProfileFile { path: path.to_owned(), why })?;
        match profile.measured_on.module_deviation(&self.manufacturer, &self.description) {
            Some(why) => Err(TokenError::ProfileContradicts { path: path.to_owned(), why }),
            None => Ok(Self { profile, told: Some(path.to_owned()), ..self }),
        }
    }

    /// Every slot with a token, initialised or not.
    pub(crate) fn tokens(&self) -> Result<Vec<(Slot, TokenInfo)>, TokenError> {
        let mut tokens = Vec::new();
        for slot in self.pkcs11.get_slots_with_token()? {
            match self.pkcs11.get_token_info(slot) {
                Ok(info) => tokens.push((slot, info)),
                // A token that was pulled between the two calls is not there.
                Err(Error::Pkcs11(RvError::TokenNotPresent | RvError::TokenNotRecognized, _)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(tokens)
    }

    /// The one initialised token that `uri` names.
    pub(crate) fn token(&self, uri: &Uri) -> Result<(Slot, TokenInfo), TokenError> {
        let mut tokens = self.tokens()?;
        tokens.retain(|(_, info)| info.token_initialized());
        if tokens.is_empty() {
            return Err(TokenError::NoToken);
        }
        let present: Vec<String> = tokens
            .iter()
            .map(|(_, info)| format!("{:?} (serial {})", info.label(), info.serial_number()))
            .collect();
        tokens.retain(|(_, info)| {
            uri.matches(info.label(), info.serial_number(), info.manufacturer_id(), info.model())
        });
        match (tokens.pop(), tokens.as_slice()) {
            (Some((slot, info)), []) => match &self.told {
                Some(path) => self.held_against(path, slot, &info).map(|()| (slot, info)),
                None => Ok((slot, info)),
            },
            (Some(last), others) => {
                let serials: Vec<&str> =
                    others.iter().chain([&last]).map(|(_, info)| info.serial_number()).collect();
                Err(TokenError::TokenAmbiguous { wanted: uri.token_part(), serials: serials.join(", ") })
            }
            (None, _) => {
                Err(TokenError::TokenAbsent { wanted: uri.token_part(), present: present.join(", ") })
            }
        }
    }

    /// Tells of a mechanism that the token in `slot` lists.
    pub(crate) fn mechanisms(&self, slot: Slot) -> impl Fn(MechanismType) -> Option<MechanismInfo> {
        let listed = self.pkcs11.get_mechanism_list(slot).unwrap_or_default();
        move |wanted| listed.contains(&wanted).then(|| self.pkcs11.get_mechanism_info(slot, wanted).ok())?
    }

    /// What the token in `slot` has the mechanisms for.
    pub(crate) fn algorithms(&self, slot: Slot) -> Result<Vec<Algorithm>, TokenError> {
        let info = self.mechanisms(slot);
        let mut algorithms = Algorithm::ALL.to_vec();
        algorithms.retain(|algorithm| mechanism::missing(*algorithm, &self.profile, &info).is_empty());
        if algorithms.is_empty() { Err(TokenError::NoAlgorithm) } else { Ok(algorithms) }
    }

    fn held_against(&self, path: &Path, slot: Slot, info: &TokenInfo) -> Result<(), TokenError> {
        match self.profile.contradiction(info, self.mechanisms(slot)) {
            Some(why) => Err(TokenError::ProfileContradicts { path: path.to_owned(), why }),
            None => Ok(()),
        }
    }
}

/// Refuses a token whose PIN is locked, unset or was tried wrongly: another try could be the last one.
pub(crate) fn check_pin_flags(info: &TokenInfo) -> Result<(), TokenError> {
    if info.user_pin_locked() {
        Err(TokenError::PinLocked)
    } else if !info.user_pin_initialized() {
        Err(TokenError::UserPinUnset)
    } else if info.user_pin_final_try() {
        Err(TokenError::PinFinalTry)
    } else if info.user_pin_count_low() {
        Err(TokenError::PinCountLow { flag: "CKF_USER_PIN_COUNT_LOW" })
    } else {
        Ok(())
    }
}

/// What a failed C_Login means. Some tokens report a wrong PIN as CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED or a code of
/// their own, and a link that breaks may do so after the PIN has arrived; so every error may have spent a try, except those
/// of a call that cannot have left the library.
pub(crate) fn login_error(error: Error) -> TokenError {
    use RvError as Rv;
    match error {
        Error::Pkcs11(Rv::PinLocked, _) => TokenError::PinLocked,
        Error::Pkcs11(Rv::PinIncorrect | Rv::PinInvalid | Rv::PinLenRange | Rv::PinExpired, _) => {
            TokenError::PinRefused(profile::text(&error))
        }
        Error::Pkcs11(
            Rv::DeviceError
            | Rv::DeviceRemoved
            | Rv::TokenNotPresent
            | Rv::TokenNotRecognized
            | Rv::SessionClosed
            | Rv::DeviceMemory,
            _,
        ) => TokenError::LoginInDoubt(profile::text(&error)),
        // These are told before anything is sent.
        Error::Pkcs11(
            Rv::SlotIdInvalid | Rv::SessionHandleInvalid | Rv::CryptokiNotInitialized | Rv::HostMemory,
            _,
        ) => error.into(),
        _ => TokenError::LoginFailed(profile::text(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(code: RvError) -> RefusalKind {
        login_error(Error::Pkcs11(code, Function::Login)).refusal().kind
    }

    #[test]
    fn every_failed_login_may_be_a_pin_try_unless_nothing_was_sent() {
        use RvError as Rv;
        for code in [
            Rv::PinIncorrect,
            Rv::PinLocked,
            Rv::GeneralError,
            Rv::FunctionFailed,
            Rv::ArgumentsBad,
            Rv::VendorDefined(0x8000_0001),
        ] {
            assert_eq!(kind_of(code), RefusalKind::Pin, "{code:?}");
        }
        for code in
            [Rv::DeviceError, Rv::DeviceRemoved, Rv::TokenNotPresent, Rv::SessionClosed, Rv::DeviceMemory]
        {
            assert_eq!(kind_of(code), RefusalKind::LoginInDoubt, "{code:?}");
        }
        for code in [Rv::SlotIdInvalid, Rv::CryptokiNotInitialized, Rv::HostMemory] {
            assert_eq!(kind_of(code), RefusalKind::Passing, "{code:?}");
        }
    }
}
