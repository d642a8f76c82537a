//! Core's stories, over fakes: births that are cut, signatures that lie, books that break, time that passes.

#![expect(clippy::expect_used, reason = "a test's verdict is a panic")]

use futures::executor::block_on;
use kms_core::{
    Action, Error, KeyId, KeyState,
    audit::{Outcome, Phase},
    caller::{Caller, KeyScope, OwnRole, Role},
    class::{AskedPeriods, PeriodChanges},
    error::Kind,
    fakes::{FakeKms, HsmFault, World, administrator, soon, with_consent},
    kms::Settings,
    store::Fault,
    time::SignedDuration,
    verbs::{
        ChangeVersion, CreateKey, Encoding, Request, RotateKey, Sign, SignJwt, Signed, ToSign, UpdateKey,
        Verify,
    },
};

fn id(name: &str) -> KeyId {
    name.parse().expect("a key's name")
}

/// By hand only.
const UNROTATED: AskedPeriods = AskedPeriods {
    rotation_period: Some(SignedDuration::ZERO),
    publish_lead: None,
    max_token_ttl: None,
    overlap: None,
    destroy_after: None,
};

fn create(name: &str) -> CreateKey {
    let owner = "team".to_owned();
    CreateKey { owner, periods: UNROTATED, ..CreateKey::new(id(name), kms_core::Algorithm::Es256) }
}

fn sign(name: &str) -> Sign {
    let input = ToSign::Message(b"hello".to_vec());
    Sign { id: id(name), version: None, input, encoding: Encoding::Jose }
}

async fn open(world: &World) -> FakeKms {
    world.open(Settings { allow_destroy: true, ..Settings::default() }).await.expect("the service opens")
}

async fn signs(kms: &FakeKms, name: &str) -> Result<Signed, Error> {
    kms.sign(&administrator(), sign(name), soon()).await
}

async fn with_key(name: &str) -> (World, FakeKms) {
    let world = World::default();
    let kms = open(&world).await;
    kms.create_key(&administrator(), create(name), soon()).await.expect("created");
    (world, kms)
}

fn hours(count: i64) -> SignedDuration {
    SignedDuration::from_hours(count)
}

/// Sets what goes wrong.
type Cut = fn(&World);

#[test]
fn a_birth_that_is_cut_at_any_step_resumes_after_a_restart() {
    let cuts: [(&str, Cut); 5] = [
        ("generate fails", |world| world.hsm.set_fault(HsmFault::GenerateFails)),
        ("generate loses its answer", |world| world.hsm.set_fault(HsmFault::GenerateLosesAnswer)),
        ("half a pair is made", |world| world.hsm.set_fault(HsmFault::GenerateHalf)),
        ("find fails", |world| world.hsm.set_fault(HsmFault::FindFails)),
        ("the challenge is signed wrongly", |world| world.hsm.set_fault(HsmFault::SignFlipsBit)),
    ];
    for (what, cut) in cuts {
        block_on(async {
            let world = World::default();
            let kms = open(&world).await;
            cut(&world);
            kms.create_key(&administrator(), create("k"), soon()).await.expect_err(what);
            assert_eq!(
                signs(&kms, "k").await.map_err(|error| error.reason()),
                Err("NO_ACTIVE_VERSION"),
                "{what}: a version that is not born must not sign"
            );
            drop(kms);
            let kms = open(&world).await;
            assert_eq!(kms.resume_births(soon()).await, 1, "{what}");
            signs(&kms, "k").await.expect(what);
            let versions = kms.list_key_versions(&administrator(), &id("k")).await.expect("versions");
            let (in_token, _) = world.hsm.count();
            let on_record = versions[0].row.earlier_attempts.len() + 1;
            assert!(in_token <= on_record, "{what}: {in_token} pairs, {on_record} ids on record");
        });
    }
}

