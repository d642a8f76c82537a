//! Limits at the gate: what policy allows may still come too often.

use std::sync::Arc;

use super::{Admission, Gate};
use crate::{
    AuditLog, Error,
    class::ClassName,
    limits::{Limits, Refused, Use},
};

impl<A: AuditLog> Gate<A> {
    /// The same, within `limits`.
    pub(crate) fn limited_by(self, limits: Arc<Limits>) -> Self {
        Self { limits: Some(limits), ..self }
    }

    /// Lets through what fits into its limits. A refusal is a denial on record, unless it came in a flood: those are
    /// counted. `class` is that of the key which it is about.
    pub(super) async fn unless_limited(
        &self,
        mut admission: Admission<A>,
        class: Option<ClassName>,
    ) -> Result<Admission<A>, Error> {
        let grant = &admission.grant;
        let call = Use { caller: &grant.caller, key: grant.subject.key.as_ref(), class, lane: grant.lane };
        match self.limits.as_ref().map_or(Ok(()), |limits| limits.check(&call)) {
            Ok(()) => Ok(admission),
            Err(refused) if refused.is_recorded => admission.deny(Refused::REASON, refused.into()).await,
            Err(refused) => {
                admission.slot = None;
                Err(refused.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use futures::executor::block_on;

    use super::*;
    use crate::{
        Action, Clock, KeyId,
        audit::Outcome,
        fakes::{ManualClock, MemoryLog, administrator},
        limits::{Rules, Window},
    };

    /// A gate at which each key may be used once an hour.
    fn gate() -> (Gate<MemoryLog>, Arc<MemoryLog>, Arc<ManualClock>) {
        let (log, clock) = (Arc::<MemoryLog>::default(), Arc::<ManualClock>::default());
        let once = Window::new(NonZeroU32::MIN, Duration::from_secs(3600), None).expect("a window");
        let rules = Rules { key: vec![once], ..Rules::default() };
        let limits = Limits::new(&rules, Arc::clone(&clock) as Arc<dyn Clock>);
        (Gate::new(Arc::clone(&log), 0).limited_by(Arc::new(limits)), log, clock)
    }

    #[test]
    fn a_flood_of_refusals_writes_less_into_the_book_than_calls_that_are_served() {
        let (gate, log, clock) = gate();
        let key: KeyId = "k".parse().expect("a key's name");
        let ask = |action| {
            let admitted = block_on(gate.admit(&administrator(), action, Some(&key), clock.now()));
            admitted.map(drop).map_err(|error| (error.reason(), error.retry_delay()))
        };
        assert_eq!(ask(Action::Sign), Ok(()));
        let served = log.events().len();
        for second in 1..=3 {
            for _ in 0..100 {
                assert!(matches!(ask(Action::Sign), Err(("RATE_LIMITED", Some(_)))));
            }
            let events = log.events();
            assert_eq!(events.len(), served + second, "one a second");
            let last = events.last().expect("a record");
            assert_eq!((last.outcome, last.reason.as_deref()), (Outcome::Denied, Some("RATE_LIMITED")));
            clock.elapse(Duration::from_secs(1));
        }
        assert_eq!(ask(Action::RevokeKeyVersion), Ok(()), "an incident must be handled");
    }

    #[test]
    fn what_policy_denies_uses_nothing() {
        let (gate, _, clock) = gate();
        let key: KeyId = "k".parse().expect("a key's name");
        let admit = |action| block_on(gate.admit(&administrator(), action, Some(&key), clock.now())).is_ok();
        assert!((0..9).all(|_| !admit(Action::Canary)), "it is our own alone");
        assert!(admit(Action::Sign));
    }
}
