//! What an operator plans and what happens to him: rotations at a time and at once, revocations, classes, rules over
//! claims, destruction by age. Over fakes.

#![expect(clippy::expect_used, reason = "a test's verdict is a panic")]

use futures::executor::block_on;
use kms_core::{
    Action, Algorithm, Error, KeyId, KeyState,
    audit::Outcome,
    caller::{Caller, KeyScope, Role},
    claim_rules::ClaimRules,
    class::{AskedPeriods, ClassName, KeyClass, PeriodChanges},
    fakes::{FakeKms, HsmFault, World, administrator, soon},
    key::{Purpose, TakeOver},
    kms::{Settings, VersionView},
    time::SignedDuration,
    verbs::{
        ChangeVersion, CreateKey, Encoding, Request, RevokeKeyVersion, Revoked, RotateKey, Sign, SignJwt,
        ToSign, UpdateKey, UpdateKeyClass,
    },
};

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const DAY: SignedDuration = SignedDuration::from_hours(24);

fn id(name: &str) -> KeyId {
    name.parse().expect("a key's name")
}

fn new(name: &str) -> CreateKey {
    CreateKey::new(id(name), Algorithm::Es256)
}

async fn world_with(key: CreateKey) -> (World, FakeKms) {
    let world = World::default();
    let settings = Settings { allow_destroy: true, ..Settings::default() };
    let kms = world.open(settings).await.expect("opens");
    kms.create_key(&administrator(), key, soon()).await.expect("created");
    (world, kms)
}

async fn rotate(kms: &FakeKms, takes_over: TakeOver) -> Result<VersionView, Error> {
    let request = RotateKey { takes_over, ..RotateKey::new(id("k")) };
    kms.rotate_key(&administrator(), request, soon()).await
}

async fn revoke(kms: &FakeKms, number: u32) -> Result<Revoked, Error> {
    let change = ChangeVersion { id: id("k"), number, request: Request::default() };
    let request = RevokeKeyVersion { change, reason: "seen on a paste site".to_owned() };
    kms.revoke_key_version(&administrator(), request, soon()).await
}

async fn signer(kms: &FakeKms) -> Result<u32, Error> {
    jwt(kms, "{}").await
}

async fn jwt(kms: &FakeKms, claims: &str) -> Result<u32, Error> {
    let ttl = Some(SignedDuration::from_secs(60));
    let request = SignJwt { id: id("k"), claims: claims.as_bytes().to_vec(), ttl, typ: None };
    kms.sign_jwt(&administrator(), request, soon()).await.map(|signed| signed.version)
}

async fn states(kms: &FakeKms) -> Vec<KeyState> {
    let versions = kms.list_key_versions(&administrator(), &id("k")).await.expect("listed");
    versions.into_iter().map(|version| version.state.expect("born")).collect()
}

fn published(kms: &FakeKms) -> usize {
    let set = kms.published_keys(Some(&id("k"))).expect("known").expect("there");
    let set: serde_json::Value = serde_json::from_slice(&set.body).expect("JSON");
    set["keys"].as_array().map_or(0, Vec::len)
}

fn reason<T>(outcome: Result<T, Error>) -> &'static str {
    outcome.err().map_or("", |error| error.reason())
}

#[test]
fn a_rotation_takes_over_at_the_time_that_was_asked_for_also_when_its_birth_was_cut_short() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        let now = kms_core::Clock::now(&world.clock);
        let at = now + DAY;
        world.hsm.set_fault(HsmFault::GenerateLosesAnswer);
        rotate(&kms, TakeOver::At(at)).await.expect_err("cut short");
        assert_eq!(kms.resume_births(soon()).await, 1);
        world.clock.advance(DAY - SignedDuration::from_secs(1));
        assert_eq!(signer(&kms).await, Ok(1));
        world.clock.advance(SignedDuration::from_secs(1));
        assert_eq!(signer(&kms).await, Ok(2));
    });
}

