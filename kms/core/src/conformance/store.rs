//! What every [`Store`] must do, and what one that several replicas share must do besides. Each suite wants a fresh,
//! empty store.

use std::sync::Arc;

use crate::{
    Key, KeyVersion, Kid, Store,
    caller::{KeyScope, OwnRole, Role},
    claim_rules::ClaimRules,
    class::{ClassName, Inherited, KeyClass, Periods},
    epoch::{Epoch, Installation},
    fakes::{a_key, entropy},
    hsm::CkaId,
    key::{Born, Compromise, Material, Purpose, TakeOver, Timeline},
    pin_latch::{Holder, Place, State, Try},
    replica::ReplicaId,
    store::{AccessToken, Fault, QuarantinedObject, RememberedRequest, Transaction, Write},
    time::{SignedDuration, Timestamp},
};

mod access;
mod beats;
mod since;
mod uses;

/// Runs the suite on an empty store.
pub async fn run<S: Store>(store: &S) {
    every_field_comes_back_as_it_was_written(store).await;
    a_failed_expectation_writes_nothing(store).await;
    each_commit_makes_one_generation(store).await;
    a_key_has_at_most_one_version_on_its_way(store).await;
    an_object_in_the_token_belongs_to_one_version(store).await;
    of_two_that_change_a_key_at_once_one_wins(store).await;
    a_request_is_remembered_once_and_forgotten_in_time(store).await;
    of_two_that_change_a_class_at_once_one_wins(store).await;
    there_is_one_bootstrap_ever_and_revocation_stays(store).await;
    an_epoch_moves_with_its_transaction_and_each_move_counts(store).await;
    an_object_is_quarantined_once_and_stays_so(store).await;
    a_pin_latch_comes_back_as_it_was_written_and_only_over_what_was_expected(store).await;
    of_two_that_take_a_pin_latch_at_once_one_wins(store).await;
    uses::of_two_that_reserve_wraps_at_once_one_wins(store).await;
    uses::the_last_use_of_a_version_never_goes_back(store).await;
    uses::a_consumers_report_takes_the_place_of_its_last_one(store).await;
    uses::a_version_of_a_secret_key_comes_back_as_it_was_written(store).await;
    since::what_was_written_since_comes_alone_and_whole(store).await;
    access::an_access_token_is_renewed_from_the_end_that_it_had(store).await;
    access::a_role_binding_comes_back_as_it_was_written_and_its_name_is_taken_for_good(store).await;
    access::of_two_that_set_the_policy_at_once_one_wins(store).await;
    access::a_proposal_changes_from_one_revision_to_the_next_and_only_where_it_may(store).await;
    beats::a_pulse_shows_the_beat_the_generation_and_the_lease(store).await;
}

/// Runs what a store for several replicas must do, over two links to the same empty store.
pub async fn run_shared<S: Store>(one: &S, other: &S) {
    beats::of_several_one_holds_the_lease_until_it_gives_it_back(one, other).await;
    beats::a_change_is_everywhere_when_all_that_serve_have_said_so(one, other).await;
}

async fn every_field_comes_back_as_it_was_written<S: Store>(store: &S) {
    let full = Key {
        tokens_until: Some(at(90)),
        bundles_until: Some(at(91)),
        purpose: Purpose::JwksBundle,
        class: ClassName::Session,
        inherited: Inherited { overlap: true, rotation_period: true, ..Inherited::default() },
        overlap: SignedDuration::from_secs(3),
        destroy_after: Some(SignedDuration::from_hours(7)),
        required_context: vec!["table".to_owned(), "tenant \"x\"".to_owned()],
        claim_rules: ClaimRules { issuers: vec!["https://i\"".to_owned()], ..ClaimRules::default() },
        ..a_key("full.key_1-x")
    };
    let bare =
        Key { owner: String::new(), labels: Default::default(), rotation_period: None, ..a_key("bare") };
    let versions = vec![
        KeyVersion {
            earlier_attempts: vec![CkaId::from_bytes([1; 16]), CkaId::from_bytes([2; 16])],
            suspended: true,
            compromise: Some(Compromise { at: at(70), reason: "found in a \"bucket\"".to_owned() }),
            takes_over: TakeOver::AtOnce,
            cross_signature: Some("a.b.c".into()),
            destroyed_at: Some(at(80)),
            ..version(1, Some(timeline(Some(60))))
        },
        version(2, Some(timeline(None))),
        KeyVersion { takes_over: TakeOver::At(at(66)), ..version(3, None) },
    ];
    let mut writes = vec![Write::InsertKey(full.clone()), Write::InsertKey(bare.clone())];
    writes.extend(versions.iter().map(|row| Write::InsertVersion(full.id.clone(), row.clone())));
    store.commit(transaction(writes)).await.expect("commit");
    let snapshot = store.load(None).await.expect("load");
    assert_eq!(snapshot.keys, vec![(bare, vec![]), (full.clone(), versions.clone())]);

    let born = KeyVersion { born: version(3, Some(timeline(None))).born, ..versions[2].clone() };
    let writes = vec![Write::UpdateKey(next(&full)), Write::UpdateVersion(full.id.clone(), born.clone())];
    store.commit(transaction(writes)).await.expect("commit");
    let snapshot = store.load(None).await.expect("load");
    let (key, rows) = snapshot.keys.last().expect("the key");
    assert_eq!((key, rows.last()), (&next(&full), Some(&born)));
}

