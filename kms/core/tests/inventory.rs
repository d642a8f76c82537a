//! Reconciliation and attribute audit, over fakes: what the token holds against what the store knows.

#![expect(clippy::expect_used, reason = "a test's verdict is a panic")]

use std::sync::Arc;

use futures::executor::block_on;
use kms_core::{
    Action, Algorithm, Caller, KeyId, KeyState, Store,
    algorithm::{Curve, KeySpec},
    audit::{Event, Outcome, Phase},
    caller::{KeyScope, OwnRole, Role},
    error::Kind,
    fakes::{FakeKms, HsmFault, World, administrator, soon},
    hsm::{self, CkaId, Half, KeyObject, Object},
    inventory::{Finding, Inventory, Item, State},
    kms::Settings,
    store::{Fault, QuarantinedObject, Transaction, Write},
    time::SignedDuration,
    verbs::{
        ChangeVersion, CreateAccessToken, CreateKey, Encoding, Quarantine, Request, RotateKey, Sign, ToSign,
    },
};

const SPEC: KeySpec = KeySpec::Ec(Curve::P256);

fn id(name: &str) -> KeyId {
    name.parse().expect("a key's name")
}

async fn open(world: &World) -> FakeKms {
    world.open(Settings { allow_destroy: true, ..Settings::default() }).await.expect("the service opens")
}

async fn create(kms: &FakeKms, name: &str) -> Result<(), kms_core::Error> {
    let key = CreateKey { owner: "team".to_owned(), ..CreateKey::new(id(name), Algorithm::Es256) };
    kms.create_key(&administrator(), key, soon()).await.map(drop)
}

/// A service with one key, and the CKA_ID of its version.
async fn with_key(name: &str) -> (World, FakeKms, CkaId) {
    let world = World::default();
    let kms = open(&world).await;
    create(&kms, name).await.expect("created");
    let cka_id = cka_id(&kms, name, 1).await;
    (world, kms, cka_id)
}

async fn cka_id(kms: &FakeKms, name: &str, number: u32) -> CkaId {
    let versions = kms.list_key_versions(&administrator(), &id(name)).await.expect("versions");
    versions.iter().find(|version| version.row.number == number).expect("the version").row.cka_id
}

async fn state_of(kms: &FakeKms, name: &str, number: u32) -> Option<KeyState> {
    let versions = kms.list_key_versions(&administrator(), &id(name)).await.expect("versions");
    versions.iter().find(|version| version.row.number == number).expect("the version").state
}

async fn inventory(kms: &FakeKms) -> Inventory {
    kms.inventory(&administrator(), soon()).await.expect("an inventory")
}

async fn only_item(kms: &FakeKms) -> Item {
    let mut items = inventory(kms).await.items;
    assert_eq!(items.len(), 1, "{items:#?}");
    items.remove(0)
}

async fn signs(kms: &FakeKms, name: &str) -> Result<u32, &'static str> {
    let input = ToSign::Message(b"hello".to_vec());
    let request = Sign { id: id(name), version: None, input, encoding: Encoding::Jose };
    let signed = kms.sign(&administrator(), request, soon()).await;
    signed.map(|signed| signed.version).map_err(|error| error.reason())
}

fn change(name: &str, number: u32) -> ChangeVersion {
    ChangeVersion { id: id(name), number, request: Request::default() }
}

fn quarantine(cka_id: &[u8]) -> Quarantine {
    Quarantine { cka_id: cka_id.to_vec(), note: "seen, and left alone".to_owned() }
}

fn planted(cka_id: &[u8], label: &str) -> Object {
    let half = Half::Private(KeyObject::AS_IT_MUST_BE);
    Object { cka_id: cka_id.to_vec(), label: label.to_owned(), half }
}

#[test]
fn only_an_administrator_of_every_key_sees_the_token_or_quarantines_and_each_look_is_recorded() {
    block_on(async {
        let (world, kms, _) = with_key("k").await;
        let scoped = Caller::new("access-token:a", Role::Administrator, KeyScope::Only([id("k")].into()));
        let user = Caller::new("access-token:u", Role::User, KeyScope::All);
        for caller in [scoped, user] {
            let denied = kms.inventory(&caller, soon()).await.expect_err("denied");
            assert_eq!(denied.kind(), Kind::PermissionDenied);
            let denied = kms.quarantine(&caller, quarantine(&[1]), soon()).await.expect_err("denied");
            assert_eq!(denied.kind(), Kind::PermissionDenied);
        }
        inventory(&kms).await;
        let last = world.log.events().pop().expect("a record");
        assert_eq!((last.action, last.outcome), (Action::GetInventory, Outcome::Succeeded));
    });
}

