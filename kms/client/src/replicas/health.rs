//! What is believed of one replica, by what became of the requests that went there.

use std::time::{Duration, Instant};

/// How long a replica rests after its first failure.
const FIRST_REST: Duration = Duration::from_millis(100);
/// How long it rests at most.
const REST_MAX: Duration = Duration::from_secs(5);

/// How often a replica has failed since it last answered, and until when it rests for that.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Health {
    failures: u32,
    rests_until: Option<Instant>,
}

impl Health {
    /// Of a replica that nobody has spoken to.
    pub(super) fn unproven() -> Self {
        Self { failures: 1, rests_until: None }
    }

    /// Whether it has answered since it last failed.
    pub(super) fn is_proven(&self) -> bool {
        self.failures == 0
    }

    pub(super) fn rests(&self, now: Instant) -> bool {
        !self.rest(now).is_zero()
    }

    pub(super) fn answered(&mut self) {
        *self = Self::default();
    }

    /// It is there, and says that it cannot serve now. However long it was away before, it does not rest for that.
    pub(super) fn refused(&mut self, now: Instant) {
        *self = Self { failures: 1, rests_until: Some(now + FIRST_REST) };
    }

    pub(super) fn failed(&mut self, now: Instant) {
        // Many requests fail together when a connection is cut: that is one failure.
        if !self.rests(now) {
            self.failures += 1;
        }
        self.rests_until = Some(now + self.pause());
    }

    /// One request goes to a replica that has rested; the others wait for what becomes of it.
    pub(super) fn tried_again(&mut self, now: Instant) {
        if self.failures > 0 && !self.rests(now) {
            self.rests_until = Some(now + self.pause());
            self.failures += 1;
        }
    }

    fn rest(&self, now: Instant) -> Duration {
        self.rests_until.map(|until| until.saturating_duration_since(now)).unwrap_or_default()
    }

    fn pause(&self) -> Duration {
        let doubled = 1 << self.failures.saturating_sub(1).min(16);
        REST_MAX.min(FIRST_REST * doubled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_rests_twice_as_long_with_each_failure_up_to_a_bound_and_not_once_it_answers() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        let mut rests = Vec::new();
        for _ in 0..20 {
            health.tried_again(now);
            health.failed(now);
            rests.push(health.rest(now));
            now += health.rest(now);
        }
        assert_eq!(rests[..3], [FIRST_REST, FIRST_REST * 2, FIRST_REST * 4]);
        assert_eq!(rests[19], REST_MAX);
        health.refused(now);
        assert_eq!(health.rest(now), FIRST_REST, "it is there again");
        health.answered();
        assert!(!health.rests(now) && health.is_proven());
    }

    #[test]
    fn requests_that_fail_together_are_one_failure() {
        let (mut health, now) = (Health::default(), Instant::now());
        for _ in 0..100 {
            health.failed(now);
        }
        assert_eq!(health.rest(now), FIRST_REST);
    }

    #[test]
    fn a_replica_that_has_rested_or_is_new_gets_one_request_until_that_is_answered() {
        let (mut failed, now) = (Health::default(), Instant::now());
        failed.failed(now);
        let later = now + FIRST_REST;
        for mut health in [failed, Health::unproven()] {
            assert!(!health.rests(later));
            health.tried_again(later);
            assert!(health.rests(later), "the second request would go there too");
        }
    }
}
