//! Windows by a clock that is turned by hand.

use super::*;
use crate::fakes::ManualClock;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

struct World {
    clock: Arc<ManualClock>,
    limits: Limits,
}

impl World {
    fn new(rules: &Rules) -> Self {
        let clock = Arc::<ManualClock>::default();
        Self { limits: Limits::new(rules, Arc::clone(&clock) as Arc<dyn Clock>), clock }
    }

    fn call(&self, caller: &str, key: &str, class: ClassName, lane: Lane) -> Result<(), Refused> {
        let key: KeyId = key.parse().expect("a key's name");
        self.limits.check(&Use { caller, key: Some(&key), class: Some(class), lane })
    }

    /// How many of `count` signatures are let through.
    fn signed(&self, caller: &str, key: &str, count: usize) -> usize {
        (0..count).filter(|_| self.call(caller, key, ClassName::JwtSigning, Lane::Sign).is_ok()).count()
    }
}

fn window(max: u32, per: Duration, burst: u32) -> Window {
    let [max, burst] = [max, burst].map(|n| NonZeroU32::new(n).expect("more than none"));
    Window::new(max, per, Some(burst)).expect("a window")
}

#[test]
fn a_window_lets_its_burst_through_and_then_its_rate_and_says_when_to_come_again() {
    let world = World::new(&Rules { caller: vec![window(200, SECOND, 400)], ..Rules::default() });
    assert_eq!(world.signed("a", "k", 1_000), 400);
    let refused = world.call("a", "k", ClassName::JwtSigning, Lane::Sign).expect_err("used up");
    assert_eq!((refused.limit, refused.retry_after), (Limit::Caller, Duration::from_millis(5)));
    world.clock.elapse(refused.retry_after);
    assert_eq!(world.signed("a", "k", 10), 1);
    world.clock.elapse(SECOND);
    assert_eq!(world.signed("a", "k", 1_000), 200);
    assert_eq!(world.signed("b", "k", 1_000), 400, "another caller has windows of its own");
}

#[test]
fn of_several_windows_the_one_that_takes_longest_is_told_and_a_refusal_uses_none_of_them() {
    let rules = Rules {
        caller: vec![window(100, SECOND, 100), window(150, HOUR, 150)],
        key: vec![window(10, SECOND, 10)],
        ..Rules::default()
    };
    let world = World::new(&rules);
    assert_eq!(world.signed("a", "k", 1_000), 10, "the key's window");
    // 990 refusals have cost the caller nothing.
    assert_eq!((0..20).map(|n| world.signed("a", &format!("k{n}"), 10)).sum::<usize>(), 90);
    world.clock.elapse(SECOND);
    assert_eq!((0..20).map(|n| world.signed("a", &format!("k{n}"), 10)).sum::<usize>(), 50);
    let refused = world.call("a", "k9", ClassName::JwtSigning, Lane::Sign).expect_err("used up");
    assert_eq!(refused.window, window(150, HOUR, 150));
    assert!(refused.retry_after > 20 * SECOND, "{refused:?}");
    let error = Error::from(refused);
    assert_eq!((error.kind(), error.reason()), (Kind::ResourceExhausted, "RATE_LIMITED"));
    assert!(error.retry_delay().is_some() && error.to_string().contains("each caller"), "{error}");
}

#[test]
fn an_unseal_does_not_count_for_its_class_and_management_for_its_caller_alone() {
    let one = vec![window(1, HOUR, 1)];
    let classes = BTreeMap::from([(ClassName::JwtSigning, one.clone())]);
    let world = World::new(&Rules { caller: vec![window(9, HOUR, 9)], key: vec![], classes });
    let call = |caller, lane| world.call(caller, "k", ClassName::JwtSigning, lane);
    assert_eq!(call("a", Lane::Sign), Ok(()));
    assert_eq!(call("b", Lane::Wrap).map_err(|refused| refused.limit), Err(Limit::Class));
    for lane in [Lane::Unseal, Lane::Manage] {
        assert_eq!((0..20).filter(|_| call(lane.as_str(), lane).is_ok()).count(), 9, "{lane:?}");
    }
    let world = World::new(&Rules { key: one, ..Rules::default() });
    let call = |lane| world.call("a", "k", ClassName::JwtSigning, lane);
    assert_eq!(call(Lane::Unseal), Ok(()));
    assert_eq!(call(Lane::Unseal).map_err(|refused| refused.limit), Err(Limit::Key));
    assert_eq!(call(Lane::Manage), Ok(()));
}

#[test]
fn a_flood_of_refusals_is_on_record_once_a_second_for_each_caller_and_counted() {
    let world = World::new(&Rules { key: vec![window(1, HOUR, 1)], ..Rules::default() });
    assert_eq!(world.signed("a", "k", 1), 1);
    let recorded = |caller| {
        let call = || world.call(caller, "k", ClassName::JwtSigning, Lane::Sign);
        (0..100).filter(|_| call().is_err_and(|refused| refused.is_recorded)).count()
    };
    assert_eq!([recorded("a"), recorded("b"), recorded("a")], [1, 1, 0]);
    world.clock.elapse(SECOND);
    assert_eq!(recorded("a"), 1);
    assert_eq!(world.limits.refusals(), Refusals { by_limit: [0, 400, 0], unrecorded: 397 });
}

#[test]
fn who_has_used_nothing_lately_is_forgotten_and_however_many_there_are_memory_is_bounded() {
    let world = World::new(&Rules { caller: vec![window(1, HOUR, 2)], ..Rules::default() });
    let remembered = || world.limits.book().callers.len();
    assert_eq!(world.signed("busy", "k", 9), 2);
    for n in 0..FLOWS_MAX + 100 {
        let _ = world.limits.check(&Use { caller: &n.to_string(), key: None, class: None, lane: Lane::Sign });
    }
    assert_eq!(remembered(), FLOWS_MAX);
    world.clock.elapse(HOUR);
    assert_eq!(world.signed("busy", "k", 9), 1, "it was not forgotten for the others");
    assert_eq!(remembered(), 1);
}

#[test]
fn without_rules_nothing_is_counted() {
    let world = World::new(&Rules::default());
    assert_eq!(world.signed("a", "k", 1_000), 1_000);
    assert!(world.limits.book().callers.is_empty());
}

#[test]
fn a_window_that_nobody_could_keep_is_refused() {
    let [one, many] = [1, u32::MAX].map(|n| NonZeroU32::new(n).expect("more than none"));
    for (max, per, burst) in [
        (many, Duration::from_nanos(10), None),
        (one, 30 * 24 * HOUR, Some(many)),
        (one, Duration::ZERO, None),
    ] {
        assert!(Window::new(max, per, burst).is_err(), "{max} in {per:?}");
    }
}