async fn a_failed_expectation_writes_nothing<S: Store>(store: &S) {
    let key = a_key("expectations");
    store.commit(transaction(vec![Write::InsertKey(key.clone())])).await.expect("commit");
    let before = store.load(None).await.expect("load");
    let other = || Write::InsertKey(a_key("must-not-stay"));
    let unknown = a_key("unknown");
    let failing = [
        ("a taken name", Write::InsertKey(key.clone())),
        ("a stale revision", Write::UpdateKey(key.clone())),
        ("a revision too far", Write::UpdateKey(next(&next(&key)))),
        ("an unknown key", Write::UpdateKey(next(&unknown))),
        ("an unknown version", Write::UpdateVersion(key.id.clone(), version(9, None))),
        ("a version of an unknown key", Write::InsertVersion(unknown.id.clone(), version(1, None))),
        ("an unknown access token", Write::RevokeAccessToken { name: "nobody".to_owned(), at: at(1) }),
    ];
    for (what, write) in failing {
        let outcome = store.commit(transaction(vec![other(), write])).await;
        assert!(matches!(outcome, Err(Fault::Exists(_) | Fault::Changed(_))), "{what}: {outcome:?}");
        assert_eq!(store.load(None).await.expect("load"), before, "{what} left something behind");
    }
}

async fn each_commit_makes_one_generation<S: Store>(store: &S) {
    let before = store.check().await.expect("check");
    let made = store.commit(transaction(vec![Write::InsertKey(a_key("generation"))])).await.expect("commit");
    assert_eq!(made.0, before.0 + 1);
    assert_eq!(store.check().await.expect("check"), made);
    assert_eq!(store.load(None).await.expect("load").generation, made);
}

async fn a_key_has_at_most_one_version_on_its_way<S: Store>(store: &S) {
    let key = a_key("one-on-its-way");
    let insert = |row| Write::InsertVersion(key.id.clone(), row);
    let first = vec![Write::InsertKey(key.clone()), insert(version(1, None))];
    store.commit(transaction(first)).await.expect("commit");
    let second = store.commit(transaction(vec![insert(version(2, None))])).await;
    assert!(matches!(second, Err(Fault::Exists(_))), "{second:?}");
    let again = store.commit(transaction(vec![insert(version(1, Some(timeline(None))))])).await;
    assert!(matches!(again, Err(Fault::Exists(_))), "a number was used twice: {again:?}");
}

async fn an_object_in_the_token_belongs_to_one_version<S: Store>(store: &S) {
    let [one, two] = ["object-1", "object-2"].map(a_key);
    let row = version(1, Some(timeline(None)));
    let writes = vec![Write::InsertKey(one.clone()), Write::InsertVersion(one.id, row.clone())];
    store.commit(transaction(writes)).await.expect("commit");
    let writes = vec![Write::InsertKey(two.clone()), Write::InsertVersion(two.id, row)];
    let shared = store.commit(transaction(writes)).await;
    assert!(matches!(shared, Err(Fault::Exists(_))), "two versions share an object: {shared:?}");
}