#[test]
fn a_birth_whose_commit_fails_or_loses_its_answer_is_finished_once() {
    for lose in [false, true] {
        block_on(async {
            let world = World::default();
            let kms = open(&world).await;
            world.hsm.set_fault(HsmFault::GenerateFails);
            kms.create_key(&administrator(), create("k"), soon()).await.expect_err("generate fails");
            // The next commit begins another attempt.
            if lose {
                world.store.lose_next_answer();
            } else {
                world.store.fail_next(Fault::Unavailable("the disk is full".to_owned()));
            }
            for _ in 0..3 {
                kms.resume_births(soon()).await;
                world.clock.advance(SignedDuration::from_mins(10));
            }
            signs(&kms, "k").await.expect("signs");
            assert_eq!(world.hsm.count().0, 1, "one pair, whatever was lost");
        });
    }
}

#[test]
fn a_birth_that_fails_again_and_again_is_tried_ever_less_often() {
    block_on(async {
        let world = World::default();
        let kms = open(&world).await;
        world.hsm.set_fault(HsmFault::GenerateFails);
        kms.create_key(&administrator(), create("k"), soon()).await.expect_err("generate fails");
        let mut attempts = 0;
        for _ in 0..3600 {
            world.hsm.set_fault(HsmFault::FindFails);
            let before = world.log.events().len();
            kms.resume_births(soon()).await;
            attempts += usize::from(world.log.events().len() > before);
            world.clock.advance(SignedDuration::from_secs(1));
        }
        assert!((9..16).contains(&attempts), "{attempts} attempts in an hour");
    });
}

#[test]
fn a_birth_outlives_a_token_that_refuses_for_a_day_and_ends_before_leftovers_fill_the_token() {
    for (fault, outcome) in [(HsmFault::GenerateFails, Ok(2)), (HsmFault::GenerateExtractable, Err(8))] {
        block_on(async {
            let (world, kms) = with_key("k").await;
            let rotate = RotateKey::new(id("k"));
            world.hsm.set_fault(fault);
            kms.rotate_key(&administrator(), rotate, soon()).await.expect_err("no good pair is made");
            for _ in 0..144 {
                world.hsm.set_fault(fault);
                kms.resume_births(soon()).await;
                world.clock.advance(SignedDuration::from_mins(10));
            }
            let versions = kms.list_key_versions(&administrator(), &id("k")).await.expect("versions");
            let second = versions.iter().find(|version| version.row.number == 2).expect("on record");
            assert!(second.row.born.is_none(), "{fault:?}");
            world.hsm.clear_faults();
            world.clock.advance(SignedDuration::from_mins(10));
            let finished = kms.resume_births(soon()).await;
            match outcome {
                Ok(pairs) => assert_eq!((finished, world.hsm.count().0), (1, pairs), "{fault:?}"),
                Err(left) => {
                    assert_eq!((finished, world.hsm.count().0), (0, 1 + left), "{fault:?}");
                    let last = world.log.events().pop().expect("a record");
                    assert_eq!((last.version, last.reason), (Some(2), Some("BIRTH_GIVEN_UP".into())));
                    // Somebody looked, and cleared the leftovers away.
                    let leftovers = second.row.earlier_attempts.iter().chain([&second.row.cka_id]);
                    leftovers.for_each(|cka_id| world.hsm.lose(*cka_id));
                    world.clock.advance(SignedDuration::from_mins(10));
                    assert_eq!(kms.resume_births(soon()).await, 1, "it goes on");
                }
            }
        });
    }
}

#[test]
fn a_key_whose_template_is_wrong_is_never_used() {
    block_on(async {
        let world = World::default();
        let kms = open(&world).await;
        world.hsm.set_fault(HsmFault::GenerateExtractable);
        let error = kms.create_key(&administrator(), create("k"), soon()).await.expect_err("extractable");
        assert_eq!(error.kind(), Kind::Internal);
        assert_eq!(kms.resume_births(soon()).await, 1);
        let versions = kms.list_key_versions(&administrator(), &id("k")).await.expect("versions");
        assert_eq!(versions[0].row.earlier_attempts.len(), 1, "the bad pair stays on record as an orphan");
        assert_eq!(world.hsm.count().0, 2, "nothing is ever destroyed");
    });
}