#[test]
fn the_records_of_a_change_tell_what_it_is_about_from_the_intent_on_and_those_of_a_denial_too() {
    block_on(async {
        let (world, kms, _) = with_key("k").await;
        let told = || {
            let events = world.log.events();
            let last: Vec<_> = events.iter().rev().take(2).rev().collect();
            let told =
                |event: &&Event| (event.phase, event.version, event.target.as_deref().map(str::to_owned));
            last.iter().map(told).collect::<Vec<_>>()
        };
        let both = |version: Option<u32>, target: Option<&str>| {
            [Phase::Intent, Phase::Outcome].map(|phase| (phase, version, target.map(str::to_owned))).to_vec()
        };
        world.hsm.plant(planted(&[0xaa; 16], "elsewhere/7"));
        kms.quarantine(&administrator(), quarantine(&[0xaa; 16]), soon()).await.expect("on record");
        assert_eq!(told(), both(None, Some(&"aa".repeat(16))));
        let create =
            |name: &str| CreateAccessToken::new(name, OwnRole { role: Role::User, keys: KeyScope::All });
        kms.create_access_token(&administrator(), create("carol")).await.expect("made");
        assert_eq!(told(), both(None, Some("carol")));
        kms.revoke_access_token(&administrator(), "carol").await.expect("revoked");
        assert_eq!(told(), both(None, Some("carol")));
        kms.revoke_access_token(&administrator(), "kms_SECRET").await.expect_err("no name");
        assert_eq!(told(), both(None, None), "whatever is no name is not put on record");
        kms.quarantine(&administrator(), quarantine(&[7; 5000]), soon()).await.expect_err("too long");
        assert_eq!(told(), both(None, None));

        let (administrator, change) = (administrator(), || change("k", 1));
        kms.disable_key_version(&administrator, change()).await.expect("disabled");
        assert_eq!(told(), both(Some(1), None));
        kms.enable_key_version(&administrator, change(), soon()).await.expect("enabled");
        assert_eq!(told(), both(Some(1), None));
        kms.destroy_key_version(&administrator, change(), "keys/k/versions/1").await.expect_err("in use");
        assert_eq!(told(), both(Some(1), None));
        kms.restore_key_version(&administrator, change()).await.ok();
        assert_eq!(told(), both(Some(1), None));

        let user = Caller::new("access-token:u", Role::User, KeyScope::All);
        kms.revoke_access_token(&user, "carol").await.expect_err("denied");
        let last = world.log.events().pop().expect("a record");
        assert_eq!((last.outcome, last.target.as_deref()), (Outcome::Denied, Some("carol")));
        kms.disable_key_version(&user, change()).await.expect_err("denied");
        let last = world.log.events().pop().expect("a record");
        assert_eq!((last.outcome, last.version), (Outcome::Denied, Some(1)));
    });
}

