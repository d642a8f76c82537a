//! What policy costs: measured, not tested.

use std::time::{Duration, Instant};

use kms_core::{
    Key, KeyUid, Store as _,
    access::RoleBinding,
    fakes::a_key,
    store::{Transaction, Write},
};

use super::*;

const BINDINGS: usize = 100;
const CALLS: usize = 20_000;

/// A service with so many keys, and a hundred bindings: callers 0 to 49 have a class and a label each.
async fn with_keys(count: usize) -> FakeKms {
    let world = World::default();
    let key = |number: usize| {
        let mut uid = [0; 16];
        uid[..8].copy_from_slice(&number.to_be_bytes());
        Key { uid: KeyUid(uid), ..a_key(&format!("key-{number}")) }
    };
    let mut writes: Vec<_> = (0..count).map(|number| Write::InsertKey(key(number))).collect();
    for number in 0..BINDINGS {
        let on = if number % 2 == 0 { "class:jwt-signing" } else { "label:team=auth" };
        let CreateRoleBinding { name, principal, role, on, .. } =
            binding(&format!("b{number}"), &caller(number / 2), Role::User, on);
        writes.push(Write::InsertRoleBinding(RoleBinding {
            name,
            principal,
            role,
            only: Vec::new(),
            on,
            required_context: BTreeMap::new(),
            not_before: None,
            expires_at: None,
            created_by: "access-token:admin".to_owned(),
            created_at: kms_core::time::Timestamp::UNIX_EPOCH,
            revoked_at: None,
        }));
    }
    world.store.commit(Transaction::new("many", writes)).await.expect("committed");
    world.open(Settings::default()).await.expect("opens")
}

fn caller(number: usize) -> String {
    format!("spiffe://example.org/app-{number}")
}

/// Median and 99th percentile of a whole read of a key, its admission and its record in memory included.
fn measure(kms: &FakeKms, keys: usize, spread: usize) -> (Duration, Duration) {
    let mut times: Vec<_> = (0..CALLS)
        .map(|call| {
            let caller = named(&caller(call % (BINDINGS / 2)));
            let key = id(&format!("key-{}", (call * 7919) % spread.min(keys)));
            let start = Instant::now();
            block_on(kms.get_key(&caller, &key)).expect("allowed");
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    (times[CALLS / 2], times[CALLS * 99 / 100])
}

#[test]
#[ignore = "it measures: cargo test --profile measured -p kms-core --test access cost -- --ignored --nocapture"]
fn what_an_admission_costs() {
    for keys in [1_000, 10_000] {
        let kms = block_on(with_keys(keys));
        for (what, spread) in [("10 keys, remembered", 10), ("every key, seldom remembered", keys)] {
            measure(&kms, keys, spread);
            let (median, p99) = measure(&kms, keys, spread);
            println!("{keys} keys, {BINDINGS} bindings, {what}: p50 {median:?}, p99 {p99:?}");
        }
    }
}
