//! The ladder of error classes: what a PKCS#11 return value means, and what the worker does about it.
//!
//! Codes do not mean the same on two tokens: a tampered ciphertext is CKR_GENERAL_ERROR on SoftHSM, which on Kryoptic
//! is how a stale handle looks. So the class of a code is the token's profile's to say, and an ambiguous one never
//! resets the link by itself.

use std::{borrow::Cow, fmt};

use cryptoki::error::{Rv, RvError};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor},
};

/// What an error is about. From the caller's doing to the device's, and then the two that must be looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// This operation and its input alone. The session is replaced, the caller gets [`Fault::Failed`].
    ///
    /// [`Fault::Failed`]: kms_core::hsm::Fault::Failed
    Input,
    /// What the token cannot or may not do. The session is replaced, the caller gets [`Fault::Unsupported`].
    ///
    /// [`Fault::Unsupported`]: kms_core::hsm::Fault::Unsupported
    Configuration,
    /// The token has no room. The session is replaced, the link stays, the caller gets [`Fault::Full`].
    ///
    /// [`Fault::Full`]: kms_core::hsm::Fault::Full
    Capacity,
    /// Session or login are gone. The worker ends: a fresh process is the cure.
    Session,
    /// The device or the way to it is gone. The worker ends, and others come back when the device does. Not by what
    /// C_Decrypt says to a caller's ciphertext alone.
    Device,
    /// One operation's failure, or a lost link. The session is replaced, and a canary on the new one decides.
    Ambiguous,
    /// The object is not there any more. Its handle is forgotten and found anew, once; then as [`Class::Ambiguous`].
    StaleHandle,
}

/// Codes that mean something else on one token than on most.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Overrides(Cow<'static, [(RvError, Class)]>);

impl Class {
    /// What `code` means on most tokens.
    pub(super) fn of(code: RvError) -> Self {
        use RvError as Rv;
        match code {
            Rv::MechanismInvalid
            | Rv::MechanismParamInvalid
            | Rv::FunctionNotSupported
            | Rv::CurveNotSupported
            | Rv::ActionProhibited
            | Rv::TokenWriteProtected => Self::Configuration,
            Rv::HostMemory | Rv::DeviceMemory | Rv::SessionCount => Self::Capacity,
            Rv::SessionClosed | Rv::SessionHandleInvalid | Rv::UserNotLoggedIn => Self::Session,
            Rv::DeviceError
            | Rv::DeviceRemoved
            | Rv::TokenNotPresent
            | Rv::TokenNotRecognized
            | Rv::SlotIdInvalid
            | Rv::CryptokiNotInitialized => Self::Device,
            // Nobody knows what a vendor's own code is about.
            Rv::GeneralError | Rv::FunctionFailed | Rv::VendorDefined(_) | Rv::UnknownErrorCode(_) => {
                Self::Ambiguous
            }
            Rv::KeyHandleInvalid | Rv::ObjectHandleInvalid => Self::StaleHandle,
            _ => Self::Input,
        }
    }
}

impl Overrides {
    pub(super) const NONE: Self = Self(Cow::Borrowed(&[]));

    pub(super) const fn fixed(overrides: &'static [(RvError, Class)]) -> Self {
        Self(Cow::Borrowed(overrides))
    }

    pub(super) fn class_of(&self, code: RvError) -> Class {
        let own = self.0.iter().find_map(|(named, class)| (*named == code).then_some(*class));
        own.unwrap_or_else(|| Class::of(code))
    }

    pub(crate) fn set(&mut self, code: RvError, class: Class) {
        let list = self.0.to_mut();
        list.retain(|(named, _)| *named != code);
        list.push((code, class));
    }

    /// Names as PKCS#11 has them, with their classes.
    pub(super) fn named(&self) -> impl Iterator<Item = (String, Class)> {
        self.0.iter().map(|(code, class)| (code_name(*code), *class))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `CKR_GENERAL_ERROR`; a vendor's own as its number.
pub(crate) fn code_name(code: RvError) -> String {
    if let RvError::VendorDefined(number) | RvError::UnknownErrorCode(number) = code {
        return format!("{number:#010x}");
    }
    // The binding's names are those of PKCS#11 in another case.
    format!("{code:?}").chars().fold("CKR".to_owned(), |mut name, letter| {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
        name
    })
}

/// Highest number of a code that PKCS#11 v3.2 names.
const CODE_MAX: u32 = 0x300;

fn code_named(name: &str) -> Option<RvError> {
    let of = |number: u32| match Rv::from(u64::from(number)) {
        Rv::Error(code) => Some(code),
        Rv::Ok => None,
    };
    match name.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok().and_then(of),
        None => (1..=CODE_MAX).filter_map(of).find(|code| code_name(*code) == name),
    }
}

impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.named()).finish()
    }
}

impl Serialize for Overrides {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.named())
    }
}

impl<'de> Deserialize<'de> for Overrides {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Codes;

        impl<'de> Visitor<'de> for Codes {
            type Value = Overrides;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("return values of PKCS#11 with their classes")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Overrides, M::Error> {
                let mut overrides = Overrides::default();
                while let Some((name, class)) = map.next_entry::<String, Class>()? {
                    let code = code_named(&name).ok_or_else(|| {
                        de::Error::custom(format!(
                            "{name:?} is no return value of PKCS#11; write CKR_GENERAL_ERROR, or the number of a \
                             vendor's own as 0x80000001"
                        ))
                    })?;
                    overrides.set(code, class);
                }
                Ok(overrides)
            }
        }

        deserializer.deserialize_map(Codes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_pkcs11_does_not_have_is_refused() {
        for bad in ["", "CKR_GENERAL", "GeneralError", "CKR_OK", "0x", "0x0", "0x123456789", "5"] {
            assert_eq!(code_named(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn every_code_is_found_by_its_name() {
        for code in [
            RvError::GeneralError,
            RvError::PinLenRange,
            RvError::CryptokiNotInitialized,
            RvError::FipsSelfTestFailed,
            RvError::UserTooManyTypes,
            RvError::CurveNotSupported,
            RvError::VendorDefined(0x8000_0001),
        ] {
            assert_eq!(code_named(&code_name(code)), Some(code));
        }
        assert_eq!(code_name(RvError::SessionHandleInvalid), "CKR_SESSION_HANDLE_INVALID");
    }

    #[test]
    fn a_tokens_own_meaning_goes_before_the_common_one() {
        let own = Overrides::fixed(&[(RvError::GeneralError, Class::StaleHandle)]);
        assert_eq!(own.class_of(RvError::GeneralError), Class::StaleHandle);
        assert_eq!(own.class_of(RvError::FunctionFailed), Class::Ambiguous);
        for code in [RvError::GeneralError, RvError::VendorDefined(0x8000_0001)] {
            assert_eq!(Overrides::NONE.class_of(code), Class::Ambiguous);
        }
        for code in [RvError::HostMemory, RvError::DeviceMemory, RvError::SessionCount] {
            assert_eq!(Overrides::NONE.class_of(code), Class::Capacity);
        }
    }
}