async fn of_two_that_change_a_key_at_once_one_wins<S: Store>(store: &S) {
    let key = a_key("contended");
    store.commit(transaction(vec![Write::InsertKey(key.clone())])).await.expect("commit");
    let change = |owner: &str| {
        let changed = Key { owner: owner.to_owned(), ..next(&key) };
        store.commit(transaction(vec![Write::UpdateKey(changed)]))
    };
    let outcomes = futures::join!(change("a"), change("b"));
    let won = [outcomes.0.is_ok(), outcomes.1.is_ok()].into_iter().filter(|won| *won).count();
    assert_eq!(won, 1, "{outcomes:?}");
}

async fn a_request_is_remembered_once_and_forgotten_in_time<S: Store>(store: &S) {
    let key = a_key("requested");
    let request = |id: &str, second| RememberedRequest {
        id: id.to_owned(),
        fingerprint: [9; 32],
        key: key.id.clone(),
        version: Some(1),
        at: at(second),
    };
    let insert = |key: Key, request| Transaction {
        request: Some(request),
        ..transaction(vec![Write::InsertKey(key)])
    };
    store.commit(insert(key.clone(), request("caller/1", 10))).await.expect("commit");
    assert_eq!(store.request("caller/1").await.expect("request"), Some(request("caller/1", 10)));
    assert_eq!(store.request("other/1").await.expect("request"), None);
    let again = store.commit(insert(a_key("must-not-stay"), request("caller/1", 20))).await;
    assert!(matches!(again, Err(Fault::Exists(_))), "{again:?}");
    store.commit(insert(a_key("requested-2"), request("caller/2", 30))).await.expect("commit");
    assert_eq!(store.forget_requests(at(30)).await.expect("forget"), 1);
    assert_eq!(store.request("caller/1").await.expect("request"), None);
    assert!(store.request("caller/2").await.expect("request").is_some());
}

async fn there_is_one_bootstrap_ever_and_revocation_stays<S: Store>(store: &S) {
    let token = |name: &str, bootstrap| AccessToken {
        name: name.to_owned(),
        sha256: [u8::try_from(name.len()).unwrap_or(0); 32],
        own: Some(OwnRole {
            role: Role::User,
            keys: KeyScope::Only(Arc::from([a_key("a").id, a_key("b").id])),
        }),
        bootstrap,
        created_at: at(1),
        expires_at: Some(at(2)),
        period: Some(SignedDuration::from_secs(60)),
        renewable_until: Some(at(200)),
        bound_to: "spiffe://example.org/vault".parse().ok(),
        revoked_at: None,
    };
    let own = Some(OwnRole { role: Role::Administrator, keys: KeyScope::All });
    let first =
        AccessToken { own, period: None, renewable_until: None, bound_to: None, ..token("first", true) };
    let insert = |token| store.commit(transaction(vec![Write::InsertAccessToken(token)]));
    insert(first.clone()).await.expect("commit");
    insert(token("user-token", false)).await.expect("commit");
    assert!(
        matches!(insert(token("user-token", false)).await, Err(Fault::Exists(_))),
        "a name was taken twice"
    );
    let revoke = Write::RevokeAccessToken { name: "first".to_owned(), at: at(5) };
    store.commit(transaction(vec![revoke.clone()])).await.expect("commit");
    let again = store.commit(transaction(vec![revoke])).await;
    assert!(matches!(again, Err(Fault::Changed(_))), "revoked twice: {again:?}");
    let second = insert(token("second-boot", true)).await;
    assert!(
        matches!(second, Err(Fault::Exists(_))),
        "a second bootstrap after the first was revoked: {second:?}"
    );
    let mut tokens = store.load(None).await.expect("load").access_tokens;
    tokens.sort_by(|a, b| a.name.cmp(&b.name));
    let revoked = AccessToken { revoked_at: Some(at(5)), ..first };
    assert_eq!(tokens, vec![revoked, token("user-token", false)]);
}

