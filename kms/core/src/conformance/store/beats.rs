//! Beats and pulses, the lease, and whom a change has reached.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::transaction;
use crate::{
    Store,
    fakes::a_key,
    replica::{Beat, Lease, Pulse, Replica, ReplicaId},
    store::{Fault, Generation, Transaction, Write},
};

/// Longer than any test: who waits for so long waits for something else.
const FOR_EVER: Duration = Duration::from_secs(3_600);

/// Who is alone sees itself, and the work is its own.
pub(super) async fn a_pulse_shows_the_beat_the_generation_and_the_lease<S: Store>(store: &S) {
    let generation = store.check().await.expect("check");
    let starting = Beat { generation: None, report: String::new(), ..beat("alone", generation) };
    let first = store.pulse(starting).await.expect("a pulse");
    assert_eq!(store.check().await.expect("check"), generation, "beats count in no generation");
    let again = store.pulse(beat("alone", generation)).await.expect("a pulse");
    for (pulse, known, report) in [(&first, None, ""), (&again, Some(generation), REPORT)] {
        let myself =
            Replica { id: id("alone"), seen_at: pulse.now, generation: known, report: report.to_owned() };
        assert_eq!((pulse.generation, &pulse.replicas), (generation, &vec![myself]));
        assert_eq!(holder(pulse), Some(&id("alone")));
    }
    assert_eq!(first.lease, again.lease, "who beats keeps the lease that it has");
    assert!(first.now <= again.now, "the store's clock goes forward");

    let lease = again.lease.map(|lease| lease.token);
    let write = transaction(vec![Write::InsertKey(a_key("under-the-lease"))]);
    let made = store.commit(Transaction { lease, ..write }).await.expect("the lease is held");
    assert_eq!(store.pulse(beat("alone", made)).await.expect("a pulse").generation, made);
    // Nobody else is there to be waited for, and nothing happens.
    store.propagated(made, &id("alone"), FOR_EVER).await;
    store.changed(made, Duration::from_millis(1)).await;
}

/// `one` and `other` are links to the same rows.
pub(super) async fn of_several_one_holds_the_lease_until_it_gives_it_back<S: Store>(one: &S, other: &S) {
    let known = one.check().await.expect("check");
    let idle = |name| Beat { leads: false, ..beat(name, known) };
    let nobody = one.pulse(idle("a")).await.expect("a pulse");
    assert_eq!(nobody.lease, None, "who does not lead takes no lease");
    let first = one.pulse(beat("a", known)).await.expect("a pulse").lease.expect("a lease");
    let seen = other.pulse(beat("b", known)).await.expect("a pulse");
    assert_eq!(seen.lease.as_ref(), Some(&first), "it is taken");
    let ids: Vec<_> = seen.replicas.iter().map(|replica| replica.id.as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
    commits_under(one, &first, "the-first").await;

    let given_back = one.pulse(idle("a")).await.expect("a pulse");
    assert_eq!(given_back.lease, None);
    let second = other.pulse(beat("b", known)).await.expect("a pulse").lease.expect("a lease");
    assert_eq!(second.holder, id("b"));
    assert!(second.token > first.token, "{second:?} after {first:?}");
    let still = one.pulse(beat("a", known)).await.expect("a pulse").lease;
    assert_eq!(still.as_ref(), Some(&second), "who gave it back has to wait for it");

    let before = one.load(None).await.expect("load");
    let write = transaction(vec![Write::InsertKey(a_key("must-not-stay"))]);
    let stale = one.commit(Transaction { lease: Some(first.token), ..write }).await;
    assert!(matches!(stale, Err(Fault::Changed(_))), "{stale:?}");
    assert_eq!(one.load(None).await.expect("load"), before, "a stale lease wrote something");
    commits_under(other, &second, "the-second").await;
}

/// `one` and `other` are links to the same rows.
pub(super) async fn a_change_is_everywhere_when_all_that_serve_have_said_so<S: Store>(one: &S, other: &S) {
    let known = one.check().await.expect("check");
    one.pulse(beat("a", known)).await.expect("a pulse");
    other.pulse(beat("b", known)).await.expect("a pulse");
    let starting = Beat { generation: None, ..beat("c", known) };
    other.pulse(starting).await.expect("a pulse");
    let key = a_key("everywhere");
    let made = one.commit(transaction(vec![Write::InsertKey(key.clone())])).await.expect("commit");

    // Before anybody may conclude it the other one says more than once that it has not got it.
    let told = AtomicBool::new(false);
    let waits = async {
        one.propagated(made, &id("a"), FOR_EVER).await;
        assert!(told.load(Ordering::SeqCst), "one that serves has not got it yet");
    };
    let tells = async {
        for _ in 0..20 {
            let pulse = other.pulse(beat("b", known)).await.expect("a pulse");
            assert_eq!(pulse.generation, made, "a pulse shows what the other one has written");
        }
        let news = other.load(Some(known)).await.expect("load");
        assert_eq!((news.generation, news.keys), (made, vec![(key, vec![])]));
        told.store(true, Ordering::SeqCst);
        other.pulse(beat("b", made)).await.expect("a pulse");
    };
    futures::join!(waits, tells);
    // Who asks is not waited for, nor is one that does not serve yet.
    one.propagated(made, &id("a"), FOR_EVER).await;
}

async fn commits_under<S: Store>(store: &S, lease: &Lease, name: &str) {
    let write = transaction(vec![Write::InsertKey(a_key(name))]);
    store.commit(Transaction { lease: Some(lease.token), ..write }).await.expect("the lease is held");
}

const REPORT: &str = r#"{"queue": 0}"#;

fn beat(name: &str, known: Generation) -> Beat {
    Beat { replica: id(name), generation: Some(known), leads: true, report: REPORT.to_owned() }
}

fn id(name: &str) -> ReplicaId {
    ReplicaId::new(name)
}

fn holder(pulse: &Pulse) -> Option<&ReplicaId> {
    pulse.lease.as_ref().map(|lease| &lease.holder)
}
