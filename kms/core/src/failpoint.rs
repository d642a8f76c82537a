//! Places at which a test kills the process: before and after each step that must survive it.
//!
//! Nothing but names in an ordinary build. With the feature `failpoints`, which no release compiles with, the variable
//! FAILPOINTS of the environment arms them as the crate `fail` reads it: `birth-generated=return` kills the process
//! at that place, `committed=2*off->return` the third time that it comes there. A kill is an abort: nothing is tidied
//! up. `tests/tests/failpoints.rs` visits all of them, so a new one is covered as soon as it stands here.

macro_rules! failpoints {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A place at which a test may kill the process.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Failpoint {
            $($(#[$doc])* $point,)*
        }

        impl Failpoint {
            /// The names of all of them.
            pub fn names() -> Vec<&'static str> {
                vec![$($name),*]
            }

            #[cfg(feature = "failpoints")]
            fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

failpoints! {
    /// A login's try is in the latch; the worker has no leave yet.
    LoginBegun = "login-begun",
    /// A worker has ended its login; the latch does not know yet.
    LoginEnded = "login-ended",
    /// The latch knows; the worker does not serve yet.
    LoginSettled = "login-settled",
    /// The CREATING row is durable.
    BirthBegun = "birth-begun",
    /// A birth that was cut short has looked for what is in the token.
    BirthSearched = "birth-searched",
    /// The row has a fresh CKA_ID for another attempt, durably.
    BirthAttemptBegun = "birth-attempt-begun",
    /// The token is about to be asked for a pair.
    BirthGenerating = "birth-generating",
    /// It says that it has made one.
    BirthGenerated = "birth-generated",
    /// The pair was found.
    BirthFound = "birth-found",
    /// It has proved itself; the row does not know yet.
    BirthChallenged = "birth-challenged",
    /// The row is live, durably; nobody was answered.
    BirthEnded = "birth-ended",
    /// A destruction can no longer be called off, durably; the objects are there.
    DestructionBegun = "destruction-begun",
    /// The objects are gone; the row does not know yet.
    DestructionDone = "destruction-done",
    /// The token holds a new epoch; the row does not know yet.
    EpochMarked = "epoch-marked",
    /// A transaction is written, but for its COMMIT.
    Committing = "committing",
    /// It is durable; nobody was told.
    Committed = "committed",
}

impl Failpoint {
    /// Kills the process if this place is armed.
    #[inline]
    pub fn reached(self) {
        #[cfg(feature = "failpoints")]
        {
            tracing::trace!(target: "failpoint", "reached {}.", self.name());
            if fail::eval(self.name(), |_| ()).is_some() {
                std::process::abort();
            }
        }
    }
}

/// Arms what FAILPOINTS names, until the returned value is dropped.
#[cfg(feature = "failpoints")]
pub fn arm() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}