#[test]
fn a_time_that_would_skip_the_lead_is_refused_with_the_earliest_one() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        let now = kms_core::Clock::now(&world.clock);
        for at in [now - HOUR, now, now + HOUR] {
            let error = rotate(&kms, TakeOver::At(at)).await.expect_err("within the lead");
            assert_eq!(error.field(), Some("activate_time"));
            let earliest = now + HOUR + SignedDuration::from_mins(1);
            assert!(error.to_string().contains(&format!("{earliest:.0}")), "{error}");
        }
        assert_eq!(rotate(&kms, TakeOver::At(now + HOUR + SignedDuration::from_mins(1))).await.err(), None);
    });
}

#[test]
fn an_emergency_signs_at_once_is_an_action_of_its_own_and_is_the_same_after_a_cut() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        assert_eq!(rotate(&kms, TakeOver::AtOnce).await.expect("rotated").row.number, 2);
        assert_eq!(signer(&kms).await, Ok(2));
        // What the old version signed still verifies.
        assert_eq!(states(&kms).await, [KeyState::Deactivated, KeyState::Active]);
        assert_eq!(published(&kms), 2);
        let events = world.log.events();
        assert!(events.iter().any(|event| event.action == Action::EmergencyRotateKey));
        assert!(events.iter().all(|event| event.action != Action::RotateKey));

        world.hsm.set_fault(HsmFault::GenerateLosesAnswer);
        rotate(&kms, TakeOver::AtOnce).await.expect_err("cut short");
        assert_eq!(signer(&kms).await, Ok(2));
        assert_eq!(kms.resume_births(soon()).await, 1);
        assert_eq!(signer(&kms).await, Ok(3));
    });
}

#[test]
fn an_emergency_takes_the_version_that_waits_for_its_time_before_it_makes_another() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AfterLead).await.expect("rotated");
        assert_eq!(signer(&kms).await, Ok(1));
        assert_eq!(rotate(&kms, TakeOver::AtOnce).await.expect("promoted").row.number, 2);
        assert_eq!(signer(&kms).await, Ok(2));
        assert_eq!(rotate(&kms, TakeOver::AtOnce).await.expect("rotated").row.number, 3);
        assert_eq!(signer(&kms).await, Ok(3));
    });
}

#[test]
fn a_revoked_version_is_refused_everywhere_at_once_and_another_one_signs() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        let revoked = revoke(&kms, 1).await.expect("revoked");
        assert_eq!(revoked.version.state, Some(KeyState::Compromised));
        assert_eq!(revoked.successor.map(|version| version.row.number), Some(2));
        assert_eq!(states(&kms).await, [KeyState::Compromised, KeyState::Active]);
        assert_eq!((signer(&kms).await, published(&kms)), (Ok(2), 1));
        let enable = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
        let _ = kms.enable_key_version(&administrator(), enable, soon()).await;
        assert_eq!(states(&kms).await[0], KeyState::Compromised, "for good");
        let row = &kms.list_key_versions(&administrator(), &id("k")).await.expect("listed")[0].row;
        assert_eq!(
            row.compromise.as_ref().map(|compromise| compromise.reason.as_str()),
            Some("seen on a paste site")
        );
        // Once more changes nothing: neither the reason nor the versions.
        assert_eq!(revoke(&kms, 1).await.expect("again").version.row, *row);
        assert_eq!(states(&kms).await.len(), 2);
    });
}

#[test]
fn what_waits_for_its_time_succeeds_what_was_revoked() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AfterLead).await.expect("rotated");
        let revoked = revoke(&kms, 1).await.expect("revoked");
        assert_eq!(revoked.successor.map(|version| version.row.number), Some(2));
        assert_eq!(states(&kms).await, [KeyState::Compromised, KeyState::Active]);
    });
}

#[test]
fn when_what_waits_is_revoked_the_version_before_it_signs_on() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AfterLead).await.expect("rotated");
        let revoked = revoke(&kms, 2).await.expect("revoked");
        assert_eq!(revoked.successor.map(|version| version.row.number), Some(1));
        world.clock.advance(HOUR * 10);
        assert_eq!((signer(&kms).await, published(&kms)), (Ok(1), 1));
    });
}