#[test]
fn a_retried_request_has_one_effect_and_its_id_cannot_be_used_for_another() {
    block_on(async {
        let world = World::default();
        let kms = open(&world).await;
        let request = Request { id: Some("b8d1c6b0-0000-4000-8000-000000000001".to_owned()), etag: None };
        let first = CreateKey { request: request.clone(), ..create("k") };
        world.hsm.set_fault(HsmFault::GenerateLosesAnswer);
        kms.create_key(&administrator(), first.clone(), soon()).await.expect_err("the answer was lost");
        for _ in 0..3 {
            kms.create_key(&administrator(), first.clone(), soon()).await.expect("the retry answers");
        }
        assert_eq!(world.hsm.count().1, 1, "one pair was generated");
        let other = CreateKey { request: request.clone(), ..create("other") };
        let error = kms.create_key(&administrator(), other, soon()).await.expect_err("another request");
        assert_eq!(error.field(), Some("request_id"));
        let without_id = kms.create_key(&administrator(), create("k"), soon()).await.expect_err("a second k");
        assert_eq!(without_id.reason(), "ALREADY_EXISTS");

        let request = Request { id: Some("b8d1c6b0-0000-4000-8000-000000000002".to_owned()), etag: None };
        let rotate = RotateKey { request, ..RotateKey::new(id("k")) };
        for _ in 0..3 {
            let view = kms.rotate_key(&administrator(), rotate.clone(), soon()).await.expect("rotates");
            assert_eq!(view.row.number, 2);
        }
    });
}

#[test]
fn a_signature_that_does_not_verify_is_not_released() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        world.hsm.set_fault(HsmFault::SignFlipsBit);
        let error = signs(&kms, "k").await.expect_err("a flipped bit");
        assert_eq!(error.kind(), Kind::Internal);
        let last = world.log.events().pop().expect("a record");
        assert_eq!((last.action, last.outcome), (Action::SignRaw, Outcome::Failed));
        signs(&kms, "k").await.expect("the next one is well");
    });
}

#[test]
fn nothing_is_done_while_the_log_is_full_and_nothing_is_released_when_it_breaks() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        world.log.set_full(true);
        assert_eq!(signs(&kms, "k").await.map_err(|error| error.reason()), Err("AUDIT_UNAVAILABLE"));
        let created = kms.create_key(&administrator(), create("l"), soon()).await;
        assert_eq!(created.map(drop).map_err(|error| error.reason()), Err("AUDIT_UNAVAILABLE"));
        assert_eq!(world.hsm.count().1, 1, "the HSM was not touched");
        world.log.set_full(false);
        world.log.set_broken(true);
        assert_eq!(signs(&kms, "k").await.map_err(|error| error.reason()), Err("AUDIT_UNAVAILABLE"));
        let batch = kms.batch_sign(&administrator(), vec![sign("k"), sign("k")], soon()).await;
        assert_eq!(batch.map(drop).map_err(|error| error.reason()), Err("AUDIT_UNAVAILABLE"));
    });
}

#[test]
fn every_result_has_its_record_and_every_change_its_intent_before() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        signs(&kms, "k").await.expect("signs");
        let seen: Vec<_> =
            world.log.events().into_iter().map(|e| (e.action, e.phase, e.outcome, e.version)).collect();
        assert_eq!(
            seen,
            [
                (Action::CreateKey, Phase::Intent, Outcome::Allowed, None),
                (Action::CreateKey, Phase::Outcome, Outcome::Succeeded, Some(1)),
                (Action::SignRaw, Phase::Outcome, Outcome::Succeeded, Some(1)),
            ]
        );
    });
}

#[test]
fn a_client_that_goes_away_leaves_an_abandoned_record() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        let gate = kms_core::Gate::new(std::sync::Arc::clone(&world.log), 0);
        let now = kms_core::Clock::now(&world.clock);
        drop(gate.admit(&administrator(), Action::Sign, Some(&id("k")), now).await.expect("admitted"));
        let last = world.log.events().pop().expect("a record");
        assert_eq!(last.outcome, Outcome::Abandoned);
        drop(kms);
    });
}

