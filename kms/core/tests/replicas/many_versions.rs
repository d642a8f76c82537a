//! What a key costs that has had very many versions.

use std::time::{Duration, Instant};

use futures::executor::block_on;
use kms_core::{
    Clock as _, Key, KeyUid, KeyVersion, Store as _,
    fakes::administrator,
    hsm::CkaId,
    key::{Born, Timeline},
    store::{Transaction, Write},
    time::SignedDuration,
    verbs::{ListKeys, RotateKey, Sign},
};

use crate::fleet::{Fleet, id, to_sign};

/// One replica with the key `many`, which rotates daily and has so many versions behind it.
fn with_versions(count: u32) -> Fleet {
    let fleet = Fleet::with_key(1);
    let snapshot = block_on(fleet.store.store.load(None)).expect("rows");
    let (key, versions) = snapshot.keys.into_iter().next().expect("the key");
    let long_ago = fleet.store.clock.now().saturating_sub(SignedDuration::from_hours(24)).expect("a time");
    let born = versions[0].born.clone().expect("born");
    let timeline = Timeline {
        published_at: long_ago,
        activates_at: long_ago,
        retires_at: Some(long_ago),
        withdrawn_at: Some(long_ago),
        destroys_at: None,
    };
    let rotation_period = Some(SignedDuration::from_hours(24));
    let key = Key { id: id("many"), uid: KeyUid([1; 16]), rotation_period, revision: 1, ..key };
    let old = (1..=count).map(|number| {
        let mut cka_id = [0; 16];
        cka_id[..4].copy_from_slice(&number.to_be_bytes());
        let born = Some(Born { timeline, ..born.clone() });
        KeyVersion { number, cka_id: CkaId::from_bytes(cka_id), born, ..versions[0].clone() }
    });
    let old = old.map(|row| Write::InsertVersion(key.id.clone(), row));
    let writes = std::iter::once(Write::InsertKey(key.clone())).chain(old).collect();
    block_on(fleet.store.store.commit(Transaction::new("long ago", writes))).expect("committed");
    fleet.beat();
    assert_eq!(fleet.tick(0), 1, "the last one's period is over");
    fleet.advance(SignedDuration::from_hours(1));
    fleet
}

fn least_of(rounds: u32, mut work: impl FnMut()) -> Duration {
    let time = |work: &mut dyn FnMut()| {
        let began = Instant::now();
        work();
        began.elapsed()
    };
    (0..rounds).map(|_| time(&mut work)).min().expect("a round")
}

#[test]
#[ignore = "it measures: cargo test -p kms-core --test replicas many_versions -- --ignored --nocapture"]
fn what_many_versions_cost() {
    for count in [10, 1_000, 10_000] {
        let fleet = with_versions(count);
        let (kms, admin, many) = (&fleet.replicas[0], administrator(), id("many"));
        let round = least_of(20, || assert_eq!(fleet.tick(0), 0));
        let signing = least_of(20, || {
            let sign = Sign { id: id("many"), ..to_sign() };
            block_on(kms.sign(&admin, sign, fleet.deadline(0))).expect("signs");
        });
        let listing = least_of(20, || {
            block_on(kms.list_keys(&admin, ListKeys { limit: 10, ..ListKeys::default() })).expect("keys");
        });
        let key_set = least_of(20, || drop(kms.published_keys(Some(&many)).expect("fresh")));
        // What the fake itself takes for the commits and loads of a rotation.
        let store = &fleet.store.store;
        let fake = least_of(5, || {
            let generation = block_on(store.check()).expect("a generation");
            for _ in 0..2 {
                block_on(store.commit(Transaction::new("nothing", vec![]))).expect("committed");
                let all = block_on(store.load(None)).expect("rows");
                assert!(all.generation > generation);
            }
            block_on(store.commit(Transaction::new("nothing", vec![]))).expect("committed");
        });
        fleet.beat();
        let rotate = || {
            fleet.advance(SignedDuration::from_hours(24));
            let rotate = RotateKey::new(id("many"));
            let began = Instant::now();
            block_on(kms.rotate_key(&admin, rotate, fleet.deadline(0))).expect("rotates");
            began.elapsed()
        };
        let rotation = (0..5).map(|_| rotate()).min().expect("a rotation");
        println!(
            "{count} versions: idle round {round:?}, sign {signing:?}, list {listing:?}, key set {key_set:?}, rotation \
             {rotation:?} of which the store in memory {fake:?}"
        );
    }
}
