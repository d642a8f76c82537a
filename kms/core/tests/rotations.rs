//! How rotation stands, told to metrics: what is late, what failed, and what healed.

#![expect(clippy::expect_used, reason = "a test's verdict is a panic")]

use futures::executor::block_on;
use kms_core::{
    Algorithm, KeyId,
    class::AskedPeriods,
    fakes::{FakeKms, World, administrator, soon},
    kms::Settings,
    time::{SignedDuration, Timestamp},
    verbs::{ChangeVersion, CreateKey, KeyRotation, OVERDUE_AFTER, Request, RevokeKeyVersion, Rotations},
};

const SECOND: SignedDuration = SignedDuration::from_secs(1);

#[test]
fn a_rotation_that_is_due_is_overdue_after_its_time_and_well_again_when_it_is_done() {
    block_on(async {
        let (world, kms) = with_keys(&["k"], hours(24)).await;
        let created = now(&world);
        let key = only(&kms);
        assert!(key.succeeds);
        // A first version counts from where every clock has it.
        let expires_at = created + hours(24) - SECOND * 10;
        assert_eq!((key.expires_at, key.next_activate_at), (Some(expires_at), Some(expires_at)));
        assert_eq!(key.next_publish_at, Some(expires_at - hours(1)));
        assert_eq!((key.active_since, key.retires_at), (Some(created - SECOND * 10), None));
        assert_eq!((key.published, key.failures), (1, 0));

        world.clock.advance(hours(23) - SECOND * 10 + OVERDUE_AFTER - SECOND);
        assert!(only(&kms).succeeds, "not a second early");
        world.clock.advance(SECOND);
        let late = only(&kms);
        assert!(!late.succeeds);
        assert_eq!((late.expires_at, late.next_publish_at), (Some(expires_at), key.next_publish_at));
        let earliest = now(&world) + hours(1);
        assert_eq!(late.next_activate_at, Some(earliest), "the lead is kept, however late it is");
        let all = kms.rotations(0);
        assert_eq!((all.overdue, all.failing, all.earliest_expiry), (1, 0, Some(expires_at)));

        assert_eq!(kms.run_due(soon()).await, 1);
        let healed = only(&kms);
        assert!(healed.succeeds);
        assert_eq!((healed.expires_at, healed.retires_at), (Some(earliest), Some(earliest)));
        assert_eq!(healed.next_publish_at, Some(earliest + hours(23)));
        assert_eq!(healed.published, 2);
    });
}

#[test]
fn a_rotation_that_fails_is_told_at_once_counted_and_over_when_the_hsm_is_back() {
    block_on(async {
        let (world, kms) = with_keys(&["k", "other"], hours(24)).await;
        let expires_at = kms.rotations(1).keys[0].expires_at;
        world.clock.advance(hours(23) - SECOND * 10);
        world.hsm.set_down(true);
        assert_eq!(kms.run_due(soon()).await, 0);
        let all = kms.rotations(10);
        assert_eq!((all.failing, all.overdue, all.failures), (2, 0, 2));
        assert!(all.keys.iter().all(|key| !key.succeeds && key.failures == 1), "{all:?}");
        assert_eq!(all.keys[0].expires_at, expires_at, "also while the next version is being made");
        assert_eq!(all.without_active_version, 0, "the old one signs on");

        world.clock.advance(SECOND * 5);
        assert_eq!(kms.resume_births(soon()).await, 0);
        assert_eq!(only_named(&kms, "k").failures, 2, "each attempt counts");
        world.clock.advance(hours(1));
        assert_eq!((kms.rotations(10).overdue, kms.rotations(10).failing), (2, 2));

        world.hsm.set_down(false);
        world.clock.advance(hours(1));
        assert_eq!(kms.resume_births(soon()).await, 2);
        let all = kms.rotations(10);
        assert_eq!((all.failing, all.overdue, all.failures), (0, 0, 4), "what was counted stays counted");
        assert!(all.keys.iter().all(|key| key.succeeds), "{all:?}");

        // The next due rotation starts without the stain of the one before it.
        world.clock.advance(hours(24));
        let all = kms.rotations(10);
        assert!(
            all.keys.iter().all(|key| key.next_publish_at <= Some(now(&world)) && key.succeeds),
            "{all:?}"
        );
    });
}