#[test]
fn absent_and_forbidden_keys_look_alike_to_a_stranger() {
    block_on(async {
        let (world, kms) = with_key("secret").await;
        let scope = KeyScope::Only([id("mine")].into());
        let stranger = Caller::new("access-token:stranger", Role::User, scope);
        let forbidden = kms.sign(&stranger, sign("secret"), soon()).await.expect_err("forbidden");
        let absent = kms.sign(&stranger, sign("absent"), soon()).await.expect_err("absent");
        assert_eq!(forbidden, absent);
        assert_eq!(forbidden.kind(), Kind::PermissionDenied);
        let denied: Vec<_> =
            world.log.events().into_iter().filter(|e| e.outcome == Outcome::Denied).collect();
        assert_eq!(denied.len(), 2, "denials are on record");
        assert_eq!(denied[0].reason, Some("NO_RULE".into()));
        let batch =
            kms.batch_sign(&stranger, vec![sign("secret"), sign("mine")], soon()).await.expect("a batch");
        let kinds: Vec<_> = batch.into_iter().map(|item| item.expect_err("refused").kind()).collect();
        assert_eq!(kinds, [Kind::PermissionDenied, Kind::NotFound], "each item has its own outcome");
    });
}

#[test]
fn a_rotation_publishes_first_signs_later_and_withdraws_last() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        let count = || {
            let set = kms.published_keys(Some(&id("k"))).expect("fresh").expect("a set");
            let json: serde_json::Value = serde_json::from_slice(&set.body).expect("JSON");
            json["keys"].as_array().map_or(0, Vec::len)
        };
        let old = signs(&kms, "k").await.expect("signs");
        let etag = kms.published_keys(None).expect("fresh").expect("a set").etag;
        let rotate = RotateKey::new(id("k"));
        let next = kms.rotate_key(&administrator(), rotate.clone(), soon()).await.expect("rotates");
        assert_eq!((next.state, next.primary), (Some(KeyState::PreActivation), false));
        assert_eq!(count(), 2, "published at once");
        assert_ne!(kms.published_keys(None).expect("fresh").expect("a set").etag, etag);
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 1, "and not yet signing");
        world.clock.advance(hours(1) - SignedDuration::from_secs(1));
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 1);
        world.clock.advance(SignedDuration::from_secs(1));
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 2, "the lead is over");
        let check = Verify {
            id: id("k"),
            version: None,
            input: ToSign::Message(b"hello".to_vec()),
            signature: old.signature,
            encoding: Encoding::Jose,
        };
        assert!(kms.verify(&administrator(), check.clone()).await.expect("verifies").valid);
        // Token life 1 h, skew 5 min, lead 1 h.
        world.clock.advance(hours(2) + SignedDuration::from_secs(299));
        assert_eq!(count(), 2);
        world.clock.advance(SignedDuration::from_secs(1));
        assert_eq!(count(), 1, "withdrawn when its last token has expired everywhere");
    });
}

#[test]
fn raising_the_token_life_keeps_the_old_version_published_for_as_long() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        let rotate = RotateKey::new(id("k"));
        kms.rotate_key(&administrator(), rotate, soon()).await.expect("rotates");
        update_ttl(&kms, hours(48)).await;
        let versions = kms.list_key_versions(&administrator(), &id("k")).await.expect("versions");
        let timeline = versions[0].row.born.as_ref().expect("born").timeline;
        let kept =
            timeline.withdrawn_at.expect("withdrawn").duration_since(timeline.retires_at.expect("retires"));
        assert_eq!(kept, hours(49) + SignedDuration::from_mins(5));
        let token = SignJwt { id: id("k"), claims: b"{}".to_vec(), ttl: Some(hours(48)), typ: None };
        let token = kms.sign_jwt(&administrator(), token, soon()).await.expect("a long token");
        assert!(token.expires_at <= timeline.withdrawn_at.expect("withdrawn"));
        drop(world);
    });
}

