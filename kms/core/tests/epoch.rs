//! The epoch's stories, over fakes: what moves it, how the token follows through every cut, and what an older store
//! may do until it is accepted.

#![expect(clippy::expect_used, reason = "a test's verdict is a panic")]

use futures::executor::block_on;
use kms_core::{
    Action, Error, KeyId, Store as _,
    audit::{Outcome, Phase},
    caller::{Caller, KeyScope, OwnRole, Role},
    class::AskedPeriods,
    epoch::{Epoch, Installation, Mark, Recovery},
    error::Kind,
    fakes::{FakeKms, HsmFault, ServerLog, World, administrator, soon, with_consent},
    kms::Settings,
    store::Fault,
    time::SignedDuration,
    verbs::{
        ChangeVersion, CreateAccessToken, CreateKey, Encoding, Request, RotateKey, Sign, SignJwt, ToSign,
        UpdateKey, Verify,
    },
};

const THEIRS: Mark = Mark { installation: Installation([9; 16]), value: 1_000, nonce: [9; 8] };

/// Sets what goes wrong.
type Cut = fn(&World);

fn id(name: &str) -> KeyId {
    name.parse().expect("a key's name")
}

fn settings() -> Settings {
    Settings { allow_destroy: true, ..Settings::default() }
}

async fn open(world: &World) -> FakeKms {
    world.open(settings()).await.expect("the service opens")
}

/// The same, over a store that is older, with the code that the server's log has.
async fn open_older(world: &World) -> (FakeKms, String) {
    let log = ServerLog::keep();
    let kms = open(world).await;
    let code = log.acceptance_code().expect("the log has a code");
    (kms, code)
}

/// A service with the key `k`.
async fn with_key() -> (World, FakeKms) {
    let world = World::default();
    let kms = open(&world).await;
    create(&kms, "k").await.expect("created");
    (world, kms)
}

async fn create(kms: &FakeKms, name: &str) -> Result<(), Error> {
    let by_hand = Some(kms_core::time::SignedDuration::ZERO);
    let periods = AskedPeriods { rotation_period: by_hand, ..AskedPeriods::default() };
    let request = CreateKey { periods, ..CreateKey::new(id(name), kms_core::Algorithm::Es256) };
    kms.create_key(&administrator(), request, soon()).await.map(drop)
}

async fn sign(kms: &FakeKms) -> Result<(), Error> {
    let input = ToSign::Message(b"hello".to_vec());
    let request = Sign { id: id("k"), version: None, input, encoding: Encoding::Jose };
    kms.sign(&administrator(), request, soon()).await.map(drop)
}

fn version(number: u32) -> ChangeVersion {
    ChangeVersion { id: id("k"), number, request: Request::default() }
}

async fn disable(kms: &FakeKms) {
    kms.disable_key_version(&administrator(), version(1)).await.expect("disabled");
}

async fn enable(kms: &FakeKms) {
    kms.enable_key_version(&administrator(), version(1), soon()).await.expect("enabled");
}

async fn revoke(kms: &FakeKms, name: &str) {
    kms.revoke_access_token(&administrator(), name).await.expect("revoked");
}

async fn rotate(kms: &FakeKms) -> Result<(), Error> {
    let request = RotateKey::new(id("k"));
    kms.rotate_key(&administrator(), request, soon()).await.map(drop)
}

fn token(name: &str) -> CreateAccessToken {
    CreateAccessToken::new(name, OwnRole { role: Role::User, keys: KeyScope::All })
}

async fn epoch(world: &World) -> Epoch {
    world.store.load(None).await.expect("load").epoch.expect("an epoch")
}

/// Token and store agree on `value`, and nothing replaced is left.
async fn is_level_at(world: &World, value: u64, what: &str) {
    let epoch = epoch(world).await;
    assert_eq!((epoch.value, epoch.in_token), (value, value), "{what}");
    let mark = Mark { installation: epoch.installation, value, nonce: epoch.nonce };
    assert_eq!(world.hsm.marks(), [mark], "{what}");
}

/// The world with its store replaced by a backup.
fn restored(world: &World, backup: kms_core::fakes::MemoryStore) -> World {
    World { store: backup.into(), ..world.clone() }
}

/// A world whose store is older by one revocation, its service, in recovery mode, and the code that ends it.
async fn older() -> (World, FakeKms, String) {
    let (world, kms) = with_key().await;
    rotate(&kms).await.expect("rotated");
    kms.create_access_token(&administrator(), token("leaked")).await.expect("made");
    let backup = world.store.copy();
    kms.revoke_access_token(&administrator(), "leaked").await.expect("revoked");
    drop(kms);
    let world = restored(&world, backup);
    let (kms, code) = open_older(&world).await;
    (world, kms, code)
}

