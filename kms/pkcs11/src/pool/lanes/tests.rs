//! Who is next, without any worker.

use super::*;

const CALL_NS: u64 = 100_000;

fn full(flows: &[(Lane, &str, usize, u64)]) -> Lanes<(Lane, Arc<str>)> {
    let mut lanes = Lanes::default();
    for (lane, caller, count, cost_ns) in flows {
        for _ in 0..*count {
            let caller: Arc<str> = (*caller).into();
            lanes.push(*lane, &caller, *cost_ns, false, (*lane, Arc::clone(&caller)));
        }
    }
    lanes
}

fn next(lanes: &mut Lanes<(Lane, Arc<str>)>, count: usize) -> Vec<(Lane, Arc<str>)> {
    (0..count).map(|_| lanes.pop().expect("somebody waits")).collect()
}

fn count(popped: &[(Lane, Arc<str>)], lane: Lane) -> usize {
    popped.iter().filter(|(of, _)| *of == lane).count()
}

#[test]
fn a_caller_with_one_call_waits_for_one_call_of_each_other_and_not_for_all_of_them() {
    let mut lanes = full(&[(Lane::Sign, "a", 1000, CALL_NS), (Lane::Sign, "c", 1000, CALL_NS)]);
    next(&mut lanes, 10);
    lanes.push(Lane::Sign, &"b".into(), CALL_NS, false, (Lane::Sign, "b".into()));
    let popped = next(&mut lanes, 3);
    assert!(popped.iter().any(|(_, caller)| &**caller == "b"), "{popped:?}");
    assert_eq!(lanes.len(), 1988);
}

#[test]
fn lanes_share_the_time_by_their_weights_whatever_a_call_costs() {
    // A signature costs ten wraps.
    let mut lanes = full(&[
        (Lane::Sign, "a", 2_000, 10 * CALL_NS),
        (Lane::Wrap, "b", 20_000, CALL_NS),
        (Lane::Manage, "c", 20_000, CALL_NS),
    ]);
    let popped = next(&mut lanes, 10_000);
    let time = |lane, cost: usize| count(&popped, lane) * cost;
    let (sign, wrap, manage) = (time(Lane::Sign, 10), time(Lane::Wrap, 1), time(Lane::Manage, 1));
    assert!(sign.abs_diff(wrap) < wrap / 20, "{sign} {wrap} {manage}");
    assert!(manage.abs_diff(wrap / 2) < wrap / 20, "{sign} {wrap} {manage}");
}

#[test]
fn what_is_dear_is_paid_for_and_does_not_lock_its_lane_out() {
    let mut lanes = full(&[(Lane::Manage, "a", 3, 60_000_000_000), (Lane::Sign, "b", 100_000, CALL_NS)]);
    let first = next(&mut lanes, 100);
    assert_eq!(count(&first, Lane::Manage), 1);
    let rest = next(&mut lanes, 5_000);
    assert_eq!(count(&rest, Lane::Manage), 2, "100 ms of the lane's share each");
}

#[test]
fn an_unseal_goes_first_and_a_flood_of_them_leaves_others_every_ninth_turn() {
    let mut lanes = full(&[(Lane::Sign, "a", 1000, CALL_NS), (Lane::Unseal, "v", 1, CALL_NS)]);
    assert_eq!(next(&mut lanes, 1)[0].0, Lane::Unseal);
    let mut lanes = full(&[(Lane::Sign, "a", 1000, CALL_NS), (Lane::Unseal, "v", 1000, CALL_NS)]);
    let popped = next(&mut lanes, 900);
    assert_eq!(count(&popped, Lane::Unseal), 800);
}

#[test]
fn what_is_taken_out_is_gone_and_the_rest_keeps_its_turns() {
    let mut lanes = full(&[(Lane::Sign, "a", 3, CALL_NS), (Lane::Wrap, "b", 2, CALL_NS)]);
    assert_eq!(lanes.take(|(lane, _)| *lane == Lane::Sign).len(), 3);
    assert_eq!((lanes.len(), lanes.len_in(Lane::Sign), lanes.work_ns()), (2, 0, 2 * CALL_NS));
    assert_eq!(count(&next(&mut lanes, 2), Lane::Wrap), 2);
    assert_eq!(lanes.pop(), None);
}

#[test]
fn what_must_be_done_before_a_newcomer_depends_on_who_it_is() {
    let lanes = full(&[(Lane::Sign, "a", 1000, CALL_NS), (Lane::Sign, "b", 10, CALL_NS)]);
    let before = |lane, caller| lanes.work_before_ns(lane, caller, CALL_NS) / CALL_NS;
    assert_eq!(before(Lane::Sign, "a"), 1010, "its own, and the other's");
    assert!((10..=30).contains(&before(Lane::Sign, "b")), "{}", before(Lane::Sign, "b"));
    assert!(before(Lane::Sign, "c") <= 2, "a turn of each");
    assert!(before(Lane::Wrap, "a") <= 2);
    assert_eq!(before(Lane::Unseal, "a"), 0);
}
