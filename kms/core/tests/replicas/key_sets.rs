//! JWKS: the same everywhere, and not served when it is too old.

use std::time::Duration;

use kms_core::{Clock as _, KeyId, key::Born, time::SignedDuration, verbs::PublishedKeys};

use crate::fleet::{Fleet, id, reason, seed};

fn set(fleet: &Fleet, replica: usize, key: Option<&KeyId>) -> PublishedKeys {
    fleet.replicas[replica].published_keys(key).expect("fresh").expect("a set")
}

#[test]
fn for_one_generation_bytes_and_etag_are_the_same_on_every_replica() {
    let fleet = Fleet::with_key(2);
    fleet.run(fleet.create(1, "another", None)).expect("created");
    for _ in 0..3 {
        fleet.run(fleet.rotate(1, None)).expect("rotates");
        assert_eq!(fleet.replicas[0].generation(), fleet.replicas[1].generation(), "once it is acknowledged");
        for key in [None, Some(&id("k")), Some(&id("another"))] {
            assert_eq!(set(&fleet, 0, key), set(&fleet, 1, key));
        }
    }
}

#[test]
fn a_version_stands_in_the_key_sets_of_all_before_any_replica_signs_with_it() {
    let fleet = Fleet::with_key(3);
    fleet.interleave();
    let signed_is_published = || {
        for replica in 0..3 {
            let view = fleet.replicas[replica].published_keys(Some(&id("k"))).expect("fresh").expect("a set");
            let body = String::from_utf8(view.body.to_vec()).expect("JSON");
            let signing = futures::FutureExt::now_or_never(fleet.replicas[replica].public_key(
                &kms_core::fakes::administrator(),
                &id("k"),
                None,
            ));
            let kid = signing.expect("it reads memory").expect("a primary").kid.to_string();
            assert!(
                (0..3).all(|other| {
                    let set =
                        fleet.replicas[other].published_keys(Some(&id("k"))).expect("fresh").expect("a set");
                    String::from_utf8_lossy(&set.body).contains(&kid)
                }),
                "{kid} is not everywhere"
            );
            assert!(body.contains(&kid));
        }
    };
    for _ in 0..5 {
        fleet.advance(kms_core::time::SignedDuration::from_hours(4));
        let rotations = [0, 1].map(|replica| fleet.rotate(replica, None));
        fleet.run_all(seed(), rotations, signed_is_published);
        fleet.advance(kms_core::time::SignedDuration::from_hours(1));
        signed_is_published();
    }
}

#[test]
fn a_set_of_a_replica_that_is_cut_off_lives_as_long_as_in_a_cache_and_then_is_refused() {
    let fleet = Fleet::with_key(2);
    fleet.beat();
    let max_age = |replica: usize| {
        fleet.replicas[replica].published_keys(None).map(|keys| keys.expect("a set").max_age_seconds)
    };
    assert_eq!(max_age(1), Ok(300));
    fleet.set_cut(1, true);
    for (elapsed, expected) in [(2, 300), (1, 299), (8, 291), (289, 2), (2, 0)] {
        fleet.elapse(Duration::from_secs(elapsed));
        assert_eq!(max_age(1), Ok(expected), "{elapsed} s more");
    }
    fleet.elapse(Duration::from_secs(1));
    assert_eq!(reason(max_age(1)), Err("FENCED"));
    assert_eq!(max_age(0), Ok(300));
    fleet.set_cut(1, false);
    fleet.beat();
    assert_eq!(max_age(1), Ok(300));
}

#[test]
fn a_version_leaves_the_sets_at_its_withdrawal_to_the_millisecond_and_no_time_but_that_changes_them() {
    let fleet = Fleet::with_key(2);
    fleet.run(fleet.rotate(0, None)).expect("rotates");
    let versions = fleet.versions();
    let [old, new] = [0, 1].map(|version| versions[version].born.as_ref().expect("it is born"));
    let withdrawn_at = old.timeline.withdrawn_at.expect("a successor takes over");
    let both = set(&fleet, 0, None);
    let has = |keys: &PublishedKeys, born: &Born| {
        let text = String::from_utf8(keys.body.to_vec()).expect("JSON");
        text.contains(born.material.kid().expect("of a pair").as_str())
    };
    assert!(has(&both, old) && has(&both, new));
    let until = |at: kms_core::time::Timestamp| at.duration_since(fleet.store.clock.now());
    let millisecond = SignedDuration::from_millis(1);
    let is_still_both = || {
        for (replica, key) in [(0, None), (1, None), (1, Some(&id("k"))), (0, Some(&id("k")))] {
            assert_eq!(set(&fleet, replica, key), both);
        }
    };
    fleet.advance(until(new.timeline.activates_at) - millisecond);
    for _ in 0..3 {
        is_still_both();
        fleet.advance(millisecond);
    }
    fleet.advance(until(withdrawn_at) - millisecond);
    is_still_both();
    fleet.advance(millisecond);
    let one = set(&fleet, 0, None);
    assert!(has(&one, new) && !has(&one, old));
    for key in [None, Some(&id("k"))] {
        assert_eq!([set(&fleet, 0, key), set(&fleet, 1, key)], [one.clone(), one.clone()]);
    }
    assert_ne!(one.etag, both.etag);
    fleet.advance(SignedDuration::from_hours(10_000));
    assert_eq!(set(&fleet, 0, None), one);
    // One whose clock is set back before the withdrawal shows what stood there then, and so again.
    fleet.advance(-SignedDuration::from_hours(10_000) - millisecond);
    assert_eq!(set(&fleet, 0, None), both);
    fleet.advance(millisecond);
    assert_eq!(set(&fleet, 0, None), one);
}

#[test]
fn a_set_that_was_served_is_not_served_after_a_change_of_its_key() {
    let fleet = Fleet::with_key(2);
    fleet.run(fleet.create(0, "another", None)).expect("created");
    let sets =
        |replica: usize| [None, Some(&id("k")), Some(&id("another"))].map(|key| set(&fleet, replica, key));
    let [before, again] = [0, 1].map(sets);
    assert_eq!(before, again);
    fleet.run(fleet.disable(0)).expect("disabled");
    let [after, elsewhere] = [0, 1].map(sets);
    assert_eq!(after, elsewhere, "on the other replica, too, as soon as it is acknowledged");
    assert_eq!(&*after[1].body, br#"{"keys":[]}"#);
    assert_eq!(after[0].body, after[2].body);
    assert_eq!(after[2], before[2]);
    assert_ne!(after[0].etag, before[0].etag);
}