fn reason<T>(outcome: Result<T, Error>) -> Result<(), &'static str> {
    outcome.map(drop).map_err(|error| error.reason())
}

#[test]
fn each_change_that_must_not_be_undone_moves_it_and_no_other_does() {
    block_on(async {
        let (world, kms) = with_key().await;
        let admin = administrator();
        is_level_at(&world, 1, "a first version").await;
        sign(&kms).await.expect("signs");
        kms.create_access_token(&admin, token("t")).await.expect("made");
        let update = UpdateKey { owner: Some("somebody".to_owned()), ..UpdateKey::new(id("k")) };
        kms.update_key(&admin, update).await.expect("updated");
        is_level_at(&world, 1, "signing, a new access token, a new owner").await;

        kms.revoke_access_token(&admin, "t").await.expect("revoked");
        is_level_at(&world, 2, "a revocation").await;
        kms.revoke_access_token(&admin, "t").await.expect("revoked already");
        is_level_at(&world, 2, "nothing revoked").await;
        rotate(&kms).await.expect("rotated");
        is_level_at(&world, 3, "a rotation").await;
        disable(&kms).await;
        is_level_at(&world, 4, "a version disabled").await;
        disable(&kms).await;
        is_level_at(&world, 4, "disabled already").await;
        enable(&kms).await;
        is_level_at(&world, 5, "a version enabled").await;
        disable(&kms).await;
        with_consent(&kms, kms.destroy_key_version(&admin, version(1), "keys/k/versions/1").await)
            .await
            .expect("scheduled");
        is_level_at(&world, 8, "a proposal executed, and a destruction scheduled").await;
        kms.restore_key_version(&admin, version(1)).await.expect("called off");
        is_level_at(&world, 9, "a destruction called off").await;
        with_consent(&kms, kms.destroy_key_version(&admin, version(1), "keys/k/versions/1").await)
            .await
            .expect("scheduled");
        world.clock.advance(SignedDuration::from_hours(30 * 24));
        assert_eq!(kms.run_due(soon()).await, 1);
        is_level_at(&world, 12, "a destruction carried out").await;
    });
}

#[test]
fn a_change_is_effective_while_the_hsm_is_down_and_the_token_follows_later() {
    block_on(async {
        let (world, kms) = with_key().await;
        let names = ["a", "b", "c", "d", "e"];
        for name in names {
            kms.create_access_token(&administrator(), token(name)).await.expect("made");
        }
        world.hsm.set_down(true);
        disable(&kms).await;
        let (last, before) = names.split_last().expect("names");
        for name in before {
            revoke(&kms, name).await;
        }
        assert_eq!((epoch(&world).await.value, kms.epoch_pending()), (6, 5));
        kms.follow_epoch(soon()).await.expect_err("the HSM is down");
        world.hsm.set_down(false);
        kms.follow_epoch(soon()).await.expect("it follows");
        is_level_at(&world, 6, "the scheduler's next round").await;
        assert_eq!(kms.epoch_pending(), 0);

        world.hsm.set_down(true);
        revoke(&kms, last).await;
        drop(kms);
        world.hsm.set_down(false);
        let kms = open(&world).await;
        assert_eq!(kms.recovery(), None);
        is_level_at(&world, 7, "the next start").await;
    });
}

#[test]
fn a_service_that_is_cut_between_any_two_steps_goes_on_at_its_next_start() {
    let cuts: [(&str, Cut); 5] = [
        ("no mark is made", |world| world.hsm.set_fault(HsmFault::EpochCreateFails)),
        ("the mark's answer is lost", |world| world.hsm.set_fault(HsmFault::EpochCreateLosesAnswer)),
        ("the confirmation fails", |world| {
            world.store.fail_after(1, Fault::Unavailable("the disk is full".to_owned()));
        }),
        ("the confirmation's answer is lost", |world| {
            world.store.fail_after(1, Fault::Unknown("the answer was lost".to_owned()));
        }),
        ("the replaced mark stays", |world| world.hsm.set_fault(HsmFault::EpochDestroyFails)),
    ];
    for (what, cut) in cuts {
        block_on(async {
            let (world, kms) = with_key().await;
            cut(&world);
            disable(&kms).await;
            assert_eq!(epoch(&world).await.value, 2, "{what}: the change is effective");
            drop(kms);
            let kms = open(&world).await;
            assert_eq!(kms.recovery(), None, "{what}");
            is_level_at(&world, 2, what).await;
        });
    }
}

