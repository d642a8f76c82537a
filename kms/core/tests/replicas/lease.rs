//! The lease: one replica does the background work, and one that slept through its end writes nothing. And the epoch,
//! which all of them move.

use std::{
    task::{Context, Waker},
    time::Duration,
};

use futures::executor::block_on;
use kms_core::{
    Store as _,
    fakes::{World, administrator},
    store::{Fault, Transaction},
    time::SignedDuration,
    verbs::{ChangeVersion, Request},
};

use crate::fleet::{Fleet, Task, poll_once, seed, settings};

/// Version 1 of `k` is to be destroyed now.
fn with_due_destruction() -> Fleet {
    let fleet = Fleet::with_key(2);
    fleet.run(fleet.disable(0)).expect("disabled");
    fleet.destroy(0, 1);
    fleet.advance(SignedDuration::from_hours(30 * 24));
    fleet
}

#[test]
fn what_is_due_is_done_by_the_holder_of_the_lease_alone() {
    let fleet = with_due_destruction();
    assert!(fleet.replicas[0].lease().is_some() && fleet.replicas[1].lease().is_none());
    let run = |replica: usize| block_on(fleet.replicas[replica].run_due(fleet.deadline(replica)));
    assert_eq!((run(1), fleet.store.hsm.count().0), (0, 1));
    assert_eq!((run(0), fleet.store.hsm.count().0), (1, 0));
}

#[test]
fn a_holder_that_slept_through_the_end_of_its_lease_writes_nothing() {
    let fleet = with_due_destruction();
    let stale = fleet.replicas[0].lease().expect("the lease");
    fleet.interleave();
    let mut slept: Task<_> = Box::pin(fleet.replicas[0].run_due(fleet.deadline(0)));
    poll_once(&mut slept);
    fleet.set_asleep(0, true);
    fleet.elapse(Duration::from_secs(14));
    assert_eq!(fleet.replicas[0].lease(), None, "fenced");
    let next = fleet.replicas[1].lease().expect("taken over");
    assert!(next > stale);
    let before = block_on(fleet.store.store.load(None)).expect("rows");
    assert_eq!(fleet.run(slept), 0);
    assert_eq!(block_on(fleet.store.store.load(None)).expect("rows"), before);
    assert_eq!(fleet.store.hsm.count().0, 1, "nothing is destroyed");
    let transaction = Transaction { lease: Some(stale), ..Transaction::new("stale", vec![]) };
    assert!(matches!(block_on(fleet.store.store.commit(transaction)), Err(Fault::Changed(_))));
}

#[test]
fn a_destruction_whose_scheduler_dies_between_any_two_steps_is_ended_by_another() {
    let mut context = Context::from_waker(Waker::noop());
    for steps in 1.. {
        let fleet = with_due_destruction();
        fleet.interleave();
        let mut round: Task<_> = Box::pin(fleet.replicas[0].run_due(fleet.deadline(0)));
        let died = (0..steps).all(|_| round.as_mut().poll(&mut context).is_pending());
        drop(round);
        if !died {
            assert!(steps > 10, "{steps} steps only");
            break;
        }
        fleet.set_asleep(0, true);
        fleet.elapse(Duration::from_secs(14));
        fleet.tick(1);
        assert_eq!((fleet.tick(1), fleet.store.hsm.count().0), (0, 0), "after {steps} steps");
        assert!(fleet.rows()[0].destroyed_at.is_some(), "after {steps} steps");
    }
}

#[test]
fn first_starts_at_once_begin_one_epoch() {
    for run in 0..20 {
        let seed = seed().wrapping_add(run);
        let world = World::default();
        world.store.interleave();
        world.hsm.interleave();
        let worlds: Vec<_> = (0..3).map(|_| world.beside()).collect();
        let empty = Fleet::of(0);
        let starts = worlds.iter().map(|world| world.join(settings()));
        for kms in empty.run_all(seed, starts, || ()) {
            assert_eq!(kms.expect("opens").recovery(), None, "seed {seed}");
        }
        let epoch = block_on(world.store.load(None)).expect("rows").epoch.expect("an epoch");
        assert_eq!((epoch.value, epoch.in_token, world.hsm.marks().len()), (1, 1, 1), "seed {seed}");
    }
}

#[test]
fn moves_of_several_replicas_at_once_never_look_like_an_older_store() {
    for run in 0..30 {
        let seed = seed().wrapping_add(run);
        let fleet = Fleet::with_key(3);
        fleet.interleave();
        let moves = (0..3).map(|replica| {
            let fleet = &fleet;
            let name = format!("k{replica}");
            Box::pin(async move {
                fleet.create(replica, &name, None).await.expect("created");
                for _ in 0..3 {
                    for enable in [false, true] {
                        flip(fleet, replica, &name, enable).await;
                    }
                }
            }) as Task<_>
        });
        // One more starts meanwhile, and stops.
        let newcomer = fleet.store.beside();
        let moves = moves.chain([Box::pin(async move {
            let kms = newcomer.join(settings()).await.expect("opens");
            assert_eq!(kms.recovery(), None);
        }) as Task<_>]);
        fleet.run_all(seed, moves, || ());
        fleet.elapse(Duration::from_secs(1));
        block_on(fleet.replicas[0].follow_epoch(fleet.deadline(0))).expect("follows");
        assert!(fleet.replicas.iter().all(|kms| kms.recovery().is_none()), "seed {seed}");
        let epoch = block_on(fleet.store.store.load(None)).expect("rows").epoch.expect("an epoch");
        assert_eq!((epoch.value, epoch.in_token), (19, 19), "seed {seed}: each of 18 moves counts");
        assert!(fleet.store.hsm.marks().iter().any(|mark| mark.value == 19), "seed {seed}");
    }
}

async fn flip(fleet: &Fleet, replica: usize, name: &str, enable: bool) {
    let change = ChangeVersion { id: crate::fleet::id(name), number: 1, request: Request::default() };
    let (kms, admin) = (&fleet.replicas[replica], administrator());
    let flipped = if enable {
        kms.enable_key_version(&admin, change, fleet.deadline(replica)).await
    } else {
        kms.disable_key_version(&admin, change).await
    };
    flipped.expect("flipped");
}
