//! A place for one worker: what runs in it, and when the next one may be started.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::rand::GetRandomFlags;

use super::link::Link;
use crate::wire::{Ready, Secret};

/// First pause before a second replacement in a row; doubles each time. The first replacement is immediate.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause, short enough that a token that is back is found within two seconds.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Pause after the token had no room for another session, and after logins that ended in doubt.
const LONG_PAUSE: Duration = Duration::from_secs(60);
/// A worker that stood ready for this long has served, whether or not it was asked anything.
const SERVED_AFTER: Duration = Duration::from_secs(5);

/// A place for one worker.
pub(super) struct Slot {
    pub(super) number: u16,
    pub(super) state: State,
    /// Whether callers are sent here, or it is a spare.
    pub(super) serving: bool,
    /// Ends in a row of workers that had not served.
    failures: u32,
    /// The next start waits long, whatever this one's end says.
    waits_long: bool,
}

/// What runs in a slot.
pub(super) enum State {
    /// Nothing; a worker may be started from this moment on.
    Down { until: Instant },
    /// The supervisor was asked.
    Spawning,
    /// Runs, and is not READY.
    Starting(Start),
    /// Serves, or is spare.
    Ready { link: Arc<Link>, since: Instant },
    /// Finishes what it has, to be replaced for its age.
    Retiring { link: Arc<Link> },
    /// Killed or leaving; waits to be reaped.
    Leaving { pid: u32, served: bool },
}

/// A worker that is not READY. Must not be killed unless its profile allows it.
pub(super) struct Start {
    pub(super) pid: u32,
    pub(super) secret: Secret,
    pub(super) since: Instant,
    pub(super) link: Option<Arc<Link>>,
    /// Its connection was read to the end.
    pub(super) link_closed: bool,
    pub(super) login: Login,
    /// READY, but the latch does not know yet that it has logged in.
    pub(super) ready: Option<Ready>,
    /// How it ended, as the supervisor says. That may overtake what it said before.
    pub(super) exit: Option<String>,
}

/// How far a worker has come with C_Login.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// It has not asked yet, or was told not to.
    Before,
    /// The latch is being asked.
    Asked,
    /// It may have called C_Login.
    Given {
        /// On this token.
        token_serial: String,
    },
    /// It has ended, one way or the other, and the latch is being told.
    Settling,
    /// The latch knows.
    Over,
}

impl Login {
    /// Whether it may not be killed, nor buried, because of it.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Given { .. } | Self::Settling)
    }

    /// Ends it, if it was given: the serial number of the token.
    pub(super) fn settle(&mut self) -> Option<String> {
        match std::mem::replace(self, Self::Settling) {
            Self::Given { token_serial } => Some(token_serial),
            other => {
                *self = other;
                None
            }
        }
    }
}

impl Start {
    /// Lets its start count as slow, by `limit`, in `grace` from now.
    pub(super) fn overdue_in(&mut self, grace: Duration, limit: Duration) {
        let now = Instant::now();
        self.since = now.checked_sub(limit.saturating_sub(grace)).unwrap_or(now);
    }
}

impl Slot {
    pub(super) fn new(number: u16, now: Instant) -> Self {
        Self { number, state: State::Down { until: now }, serving: false, failures: 0, waits_long: false }
    }

    /// The start of process `pid`, if it is what runs here.
    pub(super) fn start_of(&mut self, pid: u32) -> Option<&mut Start> {
        match &mut self.state {
            State::Starting(start) if start.pid == pid => Some(start),
            _ => None,
        }
    }

    /// Whether it is starting, and since when if it runs.
    pub(super) fn starting_since(&self) -> Option<Option<Instant>> {
        match self.state {
            State::Spawning => Some(None),
            State::Starting(Start { since, .. }) => Some(Some(since)),
            _ => None,
        }
    }

    /// Whether its worker was of use: it answered, or stood ready for long.
    pub(super) fn has_served(&self) -> bool {
        match &self.state {
            State::Ready { link, since } => link.answered() > 0 || since.elapsed() > SERVED_AFTER,
            State::Retiring { .. } => true,
            State::Leaving { served, .. } => *served,
            State::Down { .. } | State::Spawning | State::Starting(_) => false,
        }
    }

    /// The READY worker, if there is one.
    pub(super) fn ready(&self) -> Option<&Arc<Link>> {
        match &self.state {
            State::Ready { link, .. } => Some(link),
            _ => None,
        }
    }

    /// Notes that the next start must wait: the token has no room for this worker beside the others, or two logins in
    /// a row ended in doubt.
    pub(super) fn wait_long(&mut self) {
        self.waits_long = true;
    }

    /// Schedules a new start: at once after a worker that had served, later and later after failures in a row.
    pub(super) fn went_down(&mut self, served: bool) {
        self.failures = if served { 0 } else { self.failures.saturating_add(1) };
        let pause = match self.failures {
            _ if std::mem::take(&mut self.waits_long) => LONG_PAUSE,
            0 | 1 => Duration::ZERO,
            more => BACKOFF_MIN.saturating_mul(1 << (more - 2).min(16)).min(BACKOFF_MAX),
        };
        self.serving = false;
        self.state = State::Down { until: Instant::now() + pause.mul_f64(jitter()) };
    }
}

/// From 0.75 to 1: servers that lost one HSM together must not come back in step.
fn jitter() -> f64 {
    let mut byte = [0; 1];
    // Without randomness they do; it harms nobody else.
    let _ = rustix::rand::getrandom(&mut byte, GetRandomFlags::empty());
    1.0 - f64::from(byte[0]) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause_after(slot: &mut Slot, served: bool) -> Duration {
        slot.went_down(served);
        let State::Down { until } = slot.state else { panic!("not down") };
        until.saturating_duration_since(Instant::now())
    }

    #[test]
    fn failures_in_a_row_wait_ever_longer_and_one_that_served_starts_anew() {
        let mut slot = Slot::new(1, Instant::now());
        assert_eq!(pause_after(&mut slot, false), Duration::ZERO);
        let pauses: Vec<_> = (0..40).map(|_| pause_after(&mut slot, false)).collect();
        assert!(
            pauses[0] > BACKOFF_MIN / 2 && pauses[1] > pauses[0] && pauses[39] <= BACKOFF_MAX,
            "{pauses:?}"
        );
        slot.wait_long();
        assert!(pause_after(&mut slot, false) > LONG_PAUSE / 2);
        assert!(pauses[39] > BACKOFF_MAX / 2);
        assert_eq!(pause_after(&mut slot, true), Duration::ZERO);
    }
}
