//! Time is data and an argument: the wall clock enters core through [`Clock`], a deadline is a value.

use std::time::{Duration, Instant};

pub use jiff::{SignedDuration, Timestamp};

/// Where "now" comes from. The server's clock reads the system; tests turn theirs by hand.
pub trait Clock: Send + Sync + 'static {
    /// The current time, UTC.
    fn now(&self) -> Timestamp;

    /// The moment that lies so far ahead, on the monotonic clock.
    fn within(&self, span: Duration) -> Deadline;

    /// The current moment, on the monotonic clock.
    fn instant(&self) -> Instant {
        self.within(Duration::ZERO).instant()
    }
}

impl<C: Clock + ?Sized> Clock for std::sync::Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }

    fn within(&self, span: Duration) -> Deadline {
        (**self).within(span)
    }

    fn instant(&self) -> Instant {
        (**self).instant()
    }
}

/// The moment (monotonic) after which a caller no longer wants the answer. Core never waits on it; the HSM
/// room drops work whose deadline has passed before it reaches the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// A deadline at `at`.
    pub fn at(at: Instant) -> Self {
        Self(at)
    }

    /// The same, `grace` later: for work that its caller has asked for but should not cut short.
    #[must_use]
    pub fn later(self, grace: Duration) -> Self {
        Self(self.0.checked_add(grace).unwrap_or(self.0))
    }

    /// The moment itself.
    pub fn instant(self) -> Instant {
        self.0
    }
}
