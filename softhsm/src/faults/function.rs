//! The C functions that a rule may name, and the return codes that it may give (PKCS#11 v3.1 §5, §6.1).
//!
//! Compiled into the controller and into the shim; see [`super::script`].

use std::{fmt, str::FromStr};

use super::script::Malformed;

macro_rules! functions {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// A C function with an interception of its own.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is the function of PKCS#11 that it is named after")]
        pub enum Function {
            $($variant),*
        }

        impl Function {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in the standard.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),*
                }
            }
        }
    };
}

functions! {
    GetFunctionList "C_GetFunctionList", GetInterfaceList "C_GetInterfaceList", GetInterface "C_GetInterface",
    Initialize "C_Initialize", Finalize "C_Finalize", GetInfo "C_GetInfo",
    GetSlotList "C_GetSlotList", GetTokenInfo "C_GetTokenInfo", GetMechanismInfo "C_GetMechanismInfo",
    OpenSession "C_OpenSession", CloseSession "C_CloseSession", CloseAllSessions "C_CloseAllSessions",
    GetSessionInfo "C_GetSessionInfo", Login "C_Login", Logout "C_Logout",
    CreateObject "C_CreateObject", DestroyObject "C_DestroyObject", GetAttributeValue "C_GetAttributeValue",
    FindObjectsInit "C_FindObjectsInit", FindObjects "C_FindObjects", FindObjectsFinal "C_FindObjectsFinal",
    EncryptInit "C_EncryptInit", Encrypt "C_Encrypt", EncryptFinal "C_EncryptFinal",
    DecryptInit "C_DecryptInit", Decrypt "C_Decrypt", DecryptFinal "C_DecryptFinal",
    SignInit "C_SignInit", Sign "C_Sign", SignFinal "C_SignFinal",
    GenerateKey "C_GenerateKey", GenerateKeyPair "C_GenerateKeyPair",
    WrapKey "C_WrapKey", UnwrapKey "C_UnwrapKey", GenerateRandom "C_GenerateRandom",
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Function {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let named = Self::ALL.iter().find(|function| function.name() == text);
        named.copied().ok_or_else(|| Malformed::new(text, "no function that can be intercepted"))
    }
}

/// A CK_RV. Written by its name where it has one here, else in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Code(pub u64);

impl Code {
    /// CKR_OK.
    pub const OK: Self = Self(0);
    /// CKR_GENERAL_ERROR.
    pub const GENERAL_ERROR: Self = Self(0x05);
    /// CKR_FUNCTION_FAILED.
    pub const FUNCTION_FAILED: Self = Self(0x06);
    /// CKR_FUNCTION_NOT_SUPPORTED.
    pub const FUNCTION_NOT_SUPPORTED: Self = Self(0x54);
    /// CKR_SESSION_COUNT.
    pub const SESSION_COUNT: Self = Self(0xb1);
}

const CODES: &[(&str, Code)] = &[
    ("CKR_OK", Code::OK),
    ("CKR_HOST_MEMORY", Code(0x02)),
    ("CKR_SLOT_ID_INVALID", Code(0x03)),
    ("CKR_GENERAL_ERROR", Code::GENERAL_ERROR),
    ("CKR_FUNCTION_FAILED", Code::FUNCTION_FAILED),
    ("CKR_ARGUMENTS_BAD", Code(0x07)),
    ("CKR_DATA_INVALID", Code(0x20)),
    ("CKR_DEVICE_ERROR", Code(0x30)),
    ("CKR_DEVICE_MEMORY", Code(0x31)),
    ("CKR_DEVICE_REMOVED", Code(0x32)),
    ("CKR_ENCRYPTED_DATA_INVALID", Code(0x40)),
    ("CKR_FUNCTION_CANCELED", Code(0x50)),
    ("CKR_FUNCTION_NOT_SUPPORTED", Code::FUNCTION_NOT_SUPPORTED),
    ("CKR_KEY_HANDLE_INVALID", Code(0x60)),
    ("CKR_MECHANISM_INVALID", Code(0x70)),
    ("CKR_OBJECT_HANDLE_INVALID", Code(0x82)),
    ("CKR_OPERATION_ACTIVE", Code(0x90)),
    ("CKR_OPERATION_NOT_INITIALIZED", Code(0x91)),
    ("CKR_PIN_INCORRECT", Code(0xa0)),
    ("CKR_PIN_LOCKED", Code(0xa4)),
    ("CKR_SESSION_CLOSED", Code(0xb0)),
    ("CKR_SESSION_COUNT", Code::SESSION_COUNT),
    ("CKR_SESSION_HANDLE_INVALID", Code(0xb3)),
    ("CKR_TOKEN_NOT_PRESENT", Code(0xe0)),
    ("CKR_TOKEN_NOT_RECOGNIZED", Code(0xe1)),
    ("CKR_USER_ALREADY_LOGGED_IN", Code(0x100)),
    ("CKR_USER_NOT_LOGGED_IN", Code(0x101)),
    ("CKR_BUFFER_TOO_SMALL", Code(0x150)),
    ("CKR_CRYPTOKI_NOT_INITIALIZED", Code(0x190)),
];

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match CODES.iter().find(|(_, code)| code == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

impl FromStr for Code {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let named = CODES.iter().find(|(name, _)| *name == text).map(|(_, code)| *code);
        let numbered = || u64::from_str_radix(text.strip_prefix("0x")?, 16).ok().map(Self);
        named.or_else(numbered).ok_or_else(|| Malformed::new(text, "no return code"))
    }
}
