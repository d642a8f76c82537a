//! What the shim is told: a script of rules, one a line, first word to last:
//!
//! ```text
//! C_Sign nth 3 times 1: return CKR_DEVICE_ERROR
//! C_Sign,C_SignFinal every 50: crash
//! C_Login chance 250000 seed 7: delay-ms 100
//! C_GenerateKeyPair always: call-then-return 0x30
//! ```
//!
//! `nth` and `every` count the calls of one process since it got the script; `chance` is in millionths, and the same
//! for the same seed and the same place in the order in which processes came; `times` is over all processes. This
//! file and its neighbours `function`, `fault`, `line` and `environment` are compiled into the controller and, by
//! their path, into the shim: there is one grammar, and neither knows the other.

use std::{fmt, num::NonZeroU32, str::FromStr};

use super::{fault::Fault, function::Function};

/// Most rules of a script.
pub const RULES_MAX: usize = 64;
/// What `chance` is a part of.
pub const CHANCE_WHOLE: u32 = 1_000_000;

/// Why a text is not a script, or a line not one of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    text: String,
    why: &'static str,
}

/// All that the shim shall do. Rules that hit the same call act in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script(Vec<Rule>);

/// A condition and a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    functions: Vec<Function>,
    when: When,
    times: Option<NonZeroU32>,
    fault: Fault,
}

/// Which calls of its functions a rule hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Each.
    Always,
    /// The nth of a process, from 1.
    Nth(NonZeroU32),
    /// Every nth of a process.
    Every(NonZeroU32),
    /// By chance.
    Chance {
        /// How likely, in millionths.
        millionths: u32,
        /// Which chances.
        seed: u64,
    },
}

impl Script {
    /// These rules, at most [`RULES_MAX`].
    pub fn new(rules: Vec<Rule>) -> Result<Self, Malformed> {
        if rules.len() > RULES_MAX {
            return Err(Malformed::new(&rules.len().to_string(), "too many rules"));
        }
        Ok(Self(rules))
    }

    /// The rules in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.0
    }
}

impl Rule {
    /// A rule for `functions`, of which there is at least one, and all of which `fault` fits. `times` limits it over
    /// all processes.
    pub fn new(
        functions: Vec<Function>,
        when: When,
        times: Option<NonZeroU32>,
        fault: Fault,
    ) -> Result<Self, Malformed> {
        let whole = |rule: Self| match &rule {
            Self { functions, .. } if functions.is_empty() => Err(rule.malformed("no function")),
            Self { when: When::Chance { millionths, .. }, .. } if *millionths > CHANCE_WHOLE => {
                Err(rule.malformed("more than certain"))
            }
            Self { functions, .. } if !functions.iter().all(|function| fault.fits(*function)) => {
                Err(rule.malformed("the fault does not fit the function"))
            }
            Self { times: Some(_), fault: Fault::RecordIv, .. } => Err(rule.malformed("nothing to limit")),
            _ => Ok(rule),
        };
        whole(Self { functions, when, times, fault })
    }

    /// Whether it is about `function`.
    pub fn is_for(&self, function: Function) -> bool {
        self.functions.contains(&function)
    }

    /// Which calls it hits.
    pub fn when(&self) -> When {
        self.when
    }

    /// How often it may hit, over all processes.
    pub fn times(&self) -> Option<NonZeroU32> {
        self.times
    }

    /// What it does.
    pub fn fault(&self) -> Fault {
        self.fault
    }

    fn malformed(&self, why: &'static str) -> Malformed {
        Malformed::new(&self.to_string(), why)
    }
}

impl When {
    /// Whether it hits call number `call`, from 1, of the process that came in place `ordinal`; `rule` is the place
    /// of the rule in its script.
    pub fn hits(self, call: u64, ordinal: u64, rule: usize) -> bool {
        match self {
            Self::Always => true,
            Self::Nth(nth) => call == u64::from(nth.get()),
            Self::Every(every) => call.is_multiple_of(every.get().into()),
            Self::Chance { millionths, seed } => {
                let drawn =
                    [ordinal, rule as u64, call].into_iter().fold(seed, |state, n| mix(state ^ mix(n)));
                drawn % u64::from(CHANCE_WHOLE) < u64::from(millionths)
            }
        }
    }
}

/// One step of SplitMix64.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|rule| writeln!(f, "{rule}"))
    }
}

impl FromStr for Script {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        Self::new(text.lines().map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions: Vec<_> = self.functions.iter().map(|function| function.name()).collect();
        write!(f, "{} {}", functions.join(","), self.when)?;
        self.times.map_or(Ok(()), |times| write!(f, " times {times}"))?;
        write!(f, ": {}", self.fault)
    }
}

impl FromStr for Rule {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = |why| Malformed::new(text, why);
        let (condition, fault) = text.split_once(": ").ok_or_else(|| malformed("no `: ` before a fault"))?;
        let (functions, condition) = condition.split_once(' ').ok_or_else(|| malformed("no condition"))?;
        let functions = functions.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let count = |word: &str| word.parse().map_err(|_| malformed("a count is a whole number from 1"));
        let (when, times) = match condition.split(' ').collect::<Vec<_>>()[..] {
            [ref when @ .., "times", times] => (When::parse(when, text)?, Some(count(times)?)),
            ref when => (When::parse(when, text)?, None),
        };
        Self::new(functions, when, times, fault.parse()?)
    }
}

impl When {
    fn parse(words: &[&str], whole: &str) -> Result<Self, Malformed> {
        let when = match words {
            ["always"] => Some(Self::Always),
            ["nth", nth] => nth.parse().ok().map(Self::Nth),
            ["every", every] => every.parse().ok().map(Self::Every),
            ["chance", millionths, "seed", seed] => (millionths.parse().ok())
                .zip(seed.parse().ok())
                .map(|(millionths, seed)| Self::Chance { millionths, seed }),
            _ => None,
        };
        when.ok_or_else(|| Malformed::new(whole, "no such condition"))
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Nth(nth) => write!(f, "nth {nth}"),
            Self::Every(every) => write!(f, "every {every}"),
            Self::Chance { millionths, seed } => write!(f, "chance {millionths} seed {seed}"),
        }
    }
}

impl Malformed {
    pub(super) fn new(text: &str, why: &'static str) -> Self {
        Self { text: text.to_owned(), why }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.text, self.why)
    }
}

impl std::error::Error for Malformed {}