#[test]
fn a_birth_that_never_ends_does_not_hide_that_the_rotation_is_late() {
    block_on(async {
        let (world, kms) = with_keys(&["k"], hours(24)).await;
        world.clock.advance(hours(48));
        world.hsm.set_down(true);
        kms.run_due(soon()).await;
        // Another process knows of no failure.
        world.hsm.set_down(false);
        let kms = open(&world).await;
        let key = only(&kms);
        assert_eq!((key.failures, key.succeeds), (0, false));
        assert!(key.next_publish_at < Some(now(&world) - hours(24)), "{key:?}");
    });
}

#[test]
fn a_key_without_a_plan_has_no_expiry_and_one_that_was_never_born_has_no_active_version() {
    block_on(async {
        let (world, kms) = with_keys(&["k"], SignedDuration::ZERO).await;
        world.clock.advance(hours(24 * 400));
        let key = only(&kms);
        assert_eq!((key.expires_at, key.next_publish_at, key.next_activate_at), (None, None, None));
        assert!(key.succeeds);
        assert_eq!(kms.rotations(0).earliest_expiry, None);

        world.hsm.set_down(true);
        let unborn = CreateKey { owner: "team".to_owned(), ..CreateKey::new(id("new"), Algorithm::Es256) };
        kms.create_key(&administrator(), unborn, soon()).await.expect_err("the HSM is down");
        world.clock.advance(hours(1));
        let all = kms.rotations(10);
        assert_eq!((all.without_active_version, all.overdue, all.failing), (1, 0, 0));
        assert_eq!(only_named(&kms, "new").active_since, None);
    });
}

#[test]
fn a_revoked_version_without_a_successor_is_told_until_it_has_one() {
    block_on(async {
        let (world, kms) = with_keys(&["k"], SignedDuration::ZERO).await;
        world.hsm.set_down(true);
        let change = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
        let revoke = RevokeKeyVersion { change, reason: "it was seen elsewhere".to_owned() };
        kms.revoke_key_version(&administrator(), revoke, soon()).await.expect("revoked");
        world.clock.advance(OVERDUE_AFTER);
        let all = kms.rotations(1);
        assert_eq!((all.without_active_version, all.overdue), (1, 1));
        assert!(!all.keys[0].succeeds && all.keys[0].published == 0, "{all:?}");

        world.hsm.set_down(false);
        world.clock.advance(hours(1));
        assert_eq!(kms.resume_births(soon()).await + kms.run_due(soon()).await, 1);
        let all = kms.rotations(1);
        assert_eq!((all.without_active_version, all.without_successor, all.overdue), (0, 0, 0));
    });
}

#[test]
fn keys_beyond_the_most_are_in_the_sums_and_not_in_the_list() {
    block_on(async {
        let (world, kms) = with_keys(&["c", "a", "b"], hours(24)).await;
        world.clock.advance(hours(24));
        let all = kms.rotations(2);
        let listed: Vec<_> = all.keys.iter().map(|key| key.id.as_str()).collect();
        assert_eq!(listed, ["a", "b"]);
        assert_eq!((all.total, all.overdue), (3, 3));
        let sums = Rotations { keys: vec![], ..all };
        assert_eq!(kms.rotations(0), sums);
    });
}

async fn with_keys(names: &[&str], rotation_period: SignedDuration) -> (World, FakeKms) {
    let world = World::default();
    let kms = open(&world).await;
    for name in names {
        let periods = AskedPeriods {
            rotation_period: Some(rotation_period),
            publish_lead: Some(hours(1)),
            ..AskedPeriods::default()
        };
        let key =
            CreateKey { owner: "team".to_owned(), periods, ..CreateKey::new(id(name), Algorithm::Es256) };
        kms.create_key(&administrator(), key, soon()).await.expect("created");
    }
    (world, kms)
}

async fn open(world: &World) -> FakeKms {
    world.open(Settings::default()).await.expect("the service opens")
}

fn only(kms: &FakeKms) -> KeyRotation {
    let Rotations { mut keys, .. } = kms.rotations(10);
    assert_eq!(keys.len(), 1);
    keys.remove(0)
}

fn only_named(kms: &FakeKms, name: &str) -> KeyRotation {
    let mut keys = kms.rotations(10).keys.into_iter();
    keys.find(|key| key.id.as_str() == name).expect("the key")
}

fn now(world: &World) -> Timestamp {
    use kms_core::Clock as _;
    world.clock.now()
}

fn id(name: &str) -> KeyId {
    name.parse().expect("a key's name")
}

fn hours(count: i64) -> SignedDuration {
    SignedDuration::from_hours(count)
}
