//! How much versions that wrap were used, what consumers say, and what is on record of a secret key.

use std::slice;

use super::{at, timeline, transaction, version};
use crate::{
    Algorithm, Key, KeyVersion, Store,
    fakes::a_key,
    hsm::KnownAnswer,
    key::{Born, Material, Purpose},
    store::{Fault, UsageReport, VersionUse, Write},
    time::Timestamp,
};

/// A key that wraps, with version 1, and its name.
async fn a_kek<S: Store>(store: &S, name: &str) -> (Key, KeyVersion) {
    let key = Key { algorithm: Algorithm::A256GcmKw, purpose: Purpose::Wrap, ..a_key(name) };
    let answer: Vec<u8> = (0..).take(KnownAnswer::LEN).collect();
    let known_answer = KnownAnswer::from_bytes(&answer).expect("of that length");
    let born = Born { material: Material::Secret { known_answer }, timeline: timeline(None) };
    let version = KeyVersion { born: Some(born), ..version(1, Some(timeline(None))) };
    let writes = vec![Write::InsertKey(key.clone()), Write::InsertVersion(key.id.clone(), version.clone())];
    store.commit(transaction(writes)).await.expect("commit");
    (key, version)
}

pub(super) async fn a_version_of_a_secret_key_comes_back_as_it_was_written<S: Store>(store: &S) {
    let (key, version) = a_kek(store, "kek").await;
    let loaded = store.load(None).await.expect("load").keys;
    assert!(loaded.contains(&(key, vec![version])), "{loaded:?}");
}

pub(super) async fn of_two_that_reserve_wraps_at_once_one_wins<S: Store>(store: &S) {
    let (key, _) = a_kek(store, "kek-budget").await;
    let reserve = async |from, to| {
        let write = Write::ReserveWraps { key: key.id.clone(), version: 1, from, to };
        store.commit(transaction(vec![write])).await
    };
    assert!(matches!(reserve(7, 8).await, Err(Fault::Changed(_))), "nothing was reserved before");
    let since = store.load(None).await.expect("load").generation;
    let (one, two) = futures::join!(reserve(0, 64), reserve(0, 64));
    assert_eq!(usize::from(one.is_ok()) + usize::from(two.is_ok()), 1, "{one:?} {two:?}");
    assert!(matches!(reserve(0, 64).await, Err(Fault::Changed(_) | Fault::Exists(_))));
    let most = 1 << 33;
    reserve(64, most).await.expect("commit");
    for since in [None, Some(since)] {
        let uses = store.load(since).await.expect("load").uses;
        let reserved: Vec<_> =
            uses.iter().filter(|used| used.key == key.id).map(|used| used.reserved).collect();
        assert_eq!(reserved, [most], "since {since:?}");
    }
    let now = store.load(None).await.expect("load").generation;
    assert_eq!(store.load(Some(now)).await.expect("load").uses, []);
}

pub(super) async fn the_last_use_of_a_version_never_goes_back<S: Store>(store: &S) {
    let (key, _) = a_kek(store, "kek-used").await;
    let note = async |wrapped_at, unwrapped_at| {
        let write = Write::NoteUse { key: key.id.clone(), version: 1, wrapped_at, unwrapped_at };
        store.commit(transaction(vec![write])).await.expect("commit");
    };
    note(Some(at(20)), None).await;
    note(None, Some(at(30))).await;
    note(Some(at(10)), Some(at(40))).await;
    note(None, None).await;
    let used = VersionUse {
        key: key.id.clone(),
        version: 1,
        reserved: 0,
        wrapped_at: Some(at(20)),
        unwrapped_at: Some(at(40)),
    };
    let uses = store.load(None).await.expect("load").uses;
    assert_eq!(
        uses.into_iter().filter(|stored| stored.key == key.id).collect::<Vec<_>>(),
        slice::from_ref(&used)
    );
    let write = Write::ReserveWraps { key: key.id.clone(), version: 1, from: 0, to: 5 };
    store.commit(transaction(vec![write])).await.expect("commit");
    let uses = store.load(None).await.expect("load").uses;
    assert!(uses.contains(&VersionUse { reserved: 5, ..used }), "{uses:?}");
}

pub(super) async fn a_consumers_report_takes_the_place_of_its_last_one<S: Store>(store: &S) {
    let (key, _) = a_kek(store, "kek-consumers").await;
    let report = |consumer: &str, envelopes: &[(u32, u64)], at: Timestamp| UsageReport {
        key: key.id.clone(),
        consumer: consumer.parse().expect("a name"),
        envelopes: envelopes.iter().copied().collect(),
        by: "access-token:orders \"x\"".to_owned(),
        at,
        removed_at: None,
    };
    let put = async |report| {
        store.commit(transaction(vec![Write::PutUsageReport(report)])).await.expect("commit");
    };
    let reports = async |since| {
        let all = store.load(since).await.expect("load").usage_reports;
        all.into_iter().filter(|report| report.key == key.id).collect::<Vec<_>>()
    };
    put(report("orders", &[(1, 5), (2, u64::from(u32::MAX) + 7)], at(10))).await;
    put(report("billing", &[], at(11))).await;
    let since = store.load(None).await.expect("load").generation;
    let second = UsageReport { removed_at: Some(at(13)), ..report("orders", &[(2, 9)], at(12)) };
    put(second.clone()).await;
    assert_eq!(reports(Some(since)).await, slice::from_ref(&second));
    assert_eq!(reports(None).await, [report("billing", &[], at(11)), second]);
}
