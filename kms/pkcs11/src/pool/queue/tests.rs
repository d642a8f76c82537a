//! Who gets a place, without any worker.

use super::{super::call::NewCall, *};

const FAR: Duration = Duration::from_secs(600);

/// A place for `operation`, which there must be.
pub(in crate::pool) fn entered(queue: &Queue, operation: &Operation) -> Place {
    enter(queue, Lane::Manage, "test", operation, FAR).unwrap_or_else(|_| panic!("there is room"))
}

fn enter(
    queue: &Queue,
    lane: Lane,
    caller: &str,
    operation: &Operation,
    time: Duration,
) -> Result<Place, Fault> {
    let deadline = Instant::now() + time;
    queue.enter(&Entry { lane, caller: &caller.into(), operation, deadline }, 1)
}

/// As many places as there are for somebody.
fn fill(queue: &Queue, lane: Lane, caller: &str) -> Vec<Place> {
    let enter = || enter(queue, lane, caller, &Operation::Check, FAR);
    std::iter::from_fn(|| enter().ok()).collect()
}

fn waits(queue: &Queue, lane: Lane, caller: &str) {
    let place =
        enter(queue, lane, caller, &Operation::Check, FAR).unwrap_or_else(|_| panic!("there is room"));
    queue.front().push(NewCall::new(place, Operation::Check, Instant::now() + FAR).awaited(None));
}

#[test]
fn a_full_queue_refuses_and_a_place_given_back_is_taken_again() {
    let queue = Queue::new(2);
    let places = fill(&queue, Lane::Unseal, "v");
    assert_eq!((places.len(), queue.len()), (2, 2));
    let refused = enter(&queue, Lane::Unseal, "v", &Operation::Check, FAR);
    assert!(matches!(refused, Err(Fault::Busy { retry_after }) if retry_after == RETRY_AFTER_MIN));
    assert_eq!(queue.lanes()[0].refused, 2);
    drop(places);
    assert_eq!(queue.len(), 0);
    assert!(enter(&queue, Lane::Unseal, "v", &Operation::Check, FAR).is_ok());
}

#[test]
fn whoever_comes_new_finds_a_place_however_many_flood_the_queue() {
    let queue = Queue::new(2048);
    let mut floods: Vec<_> = (0..100).map(|n| fill(&queue, Lane::Sign, &format!("a{n}"))).collect();
    assert!((1_000..1_500).contains(&floods[0].len()), "{}: the first was alone", floods[0].len());
    floods.remove(0);
    floods.push(fill(&queue, Lane::Sign, "a0"));
    for (lane, caller) in [(Lane::Sign, "new"), (Lane::Wrap, "a0"), (Lane::Manage, "admin")] {
        assert!(!fill(&queue, lane, caller).is_empty(), "{lane:?} {caller}");
    }
}

#[test]
fn a_lane_that_is_full_of_callers_leaves_room_for_the_others() {
    let queue = Queue::new(2048);
    let flood: Vec<_> = (0..5_000).filter_map(|n| fill(&queue, Lane::Sign, &format!("a{n}")).pop()).collect();
    assert!(flood.len() > 1_000, "{}", flood.len());
    let wraps = fill(&queue, Lane::Wrap, "kubernetes").len();
    assert!(wraps > 50, "{wraps}");
}

#[test]
fn the_last_places_are_for_unseals() {
    let queue = Queue::new(2048);
    let lanes = [Lane::Sign, Lane::Wrap, Lane::Manage];
    let flood: Vec<_> =
        (0..3_000).flat_map(|n| lanes.map(|lane| fill(&queue, lane, &format!("a{n}")))).flatten().collect();
    assert!(fill(&queue, Lane::Sign, "new").is_empty(), "{} places are taken", flood.len());
    assert!(fill(&queue, Lane::Unseal, "vault").len() >= 32);
}

#[test]
fn a_call_that_would_be_late_is_refused_at_once_and_told_when_to_come_again() {
    let queue = Queue::new(2048);
    let soon = Duration::from_millis(20);
    assert!(enter(&queue, Lane::Sign, "a", &Operation::Check, Duration::ZERO).is_ok(), "nobody waits");
    // 50 µs each, by the guess: 50 ms.
    for _ in 0..1_000 {
        waits(&queue, Lane::Sign, "a");
    }
    let refused = enter(&queue, Lane::Sign, "a", &Operation::Check, soon);
    assert!(matches!(refused, Err(Fault::Busy { retry_after }) if retry_after >= Duration::from_millis(25)));
    assert!(enter(&queue, Lane::Sign, "a", &Operation::Check, FAR).is_ok(), "it can wait");
    assert!(enter(&queue, Lane::Sign, "b", &Operation::Check, soon).is_ok(), "its turn comes at once");
    assert!(enter(&queue, Lane::Unseal, "v", &Operation::Check, soon).is_ok());
}

#[test]
fn callers_that_have_gone_are_forgotten() {
    let queue = Queue::new(64);
    for n in 0..10_000 {
        drop(enter(&queue, Lane::Sign, &format!("a{n}"), &Operation::Check, FAR));
    }
    let callers = queue.front().callers[Lane::Sign as usize].len();
    assert!(callers <= 2 * IDLE_CALLERS_MAX, "{callers}");
}

#[test]
fn what_waits_past_its_deadline_is_taken_out_and_gives_its_place_back() {
    let queue = Queue::new(64);
    for _ in 0..3 {
        waits(&queue, Lane::Sign, "a");
    }
    assert!(queue.take_late(Instant::now()).is_empty());
    assert_eq!(queue.take_late(Instant::now() + 2 * FAR).len(), 3);
    assert_eq!((queue.len(), queue.front().waiting.len()), (0, 0));
}
