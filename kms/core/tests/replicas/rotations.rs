//! Rotations and creations that are asked of several replicas at once.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use kms_core::{
    Clock as _,
    error::Kind,
    fakes::{HsmFault, administrator},
    time::SignedDuration,
    verbs::{Request, RotateKey},
};

use crate::fleet::{Fleet, Random, Task, id, poll_once, reason, seed};

const REPLICAS: usize = 16;

#[test]
fn of_sixteen_rotations_at_once_one_makes_the_version_and_all_answer_with_it() {
    let is_full = std::env::var_os("KMS_TORTURE").is_some_and(|value| value == "1");
    let rounds: u32 = if is_full { 1_000 } else { 50 };
    let (began, seed) = (Instant::now(), seed());
    let mut random = Random(seed | 1);
    let fleet = Fleet::with_key(REPLICAS);
    fleet.interleave();
    for round in 1..=rounds {
        // Room in the JWKS.
        fleet.advance(SignedDuration::from_hours(4));
        let look = std::cell::RefCell::new(Random(u64::from(round) ^ seed | 1));
        let has_primary = || {
            let replica = look.borrow_mut().below(REPLICAS);
            let view = fleet.replicas[replica].get_key(&administrator(), &id("k")).now_or_never();
            let view = view.expect("it reads memory").expect("the key");
            assert!(view.primary.is_some(), "seed {seed}, round {round}: no primary at {replica}");
        };
        let rotations = (0..REPLICAS).map(|replica| fleet.rotate(replica, None));
        let views = fleet.run_all(random.below(usize::MAX >> 1) as u64, rotations, has_primary);
        let numbers: BTreeSet<_> = views.into_iter().map(|view| view.expect("rotates").row.number).collect();
        assert_eq!(numbers, [round + 1].into(), "seed {seed}, round {round}");
        let versions = fleet.versions();
        assert!(versions.iter().map(|row| row.number).eq(1..=round + 1), "seed {seed}: {versions:?}");
        assert!(versions.iter().all(|row| row.born.is_some()), "seed {seed}, round {round}");
        let primaries: BTreeSet<_> =
            (0..REPLICAS).map(|replica| fleet.sign(replica).expect("signs").version).collect();
        assert_eq!(primaries, [round].into(), "seed {seed}: the lead of the new one is not over");
    }
    assert_eq!(fleet.store.hsm.count().1, u64::from(rounds) + 1, "seed {seed}: one pair for each version");
    // For the table that `make torture` prints.
    println!(
        "\nPROMISE | 4 | {REPLICAS} replicas are asked for a rotation at once, {rounds} times, their steps in an order \
         of chance | {rounds} versions: 0 duplicates, 0 gaps, always 1 primary | {seed} | {} s |",
        began.elapsed().as_secs()
    );
}

#[test]
fn the_loser_remembers_the_winners_version_for_its_retries() {
    let fleet = Fleet::with_key(2);
    fleet.interleave();
    let ids = ["one", "other"];
    let rotations = ids.iter().enumerate().map(|(replica, id)| fleet.rotate(replica, Some(id)));
    for view in fleet.run_all(seed(), rotations, || ()) {
        assert_eq!(view.expect("rotates").row.number, 2);
    }
    // Wherever they come again.
    for (replica, id) in [(1, "one"), (0, "other"), (0, "one"), (1, "other")] {
        assert_eq!(fleet.run(fleet.rotate(replica, Some(id))).expect("a replay").row.number, 2);
    }
    assert_eq!(fleet.versions().len(), 2);
    assert_eq!(fleet.run(fleet.rotate(0, None)).expect("a new one").row.number, 3);
}

#[test]
fn a_winner_that_was_done_before_the_loser_looked_again_is_adopted_too() {
    let fleet = Fleet::with_key(2);
    fleet.interleave();
    let mut loser: Task<_> = Box::pin(fleet.rotate(1, None));
    poll_once(&mut loser);
    assert_eq!(fleet.run(fleet.rotate(0, None)).expect("rotates").row.number, 2);
    assert_eq!(fleet.run(loser).expect("adopts").row.number, 2);
    assert_eq!(fleet.store.hsm.count().1, 2);
}