#[test]
fn a_revocation_does_not_wait_for_the_hsm_and_the_successor_comes_by_itself() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        world.hsm.set_down(true);
        let revoked = revoke(&kms, 1).await.expect("revoked without the HSM");
        assert!(revoked.successor.is_none());
        assert_eq!(published(&kms), 0);
        assert_eq!(reason(signer(&kms).await), "NO_ACTIVE_VERSION");
        world.hsm.set_down(false);
        kms.resume_births(soon()).await;
        kms.run_due(soon()).await;
        assert_eq!(signer(&kms).await, Ok(2));
        assert_eq!(kms.run_due(soon()).await, 0, "and only one");
    });
}

#[test]
fn a_revocation_whose_process_dies_is_succeeded_by_the_next() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        // Neither is the row of the successor written: the first two commits are the revocation and its epoch.
        world.store.fail_after(2, kms_core::store::Fault::Unavailable("set by the test".to_owned()));
        assert!(revoke(&kms, 1).await.expect("revoked").successor.is_none());
        let next = world.open(Settings::default()).await.expect("opens");
        assert_eq!(next.run_due(soon()).await, 1);
        assert_eq!(signer(&next).await, Ok(2));
        let by: Vec<_> = world.log.events().into_iter().map(|event| (event.caller, event.action)).collect();
        assert!(by.contains(&("system:scheduler".into(), Action::EmergencyRotateKey)), "{by:?}");
    });
}

#[test]
fn who_ends_a_key_after_a_revocation_gets_no_successor_again() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        revoke(&kms, 1).await.expect("revoked");
        let change = ChangeVersion { id: id("k"), number: 2, request: Request::default() };
        kms.disable_key_version(&administrator(), change).await.expect("disabled");
        assert_eq!(kms.run_due(soon()).await, 0);
        assert_eq!(states(&kms).await, [KeyState::Compromised, KeyState::Suspended]);
    });
}

#[test]
fn a_revocation_needs_a_reason() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        for reason in ["", "  ", "a\nb", &"x".repeat(1_025)] {
            let change = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
            let request = RevokeKeyVersion { change, reason: reason.to_owned() };
            let error = kms.revoke_key_version(&administrator(), request, soon()).await.expect_err(reason);
            assert_eq!(error.field(), Some("reason"));
        }
        assert_eq!(states(&kms).await, [KeyState::Active]);
    });
}

#[test]
fn a_key_has_the_periods_of_its_class_where_it_has_none_of_its_own() {
    block_on(async {
        let own = AskedPeriods { publish_lead: Some(HOUR * 2), ..AskedPeriods::default() };
        let (_, kms) = world_with(CreateKey { class: ClassName::Session, periods: own, ..new("k") }).await;
        let key = || async { kms.get_key(&administrator(), &id("k")).await.expect("there").key };
        let class = KeyClass::built_in(ClassName::Session).periods;
        let periods = key().await.periods();
        assert_eq!((periods.rotation_period, periods.publish_lead), (class.rotation_period, HOUR * 2));
        assert_eq!(
            key().await.inherited.names().collect::<Vec<_>>(),
            ["rotation_period", "max_token_ttl", "overlap", "destroy_after"]
        );

        let periods = PeriodChanges {
            publish_lead: Some(Some(HOUR * 3)),
            rotation_period: Some(Some(DAY * 2)),
            ..PeriodChanges::default()
        };
        let change = UpdateKeyClass { name: ClassName::Session, periods, etag: Some(0) };
        let changed = kms.update_key_class(&administrator(), change).await.expect("changed");
        assert_eq!((changed.revision, changed.periods.publish_lead), (1, HOUR * 3));
        assert_eq!(key().await.rotation_period, Some(DAY * 2), "the class's");
        assert_eq!(key().await.publish_lead, HOUR * 2, "its own");
        assert_eq!(reason(kms.update_key_class(&administrator(), change).await), "ETAG_MISMATCH");

        // Given back, and moved to another class.
        let periods = PeriodChanges { publish_lead: Some(None), ..PeriodChanges::default() };
        let update = UpdateKey { periods, ..UpdateKey::new(id("k")) };
        assert_eq!(
            kms.update_key(&administrator(), update).await.expect("updated").key.publish_lead,
            HOUR * 3
        );
        let update = UpdateKey { class: Some(ClassName::Api), ..UpdateKey::new(id("k")) };
        let moved = kms.update_key(&administrator(), update).await.expect("updated").key;
        assert_eq!(moved.periods(), KeyClass::built_in(ClassName::Api).periods);
    });
}

