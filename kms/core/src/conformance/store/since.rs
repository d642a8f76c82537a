//! What is loaded when only what was written since a generation is asked for.

use super::{at, next, timeline, transaction, version};
use crate::{
    KeyVersion, Store,
    caller::Role,
    fakes::{a_key, a_token},
    pin_latch::{Place, State},
    store::{AccessToken, Generation, QuarantinedObject, RememberedRequest, Snapshot, Transaction, Write},
};

/// Wants a store that has an epoch.
pub(super) async fn what_was_written_since_comes_alone_and_whole<S: Store>(store: &S) {
    let (key, other) = (a_key("since"), a_key("since-other"));
    let [first, second] = [1, 2].map(|number| version(number, Some(timeline(None))));
    let insert = |row: &KeyVersion| Write::InsertVersion(key.id.clone(), row.clone());
    let token = AccessToken { own: None, ..a_token("since", Role::User) };
    let object = QuarantinedObject {
        token_serial: "since".to_owned(),
        cka_id: vec![1, 2, 3],
        note: String::new(),
        by: "access-token:admin".to_owned(),
        at: at(2),
    };
    let suspended = KeyVersion { suspended: true, ..first.clone() };
    let changed = next(&key);

    let start = store.check().await.expect("check");
    let empty = Snapshot { generation: start, ..Snapshot::default() };
    assert_eq!(store.load(Some(start)).await.expect("load"), empty, "nothing was written since");

    // Each step, and what of it a replica must be given that knew all before.
    let moved = Write::MoveEpoch { past: 0, nonce: [9; 8] };
    let revoke = Write::RevokeAccessToken { name: token.name.clone(), at: at(3) };
    let revoked = AccessToken { revoked_at: Some(at(3)), ..token.clone() };
    let nothing = Snapshot::default;
    let steps = [
        (
            vec![Write::InsertKey(key.clone()), Write::InsertKey(other.clone()), insert(&first)],
            Snapshot { keys: vec![(key.clone(), vec![first.clone()]), (other, vec![])], ..nothing() },
        ),
        (
            vec![insert(&second)],
            Snapshot { keys: vec![(key.clone(), vec![first, second.clone()])], ..nothing() },
        ),
        (
            vec![Write::UpdateVersion(key.id.clone(), suspended.clone())],
            Snapshot { keys: vec![(key, vec![suspended.clone(), second.clone()])], ..nothing() },
        ),
        (
            vec![Write::UpdateKey(changed.clone())],
            Snapshot { keys: vec![(changed, vec![suspended, second])], ..nothing() },
        ),
        (vec![Write::InsertAccessToken(token.clone())], Snapshot { access_tokens: vec![token], ..nothing() }),
        (vec![revoke], Snapshot { access_tokens: vec![revoked], ..nothing() }),
        (vec![Write::Quarantine(object.clone())], Snapshot { quarantined: vec![object], ..nothing() }),
        (vec![], nothing()),
    ];
    for (writes, expected) in steps {
        let before = store.check().await.expect("check");
        let what = format!("{writes:?}");
        let generation = store.commit(transaction(writes)).await.expect("commit");
        let expected = Snapshot { generation, ..expected };
        assert_eq!(store.load(Some(before)).await.expect("load"), expected, "after {what}");
    }
    let before = store.check().await.expect("check");
    let generation = store.commit(transaction(vec![moved])).await.expect("commit");
    let epoch = store.load(None).await.expect("load").epoch;
    let expected = Snapshot { generation, epoch, ..nothing() };
    assert!(epoch.is_some());
    assert_eq!(store.load(Some(before)).await.expect("load"), expected);

    all_of_several_commits_come(store, start).await;
    what_is_in_no_generation_comes_with_none(store).await;
}

async fn all_of_several_commits_come<S: Store>(store: &S, since: Generation) {
    let (all, since) = (store.load(None).await.expect("load"), store.load(Some(since)).await.expect("load"));
    let mine = |name: &str| name.starts_with("since");
    let keys = all.keys.into_iter().filter(|(key, _)| mine(key.id.as_str())).collect();
    let access_tokens = all.access_tokens.into_iter().filter(|token| mine(&token.name)).collect();
    let quarantined = all.quarantined.into_iter().filter(|object| mine(&object.token_serial)).collect();
    let (classes, uses, usage_reports) = (vec![], vec![], vec![]);
    assert_eq!(since, Snapshot { keys, access_tokens, quarantined, classes, uses, usage_reports, ..all });
}

async fn what_is_in_no_generation_comes_with_none<S: Store>(store: &S) {
    let request = RememberedRequest {
        id: "since/1".to_owned(),
        fingerprint: [1; 32],
        key: a_key("since").id,
        version: None,
        at: at(1),
    };
    let remember = Transaction { request: Some(request), ..transaction(vec![]) };
    let generation = store.commit(remember).await.expect("commit");
    assert_eq!(store.forget_requests(at(2)).await.expect("forget"), 1);
    let place = Place { token_serial: "since".to_owned(), pin_generation: 1 };
    store.set_pin_latch(&place, State::UNTRIED, State::PROVEN).await.expect("it writes");
    let before = Generation(generation.0 - 1);
    let expected = Snapshot { generation, ..Snapshot::default() };
    assert_eq!(store.load(Some(before)).await.expect("load"), expected);
}