#[test]
fn lowering_the_token_life_does_not_strand_tokens_that_were_signed_before() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        update_ttl(&kms, hours(48)).await;
        let token = SignJwt { id: id("k"), claims: b"{}".to_vec(), ttl: Some(hours(48)), typ: None };
        let token = kms.sign_jwt(&administrator(), token, soon()).await.expect("a long token");
        world.clock.advance(hours(1));
        update_ttl(&kms, hours(1)).await;
        let rotate = RotateKey::new(id("k"));
        kms.rotate_key(&administrator(), rotate, soon()).await.expect("rotates");
        let versions = kms.list_key_versions(&administrator(), &id("k")).await.expect("versions");
        let withdrawn_at = versions[0].row.born.as_ref().expect("born").timeline.withdrawn_at;
        assert!(withdrawn_at.expect("withdrawn") > token.expires_at, "the token outlives its key");
    });
}

#[test]
fn a_version_does_not_retire_when_its_successor_is_disabled_before_its_time() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        let rotate = || RotateKey::new(id("k"));
        let second = || ChangeVersion { id: id("k"), number: 2, request: Request::default() };
        kms.rotate_key(&administrator(), rotate(), soon()).await.expect("rotates");
        world.clock.advance(SignedDuration::from_mins(50));
        kms.disable_key_version(&administrator(), second()).await.expect("disables");
        world.clock.advance(hours(2));
        assert_eq!(signs(&kms, "k").await.expect("no outage").version, 1);
        // It comes back as any new version would: published first.
        kms.enable_key_version(&administrator(), second(), soon()).await.expect("enables");
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 1);
        world.clock.advance(hours(1));
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 2);
        // A third takes over although the second is disabled: the second's end follows the third's beginning.
        kms.rotate_key(&administrator(), rotate(), soon()).await.expect("rotates");
        world.clock.advance(hours(1));
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 3);
    });
}

#[test]
fn a_rotation_soon_after_the_lead_was_shortened_waits_for_caches_of_before() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        let publish_lead = Some(Some(SignedDuration::from_secs(10)));
        let periods = PeriodChanges { publish_lead, ..Default::default() };
        let shorten = UpdateKey { periods, ..UpdateKey::new(id("k")) };
        kms.update_key(&administrator(), shorten).await.expect("updates");
        let rotate = || RotateKey::new(id("k"));
        kms.rotate_key(&administrator(), rotate(), soon()).await.expect("rotates");
        // The caches, the fence, and two clocks.
        world.clock.advance(SignedDuration::from_secs(319));
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 1);
        world.clock.advance(SignedDuration::from_secs(1));
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 2);
    });
}

#[test]
fn a_reload_that_fails_after_a_commit_is_made_good_by_the_retry() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        let request = Request { id: Some("b8d1c6b0-0000-4000-8000-000000000003".to_owned()), etag: None };
        let disable = || ChangeVersion { id: id("k"), number: 1, request: request.clone() };
        world.store.fail_next_load();
        kms.disable_key_version(&administrator(), disable()).await.expect_err("the reload fails");
        let view = kms.disable_key_version(&administrator(), disable()).await.expect("the retry");
        assert_eq!(view.state, Some(KeyState::Suspended));
        signs(&kms, "k").await.expect_err("disabled");
        let enable = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
        world.store.fail_next_load();
        kms.enable_key_version(&administrator(), enable, soon()).await.expect_err("the reload fails");
        kms.run_due(soon()).await;
        signs(&kms, "k").await.expect("the scheduler has caught up");
    });
}

