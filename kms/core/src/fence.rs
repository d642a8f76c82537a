//! The fence: a replica that cannot confirm that its rows are the store's stops by itself.
//!
//! Nobody has to reach a replica that is cut off in order to stop it: its own monotonic clock does, [`FENCE`] after
//! the last beat that confirmed its generation was *sent*. A clock that is far from the store's stops it at once, for
//! then its phases of keys are not everybody's. A store that went backwards has lost what this replica has answered
//! for: only a restart, which compares epochs, may decide what that means.
//!
//! Read on every operation, so without locks.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    Clock, Error,
    replica::{BEAT_INTERVAL, CLOCK_SKEW_MAX, FENCE},
    time::SignedDuration,
};

/// When the catalog was last confirmed, and what forbids to trust that.
pub(crate) struct Fence {
    clock: Arc<dyn Clock>,
    origin: Instant,
    /// Nanoseconds from `origin` to the last confirmation, and one; 0 before the first.
    confirmed_ns: AtomicU64,
    /// By how many milliseconds the clock is ahead of the store's, where that is too much; 0 when nothing is wrong.
    obstacle: AtomicI64,
}

/// Why a replica is fenced; the texts are for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fenced {
    /// The store was not heard of for so long; `None` for never.
    Unconfirmed(Option<Duration>),
    /// The clock is ahead of the store's by so much, or behind it.
    ClockDiffers(SignedDuration),
    /// The store has an older generation than it had.
    StoreWentBackwards,
}

const NOTHING: i64 = 0;
const WENT_BACKWARDS: i64 = i64::MIN;

impl Fence {
    /// A fence that is up until the first confirmation.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let origin = clock.instant();
        Self { clock, origin, confirmed_ns: AtomicU64::new(0), obstacle: AtomicI64::new(NOTHING) }
    }

    /// The rows were the store's at `at` or later.
    pub(crate) fn confirm(&self, at: Instant) {
        let ns = at.saturating_duration_since(self.origin).as_nanos();
        let ns = u64::try_from(ns).unwrap_or(u64::MAX - 1);
        self.confirmed_ns.fetch_max(ns + 1, Ordering::AcqRel);
        self.set_obstacle(NOTHING);
    }

    /// The clock is ahead of the store's by `by`, which is too much.
    pub(crate) fn clock_differs(&self, by: SignedDuration) {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX).max(WENT_BACKWARDS + 1);
        self.set_obstacle(ms);
    }

    /// For ever: this process has answered for what the store no longer has.
    pub(crate) fn store_went_backwards(&self) {
        self.obstacle.store(WENT_BACKWARDS, Ordering::Release);
    }

    /// Whether work may be done.
    pub(crate) fn check(&self) -> Result<(), Fenced> {
        self.check_obstacle()?;
        match self.age() {
            // Whoever has waited for a whole fence counts on it.
            Some(age) if age < FENCE => Ok(()),
            age => Err(Fenced::Unconfirmed(age)),
        }
    }

    /// How long ago the confirmation is, beyond what lies between two beats; for what may be served a little stale.
    pub(crate) fn staleness(&self) -> Result<Duration, Fenced> {
        if let Err(differs @ Fenced::ClockDiffers(_)) = self.check_obstacle() {
            return Err(differs);
        }
        let age = self.age().ok_or(Fenced::Unconfirmed(None))?;
        Ok(age.saturating_sub(2 * BEAT_INTERVAL))
    }

    /// Whether anything forbids to work but the age of the last confirmation.
    pub(crate) fn check_obstacle(&self) -> Result<(), Fenced> {
        match self.obstacle.load(Ordering::Acquire) {
            NOTHING => Ok(()),
            WENT_BACKWARDS => Err(Fenced::StoreWentBackwards),
            ms => Err(Fenced::ClockDiffers(SignedDuration::from_millis(ms))),
        }
    }

    /// How long ago the last confirmation is; `None` before the first.
    pub(crate) fn age(&self) -> Option<Duration> {
        let ns = self.confirmed_ns.load(Ordering::Acquire).checked_sub(1)?;
        let since_origin = self.clock.instant().saturating_duration_since(self.origin);
        Some(since_origin.saturating_sub(Duration::from_nanos(ns)))
    }

    fn set_obstacle(&self, obstacle: i64) {
        let unless_final = |now| (now != WENT_BACKWARDS).then_some(obstacle);
        let _ = self.obstacle.fetch_update(Ordering::AcqRel, Ordering::Acquire, unless_final);
    }
}

impl Fenced {
    /// What callers get: nothing is wrong with their request, and another server may do it.
    pub(crate) fn refusal(self) -> Error {
        let text = "this server cannot confirm that it is up to date, so it does not work for the moment; retry, and \
                    another server will answer, or this one again";
        Error::unavailable("FENCED", text).retry_after(BEAT_INTERVAL)
    }
}

impl fmt::Display for Fenced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unconfirmed(Some(age)) => write!(
                f,
                "fenced: the database has not confirmed what this server knows for {} s; it works again as soon as the \
                 database answers",
                age.as_secs()
            ),
            Self::Unconfirmed(None) => {
                write!(f, "fenced: the database has not confirmed yet what this server knows")
            }
            Self::ClockDiffers(by) => write!(
                f,
                "fenced: the clock is {} s {} the database's, more than {} s; see to the time service on both",
                by.unsigned_abs().as_secs_f32(),
                if by.is_negative() { "behind" } else { "ahead of" },
                CLOCK_SKEW_MAX.as_secs()
            ),
            Self::StoreWentBackwards => write!(
                f,
                "fenced: the database went back to an older generation, so committed changes may be lost; restart this \
                 server, and the epoch in the HSM decides"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::ManualClock;

    fn fence() -> (Arc<ManualClock>, Fence) {
        let clock = Arc::new(ManualClock::default());
        (Arc::clone(&clock), Fence::new(clock))
    }

    #[test]
    fn it_is_up_before_the_first_confirmation_and_a_fence_after_the_last() {
        let (clock, fence) = fence();
        assert_eq!(fence.check(), Err(Fenced::Unconfirmed(None)));
        let sent = clock.instant();
        clock.elapse(Duration::from_secs(4));
        fence.confirm(sent);
        clock.elapse(Duration::from_millis(5_999));
        assert_eq!(fence.check(), Ok(()));
        clock.elapse(Duration::from_millis(1));
        assert_eq!(fence.check(), Err(Fenced::Unconfirmed(Some(FENCE))));
        fence.confirm(clock.instant());
        fence.confirm(sent);
        assert_eq!(fence.check(), Ok(()), "an older confirmation takes nothing back");
    }

    #[test]
    fn a_clock_that_differs_is_forgiven_by_the_next_confirmation_and_a_store_that_went_backwards_never() {
        let (clock, fence) = fence();
        fence.confirm(clock.instant());
        let by = SignedDuration::from_secs(-6);
        fence.clock_differs(by);
        assert_eq!(fence.check(), Err(Fenced::ClockDiffers(by)));
        assert!(Fenced::ClockDiffers(by).to_string().contains("6 s behind"));
        fence.confirm(clock.instant());
        assert_eq!(fence.check(), Ok(()));
        fence.store_went_backwards();
        fence.confirm(clock.instant());
        fence.clock_differs(by);
        assert_eq!(fence.check(), Err(Fenced::StoreWentBackwards));
    }
}
