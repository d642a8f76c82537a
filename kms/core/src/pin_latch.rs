//! The PIN latch: a wrong PIN reaches a token once, however often and wherever a server is started.
//!
//! A token locks its PIN after a few wrong tries, and a process that is restarted forgets that it has tried. So the
//! latch is a row: it is taken, by compare-and-set and durably, *before* C_Login (PKCS#11 v3.1 §5.6.8), and let go
//! with what came of it. There is one for each token and each `pin_generation`, a number that the operator raises when
//! the PIN was changed; nothing that could be traced back to a PIN is stored.
//!
//! Until one login of a generation has succeeded, one process tries and the others wait for it, and a try that never
//! ended counts as a wrong one. From then on a try that never ended is worth two more: a server that is killed must
//! come back by itself.

use std::fmt;

use crate::{
    Store,
    store::Fault,
    time::{SignedDuration, Timestamp},
};

/// Tries in a row of a proven PIN that may end unexplained, by the death of who tried or of the link. The last one
/// latches.
pub const DEATHS_MAX: u32 = 3;

/// What to do about a PIN that is not tried any more. Every text of this module ends in it.
pub const REMEDY: &str = "correct the file at pin-source, then log in once on purpose with `kms hsm login` while no \
                          server runs, or raise hsm.pin_generation";

/// Which latch: there is one for each token and each PIN that an operator has given it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// CK_TOKEN_INFO.serialNumber, trimmed.
    pub token_serial: String,
    /// `hsm.pin_generation`.
    pub pin_generation: u32,
}

/// What is known of a PIN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No login has ended yet.
    Unproven {
        /// The one under way, or cut off.
        trying: Option<Try>,
    },
    /// A login has succeeded.
    Proven {
        /// The one under way, or cut off.
        trying: Option<Try>,
        /// Tries that ended unexplained since the last success.
        deaths: u32,
    },
    /// Nobody tries any more.
    Refused {
        /// Why, and what to do: for operators.
        text: String,
        /// Since when.
        at: Timestamp,
    },
}

/// A login that has begun, or is about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Try {
    /// Who tries.
    pub by: Holder,
    /// Since when.
    pub since: Timestamp,
}

/// One run of one process. Readable, and never used again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder(String);

/// What came of asking for the latch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It is ours, durably: C_Login may be called, once.
    Yes,
    /// Somebody else is trying; ask again in a moment.
    Busy(Try),
    /// Nobody may try. The text says why, and what to do.
    No(String),
}

/// How a try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The token took the PIN.
    Succeeded,
    /// The token refused it, or may have. With the text for operators.
    Refused(String),
    /// C_Login was not called, or did not reach the token.
    NotTried,
    /// Who tried died in the middle. With how, for operators.
    Died(String),
}

/// What one look at the row leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Write(State, Taken),
    Answer(Taken),
}

/// The latches of one generation, as one process uses them.
#[derive(Debug, Clone)]
pub struct PinLatch<S> {
    store: S,
    pin_generation: u32,
    holder: Holder,
    others: Others,
}

/// Who else may hold a latch of this store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Nobody that lives: the store is locked to this process.
    Dead,
    /// Other servers; one that has held it for longer than this is dead.
    AliveFor(SignedDuration),
}

impl<S: Store> PinLatch<S> {
    /// The latches of `pin_generation`, for `holder`.
    pub fn new(store: S, pin_generation: u32, holder: Holder, others: Others) -> Self {
        Self { store, pin_generation, holder, others }
    }

    /// Asks for leave to call C_Login once. After [`Taken::Yes`], [`PinLatch::settle`] must be told what came of it
    /// before anything else is asked.
    pub async fn take(&self, token_serial: &str, now: Timestamp) -> Result<Taken, Fault> {
        let place = self.place(token_serial);
        loop {
            let state = self.store.pin_latch(&place).await?;
            match state.take(&self.holder, self.others, now) {
                Step::Answer(taken) => return Ok(taken),
                Step::Write(new, taken) => {
                    if self.write(&place, state, new).await? {
                        return Ok(taken);
                    }
                }
            }
        }
    }

    /// Lets go of the latch. Returns why nobody may try any more, if that is what follows.
    pub async fn settle(
        &self,
        token_serial: &str,
        outcome: &Outcome,
        now: Timestamp,
    ) -> Result<Option<String>, Fault> {
        let place = self.place(token_serial);
        loop {
            let state = self.store.pin_latch(&place).await?;
            let new = state.clone().settled(&self.holder, outcome, now);
            if new == state || self.write(&place, state, new.clone()).await? {
                return Ok(match new {
                    State::Refused { text, .. } => Some(text),
                    _ => None,
                });
            }
        }
    }

    /// Takes the latch for a login that the operator asks for, whatever stands there. Until
    /// [`PinLatch::end_on_purpose`] nobody else may try. Returns what stood there.
    pub async fn take_on_purpose(&self, token_serial: &str, now: Timestamp) -> Result<State, Fault> {
        let place = self.place(token_serial);
        let text = format!("a `kms hsm login` of {} was cut off; {REMEDY}", self.holder);
        let cut_off = State::Refused { text, at: now };
        loop {
            let before = self.store.pin_latch(&place).await?;
            if self.write(&place, before.clone(), cut_off.clone()).await? {
                return Ok(before);
            }
        }
    }

