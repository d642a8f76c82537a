//! The lines between shim and controller.
//!
//! The shim asks with one [`Question`], and the controller answers with one line; each question is on record before
//! its answer is written, so a process that a fault ends cannot outrun its own report. New scripts come unasked,
//! between answers.

use std::{fmt, str::FromStr};

use super::{
    function::{Code, Function},
    script::Malformed,
};

/// Longest line in bytes.
pub const LINE_LEN_MAX: usize = 4096;

/// What the shim says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Its first line. Answered by [`Answer::Welcome`] and the script.
    Hello {
        /// The process that loaded it.
        pid: u32,
    },
    /// A rule hits a call: may it act?
    Fire {
        /// Which script, and which of its rules.
        rule: RuleId,
        /// The call.
        function: Function,
    },
    /// A session is about to be opened: may it be, if this rule caps sessions?
    Open {
        /// The rule that caps them.
        cap: Option<RuleId>,
    },
    /// Sessions are closed, or were not opened after all.
    Closed {
        /// How many.
        sessions: u32,
    },
    /// C_Login is about to reach the token.
    Login {
        /// CK_USER_TYPE.
        user: u64,
    },
    /// What C_Login gave.
    LoggedIn {
        /// Its return code.
        code: Code,
    },
    /// AES-GCM is about to encrypt.
    Iv(GcmUse),
}

/// A rule of a certain script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleId {
    /// Counts scripts.
    pub script: u64,
    /// Place in the script, from 0.
    pub rule: usize,
}

/// One use of a key with an IV.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GcmUse {
    /// CK_OBJECT_HANDLE in its process.
    pub key: u64,
    /// CKA_ID, if the key has one.
    pub cka_id: Option<Vec<u8>>,
    /// As given by the caller.
    pub iv: Vec<u8>,
}

/// What the controller says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Yes, or heard.
    Yes,
    /// No.
    No,
    /// To the first line: the place of the process in the order in which they came, from 0.
    Welcome {
        /// That place.
        ordinal: u64,
    },
    /// Unasked: a script, whose rules are the lines that follow.
    Script {
        /// Counts scripts.
        version: u64,
        /// How many lines.
        rules: usize,
    },
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello { pid } => write!(f, "hello {pid}"),
            Self::Fire { rule, function } => write!(f, "fire {rule} {function}"),
            Self::Open { cap: None } => f.write_str("open"),
            Self::Open { cap: Some(rule) } => write!(f, "open {rule}"),
            Self::Closed { sessions } => write!(f, "closed {sessions}"),
            Self::Login { user } => write!(f, "login {user}"),
            Self::LoggedIn { code } => write!(f, "logged-in {code}"),
            Self::Iv(GcmUse { key, cka_id, iv }) => {
                let cka_id = cka_id.as_deref().map_or_else(|| "-".to_owned(), hex);
                write!(f, "iv {key} {cka_id} {}", hex(iv))
            }
        }
    }
}

impl FromStr for Question {
    type Err = Malformed;

    fn from_str(line: &str) -> Result<Self, Malformed> {
        let question = match line.split(' ').collect::<Vec<_>>()[..] {
            ["hello", pid] => pid.parse().ok().map(|pid| Self::Hello { pid }),
            ["fire", script, rule, function] => RuleId::parse(script, rule)
                .zip(function.parse().ok())
                .map(|(rule, function)| Self::Fire { rule, function }),
            ["open"] => Some(Self::Open { cap: None }),
            ["open", script, rule] => RuleId::parse(script, rule).map(|rule| Self::Open { cap: Some(rule) }),
            ["closed", sessions] => sessions.parse().ok().map(|sessions| Self::Closed { sessions }),
            ["login", user] => user.parse().ok().map(|user| Self::Login { user }),
            ["logged-in", code] => code.parse().ok().map(|code| Self::LoggedIn { code }),
            ["iv", key, cka_id, iv] => GcmUse::parse(key, cka_id, iv).map(Self::Iv),
            _ => None,
        };
        question.ok_or_else(|| Malformed::new(line, "no line of the shim"))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No => f.write_str("no"),
            Self::Welcome { ordinal } => write!(f, "welcome {ordinal}"),
            Self::Script { version, rules } => write!(f, "script {version} {rules}"),
        }
    }
}

impl FromStr for Answer {
    type Err = Malformed;

    fn from_str(line: &str) -> Result<Self, Malformed> {
        let answer = match line.split(' ').collect::<Vec<_>>()[..] {
            ["yes"] => Some(Self::Yes),
            ["no"] => Some(Self::No),
            ["welcome", ordinal] => ordinal.parse().ok().map(|ordinal| Self::Welcome { ordinal }),
            ["script", version, rules] => (version.parse().ok())
                .zip(rules.parse().ok())
                .map(|(version, rules)| Self::Script { version, rules }),
            _ => None,
        };
        answer.ok_or_else(|| Malformed::new(line, "no line of the controller"))
    }
}

impl RuleId {
    fn parse(script: &str, rule: &str) -> Option<Self> {
        Some(Self { script: script.parse().ok()?, rule: rule.parse().ok()? })
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.script, self.rule)
    }
}

impl GcmUse {
    fn parse(key: &str, cka_id: &str, iv: &str) -> Option<Self> {
        let cka_id = if cka_id == "-" { None } else { Some(unhex(cka_id)?) };
        Some(Self { key: key.parse().ok()?, cka_id, iv: unhex(iv)? })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