async fn an_epoch_moves_with_its_transaction_and_each_move_counts<S: Store>(store: &S) {
    let commit = |writes| store.commit(transaction(writes));
    let read = || async { store.load(None).await.expect("load").epoch };
    let nonce = [7; 8];
    let moved = Write::MoveEpoch { past: 0, nonce };
    assert_eq!(read().await, None);
    for write in [moved.clone(), Write::ConfirmEpoch { value: 0 }] {
        let outcome = commit(vec![Write::InsertKey(a_key("must-not-stay")), write]).await;
        assert!(matches!(outcome, Err(Fault::Changed(_))), "there is no epoch: {outcome:?}");
    }
    let first = Epoch { installation: Installation([3; 16]), value: 1, nonce: [6; 8], in_token: 0 };
    commit(vec![Write::InsertEpoch(first)]).await.expect("commit");
    assert_eq!(read().await, Some(first));
    let other = Epoch { installation: Installation([4; 16]), ..first };
    let second = commit(vec![Write::InsertEpoch(other)]).await;
    assert!(matches!(second, Err(Fault::Exists(_))), "a second epoch: {second:?}");

    let one = || commit(vec![moved.clone()]);
    let both = futures::join!(one(), one());
    assert!(both.0.is_ok() && both.1.is_ok(), "{both:?}");
    assert_eq!(read().await, Some(Epoch { value: 3, nonce, ..first }), "each of two at once counts");
    let failing = commit(vec![moved.clone(), Write::UpdateKey(a_key("unknown-to-all"))]).await;
    assert!(failing.is_err(), "{failing:?}");
    assert_eq!(read().await, Some(Epoch { value: 3, nonce, ..first }), "a failed change moves nothing");

    commit(vec![Write::ConfirmEpoch { value: 2 }]).await.expect("commit");
    assert_eq!(read().await, Some(Epoch { value: 3, in_token: 2, nonce, ..first }));
    let early = commit(vec![Write::ConfirmEpoch { value: 4 }]).await;
    assert!(matches!(early, Err(Fault::Changed(_))), "it is not reached yet: {early:?}");
    commit(vec![Write::MoveEpoch { past: 9, nonce: [8; 8] }]).await.expect("commit");
    commit(vec![Write::MoveEpoch { past: 9, nonce: [8; 8] }]).await.expect("commit");
    assert_eq!(
        read().await,
        Some(Epoch { value: 11, in_token: 2, nonce: [8; 8], ..first }),
        "past what was named"
    );
}

async fn an_object_is_quarantined_once_and_stays_so<S: Store>(store: &S) {
    let object = |token_serial: &str, cka_id: &[u8]| QuarantinedObject {
        token_serial: token_serial.to_owned(),
        cka_id: cka_id.to_vec(),
        note: "left by the vendor's tool".to_owned(),
        by: "access-token:admin".to_owned(),
        at: at(7),
    };
    let objects = [object("a", &[0; 64]), object("a", &[1]), object("a", &[1, 0]), object("b", &[1])];
    let writes = objects.iter().rev().cloned().map(Write::Quarantine).collect();
    store.commit(transaction(writes)).await.expect("commit");
    let again = store.commit(transaction(vec![Write::Quarantine(object("b", &[1]))])).await;
    assert!(matches!(again, Err(Fault::Exists(_))), "quarantined twice: {again:?}");
    assert_eq!(store.load(None).await.expect("load").quarantined, objects);
}

async fn a_pin_latch_comes_back_as_it_was_written_and_only_over_what_was_expected<S: Store>(store: &S) {
    let [place, other] = [1, 2].map(|pin_generation| latch_place("written", pin_generation));
    assert_eq!(store.pin_latch(&place).await.expect("it reads"), State::UNTRIED);
    let stale = store.set_pin_latch(&place, State::PROVEN, State::UNTRIED).await;
    assert!(matches!(stale, Err(Fault::Changed(_))), "{stale:?}");
    let generation = store.check().await.expect("check");
    let trying = |second| Some(Try { by: Holder::new("host/1/\u{e9}"), since: at(second) });
    let mut before = State::UNTRIED;
    for state in [
        State::Unproven { trying: trying(1) },
        State::Unproven { trying: None },
        State::Proven { trying: None, deaths: 0 },
        State::Proven { trying: trying(2), deaths: 1 },
        State::Refused { text: "C_Login gave PinIncorrect".to_owned(), at: at(3) },
        State::Proven { trying: trying(4), deaths: 0 },
    ] {
        store.set_pin_latch(&place, before.clone(), state.clone()).await.expect("it writes");
        assert_eq!(store.pin_latch(&place).await.expect("it reads"), state);
        let stale = store.set_pin_latch(&place, before, State::PROVEN).await;
        assert!(matches!(stale, Err(Fault::Changed(_))), "{stale:?}");
        assert_eq!(store.pin_latch(&place).await.expect("it reads"), state);
        before = state;
    }
    assert_eq!(store.pin_latch(&other).await.expect("it reads"), State::UNTRIED, "one is not another");
    assert_eq!(store.check().await.expect("check"), generation, "the catalog knows nothing of it");
}