#[test]
fn each_object_and_each_row_is_told_for_what_it_is() {
    block_on(async {
        let (world, kms, live) = with_key("live").await;
        for name in ["lost", "tampered", "replaced", "half"] {
            create(&kms, name).await.expect("created");
        }
        let lost = cka_id(&kms, "lost", 1).await;
        world.hsm.lose(lost);
        let tampered = cka_id(&kms, "tampered", 1).await;
        world.hsm.tamper(tampered, |object| object.extractable = true);
        let replaced = cka_id(&kms, "replaced", 1).await;
        world.hsm.replace(replaced, SPEC);
        let half = cka_id(&kms, "half", 1).await;
        world.hsm.plant(planted(half.as_bytes(), "half/1"));
        world.hsm.set_fault(HsmFault::GenerateFails);
        create(&kms, "resuming").await.expect_err("generate fails");
        let resuming = cka_id(&kms, "resuming", 1).await;
        world.hsm.plant(planted(&[0xaa; 16], "elsewhere/7"));
        world.hsm.plant(planted(&[0xbb; 16], "somebody's"));
        world.hsm.plant(planted(&[0xcc; 20], "elsewhere/7"));
        world.hsm.plant(planted(&[], ""));

        let inventory = inventory(&kms).await;
        let item = |cka_id: &[u8]| {
            let item = inventory.items.iter().find(|item| item.cka_id == cka_id).expect("an item");
            (item.state, item.finding.map(|finding| finding.reason()), item.private, item.public)
        };
        assert_eq!(item(live.as_bytes()), (State::Live, None, 1, 1));
        assert_eq!(item(lost.as_bytes()), (State::Dangling, Some("PAIR_NOT_WHOLE"), 0, 0));
        assert_eq!(item(half.as_bytes()), (State::Dangling, Some("PAIR_NOT_WHOLE"), 2, 1));
        assert_eq!(item(replaced.as_bytes()), (State::Dangling, Some("PUBLIC_KEY_DIFFERS"), 1, 1));
        assert_eq!(item(tampered.as_bytes()), (State::Deviating, Some("ATTRIBUTES_DEVIATE"), 1, 1));
        assert_eq!(item(resuming.as_bytes()), (State::Resuming, None, 0, 0));
        assert_eq!(item(&[0xaa; 16]), (State::Orphan, None, 1, 0));
        assert_eq!(item(&[0xbb; 16]), (State::Foreign, None, 1, 0));
        assert_eq!(item(&[0xcc; 20]), (State::Foreign, None, 1, 0), "ours have 16 bytes");
        assert_eq!(item(&[]), (State::Foreign, None, 1, 0));
        assert!(inventory.items.is_sorted_by(|a, b| a.cka_id < b.cka_id));
        let counts: Vec<u64> = inventory.counts().iter().map(|(_, count)| count).collect();
        assert_eq!(counts, [1, 1, 1, 3, 1, 3, 0]);
    });
}

#[test]
fn a_pair_of_an_attempt_that_was_given_up_is_an_orphan_of_its_version() {
    block_on(async {
        let world = World::default();
        let kms = open(&world).await;
        world.hsm.set_fault(HsmFault::GenerateExtractable);
        create(&kms, "k").await.expect_err("extractable");
        assert_eq!(only_item(&kms).await.state, State::Resuming);
        assert_eq!(kms.resume_births(soon()).await, 1);
        let inventory = inventory(&kms).await;
        let orphan = inventory.items.iter().find(|item| item.state == State::Orphan).expect("an orphan");
        assert_eq!(orphan.version, Some((id("k"), 1)));
        assert_eq!((inventory.items.len(), inventory.counts().of(State::Live)), (2, 1));
        assert_eq!(world.hsm.count().0, 2, "nothing is destroyed");
    });
}

#[test]
fn an_older_database_makes_later_keys_orphans_and_destroys_none() {
    block_on(async {
        let (world, kms, _) = with_key("before").await;
        let backup = Arc::new(world.store.copy());
        for name in ["after-1", "after-2"] {
            create(&kms, name).await.expect("created");
        }
        kms.rotate_key(&administrator(), RotateKey::new(id("before")), soon()).await.expect("rotates");
        drop(kms);
        let restored = World { store: backup, ..world.clone() };
        let kms = open(&restored).await;
        kms.audit_attributes(soon()).await.expect("an audit");
        kms.resume_births(soon()).await;
        kms.run_due(soon()).await;
        let inventory = inventory(&kms).await;
        let mut orphans: Vec<_> = inventory
            .items
            .iter()
            .filter(|item| item.state == State::Orphan)
            .map(|item| item.label.as_str())
            .collect();
        orphans.sort_unstable();
        assert_eq!(orphans, ["after-1/1", "after-2/1", "before/2"]);
        assert_eq!(inventory.counts().of(State::Live), 1);
        assert_eq!(world.hsm.count().0, 4, "nothing is destroyed");
        // The token has seen a newer database: what is missing may be looked at, and not decided yet.
        let orphan = inventory.items.iter().find(|item| item.state == State::Orphan).expect("an orphan");
        let refused = kms.quarantine(&administrator(), quarantine(&orphan.cka_id), soon()).await;
        assert_eq!(refused.expect_err("in recovery mode").reason(), "RECOVERY_MODE");
    });
}

#[test]
fn what_the_pages_missed_is_looked_for_before_it_is_called_dangling() {
    block_on(async {
        let (world, kms, cka_id) = with_key("k").await;
        world.hsm.set_fault(HsmFault::ListMisses);
        assert_eq!(only_item(&kms).await.state, State::Live);
        world.hsm.lose(cka_id);
        let item = only_item(&kms).await;
        let missing = Finding::NotWhole { private: 0, public: 0, secret: 0 };
        assert_eq!((item.state, item.finding), (State::Dangling, Some(missing)));
    });
}