#[test]
fn a_class_that_does_not_fit_one_of_its_keys_changes_none() {
    block_on(async {
        let own = AskedPeriods { publish_lead: Some(HOUR * 10), ..AskedPeriods::default() };
        let (_, kms) = world_with(CreateKey { class: ClassName::Session, periods: own, ..new("k") }).await;
        let other = CreateKey { class: ClassName::Session, ..new("other") };
        kms.create_key(&administrator(), other, soon()).await.expect("created");
        let periods = PeriodChanges { rotation_period: Some(Some(HOUR * 15)), ..PeriodChanges::default() };
        let change = UpdateKeyClass { name: ClassName::Session, periods, etag: None };
        let error = kms.update_key_class(&administrator(), change).await.expect_err("10 h + 12 h > 15 h");
        assert_eq!(error.reason(), "CLASS_DOES_NOT_FIT");
        assert!(error.to_string().contains("keys/k"), "{error}");
        let other = kms.get_key(&administrator(), &id("other")).await.expect("there").key;
        assert_eq!(other.rotation_period, Some(DAY));
    });
}

#[test]
fn a_longer_token_life_in_the_class_extends_the_withdrawal_of_versions_that_stand_in_the_jwks() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AtOnce).await.expect("rotated");
        let withdrawn = || async {
            let versions = kms.list_key_versions(&administrator(), &id("k")).await.expect("listed");
            versions[0].row.born.as_ref().expect("born").timeline.withdrawn_at.expect("retired")
        };
        let before = withdrawn().await;
        let periods = PeriodChanges { max_token_ttl: Some(Some(DAY)), ..PeriodChanges::default() };
        let change = UpdateKeyClass { name: ClassName::JwtSigning, periods, etag: None };
        kms.update_key_class(&administrator(), change).await.expect("changed");
        assert_eq!(withdrawn().await, before + (DAY - HOUR));
        // Tokens of a day are out there when the class goes back to an hour.
        rotate(&kms, TakeOver::AtOnce).await.expect("rotated");
        let back = UpdateKeyClass {
            periods: PeriodChanges { max_token_ttl: Some(None), ..PeriodChanges::default() },
            ..change
        };
        kms.update_key_class(&administrator(), back).await.expect("changed");
        world.clock.advance(DAY - HOUR);
        assert_eq!(published(&kms), 3);
    });
}