async fn of_two_that_take_a_pin_latch_at_once_one_wins<S: Store>(store: &S) {
    let place = latch_place("contended", 1);
    let take = |name: &str| {
        let trying = Some(Try { by: Holder::new(name), since: at(1) });
        store.set_pin_latch(&place, State::UNTRIED, State::Unproven { trying })
    };
    let (one, two) = futures::join!(take("one"), take("two"));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    let state = store.pin_latch(&place).await.expect("it reads");
    let winner = if one.is_ok() { "one" } else { "two" };
    assert_eq!(state.trying().map(|trying| trying.by.as_str()), Some(winner));
}

fn latch_place(token_serial: &str, pin_generation: u32) -> Place {
    Place { token_serial: token_serial.to_owned(), pin_generation }
}

fn transaction(writes: Vec<Write>) -> Transaction {
    Transaction::new("conformance", writes)
}

async fn of_two_that_change_a_class_at_once_one_wins<S: Store>(store: &S) {
    let periods = Periods {
        rotation_period: None,
        publish_lead: SignedDuration::from_secs(60),
        max_token_ttl: SignedDuration::from_secs(61),
        overlap: SignedDuration::ZERO,
        destroy_after: Some(SignedDuration::from_hours(1)),
    };
    let class = |revision| KeyClass {
        name: ClassName::Api,
        periods,
        approvals: u32::try_from(revision).unwrap_or(0) + 1,
        revision,
        updated_at: Some(at(revision as i64)),
    };
    let put = async |revision| store.commit(transaction(vec![Write::PutClass(class(revision))])).await;
    assert!(matches!(put(2).await, Err(Fault::Changed(_))), "one that was never changed has no revision 1");
    let before = store.load(None).await.expect("load").generation;
    put(1).await.expect("commit");
    assert!(matches!(put(1).await, Err(Fault::Changed(_) | Fault::Exists(_))));
    put(2).await.expect("commit");
    assert!(matches!(put(2).await, Err(Fault::Changed(_))));
    for since in [None, Some(before)] {
        assert_eq!(store.load(since).await.expect("load").classes, [class(2)]);
    }
    let now = store.load(None).await.expect("load").generation;
    assert_eq!(store.load(Some(now)).await.expect("load").classes, []);
}

fn next(key: &Key) -> Key {
    Key { revision: key.revision + 1, publish_lead: SignedDuration::from_secs(77), ..key.clone() }
}

fn version(number: u32, timeline: Option<Timeline>) -> KeyVersion {
    let maker = timeline.is_none().then(|| ReplicaId::new("some-host/1/00000001"));
    KeyVersion {
        maker,
        number,
        cka_id: fresh_id(),
        earlier_attempts: Vec::new(),
        token_serial: "5eri4l".to_owned(),
        created_at: at(1),
        born: timeline.map(|timeline| Born {
            material: Material::Pair { spki: Arc::from(&b"spki"[..]), kid: Kid::from_stored("kid") },
            timeline,
        }),
        suspended: false,
        compromise: None,
        takes_over: TakeOver::AfterLead,
        cross_signature: None,
        destroyed_at: None,
    }
}

fn timeline(end: Option<i64>) -> Timeline {
    Timeline {
        published_at: at(2),
        activates_at: at(3),
        retires_at: end.map(at),
        withdrawn_at: end.map(|end| at(end + 1)),
        destroys_at: end.map(|end| at(end + 2)),
    }
}

/// No two versions may share an object in the token.
fn fresh_id() -> CkaId {
    let mut id = [0; 16];
    entropy(&mut id).expect("entropy");
    CkaId::from_bytes(id)
}

/// Seconds and microseconds: what a store must keep.
fn at(second: i64) -> Timestamp {
    Timestamp::from_microsecond(1_700_000_000_000_000 + second * 1_000_000 + 123_456).expect("a time")
}