#[test]
fn a_fault_of_the_hsm_is_no_finding() {
    block_on(async {
        let (world, kms, cka_id) = with_key("k").await;
        let counts = kms.audit_attributes(soon()).await.expect("an audit");
        let before = kms.attribute_audits();
        assert_eq!((before.counts, before.suspended), (Some(counts), 0));
        world.clock.advance(SignedDuration::from_hours(1));
        world.hsm.tamper(cka_id, |object| object.extractable = true);
        for fault in [HsmFault::ListFails, HsmFault::FindFails] {
            world.hsm.set_fault(fault);
            kms.audit_attributes(soon()).await.expect_err("the HSM is away");
            assert_eq!(kms.attribute_audits(), before, "{fault:?}");
            assert_eq!(signs(&kms, "k").await, Ok(1), "{fault:?}");
        }
    });
}

#[test]
fn a_key_that_is_missing_or_another_one_sends_the_operator_to_the_inventory() {
    for fault in [hsm::Fault::KeyNotFound, hsm::Fault::KeyMismatch("another one".to_owned())] {
        let error = kms_core::Error::from(fault);
        assert!(error.to_string().contains("`kms hsm inventory`"), "{error}");
    }
}

#[test]
fn a_token_that_shows_nothing_takes_no_version_out_of_service() {
    block_on(async {
        let (world, kms, cka_id) = with_key("k").await;
        world.hsm.lose(cka_id);
        let counts = kms.audit_attributes(soon()).await.expect("an audit");
        assert_eq!(counts.of(State::Dangling), 1);
        assert_eq!(state_of(&kms, "k", 1).await, Some(KeyState::Active));
    });
}

/// Makes a private key differ from its template.
type Mutation = fn(&mut KeyObject);

#[test]
fn a_version_whose_objects_differ_is_taken_out_of_service_for_good_and_on_record() {
    let mutations: [(&str, Mutation); 13] = [
        ("CKA_TOKEN is false", |object| object.token = false),
        ("CKA_PRIVATE is false", |object| object.private = false),
        ("CKA_SENSITIVE is false", |object| object.sensitive = false),
        ("CKA_EXTRACTABLE is true", |object| object.extractable = true),
        ("CKA_ALWAYS_SENSITIVE is false", |object| object.always_sensitive = false),
        ("CKA_NEVER_EXTRACTABLE is false", |object| object.never_extractable = false),
        ("CKA_LOCAL is false", |object| object.local = false),
        ("CKA_MODIFIABLE is true", |object| object.modifiable = true),
        ("CKA_COPYABLE is true", |object| object.copyable = Some(true)),
        ("CKA_SIGN is false", |object| object.sign = false),
        ("a use other than its own is allowed", |object| object.other_use = true),
        ("a use other than its own is allowed", |object| object.encrypt = true),
        ("a use other than its own is allowed", |object| object.decrypt = true),
    ];
    for (text, mutation) in mutations {
        block_on(async {
            let (world, kms, cka_id) = with_key("k").await;
            world.hsm.tamper(cka_id, mutation);
            kms.audit_attributes(soon()).await.expect("an audit");
            assert_eq!(kms.attribute_audits().suspended, 1, "{text}");
            let last = world.log.events().pop().expect("a record");
            assert_eq!((last.action, last.outcome), (Action::DisableKeyVersion, Outcome::Succeeded));
            assert_eq!((&*last.caller, last.version), ("system:attribute-audit", Some(1)));
            assert_eq!(last.reason, Some("ATTRIBUTES_DEVIATE".into()));
            // After a restart, too.
            drop(kms);
            let kms = open(&world).await;
            assert_eq!(signs(&kms, "k").await, Err("NO_ACTIVE_VERSION"), "{text}");
            kms.audit_attributes(soon()).await.expect("an audit");
            assert_eq!(kms.attribute_audits().suspended, 0, "once is enough");

            let refused = kms.enable_key_version(&administrator(), change("k", 1), soon()).await;
            let refused = refused.expect_err("the deviation stands");
            assert_eq!((refused.kind(), refused.reason()), (Kind::FailedPrecondition, "ATTRIBUTES_DEVIATE"));
            assert!(refused.to_string().contains(text), "{refused}");
            world.hsm.tamper(cka_id, |object| *object = KeyObject::AS_IT_MUST_BE);
            kms.enable_key_version(&administrator(), change("k", 1), soon())
                .await
                .expect("it is as it must be");
            assert_eq!(signs(&kms, "k").await, Ok(1));
        });
    }
}