#[test]
fn changes_at_once_each_count_and_the_token_holds_the_last() {
    block_on(async {
        let (world, kms) = with_key().await;
        for name in ["a", "b", "c", "d"] {
            kms.create_access_token(&administrator(), token(name)).await.expect("made");
        }
        let admin = administrator();
        let revocations = ["a", "b", "c", "d"].map(|name| kms.revoke_access_token(&admin, name));
        for revoked in futures::future::join_all(revocations).await {
            revoked.expect("revoked");
        }
        is_level_at(&world, 5, "four at once").await;
    });
}

#[test]
fn a_backup_taken_while_the_token_had_yet_to_follow_is_older_all_the_same() {
    block_on(async {
        let (world, kms) = with_key().await;
        kms.create_access_token(&administrator(), token("leaked")).await.expect("made");
        world.hsm.set_down(true);
        disable(&kms).await;
        let backup = world.store.copy();
        revoke(&kms, "leaked").await;
        world.hsm.set_down(false);
        kms.follow_epoch(soon()).await.expect("it follows");
        let kms = open(&restored(&world, backup)).await;
        assert_eq!(kms.recovery(), Some(Recovery { store: 2, token: 3 }));
    });
}

#[test]
fn the_first_start_waits_for_the_tokens_answer_and_none_means_no_service() {
    block_on(async {
        let world = World::default();
        world.hsm.set_fault(HsmFault::EpochReadFails);
        drop(open(&world).await);
        for _ in 0..3 {
            world.hsm.set_fault(HsmFault::EpochReadFails);
        }
        let error = world.open(settings()).await.map(drop).expect_err("the token does not answer");
        assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "EPOCH_UNKNOWN"));
        drop(open(&world).await);
        is_level_at(&world, 1, "begun once").await;
    });
}

#[test]
fn another_installation_on_the_token_neither_disturbs_nor_is_disturbed() {
    block_on(async {
        let world = World::default();
        world.hsm.set_mark(THEIRS, true);
        let kms = open(&world).await;
        assert_eq!(kms.recovery(), None);
        create(&kms, "k").await.expect("created");
        disable(&kms).await;
        assert_eq!(world.hsm.marks().len(), 2);
        assert!(world.hsm.marks().contains(&THEIRS));
    });
}

#[test]
fn a_mark_that_was_removed_is_put_back() {
    block_on(async {
        let (world, kms) = with_key().await;
        disable(&kms).await;
        drop(kms);
        world.hsm.set_mark(world.hsm.marks()[0], false);
        let kms = open(&world).await;
        assert_eq!(kms.recovery(), None);
        is_level_at(&world, 2, "put back").await;
    });
}

#[test]
fn an_older_store_does_nothing_but_read_and_take_away_until_it_is_accepted() {
    block_on(async {
        let (world, kms, code) = older().await;
        assert_eq!(kms.recovery(), Some(Recovery { store: 2, token: 3 }));
        let admin = administrator();
        let refused = sign(&kms).await.expect_err("an older store");
        assert_eq!((refused.kind(), refused.reason()), (Kind::FailedPrecondition, "RECOVERY_MODE"));
        assert!(refused.to_string().contains("accept-older-store"), "{refused}");
        assert!(!refused.to_string().contains(&code), "callers do not learn the code: {refused}");
        let last = world.log.events().pop().expect("a record");
        assert_eq!((last.action, last.outcome), (Action::SignRaw, Outcome::Denied));
        assert_eq!(last.reason, Some("RECOVERY_MODE".into()));

        let jwt = SignJwt { id: id("k"), claims: b"{}".to_vec(), ttl: None, typ: None };
        assert_eq!(reason(kms.sign_jwt(&admin, jwt, soon()).await), Err("RECOVERY_MODE"));
        assert_eq!(reason(create(&kms, "l").await), Err("RECOVERY_MODE"));
        assert_eq!(reason(rotate(&kms).await), Err("RECOVERY_MODE"));
        assert_eq!(reason(kms.enable_key_version(&admin, version(1), soon()).await), Err("RECOVERY_MODE"));
        assert_eq!(
            reason(kms.destroy_key_version(&admin, version(1), "keys/k/versions/1").await),
            Err("RECOVERY_MODE")
        );
        assert_eq!(world.hsm.count().1, 2, "nothing was generated");

        kms.get_key(&admin, &id("k")).await.expect("reads");
        kms.public_key(&admin, &id("k"), None).await.expect("reads a public key");
        let json = kms.published_keys(None).expect("fresh").expect("a set").body;
        assert!(json.len() > 100, "the JWKS is served");
        let check = Verify {
            id: id("k"),
            version: None,
            input: ToSign::Message(b"hello".to_vec()),
            signature: vec![0; 64],
            encoding: Encoding::Jose,
        };
        kms.verify(&admin, check).await.expect("verifies");
        let not_ready = kms.check(soon()).await.epoch.expect_err("not ready");
        assert!(!not_ready.contains(&code), "nor do probes: {not_ready}");

        kms.revoke_access_token(&admin, "leaked").await.expect("revoked again");
        disable(&kms).await;
        let stranger = Caller::new("access-token:s", Role::User, KeyScope::Only([].into()));
        let request = Sign {
            id: id("k"),
            version: None,
            input: ToSign::Message(b"hello".to_vec()),
            encoding: Encoding::Jose,
        };
        let denied = kms.sign(&stranger, request, soon()).await.map(drop);
        assert_eq!(reason(denied), Err("PERMISSION_DENIED"), "a stranger learns nothing of it");
    });
}