#[test]
fn the_last_administrator_cannot_be_revoked() {
    use kms_core::verbs::CreateAccessToken;
    block_on(async {
        let (_world, kms) = with_key("k").await;
        let admin = |name: &str, ttl| CreateAccessToken {
            ttl,
            ..CreateAccessToken::new(name, OwnRole { role: Role::Administrator, keys: KeyScope::All })
        };
        kms.create_access_token(&administrator(), admin("one", None)).await.expect("made");
        kms.create_access_token(&administrator(), admin("passing", Some(hours(1)))).await.expect("made");
        let error = kms.revoke_access_token(&administrator(), "one").await.expect_err("the last");
        assert_eq!(error.reason(), "LAST_ADMINISTRATOR");
        let two = kms.create_access_token(&administrator(), admin("two", None)).await;
        with_consent(&kms, two).await.expect("made");
        kms.revoke_access_token(&administrator(), "one").await.expect("another remains");
    });
}

async fn update_ttl(kms: &FakeKms, ttl: SignedDuration) {
    let periods = PeriodChanges { max_token_ttl: Some(Some(ttl)), ..Default::default() };
    let update = UpdateKey { periods, ..UpdateKey::new(id("k")) };
    kms.update_key(&administrator(), update).await.expect("updates");
}

#[test]
fn a_ninth_published_version_is_refused_with_the_time_at_which_it_is_allowed() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        let rotate = || RotateKey::new(id("k"));
        for _ in 2..=8 {
            kms.rotate_key(&administrator(), rotate(), soon()).await.expect("rotates");
        }
        let error = kms.rotate_key(&administrator(), rotate(), soon()).await.expect_err("the ninth");
        assert_eq!(error.reason(), "TOO_MANY_PUBLISHED_VERSIONS");
        assert!(error.to_string().contains("the earliest time for it is 2027-01-15T"), "{error}");
        world.clock.advance(hours(4));
        kms.rotate_key(&administrator(), rotate(), soon()).await.expect("room again");
    });
}

#[test]
fn a_disabled_version_neither_signs_nor_verifies_nor_is_published_until_enabled() {
    block_on(async {
        let (_world, kms) = with_key("k").await;
        let change = || ChangeVersion { id: id("k"), number: 1, request: Request::default() };
        let admin = administrator();
        kms.disable_key_version(&admin, change()).await.expect("disables");
        let error = signs(&kms, "k").await.expect_err("disabled");
        assert!(error.to_string().contains("version 1 is suspended; enable it"), "{error}");
        assert_eq!(
            &*kms.published_keys(Some(&id("k"))).expect("fresh").expect("a set").body,
            br#"{"keys":[]}"#
        );
        kms.disable_key_version(&admin, change()).await.expect("twice does no harm");
        kms.enable_key_version(&admin, change(), soon()).await.expect("enables");
        signs(&kms, "k").await.expect("signs again");
    });
}

#[test]
fn destruction_is_confirmed_delayed_can_be_called_off_and_is_real() {
    block_on(async {
        let (world, kms) = with_key("k").await;
        let change = || ChangeVersion { id: id("k"), number: 1, request: Request::default() };
        let name = "keys/k/versions/1";
        let admin = administrator();
        let reason = |outcome: Result<_, Error>| outcome.map(drop).map_err(|error| error.reason());
        assert_eq!(reason(kms.destroy_key_version(&admin, change(), name).await), Err("VERSION_IN_USE"));
        kms.disable_key_version(&admin, change()).await.expect("disables");
        assert_eq!(reason(kms.destroy_key_version(&admin, change(), "yes").await), Err("INVALID_ARGUMENT"));
        with_consent(&kms, kms.destroy_key_version(&admin, change(), name).await).await.expect("scheduled");
        assert_eq!(
            reason(kms.enable_key_version(&admin, change(), soon()).await),
            Err("DESTRUCTION_SCHEDULED")
        );
        world.clock.advance(hours(30 * 24) - SignedDuration::from_secs(1));
        assert_eq!(kms.run_due(soon()).await, 0, "not a second early");
        world.clock.advance(SignedDuration::from_secs(1));
        let late = kms.restore_key_version(&admin, change()).await;
        assert_eq!(reason(late), Err("DESTRUCTION_DUE"), "it may have begun");
        world.clock.advance(SignedDuration::from_secs(-10));
        let late = kms.restore_key_version(&admin, change()).await;
        assert_eq!(reason(late), Err("DESTRUCTION_DUE"), "another replica's clock may be ahead");
        world.clock.advance(SignedDuration::from_secs(-1));
        kms.restore_key_version(&admin, change()).await.expect("called off");
        world.clock.advance(hours(24));
        assert_eq!((kms.run_due(soon()).await, world.hsm.count().0), (0, 1));
        with_consent(&kms, kms.destroy_key_version(&admin, change(), name).await)
            .await
            .expect("scheduled anew");
        world.clock.advance(hours(30 * 24));
        assert_eq!((kms.run_due(soon()).await, world.hsm.count().0), (1, 0));
        assert_eq!(reason(kms.enable_key_version(&admin, change(), soon()).await), Err("DESTROYED"));
        assert_eq!(kms.run_due(soon()).await, 0);
    });
}