#[test]
fn claims_that_the_keys_rules_do_not_allow_are_not_signed_and_not_told() {
    block_on(async {
        let claim_rules = ClaimRules {
            issuers: vec!["https://issuer".to_owned()],
            audiences: vec!["one".to_owned(), "two".to_owned()],
            required: vec!["sub".to_owned()],
        };
        let (_, kms) = world_with(CreateKey { claim_rules, ..new("k") }).await;
        for good in [
            r#"{"iss":"https://issuer","aud":"one","sub":"s3cret"}"#,
            r#"{"iss":"https://issuer","aud":["two","one"],"sub":0}"#,
        ] {
            assert_eq!(jwt(&kms, good).await, Ok(1), "{good}");
        }
        for bad in [
            r#"{"aud":"one","sub":"s3cret"}"#,
            r#"{"iss":"https://s3cret","aud":"one","sub":"s"}"#,
            r#"{"iss":["https://issuer"],"aud":"one","sub":"s3cret"}"#,
            r#"{"iss":"https://issuer","sub":"s3cret"}"#,
            r#"{"iss":"https://issuer","aud":["one","s3cret"],"sub":"s"}"#,
            r#"{"iss":"https://issuer","aud":[],"sub":"s3cret"}"#,
            r#"{"iss":"https://issuer","aud":["one",1],"sub":"s3cret"}"#,
            r#"{"iss":"https://issuer","aud":"one"}"#,
            r#"{"iss":"https://issuer","aud":"one","sub":null}"#,
        ] {
            let error = jwt(&kms, bad).await.expect_err(bad);
            assert_eq!(error.reason(), "CLAIM_NOT_ALLOWED", "{bad}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        let empty = ClaimRules { required: vec![String::new()], ..ClaimRules::default() };
        let update = UpdateKey { claim_rules: Some(empty), ..UpdateKey::new(id("k")) };
        let error = kms.update_key(&administrator(), update).await.expect_err("empty");
        assert_eq!(error.field(), Some("claim_rules.required"));
    });
}

#[test]
fn bytes_of_a_callers_own_choice_are_a_right_of_their_own_with_a_key_of_tokens() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        let bytes = CreateKey { purpose: Purpose::Signature, ..new("bytes") };
        kms.create_key(&administrator(), bytes, soon()).await.expect("created");
        let caller = |role| Caller::new("access-token:c", role, KeyScope::All);
        let sign = |role, key: &str| {
            let input = ToSign::Message(b"hello".to_vec());
            let request = Sign { id: id(key), version: None, input, encoding: Encoding::Jose };
            let (kms, caller) = (&kms, caller(role));
            async move { kms.sign(&caller, request, soon()).await.map(drop) }
        };
        assert_eq!(reason(sign(Role::User, "k").await), "PERMISSION_DENIED");
        let last = world.log.events().pop().expect("a record");
        assert_eq!((last.action, last.outcome), (Action::SignRaw, Outcome::Denied));
        assert_eq!(reason(sign(Role::User, "bytes").await), "");
        assert_eq!(reason(sign(Role::RawSigner, "k").await), "");
        assert_eq!(reason(sign(Role::Administrator, "k").await), "");
        // What is not there is not told from what is.
        assert_eq!(reason(sign(Role::User, "absent").await), "NOT_FOUND");
        let token = SignJwt { id: id("bytes"), claims: b"{}".to_vec(), ttl: Some(HOUR), typ: None };
        assert_eq!(reason(kms.sign_jwt(&administrator(), token, soon()).await), "WRONG_PURPOSE");
    });
}

#[test]
fn what_is_withdrawn_is_scheduled_for_destruction_after_its_time_and_can_be_called_back_for_good() {
    block_on(async {
        let periods = AskedPeriods { destroy_after: Some(DAY * 2), ..AskedPeriods::default() };
        let (world, kms) = world_with(CreateKey { periods, ..new("k") }).await;
        rotate(&kms, TakeOver::AtOnce).await.expect("rotated");
        assert_eq!(kms.run_due(soon()).await, 0, "it still verifies");
        // Withdrawn after ttl + skew + lead.
        world.clock.advance(HOUR * 3);
        assert_eq!(kms.run_due(soon()).await, 1);
        let first = || async { states(&kms).await[0] };
        assert_eq!(first().await, KeyState::Suspended);
        // Not before the delay of a destruction that is asked for by hand, which is 30 days.
        world.clock.advance(DAY * 29);
        kms.run_due(soon()).await;
        assert_eq!(first().await, KeyState::Suspended);
        let change = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
        kms.restore_key_version(&administrator(), change).await.expect("called back");
        world.clock.advance(DAY * 60);
        kms.run_due(soon()).await;
        assert_eq!(first().await, KeyState::Suspended, "and not scheduled again");
    });
}

#[test]
fn what_is_scheduled_by_age_is_destroyed_when_its_time_has_come_and_not_before() {
    block_on(async {
        let periods = AskedPeriods {
            destroy_after: Some(DAY * 40),
            rotation_period: Some(SignedDuration::ZERO),
            ..AskedPeriods::default()
        };
        let (world, kms) = world_with(CreateKey { periods, ..new("k") }).await;
        rotate(&kms, TakeOver::AtOnce).await.expect("rotated");
        world.clock.advance(HOUR + HOUR + SignedDuration::from_mins(5));
        assert_eq!(kms.run_due(soon()).await, 1);
        let before = world.hsm.count();
        world.clock.advance(DAY * 40 - SignedDuration::from_secs(1));
        assert_eq!((kms.run_due(soon()).await, world.hsm.count()), (0, before));
        world.clock.advance(SignedDuration::from_secs(1));
        assert_eq!(kms.run_due(soon()).await, 1);
        assert_eq!(states(&kms).await, [KeyState::Destroyed, KeyState::Active]);
        assert_eq!(world.hsm.count().0, before.0 - 1);
    });
}