#[test]
fn the_same_request_at_two_replicas_at_once_has_one_effect() {
    let fleet = Fleet::of(2);
    fleet.interleave();
    let seed = seed();
    let creations = [0, 1].map(|replica| fleet.create(replica, "k", Some("create")));
    let views = fleet.run_all(seed, creations, || ());
    let views: Vec<_> = views.into_iter().map(|view| view.expect("created")).collect();
    assert_eq!((views[0].key.uid, views[0].primary), (views[1].key.uid, views[1].primary));
    let rotations = [0, 1].map(|replica| fleet.rotate(replica, Some("rotate")));
    for view in fleet.run_all(seed, rotations, || ()) {
        assert_eq!(view.expect("rotates").row.number, 2);
    }
    assert_eq!(fleet.store.hsm.count().1, 2, "one pair each");
    let creations = [0, 1].map(|replica| fleet.create(replica, "l", None));
    let outcomes = fleet.run_all(seed, creations, || ());
    let mut outcomes: Vec<_> = outcomes.into_iter().map(reason).collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, [Ok(()), Err("ALREADY_EXISTS")], "without an id they are two requests");
}

#[test]
fn in_one_process_too_the_second_answers_with_the_firsts_version() {
    let fleet = Fleet::with_key(1);
    fleet.interleave();
    let rotations = [None, Some("second"), None].map(|id| fleet.rotate(0, id));
    for view in fleet.run_all(seed(), rotations, || ()) {
        assert_eq!(view.expect("rotates").row.number, 2);
    }
    assert_eq!(fleet.store.hsm.count().1, 2);
}

#[test]
fn who_has_seen_another_revision_adopts_nothing() {
    let fleet = Fleet::with_key(2);
    fleet.interleave();
    let seen =
        fleet.run(fleet.replicas[0].get_key(&administrator(), &id("k"))).expect("the key").key.revision;
    let rotate = |replica: usize| {
        let request = Request { id: None, etag: Some(seen) };
        let rotate = RotateKey { request, ..RotateKey::new(id("k")) };
        let (kms, deadline) = (&fleet.replicas[replica], fleet.deadline(replica));
        Box::pin(async move { kms.rotate_key(&administrator(), rotate, deadline).await }) as Task<_>
    };
    let mut outcomes: Vec<_> =
        fleet.run_all(seed(), vec![rotate(0), rotate(1)], || ()).into_iter().map(reason).collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, [Ok(()), Err("ETAG_MISMATCH")]);
}

#[test]
fn who_waits_for_anothers_birth_does_so_until_its_own_deadline_and_may_ask_again() {
    let fleet = Fleet::with_key(2);
    fleet.store.hsm.set_fault(HsmFault::SignWaits);
    let mut winner: Task<_> = Box::pin(fleet.rotate(0, None));
    poll_once(&mut winner);
    let rotate = RotateKey { request: crate::fleet::request(Some("mine")), ..RotateKey::new(id("k")) };
    let deadline = fleet.worlds[1].clock.within(Duration::from_secs(3));
    let admin = administrator();
    let loser = fleet.replicas[1].rotate_key(&admin, rotate, deadline);
    let error = fleet.run(loser).expect_err("it is not born yet");
    assert_eq!((error.kind(), error.reason()), (Kind::DeadlineExceeded, "CREATION_IN_PROGRESS"));
    assert!(error.to_string().contains("request_id"), "{error}");
    assert_eq!(fleet.run(winner).expect("rotates").row.number, 2);
    assert_eq!(fleet.run(fleet.rotate(1, Some("mine"))).expect("asked again").row.number, 2);
    assert_eq!(fleet.versions().len(), 2);
}

#[test]
fn a_change_of_another_kind_does_not_stop_a_rotation() {
    let fleet = Fleet::with_key(2);
    fleet.interleave();
    let disabled = async { fleet.disable(0).await.map(|view| view.row.number) };
    let rotated = async { fleet.rotate(1, None).await.map(|view| view.row.number) };
    let outcomes = fleet.run_all(seed(), vec![Box::pin(disabled) as Task<_>, Box::pin(rotated)], || ());
    let rotated = outcomes.into_iter().next_back().expect("two outcomes");
    assert_eq!(rotated.expect("rotates on the fresh row"), 2);
}
