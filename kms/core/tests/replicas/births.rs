//! Births whose maker lives, sleeps or is dead.

use std::time::Duration;

use futures::executor::block_on;
use kms_core::{fakes::HsmFault, replica::LIVE_MAX};

use crate::fleet::{Fleet, Task, poll_once};

/// So long that whoever did not beat is taken for dead.
const LONG: Duration = Duration::from_secs(LIVE_MAX.as_secs() + 1);

fn resume(fleet: &Fleet, replica: usize) -> usize {
    let deadline = fleet.deadline(replica);
    let finished = block_on(fleet.replicas[replica].resume_births(deadline));
    fleet.beat();
    finished
}

#[test]
fn a_birth_is_resumed_by_the_holder_of_the_lease_only_when_its_maker_is_dead() {
    let fleet = Fleet::with_key(3);
    fleet.store.hsm.set_fault(HsmFault::GenerateFails);
    fleet.run(fleet.rotate(1, None)).expect_err("generate fails");
    assert_eq!(fleet.versions()[1].maker.as_ref(), Some(fleet.replicas[1].replica()));
    assert_eq!([resume(&fleet, 0), resume(&fleet, 2)], [0, 0], "its maker lives");
    fleet.set_asleep(1, true);
    fleet.elapse(LONG);
    assert_eq!(resume(&fleet, 2), 0, "the lease is another's");
    assert_eq!(resume(&fleet, 0), 1);
    let born = &fleet.versions()[1];
    assert!(born.born.is_some() && born.maker.is_none(), "{born:?}");
    assert_eq!(fleet.store.hsm.count().0, 2);
}

#[test]
fn a_replica_that_lives_resumes_its_own_births_also_without_the_lease() {
    let fleet = Fleet::with_key(2);
    fleet.store.hsm.set_fault(HsmFault::GenerateFails);
    fleet.run(fleet.rotate(1, None)).expect_err("generate fails");
    assert_eq!([resume(&fleet, 0), resume(&fleet, 1)], [0, 1]);
}

#[test]
fn whoever_is_asked_for_a_version_makes_it_when_its_maker_is_dead() {
    let fleet = Fleet::with_key(3);
    fleet.store.hsm.set_fault(HsmFault::GenerateLosesAnswer);
    fleet.run(fleet.rotate(1, Some("first"))).expect_err("the answer was lost");
    fleet.set_asleep(1, true);
    fleet.elapse(LONG);
    assert_eq!(fleet.run(fleet.rotate(2, Some("first"))).expect("the retry").row.number, 2);
    assert_eq!(fleet.store.hsm.count(), (2, 2), "what the dead one generated is found");
}

#[test]
fn a_maker_that_was_taken_for_dead_and_comes_back_adds_nothing_but_a_known_orphan() {
    // Asleep before the token had its order: the pair comes late. Asleep after that: the pair is the one.
    for (asleep_at, orphans) in [(HsmFault::GenerateWaits, 1), (HsmFault::SignWaits, 0)] {
        let fleet = Fleet::with_key(2);
        fleet.store.hsm.set_fault(asleep_at);
        let mut slept: Task<_> = Box::pin(fleet.rotate(1, None));
        poll_once(&mut slept);
        fleet.set_asleep(1, true);
        fleet.elapse(LONG);
        assert_eq!(resume(&fleet, 0), 1, "{asleep_at:?}");
        let before = fleet.versions();
        fleet.set_asleep(1, false);
        assert_eq!(fleet.run(slept).expect("it answers with what there is").row.number, 2, "{asleep_at:?}");
        let versions = fleet.versions();
        assert_eq!(versions, before, "{asleep_at:?}: what was born stays");
        let known: Vec<_> =
            versions.iter().flat_map(|row| row.earlier_attempts.iter().chain([&row.cka_id])).collect();
        let in_token = fleet.store.hsm.ids();
        assert_eq!(in_token.len(), 2 + orphans, "{asleep_at:?}");
        assert!(in_token.iter().all(|cka_id| known.contains(&cka_id)), "{asleep_at:?}: a lost key");
        let born = versions[1].born.as_ref().expect("born");
        let signs = fleet_kid(&fleet);
        assert_eq!(
            born.material.kid(),
            Some(&signs),
            "{asleep_at:?}: the key in the token is the one of the row"
        );
    }
}

/// The kid that version 2 signs under, once its lead is over.
fn fleet_kid(fleet: &Fleet) -> kms_core::Kid {
    fleet.advance(kms_core::time::SignedDuration::from_hours(2));
    let signed = fleet.sign(0).expect("signs");
    assert_eq!(signed.version, 2);
    signed.kid
}

#[test]
fn of_maker_and_successor_either_ends_the_birth_of_the_one_pair() {
    // The maker wakes up while its successor is still at work.
    let fleet = Fleet::with_key(2);
    fleet.store.hsm.set_fault(HsmFault::SignWaits);
    let mut slept: Task<_> = Box::pin(fleet.rotate(1, None));
    poll_once(&mut slept);
    fleet.set_asleep(1, true);
    fleet.elapse(LONG);
    fleet.store.hsm.set_fault(HsmFault::SignWaits);
    let mut successor: Task<_> = Box::pin(fleet.replicas[0].resume_births(fleet.deadline(0)));
    poll_once(&mut successor);
    fleet.set_asleep(1, false);
    assert_eq!(fleet.run(slept).expect("it ends the birth").row.number, 2);
    assert_eq!(fleet.run(successor), 1, "it is born");
    assert_eq!(fleet.versions().iter().filter(|row| row.born.is_some()).count(), 2);
    assert_eq!(fleet.store.hsm.count(), (2, 2));
}
