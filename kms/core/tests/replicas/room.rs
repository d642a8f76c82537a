//! At most eight versions of a key stand in its key set: when a rotation is refused for that, and until when.

use kms_core::{
    Clock as _,
    fakes::administrator,
    time::{SignedDuration, Timestamp},
    verbs::{ChangeVersion, PUBLISHED_VERSIONS_MAX, Request},
};

use crate::{
    fleet::{Fleet, id, update_of},
    schedule::{published, timeline},
};

fn minutes(count: i64) -> SignedDuration {
    SignedDuration::from_mins(count)
}

/// So many replicas with the key `k`, which has as many versions as may be published.
fn full(count: usize) -> Fleet {
    let fleet = Fleet::with_key(count);
    for _ in 2..=PUBLISHED_VERSIONS_MAX {
        fleet.run(fleet.rotate(0, None)).expect("rotates");
        fleet.advance(minutes(3));
    }
    fleet
}

fn refusal(fleet: &Fleet) -> String {
    let error = fleet.run(fleet.rotate(0, None)).expect_err("no room");
    assert_eq!(error.reason(), "TOO_MANY_PUBLISHED_VERSIONS");
    error.to_string()
}

/// When a refused rotation is allowed, as the refusal says.
fn earliest(fleet: &Fleet) -> Timestamp {
    let text = refusal(fleet);
    let (_, at) = text.rsplit_once("the earliest time for it is ").expect("a time is named");
    at.parse().unwrap_or_else(|_| panic!("{at} is a time"))
}

/// Sets all clocks to `at`, or a second before.
fn set_clocks(fleet: &Fleet, at: Timestamp, a_second_before: bool) {
    let second = SignedDuration::from_secs(i64::from(a_second_before));
    fleet.advance(at.duration_since(fleet.worlds[0].clock.now()) - second);
}

#[test]
fn the_earliest_time_that_a_refused_rotation_names_is_true_to_the_second() {
    let fleet = full(2);
    for number in 9..=11 {
        let at = earliest(&fleet);
        set_clocks(&fleet, at, true);
        assert_eq!(earliest(&fleet), at, "a second before it is refused");
        set_clocks(&fleet, at, false);
        assert_eq!(published(&fleet, 1), PUBLISHED_VERSIONS_MAX - 1);
        assert_eq!(fleet.run(fleet.rotate(0, None)).expect("rotates").row.number, number);
        assert_eq!(published(&fleet, 1), PUBLISHED_VERSIONS_MAX);
    }
}

#[test]
fn the_earliest_time_is_true_also_where_the_clocks_went_back_and_more_versions_are_published_again() {
    let fleet = full(1);
    set_clocks(&fleet, earliest(&fleet), false);
    fleet.run(fleet.rotate(0, None)).expect("rotates");
    fleet.advance(minutes(-2));
    assert_eq!(published(&fleet, 0), PUBLISHED_VERSIONS_MAX + 1);
    let at = earliest(&fleet);
    set_clocks(&fleet, at, true);
    assert_eq!(earliest(&fleet), at);
    set_clocks(&fleet, at, false);
    fleet.run(fleet.rotate(0, None)).expect("rotates");
}

#[test]
fn the_key_set_of_a_replica_whose_clock_is_behind_holds_no_more_than_eight_either() {
    let fleet = full(2);
    for (replica, skew) in [(0, 5), (1, -5)] {
        fleet.worlds[replica].clock.advance(SignedDuration::from_secs(skew));
    }
    fleet.beat();
    for _ in 0..3 {
        set_clocks(&fleet, earliest(&fleet), false);
        fleet.run(fleet.rotate(0, None)).expect("rotates");
        assert_eq!([0, 1].map(|replica| published(&fleet, replica)), [PUBLISHED_VERSIONS_MAX; 2]);
    }
}

#[test]
fn a_rotation_that_is_due_while_there_is_no_room_waits_for_it_and_the_old_version_signs_on() {
    let fleet = full(2);
    let admin = administrator();
    let long = update_of(|periods| periods.max_token_ttl = Some(Some(SignedDuration::from_hours(48))));
    fleet.run(fleet.replicas[0].update_key(&admin, long)).expect("updates");
    let daily = update_of(|periods| periods.rotation_period = Some(Some(SignedDuration::from_hours(49))));
    fleet.run(fleet.replicas[0].update_key(&admin, daily)).expect("updates");
    let at = earliest(&fleet);
    let newest = timeline(fleet.rows().last().expect("a version")).activates_at;
    fleet.advance(newest.duration_since(fleet.store.clock.now()) + SignedDuration::from_hours(48));
    let is_due = fleet.store.clock.now();
    assert!(is_due < at, "{is_due} is not before {at}");
    assert_eq!(fleet.tick(0), 0);
    assert_eq!(fleet.sign(1).expect("signs").version, 8);
    set_clocks(&fleet, at, false);
    assert_eq!(fleet.tick(0), 1);
    fleet.beat();
    assert_eq!(published(&fleet, 1), PUBLISHED_VERSIONS_MAX);
}

#[test]
fn a_key_with_eight_disabled_versions_says_what_to_do() {
    let fleet = Fleet::with_key(1);
    let change = |number| ChangeVersion { id: id("k"), number, request: Request::default() };
    let (kms, admin) = (&fleet.replicas[0], administrator());
    for number in 1..=8 {
        fleet.run(kms.disable_key_version(&admin, change(number))).expect("disables");
        if number < 8 {
            fleet.run(fleet.rotate(0, None)).expect("rotates");
        }
    }
    assert!(refusal(&fleet).ends_with("enable or destroy one that is disabled first"));
    fleet.run(kms.enable_key_version(&admin, change(8), fleet.deadline(0))).expect("enables");
    set_clocks(&fleet, earliest(&fleet), false);
    fleet.run(fleet.rotate(0, None)).expect("those before it have left");
}