#[test]
fn an_object_that_somebody_without_the_pin_adds_raises_an_alarm_and_suspends_nothing() {
    let public = KeyObject { private: false, local: false, ..KeyObject::AS_IT_MUST_BE };
    let additions = [
        (Half::Public(Some(b"another key".to_vec())), (1, 2, 0)),
        (Half::Public(None), (1, 2, 0)),
        (Half::Private(public), (2, 1, 0)),
        (Half::Secret(public), (1, 1, 1)),
    ];
    for (half, (private, public, secret)) in additions {
        block_on(async {
            let (world, kms, cka_id) = with_key("k").await;
            let label = "k/1".to_owned();
            world.hsm.plant(Object { cka_id: cka_id.as_bytes().to_vec(), label, half });
            let counts = kms.audit_attributes(soon()).await.expect("an audit");
            assert_eq!((counts.of(State::Dangling), kms.attribute_audits().suspended), (1, 0));
            assert_eq!(state_of(&kms, "k", 1).await, Some(KeyState::Active));
            let expected = Finding::NotWhole { private, public, secret };
            assert_eq!(only_item(&kms).await.finding, Some(expected));
        });
    }
}

#[test]
fn another_key_under_the_cka_id_ends_the_version_and_a_missing_one_cannot_be_enabled() {
    block_on(async {
        let (world, kms, cka_id) = with_key("k").await;
        world.hsm.replace(cka_id, SPEC);
        let epoch = async || world.store.load(None).await.expect("rows").epoch.expect("an epoch").value;
        let before = epoch().await;
        kms.audit_attributes(soon()).await.expect("an audit");
        assert_eq!(epoch().await, before + 1, "no restored backup brings it back unseen");
        assert_eq!(state_of(&kms, "k", 1).await, Some(KeyState::Suspended));
        let last =
            world.log.events().into_iter().rev().find(|event| event.action == Action::DisableKeyVersion);
        assert_eq!(last.expect("a record").reason, Some("PUBLIC_KEY_DIFFERS".into()));
        world.hsm.lose(cka_id);
        let refused = kms.enable_key_version(&administrator(), change("k", 1), soon()).await;
        assert_eq!(refused.expect_err("it is missing").reason(), "PAIR_NOT_WHOLE");
        world.hsm.set_fault(HsmFault::FindFails);
        let refused = kms.enable_key_version(&administrator(), change("k", 1), soon()).await;
        assert_eq!(refused.expect_err("nobody knows").kind(), Kind::Unavailable);
    });
}

#[test]
fn when_a_successor_deviates_before_its_time_the_version_before_it_signs_on() {
    block_on(async {
        let (world, kms, _) = with_key("k").await;
        kms.rotate_key(&administrator(), RotateKey::new(id("k")), soon()).await.expect("rotates");
        let successor = cka_id(&kms, "k", 2).await;
        world.hsm.tamper(successor, |object| object.other_use = true);
        kms.audit_attributes(soon()).await.expect("an audit");
        world.clock.advance(SignedDuration::from_hours(48));
        assert_eq!(signs(&kms, "k").await, Ok(1), "nothing retires without a successor");
        assert_eq!(state_of(&kms, "k", 2).await, Some(KeyState::Suspended));
    });
}

#[test]
fn a_suspension_that_the_store_refuses_is_made_by_the_next_audit() {
    block_on(async {
        let (world, kms, cka_id) = with_key("k").await;
        world.hsm.tamper(cka_id, |object| object.extractable = true);
        world.store.fail_next(Fault::Unavailable("the disk is full".to_owned()));
        kms.audit_attributes(soon()).await.expect_err("the store is full");
        assert_eq!(kms.attribute_audits().last_success, None);
        assert_eq!(signs(&kms, "k").await, Ok(1));
        kms.audit_attributes(soon()).await.expect("an audit");
        assert_eq!(signs(&kms, "k").await, Err("NO_ACTIVE_VERSION"));
    });
}

#[test]
fn while_the_book_takes_no_record_nothing_is_audited() {
    block_on(async {
        let (world, kms, cka_id) = with_key("k").await;
        world.hsm.tamper(cka_id, |object| object.extractable = true);
        world.log.set_full(true);
        kms.audit_attributes(soon()).await.expect_err("the book is full");
        world.log.set_full(false);
        assert_eq!(signs(&kms, "k").await, Ok(1));
    });
}