#[test]
fn destruction_is_off_unless_the_config_allows_it() {
    block_on(async {
        let world = World::default();
        let kms = world.open(Settings::default()).await.expect("opens");
        kms.create_key(&administrator(), create("k"), soon()).await.expect("created");
        let change = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
        let error = kms.destroy_key_version(&administrator(), change, "keys/k/versions/1").await;
        assert_eq!(error.map(drop).map_err(|error| error.reason()), Err("DESTROY_NOT_ALLOWED"));
    });
}

#[test]
fn a_key_with_a_period_rotates_by_itself_one_lead_ahead_and_once() {
    block_on(async {
        let world = World::default();
        let kms = open(&world).await;
        let daily = CreateKey {
            periods: AskedPeriods { rotation_period: Some(hours(24)), ..UNROTATED },
            ..create("k")
        };
        kms.create_key(&administrator(), daily, soon()).await.expect("created");
        // A first version counts from where every clock has it.
        world.clock.advance(hours(23) - SignedDuration::from_secs(11));
        assert_eq!(kms.run_due(soon()).await, 0);
        world.clock.advance(SignedDuration::from_secs(1));
        assert_eq!((kms.run_due(soon()).await, kms.run_due(soon()).await), (1, 0));
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 1);
        world.clock.advance(hours(1));
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 2);
        // A day of downtime: the lead is kept all the same.
        world.clock.advance(hours(48));
        assert_eq!(kms.run_due(soon()).await, 1);
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 2);
        world.clock.advance(hours(1));
        assert_eq!(signs(&kms, "k").await.expect("signs").version, 3);
    });
}

#[test]
fn an_etag_that_is_out_of_date_is_refused() {
    block_on(async {
        let (_world, kms) = with_key("k").await;
        let seen = kms.get_key(&administrator(), &id("k")).await.expect("the key").key.revision;
        let stale = Request { id: None, etag: Some(seen - 1) };
        let rotate = RotateKey { request: stale, ..RotateKey::new(id("k")) };
        let error = kms.rotate_key(&administrator(), rotate, soon()).await.expect_err("stale");
        assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "ETAG_MISMATCH"));
    });
}

#[test]
fn a_revoked_or_expired_access_token_stops_working_at_once() {
    use kms_core::verbs::CreateAccessToken;
    block_on(async {
        let (world, kms) = with_key("k").await;
        let request = |name: &str, ttl| CreateAccessToken {
            ttl,
            ..CreateAccessToken::new(name, OwnRole { role: Role::User, keys: KeyScope::All })
        };
        let admin = administrator();
        let (token, credential) = kms.create_access_token(&admin, request("a", None)).await.expect("made");
        assert!(credential.starts_with("kms_"));
        assert!(kms.authenticate(&token.sha256, None).is_some());
        kms.revoke_access_token(&admin, "a").await.expect("revoked");
        assert!(kms.authenticate(&token.sha256, None).is_none());
        let (token, _) = kms.create_access_token(&admin, request("b", Some(hours(1)))).await.expect("made");
        world.clock.advance(hours(1));
        assert!(kms.authenticate(&token.sha256, None).is_none());
    });
}
