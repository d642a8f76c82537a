//! Replicas that are not heard of: who waits for them, and for how long, and who does their work.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use kms_core::{
    Store as _,
    access::PolicyDocument,
    fakes::a_key,
    replica::{LIVE_MAX, ReplicaId},
    store::{Fault, Transaction, Write},
};
use tokio::time::timeout;

use crate::{PATIENCE, World, beat, insert};

/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(3_600);

impl World {
    /// As if so much time had passed since the last beats.
    fn age_beats(&self, by: Duration) {
        let us = by.as_micros();
        self.sql(&format!(
            "UPDATE replicas SET seen_at_us = seen_at_us - {us};
             UPDATE leases SET expires_at_us = expires_at_us - {us}"
        ));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_for_the_beat_of_a_live_replica_and_no_longer_than_it_may() {
    let world = World::new();
    let (one, other) = (world.open().await, world.open().await);
    let known = one.check().await.expect("it works");
    other.pulse(beat("other", known)).await.expect("a pulse");
    let made = one.commit(insert("a")).await.expect("it is written");
    let me = ReplicaId::new("one");

    let mut waits = pin!(one.propagated(made, &me, FOR_EVER));
    let early = timeout(Duration::from_millis(300), &mut waits).await;
    assert!(early.is_err(), "it did not wait for the other's beat");
    other.pulse(beat("other", made)).await.expect("a pulse");
    timeout(PATIENCE, waits).await.expect("the other has it");

    // Who says nothing is waited for until it must have stopped by itself.
    let made = one.commit(insert("b")).await.expect("it is written");
    let (at_most, began) = (Duration::from_millis(300), Instant::now());
    timeout(PATIENCE, one.propagated(made, &me, at_most)).await.expect("it stops waiting");
    assert!(began.elapsed() >= at_most, "it did not wait");
    // And not at all once it is known to have stopped.
    world.age_beats(LIVE_MAX);
    timeout(PATIENCE, one.propagated(made, &me, FOR_EVER)).await.expect("nobody is there");

    // A database that says nothing is waited out likewise.
    other.pulse(beat("other", known)).await.expect("a pulse");
    world.cluster.stop_answering().expect("it stops");
    let began = Instant::now();
    timeout(PATIENCE, one.propagated(made, &me, at_most)).await.expect("it stops waiting");
    assert!(began.elapsed() >= at_most, "nobody can have said that all have it");
    world.cluster.answer_again().expect("it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_of_one_that_is_not_heard_of_passes_on_and_its_work_is_refused() {
    let world = World::new();
    let (one, other) = (world.open().await, world.open().await);
    let known = one.check().await.expect("it works");
    let lost = one.pulse(beat("one", known)).await.expect("a pulse").lease.expect("a lease");
    world.age_beats(LIVE_MAX / 4);
    let seen = other.pulse(beat("other", known)).await.expect("a pulse");
    assert_eq!(seen.lease.as_ref(), Some(&lost), "it may be heard of yet");
    assert_eq!(seen.replicas.len(), 2);
    world.age_beats(LIVE_MAX - LIVE_MAX / 4);
    let seen = other.pulse(beat("other", known)).await.expect("a pulse");
    let taken = seen.lease.expect("a lease");
    assert_eq!(taken.holder.as_str(), "other");
    assert!(taken.token > lost.token, "{taken:?} after {lost:?}");
    let live: Vec<_> = seen.replicas.iter().map(|replica| replica.id.as_str()).collect();
    assert_eq!(live, ["other"]);

    // It wakes up and goes on where it was.
    let under = |lease: &kms_core::replica::Lease, name: &str| Transaction {
        lease: Some(lease.token),
        ..Transaction::new("a story", vec![Write::InsertKey(a_key(name))])
    };
    let before = one.load(None).await.expect("it reads");
    let stale = one.commit(under(&lost, "stale")).await.expect_err("the lease is another's");
    assert!(matches!(&stale, Fault::Changed(what) if what == "the lease"), "{stale}");
    assert_eq!(one.load(None).await.expect("it reads"), before, "it wrote something");
    let seen = one.pulse(beat("one", known)).await.expect("a pulse");
    assert_eq!(seen.lease.as_ref(), Some(&taken), "it is not given back");
    one.commit(insert("of-its-own")).await.expect("what callers ask for needs no lease");
    other.commit(under(&taken, "of-the-new-holder")).await.expect("the lease is held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_servers_that_set_the_policy_at_once_one_does_and_the_others_are_told_to_read_it_again() {
    const ROUNDS: u32 = 10;
    let world = World::new();
    let stores = [world.open().await, world.open().await, world.open().await, world.open().await];
    let mut expected = Vec::new();
    for version in 1..=ROUNDS {
        let documents = std::array::from_fn::<_, 4, _>(|server| PolicyDocument {
            version,
            text: format!("// {server}"),
            note: String::new(),
            by: "unix:0".to_owned(),
            at: a_key("any").created_at,
        });
        let commits = stores.iter().zip(&documents).map(|(store, document)| {
            let (store, write) = (store.clone(), Write::InsertPolicy(document.clone()));
            tokio::spawn(async move { store.commit(Transaction::new("a story", vec![write])).await })
        });
        let before = expected.len();
        for (outcome, document) in futures::future::join_all(commits).await.into_iter().zip(documents) {
            match outcome.expect("it runs") {
                Ok(_) => expected.push(document),
                Err(fault) => assert!(matches!(fault, Fault::Changed(_)), "version {version}: {fault}"),
            }
        }
        assert_eq!(expected.len(), before + 1, "version {version}: who was told that it set it");
    }
    for store in &stores {
        assert_eq!(store.load(None).await.expect("it reads").policies, expected);
    }
}