#[test]
fn what_is_due_waits_too_and_a_destruction_for_its_whole_delay_once_the_store_is_accepted() {
    block_on(async {
        let (world, kms) = with_key().await;
        world.hsm.set_fault(HsmFault::GenerateFails);
        create(&kms, "unborn").await.expect_err("generate fails");
        disable(&kms).await;
        with_consent(&kms, kms.destroy_key_version(&administrator(), version(1), "keys/k/versions/1").await)
            .await
            .expect("scheduled");
        let backup = world.store.copy();
        kms.restore_key_version(&administrator(), version(1)).await.expect("called off");
        drop(kms);
        let (kms, code) = open_older(&restored(&world, backup)).await;
        world.clock.advance(SignedDuration::from_hours(31 * 24));
        let before = world.log.events().len();
        assert_eq!((kms.run_due(soon()).await, kms.resume_births(soon()).await), (0, 0));
        assert_eq!(world.hsm.count(), (1, 1), "nothing is destroyed, nothing made");
        assert_eq!(world.log.events().len(), before, "and the log is not filled with refusals");
        kms.follow_epoch(soon()).await.expect("nothing to follow");
        assert!(kms.recovery().is_some());

        kms.accept_older_store(&administrator(), &code, soon()).await.expect("accepted");
        assert_eq!(kms.resume_births(soon()).await, 1);
        let calls = [0, 30 * 24 - 1].map(SignedDuration::from_hours);
        for more in calls {
            world.clock.advance(more);
            assert_eq!(kms.run_due(soon()).await, 0, "{more}");
        }
        kms.restore_key_version(&administrator(), version(1)).await.expect("called off again");
        enable(&kms).await;
        sign(&kms).await.expect("the key is there");
    });
}

#[test]
fn no_number_of_changes_and_starts_makes_an_older_store_look_new() {
    block_on(async {
        let (world, mut kms, _) = older().await;
        for number in [1, 2, 1, 2] {
            kms.disable_key_version(&administrator(), version(number)).await.expect("disabled");
            kms.revoke_access_token(&administrator(), "leaked").await.expect("revoked");
            drop(kms);
            kms = open(&world).await;
            assert_eq!(kms.recovery(), Some(Recovery { store: 2, token: 3 }));
        }
    });
}

#[test]
fn accepting_is_for_an_administrator_of_everything_who_reads_the_servers_log() {
    block_on(async {
        let (world, kms, code) = older().await;
        let some = KeyScope::Only([id("k")].into());
        for (role, scope) in [(Role::User, KeyScope::All), (Role::Administrator, some)] {
            let caller = Caller::new("access-token:s", role, scope);
            let denied = kms.accept_older_store(&caller, &code, soon()).await;
            assert_eq!(reason(denied), Err("PERMISSION_DENIED"), "{role}");
        }
        world.hsm.set_down(true);
        for wrong in ["", "3", "0000000000000000", &code[1..], &format!("{code}0")] {
            let error = kms.accept_older_store(&administrator(), wrong, soon()).await.expect_err("a guess");
            assert_eq!(error.field(), Some("confirm"), "{wrong}: the HSM is not asked");
            assert!(!error.to_string().contains(&code), "{error}");
        }
        assert_eq!(
            reason(kms.accept_older_store(&administrator(), &code, soon()).await),
            Err("HSM_UNAVAILABLE")
        );
        world.hsm.set_down(false);
        assert!(kms.recovery().is_some());

        assert_eq!(kms.accept_older_store(&administrator(), &code, soon()).await.expect("accepted"), 4);
        assert_eq!(kms.recovery(), None);
        is_level_at(&world, 4, "past the token's").await;
        sign(&kms).await.expect("signs without a restart");
        let records: Vec<_> =
            world.log.events().into_iter().filter(|e| e.action == Action::AcceptOlderStore).collect();
        let last: Vec<_> = records.iter().rev().take(2).map(|e| (e.phase, e.outcome)).collect();
        assert_eq!(last, [(Phase::Outcome, Outcome::Succeeded), (Phase::Intent, Outcome::Allowed)]);
        assert_eq!(
            reason(kms.accept_older_store(&administrator(), &code, soon()).await),
            Err("NOT_IN_RECOVERY_MODE")
        );
    });
}