#[test]
fn what_a_row_names_and_what_is_not_there_cannot_be_quarantined() {
    block_on(async {
        let (world, kms, live) = with_key("k").await;
        let admin = administrator();
        for name in ["lost", "tampered"] {
            create(&kms, name).await.expect("created");
        }
        let (lost, tampered) = (cka_id(&kms, "lost", 1).await, cka_id(&kms, "tampered", 1).await);
        world.hsm.lose(lost);
        world.hsm.tamper(tampered, |object| object.extractable = true);
        world.hsm.set_fault(HsmFault::GenerateLosesAnswer);
        create(&kms, "resuming").await.expect_err("the answer was lost");
        let resuming = cka_id(&kms, "resuming", 1).await;
        for cka_id in [live, lost, tampered, resuming] {
            let refused = kms.quarantine(&admin, quarantine(cka_id.as_bytes()), soon()).await;
            assert_eq!(refused.expect_err("a row names it").reason(), "OBJECT_IN_USE");
        }
        let refused = kms.quarantine(&admin, quarantine(&[1, 2, 3]), soon()).await;
        assert_eq!(refused.expect_err("nothing is there").kind(), Kind::NotFound);
        for (field, request) in [
            ("cka_id", quarantine(&[])),
            ("cka_id", quarantine(&[0; 65])),
            ("note", Quarantine { note: " ".to_owned(), ..quarantine(&[1]) }),
            ("note", Quarantine { note: "x".repeat(1025), ..quarantine(&[1]) }),
        ] {
            let refused = kms.quarantine(&admin, request, soon()).await.expect_err(field);
            assert_eq!(refused.field(), Some(field));
        }
        assert!(world.store.load(None).await.expect("rows").quarantined.is_empty());
    });
}

#[test]
fn a_quarantined_object_raises_no_alarm_stays_in_the_token_and_is_on_record_over_restarts() {
    block_on(async {
        let (world, kms, _) = with_key("k").await;
        world.hsm.plant(planted(&[0xaa; 16], "elsewhere/7"));
        world.hsm.plant(planted(&[0xcc; 20], "somebody's"));
        for cka_id in [&[0xaa; 16][..], &[0xcc; 20]] {
            for _ in 0..2 {
                let item = kms.quarantine(&administrator(), quarantine(cka_id), soon()).await;
                assert_eq!(item.expect("quarantined").state, State::Quarantined);
            }
        }
        let events = world.log.events();
        let recorded = events.iter().filter(|event| event.action == Action::QuarantineObject).count();
        assert_eq!(recorded, 8, "intent and outcome of each");
        let counts = kms.attribute_audits().counts.expect("counts");
        assert_eq!((counts.of(State::Quarantined), counts.of(State::Orphan)), (2, 0));
        drop(kms);
        let inventory = inventory(&open(&world).await).await;
        let records: Vec<_> = inventory.items.iter().filter_map(|item| item.quarantine.as_ref()).collect();
        assert_eq!(records.len(), 2, "the objects stay where they are");
        assert_eq!(
            (records[0].by.as_str(), records[0].note.as_str()),
            ("access-token:admin", "seen, and left alone")
        );
    });
}

#[test]
fn no_birth_adopts_a_quarantined_pair() {
    block_on(async {
        let world = World::default();
        let kms = open(&world).await;
        world.hsm.set_fault(HsmFault::GenerateLosesAnswer);
        create(&kms, "k").await.expect_err("the answer was lost");
        let quarantined = cka_id(&kms, "k", 1).await;
        drop(kms);
        // On record from a time when another database was in place.
        let record = QuarantinedObject {
            token_serial: "fake0000000000000".to_owned(),
            cka_id: quarantined.as_bytes().to_vec(),
            note: "left alone".to_owned(),
            by: "access-token:admin".to_owned(),
            at: kms_core::Clock::now(&world.clock),
        };
        let writes = vec![Write::Quarantine(record)];
        world.store.commit(Transaction::new("test", writes)).await.expect("written");
        let kms = open(&world).await;
        assert_eq!(kms.resume_births(soon()).await, 1);
        assert_ne!(cka_id(&kms, "k", 1).await, quarantined);
        assert_eq!(signs(&kms, "k").await, Ok(1));
        let inventory = inventory(&kms).await;
        assert_eq!(inventory.counts().of(State::Quarantined), 1, "it is still there, and left alone");
    });
}