    /// Writes what came of a login on purpose. `before` is what [`PinLatch::take_on_purpose`] returned.
    pub async fn end_on_purpose(
        &self,
        token_serial: &str,
        before: State,
        outcome: Outcome,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let place = self.place(token_serial);
        let new = match outcome {
            Outcome::Succeeded => State::PROVEN,
            Outcome::Refused(text) | Outcome::Died(text) => State::Refused { text, at: now },
            Outcome::NotTried => before,
        };
        loop {
            let state = self.store.pin_latch(&place).await?;
            if self.write(&place, state, new.clone()).await? {
                return Ok(());
            }
        }
    }

    /// Whether it was written; not when somebody was quicker.
    async fn write(&self, place: &Place, expected: State, new: State) -> Result<bool, Fault> {
        match self.store.set_pin_latch(place, expected, new.clone()).await {
            Ok(()) => Ok(true),
            Err(Fault::Changed(_)) => Ok(false),
            // The answer was lost: what stands there now tells.
            Err(Fault::Unknown(_)) => Ok(self.store.pin_latch(place).await? == new),
            Err(fault) => Err(fault),
        }
    }

    fn place(&self, token_serial: &str) -> Place {
        Place { token_serial: token_serial.to_owned(), pin_generation: self.pin_generation }
    }
}

impl State {
    /// Where every latch begins; a store keeps no row for it.
    pub const UNTRIED: Self = Self::Unproven { trying: None };
    /// After a login that succeeded.
    pub const PROVEN: Self = Self::Proven { trying: None, deaths: 0 };

    /// The try that stands in it, under way or cut off.
    pub fn trying(&self) -> Option<&Try> {
        match self {
            Self::Unproven { trying } | Self::Proven { trying, .. } => trying.as_ref(),
            Self::Refused { .. } => None,
        }
    }

    fn take(&self, holder: &Holder, others: Others, now: Timestamp) -> Step {
        let ours = || Some(Try { by: holder.clone(), since: now });
        // One of our own that was never told to us: its answer was lost, so nothing was tried.
        let other = self.trying().filter(|trying| trying.by != *holder);
        match (self, other) {
            (Self::Refused { text, .. }, _) => Step::Answer(Taken::No(text.clone())),
            (Self::Unproven { .. }, None) => Step::Write(Self::Unproven { trying: ours() }, Taken::Yes),
            (Self::Proven { deaths, .. }, None) => {
                Step::Write(Self::Proven { trying: ours(), deaths: *deaths }, Taken::Yes)
            }
            (_, Some(other)) if !others.left_behind(other, now) => Step::Answer(Taken::Busy(other.clone())),
            // Left as it is: should its holder live after all, its success still counts.
            (Self::Unproven { .. }, Some(other)) => Step::Answer(Taken::No(format!(
                "{other} to log in to the token for the first time with this PIN, and was cut off, which may have \
                 spent a PIN try; not tried again: {REMEDY}"
            ))),
            (Self::Proven { deaths, .. }, Some(other)) => {
                let deaths = deaths.saturating_add(1);
                if deaths < DEATHS_MAX {
                    return Step::Write(Self::Proven { trying: ours(), deaths }, Taken::Yes);
                }
                let text = too_many_deaths(&format!("{other} to log in, and was cut off"));
                Step::Write(Self::Refused { text: text.clone(), at: now }, Taken::No(text))
            }
        }
    }

    fn settled(self, holder: &Holder, outcome: &Outcome, now: Timestamp) -> Self {
        // That the token refused it is a fact, whoever holds the latch meanwhile.
        if let Outcome::Refused(text) = outcome {
            return Self::Refused { text: text.clone(), at: now };
        }
        if self.trying().is_none_or(|trying| trying.by != *holder) {
            return self;
        }
        let refused = |text| Self::Refused { text, at: now };
        match (self, outcome) {
            (_, Outcome::Succeeded) => Self::PROVEN,
            (Self::Unproven { .. }, Outcome::Died(how)) => refused(format!(
                "a login ended unexplained ({how}), which may have spent a PIN try; not tried again: look at the token; \
                 {REMEDY}"
            )),
            (Self::Proven { deaths, .. }, Outcome::Died(how)) => match deaths.saturating_add(1) {
                deaths if deaths < DEATHS_MAX => Self::Proven { trying: None, deaths },
                _ => refused(too_many_deaths(how)),
            },
            (Self::Unproven { .. }, _) => Self::UNTRIED,
            (Self::Proven { deaths, .. }, _) => Self::Proven { trying: None, deaths },
            (refused @ Self::Refused { .. }, _) => refused,
        }
    }
}

impl Others {
    /// Whether the holder of `other` is dead. A clock that is far off makes no try last for ever.
    fn left_behind(self, other: &Try, now: Timestamp) -> bool {
        match self {
            Self::Dead => true,
            Self::AliveFor(patience) => now.duration_since(other.since).abs() > patience,
        }
    }
}

impl Holder {
    /// Longest name in bytes; what is longer is cut.
    pub const LEN_MAX: usize = 256;

    /// A holder of that name.
    pub fn new(name: impl Into<String>) -> Self {
        let mut name: String = name.into();
        name.truncate(name.floor_char_boundary(Self::LEN_MAX));
        Self(name)
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Try {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} began at {:.0}", self.by, self.since)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the PIN latch of token {}, generation {}", self.token_serial, self.pin_generation)
    }
}

fn too_many_deaths(last: &str) -> String {
    format!(
        "{DEATHS_MAX} logins in a row ended unexplained, the last when {last}: each may have spent a PIN try, so there \
         will be no other; look at the token; {REMEDY}"
    )
}

#[cfg(test)]
mod tests;