#[test]
fn each_entry_into_recovery_mode_has_a_code_of_its_own() {
    block_on(async {
        let (world, kms, before) = older().await;
        drop(kms);
        let (kms, code) = open_older(&world).await;
        assert_ne!(code, before);
        let old = kms.accept_older_store(&administrator(), &before, soon()).await.expect_err("an old code");
        assert_eq!(old.field(), Some("confirm"));
        let later = Mark { value: 9, ..world.hsm.marks()[0] };
        world.hsm.set_mark(later, true);
        let log = ServerLog::keep();
        let gone_on = kms.accept_older_store(&administrator(), &code, soon()).await;
        assert_eq!(reason(gone_on), Err("RECOVERY_MODE"), "the newer store is in use");
        let code = log.acceptance_code().expect("a new code");
        assert_eq!(kms.accept_older_store(&administrator(), &code, soon()).await.expect("accepted"), 10);
    });
}

#[test]
fn the_store_that_was_given_up_is_the_older_one_from_then_on() {
    block_on(async {
        let (newer, kms) = with_key().await;
        let backup = newer.store.copy();
        disable(&kms).await;
        drop(kms);
        let (kms, code) = open_older(&restored(&newer, backup)).await;
        kms.accept_older_store(&administrator(), &code, soon()).await.expect("accepted");
        let kms = open(&newer).await;
        assert_eq!(kms.recovery(), Some(Recovery { store: 2, token: 3 }));
    });
}

#[test]
fn an_acceptance_that_is_cut_is_whole_or_is_none() {
    let cuts: [(&str, bool, Cut); 4] = [
        ("the commit fails", false, |world| {
            world.store.fail_next(Fault::Unavailable("the disk is full".to_owned()));
        }),
        ("the commit's answer is lost", true, |world| world.store.lose_next_answer()),
        ("no mark is made", true, |world| world.hsm.set_fault(HsmFault::EpochCreateFails)),
        ("replaced marks stay", true, |world| world.hsm.set_fault(HsmFault::EpochDestroyFails)),
    ];
    for (what, accepted, cut) in cuts {
        block_on(async {
            let (world, kms, code) = older().await;
            cut(&world);
            // Its answer says whether it is known to be accepted; the next start knows.
            let _ = kms.accept_older_store(&administrator(), &code, soon()).await;
            drop(kms);
            let kms = open(&world).await;
            assert_eq!(kms.recovery().is_none(), accepted, "{what}");
            if accepted {
                is_level_at(&world, 4, what).await;
            }
        });
    }
}

#[test]
fn a_copy_that_runs_beside_goes_into_recovery_mode_with_its_next_change() {
    block_on(async {
        let (world, kms) = with_key().await;
        let copy = restored(&world, world.store.copy());
        let other = open(&copy).await;
        disable(&kms).await;
        enable(&kms).await;
        other.disable_key_version(&administrator(), version(1)).await.expect("effective all the same");
        assert_eq!(other.recovery(), Some(Recovery { store: 2, token: 3 }));
        assert_eq!(reason(sign(&other).await), Err("RECOVERY_MODE"));
        sign(&kms).await.expect("the first one signs on");
    });
}

#[test]
fn two_copies_that_move_in_step_are_told_apart_and_the_second_stops() {
    block_on(async {
        let (world, kms) = with_key().await;
        let copy = restored(&world, world.store.copy());
        let other = open(&copy).await;
        disable(&kms).await;
        other.disable_key_version(&administrator(), version(1)).await.expect("effective all the same");
        assert_eq!(other.recovery(), Some(Recovery { store: 2, token: 2 }));
        is_level_at(&world, 2, "the first one's").await;
        drop(other);
        let (other, code) = open_older(&copy).await;
        assert_eq!(other.accept_older_store(&administrator(), &code, soon()).await.expect("accepted"), 3);
        is_level_at(&copy, 3, "accepted").await;
        enable(&kms).await;
        assert_eq!(kms.recovery(), Some(Recovery { store: 3, token: 3 }), "the one that was given up");
    });
}
