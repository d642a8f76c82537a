//! What a rule does to a call, and to which functions that can be done.
//!
//! Compiled into the controller and into the shim; see [`super::script`].

use std::{fmt, str::FromStr};

use super::{
    function::{Code, Function},
    script::Malformed,
};

/// What happens to a call that a rule hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The code comes back, and the module is not called.
    Return(Code),
    /// The module does its work, and the code comes back: created, and an error reported.
    CallThenReturn(Code),
    /// The call takes this much longer, in milliseconds.
    DelayMs(u32),
    /// The call never comes back.
    Hang,
    /// SIGSEGV: the process is gone.
    Crash,
    /// Another key of the same class and type is meant than the one that was named, or found.
    SwapHandles,
    /// CKR_SESSION_COUNT when as many sessions are open over all processes of the controller.
    SessionCap(u32),
    /// C_Logout behind the caller's back, before its call.
    ForgetLogin,
    /// The new object is destroyed again after this many further calls of its process; 0 is at once. Of a pair it is
    /// the private half.
    LoseObject(u32),
    /// This bit of the output is the other one, counted from the first byte's highest, modulo the length.
    FlipBit(u32),
    /// The output is one byte shorter.
    Shorten,
    /// CK_TOKEN_INFO says this of the user PIN.
    PinFlag(PinFlag),
    /// There is no slot.
    EmptySlotList,
    /// The list of interfaces is empty, and C_GetInterface gives none.
    NoInterface,
    /// The interface has no function list.
    NullList,
    /// The function list says that it is one of v3.2, and all its functions are missing.
    NullFunctions,
    /// AES-GCM uses an IV of its own, always the same, whatever it is given.
    FixedIv,
    /// AES-GCM uses no AAD, whatever it is given.
    NoAad,
    /// No fault: key and IV of each AES-GCM encryption are reported.
    RecordIv,
}

/// What CK_TOKEN_INFO may say about tries of the user PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinFlag {
    /// CKF_USER_PIN_COUNT_LOW.
    CountLow,
    /// CKF_USER_PIN_FINAL_TRY.
    FinalTry,
    /// CKF_USER_PIN_LOCKED.
    Locked,
}

impl Fault {
    /// Whether `function` has what this fault changes.
    pub fn fits(self, function: Function) -> bool {
        use Function as F;
        match self {
            Self::Return(_) | Self::CallThenReturn(_) | Self::DelayMs(_) | Self::Hang | Self::Crash => true,
            Self::SwapHandles => {
                matches!(function, F::SignInit | F::EncryptInit | F::DecryptInit | F::FindObjects)
            }
            Self::SessionCap(_) => matches!(function, F::OpenSession),
            Self::ForgetLogin => has_session(function),
            Self::LoseObject(_) => {
                matches!(function, F::GenerateKey | F::GenerateKeyPair | F::CreateObject | F::UnwrapKey)
            }
            Self::FlipBit(_) | Self::Shorten => matches!(
                function,
                F::Sign
                    | F::SignFinal
                    | F::Encrypt
                    | F::EncryptFinal
                    | F::WrapKey
                    | F::Decrypt
                    | F::DecryptFinal
            ),
            Self::PinFlag(_) => matches!(function, F::GetTokenInfo),
            Self::EmptySlotList => matches!(function, F::GetSlotList),
            Self::NoInterface | Self::NullList => matches!(function, F::GetInterface | F::GetInterfaceList),
            Self::NullFunctions => {
                matches!(function, F::GetInterface | F::GetInterfaceList | F::GetFunctionList)
            }
            Self::FixedIv | Self::NoAad => matches!(function, F::EncryptInit | F::DecryptInit),
            Self::RecordIv => matches!(function, F::EncryptInit),
        }
    }
}

/// Whether the function's first argument is a session that is to live on.
fn has_session(function: Function) -> bool {
    use Function as F;
    !matches!(
        function,
        F::GetFunctionList
            | F::GetInterfaceList
            | F::GetInterface
            | F::Initialize
            | F::Finalize
            | F::GetInfo
            | F::GetSlotList
            | F::GetTokenInfo
            | F::GetMechanismInfo
            | F::OpenSession
            | F::CloseSession
            | F::CloseAllSessions
    )
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return(code) => write!(f, "return {code}"),
            Self::CallThenReturn(code) => write!(f, "call-then-return {code}"),
            Self::DelayMs(ms) => write!(f, "delay-ms {ms}"),
            Self::Hang => f.write_str("hang"),
            Self::Crash => f.write_str("crash"),
            Self::SwapHandles => f.write_str("swap-handles"),
            Self::SessionCap(sessions) => write!(f, "session-cap {sessions}"),
            Self::ForgetLogin => f.write_str("forget-login"),
            Self::LoseObject(calls) => write!(f, "lose-object {calls}"),
            Self::FlipBit(bit) => write!(f, "flip-bit {bit}"),
            Self::Shorten => f.write_str("shorten"),
            Self::PinFlag(flag) => write!(f, "pin-flag {flag}"),
            Self::EmptySlotList => f.write_str("empty-slot-list"),
            Self::NoInterface => f.write_str("no-interface"),
            Self::NullList => f.write_str("null-list"),
            Self::NullFunctions => f.write_str("null-functions"),
            Self::FixedIv => f.write_str("fixed-iv"),
            Self::NoAad => f.write_str("no-aad"),
            Self::RecordIv => f.write_str("record-iv"),
        }
    }
}

impl FromStr for Fault {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let number = || rest.parse::<u32>().map_err(|_| Malformed::new(text, "it needs one whole number"));
        let fault = match word {
            "return" => return rest.parse().map(Self::Return),
            "call-then-return" => return rest.parse().map(Self::CallThenReturn),
            "delay-ms" => return number().map(Self::DelayMs),
            "session-cap" => return number().map(Self::SessionCap),
            "lose-object" => return number().map(Self::LoseObject),
            "flip-bit" => return number().map(Self::FlipBit),
            "pin-flag" => return rest.parse().map(Self::PinFlag),
            "hang" => Self::Hang,
            "crash" => Self::Crash,
            "swap-handles" => Self::SwapHandles,
            "forget-login" => Self::ForgetLogin,
            "shorten" => Self::Shorten,
            "empty-slot-list" => Self::EmptySlotList,
            "no-interface" => Self::NoInterface,
            "null-list" => Self::NullList,
            "null-functions" => Self::NullFunctions,
            "fixed-iv" => Self::FixedIv,
            "no-aad" => Self::NoAad,
            "record-iv" => Self::RecordIv,
            _ => return Err(Malformed::new(text, "no fault")),
        };
        if rest.is_empty() { Ok(fault) } else { Err(Malformed::new(text, "this fault takes no argument")) }
    }
}

impl fmt::Display for PinFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CountLow => "count-low",
            Self::FinalTry => "final-try",
            Self::Locked => "locked",
        })
    }
}

impl FromStr for PinFlag {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        match text {
            "count-low" => Ok(Self::CountLow),
            "final-try" => Ok(Self::FinalTry),
            "locked" => Ok(Self::Locked),
            _ => Err(Malformed::new(text, "it is count-low, final-try or locked")),
        }
    }
}
