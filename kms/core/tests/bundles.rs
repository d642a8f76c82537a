//! Signed key sets for caches that answer while we do not: what they hold, when they end, who signs them, and how their
//! key is succeeded. Over fakes.

#![expect(clippy::expect_used, reason = "a test's verdict is a panic")]

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::executor::block_on;
use kms_core::{
    Action, Algorithm, Clock as _, Error, KeyId,
    audit::Outcome,
    caller::{Caller, KeyScope, Role},
    class::PeriodChanges,
    fakes::{FakeKms, HsmFault, World, administrator, soon},
    key::{Purpose, TakeOver},
    kms::Settings,
    signature::{input_of, verifies},
    time::{SignedDuration, Timestamp},
    verbs::{
        ChangeVersion, CreateKey, Encoding, KeySetBundle, Request, RevokeKeyVersion, RotateKey, Sign,
        SignJwt, SignKeySetBundle, ToSign, UpdateKey,
    },
};
use serde_json::Value;

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const MINUTE: SignedDuration = SignedDuration::from_mins(1);

fn id(name: &str) -> KeyId {
    name.parse().expect("a key's name")
}

fn new(name: &str, purpose: Purpose, lead: SignedDuration) -> CreateKey {
    let mut key = CreateKey { purpose, ..CreateKey::new(id(name), Algorithm::Es256) };
    key.periods.publish_lead = Some(lead);
    key
}

/// A key of bundles, `pub`, and one of tokens, `k`, with a lead of four hours.
async fn world() -> (World, FakeKms) {
    let world = World::default();
    let kms = world.open(Settings::default()).await.expect("opens");
    create(&kms, new("pub", Purpose::JwksBundle, HOUR)).await;
    create(&kms, new("k", Purpose::Jwt, HOUR * 4)).await;
    (world, kms)
}

async fn create(kms: &FakeKms, key: CreateKey) {
    kms.create_key(&administrator(), key, soon()).await.expect("created");
}

async fn rotate(kms: &FakeKms, name: &str, takes_over: TakeOver) -> Result<u32, Error> {
    let request = RotateKey { takes_over, ..RotateKey::new(id(name)) };
    kms.rotate_key(&administrator(), request, soon()).await.map(|version| version.row.number)
}

async fn bundle(kms: &FakeKms) -> KeySetBundle {
    let bundle = kms.sign_key_set_bundle(&administrator(), SignKeySetBundle::new(id("pub")), soon()).await;
    bundle.expect("signed")
}

async fn bundle_of(kms: &FakeKms, keys: &[&str], ttl: Option<SignedDuration>) -> Result<KeySetBundle, Error> {
    let keys = keys.iter().map(|name| id(name)).collect();
    let request = SignKeySetBundle { keys, ttl, ..SignKeySetBundle::new(id("pub")) };
    kms.sign_key_set_bundle(&administrator(), request, soon()).await
}

/// Header and claims, once the signature verifies under that version of `pub`.
async fn opened(kms: &FakeKms, jws: &str, version: u32) -> (Value, Value) {
    let public = kms.public_key(&administrator(), &id("pub"), Some(version)).await.expect("a public key");
    let (signed, signature) = jws.rsplit_once('.').expect("a JWS");
    let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    let input = input_of(Algorithm::Es256, signed.as_bytes());
    assert!(
        verifies(Algorithm::Es256, &public.spki_der, &input, &signature),
        "not signed by version {version}"
    );
    let (header, claims) = signed.split_once('.').expect("a JWS");
    let [header, claims]: [Value; 2] = [header, claims]
        .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("JSON"));
    assert_eq!(header["kid"], public.kid.as_str());
    assert_eq!(header["alg"], "ES256");
    (header, claims)
}

/// Who states what: the numbers of the versions of `pub` at both ends of each statement.
async fn chain(kms: &FakeKms, bundle: &KeySetBundle) -> Vec<(u32, u32)> {
    let versions = kms.list_key_versions(&administrator(), &id("pub")).await.expect("listed");
    let number = |kid: &Value| {
        let of = versions.iter().find(|view| {
            view.row
                .born
                .as_ref()
                .and_then(|born| born.material.kid())
                .is_some_and(|own| *kid == own.as_str())
        });
        of.expect("a version").row.number
    };
    let mut links = vec![];
    for statement in &bundle.chain {
        let header =
            URL_SAFE_NO_PAD.decode(statement.split('.').next().expect("a header")).expect("base64url");
        let header: Value = serde_json::from_slice(&header).expect("JSON");
        let by = number(&header["kid"]);
        let (header, claims) = opened(kms, statement, by).await;
        assert_eq!(header["typ"], "kms-jwks-bundle-succession+jwt");
        assert_eq!(claims["sub"], "keys/pub");
        links.push((by, number(&claims["jwk"]["kid"])));
    }
    links
}

fn reason<T>(outcome: Result<T, Error>) -> &'static str {
    outcome.err().map_or("", |error| error.reason())
}

#[test]
fn a_key_of_bundles_signs_nothing_else_whoever_asks_and_no_other_key_signs_one() {
    block_on(async {
        let (_, kms) = world().await;
        create(&kms, new("bytes", Purpose::Signature, HOUR)).await;
        let scope = KeyScope::All;
        for role in [Role::Administrator, Role::User, Role::RawSigner] {
            let caller = Caller::new("access-token:c", role, scope.clone());
            let ttl = Some(MINUTE);
            let jwt = SignJwt {
                id: id("pub"),
                claims: b"{}".to_vec(),
                ttl,
                typ: Some("kms-jwks-bundle+jwt".into()),
            };
            assert_eq!(reason(kms.sign_jwt(&caller, jwt, soon()).await), "WRONG_PURPOSE");
            let input = ToSign::Message(b"eyJ9.e30".to_vec());
            let bytes = Sign { id: id("pub"), version: None, input, encoding: Encoding::Jose };
            assert_eq!(reason(kms.sign(&caller, bytes.clone(), soon()).await), "WRONG_PURPOSE");
            let batch = kms.batch_sign(&caller, vec![bytes], soon()).await.expect("a batch");
            assert!(batch.into_iter().all(|item| reason(item) == "WRONG_PURPOSE"));
            for other in ["k", "bytes"] {
                let request = SignKeySetBundle::new(id(other));
                let outcome = kms.sign_key_set_bundle(&caller, request, soon()).await;
                assert_eq!(reason(outcome), "WRONG_PURPOSE", "{other}");
            }
        }
    });
}

#[test]
fn only_keys_of_tokens_stand_in_a_bundle_and_keys_of_bundles_in_no_key_set() {
    block_on(async {
        let (_, kms) = world().await;
        rotate(&kms, "pub", TakeOver::AfterLead).await.expect("rotated");
        let set = kms.published_keys(None).expect("known").expect("there");
        let set: Value = serde_json::from_slice(&set.body).expect("JSON");
        assert_eq!(set["keys"].as_array().map(Vec::len), Some(1), "{set}");
        assert_eq!(kms.published_keys(Some(&id("pub"))), Ok(None));
        let (_, claims) = opened(&kms, &bundle(&kms).await.bundle, 1).await;
        assert_eq!(claims["keys"], set["keys"]);
        // Nor does what signs bytes, which could be a token.
        create(&kms, new("bytes", Purpose::Signature, HOUR)).await;
        let (_, claims) = opened(&kms, &bundle(&kms).await.bundle, 1).await;
        assert_eq!(claims["keys"], set["keys"]);
        for name in ["pub", "bytes"] {
            let error = bundle_of(&kms, &["k", name], None).await.expect_err(name);
            assert_eq!(error.field(), Some("keys"), "{name}");
        }
        assert_eq!(reason(bundle_of(&kms, &["absent"], None).await), "NOT_FOUND");
    });
}

#[test]
fn a_bundle_says_what_it_is_a_set_of_when_it_holds_and_which_set_came_before() {
    block_on(async {
        let (world, kms) = world().await;
        create(&kms, new("other", Purpose::Jwt, HOUR * 4)).await;
        let now = world.clock.now().as_second();
        let first = bundle(&kms).await;
        let (header, claims) = opened(&kms, &first.bundle, 1).await;
        assert_eq!(header["typ"], "kms-jwks-bundle+jwt");
        assert_eq!((&claims["iss"], &claims["sub"]), (&"https://localhost".into(), &"keys/*".into()));
        assert_eq!([&claims["iat"], &claims["nbf"], &claims["exp"]], [now, now, now + 3600]);
        assert_eq!(claims["seq"], kms.generation().0);
        assert_eq!(first.not_after, Timestamp::from_second(now + 3600).expect("a time"));
        assert_eq!((first.version, first.sequence), (1, kms.generation().0));

        let some = bundle_of(&kms, &["other", "k", "other"], Some(MINUTE)).await.expect("signed");
        let (_, claims) = opened(&kms, &some.bundle, 1).await;
        assert_eq!(claims["sub"], "keys/k keys/other");
        assert_eq!(claims["exp"], now + 60);
        assert_eq!(some.sequence, first.sequence, "nothing has changed");

        let change = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
        kms.disable_key_version(&administrator(), change).await.expect("disabled");
        let later = bundle_of(&kms, &["k"], None).await.expect("signed");
        assert!(later.sequence > first.sequence);
        let (_, claims) = opened(&kms, &later.bundle, 1).await;
        assert_eq!(claims["keys"], Value::Array(vec![]), "who fetches it must learn that");
    });
}

#[test]
fn a_life_that_is_too_long_or_too_short_is_refused_with_what_bounds_it() {
    block_on(async {
        let (_, kms) = world().await;
        let too_long = bundle_of(&kms, &["k"], Some(HOUR + SignedDuration::from_secs(1))).await;
        let error = too_long.expect_err("longer than a revocation may take");
        assert_eq!(error.field(), Some("ttl"));
        assert!(error.to_string().contains("3600 seconds, by keys.bundle_ttl_max"), "{error}");
        for short in
            [SignedDuration::ZERO, SignedDuration::from_secs(29), SignedDuration::from_millis(60_001)]
        {
            let error = bundle_of(&kms, &["k"], Some(short)).await.expect_err("too short");
            assert_eq!(error.field(), Some("ttl"), "{short}");
        }
        create(&kms, new("hasty", Purpose::Jwt, MINUTE * 2)).await;
        let error = bundle_of(&kms, &[], Some(MINUTE * 2)).await.expect_err("longer than half of a lead");
        assert!(
            error.to_string().contains("60 seconds, by half of the publish_lead of keys/hasty"),
            "{error}"
        );
        let longest = bundle(&kms).await;
        assert_eq!(longest.not_after.duration_since(longest.not_before), MINUTE);
        assert!(bundle_of(&kms, &["k"], Some(HOUR)).await.is_ok(), "without it");
        create(&kms, new("hastier", Purpose::Jwt, SignedDuration::from_secs(58))).await;
        let error = bundle_of(&kms, &[], None).await.expect_err("nobody could use it");
        assert_eq!(error.reason(), "BUNDLE_TOO_SHORT");
        assert!(error.to_string().contains("keys/hastier"), "{error}");
    });
}

#[test]
fn every_bundle_without_a_version_has_ended_before_it_signs_whatever_became_of_the_lead() {
    // What two clocks and a replica that is about to be fenced may add: see BUNDLE_TTL_MIN.
    let slack = SignedDuration::from_secs(25);
    for (before, after) in [(60, None), (7_200, None), (7_200, Some(60)), (3_600, Some(10)), (60, Some(10))] {
        block_on(async {
            let (world, kms) = world().await;
            create(&kms, new("t", Purpose::Jwt, SignedDuration::from_secs(before))).await;
            world.clock.advance(HOUR * 3);
            let made = bundle_of(&kms, &["t"], None).await.expect("signed");
            if let Some(after) = after {
                let publish_lead = Some(Some(SignedDuration::from_secs(after)));
                let periods = PeriodChanges { publish_lead, ..PeriodChanges::default() };
                let change = UpdateKey { periods, ..UpdateKey::new(id("t")) };
                kms.update_key(&administrator(), change).await.expect("changed");
                // Longer than any cache of the key set.
                world.clock.advance(MINUTE * 6);
            }
            rotate(&kms, "t", TakeOver::AfterLead).await.expect("rotated");
            let versions = kms.list_key_versions(&administrator(), &id("t")).await.expect("listed");
            let activates_at = versions[1].row.born.as_ref().expect("born").timeline.activates_at;
            assert!(
                activates_at >= made.not_after + slack,
                "{before} {after:?}: {activates_at} {}",
                made.not_after
            );
            // And not for ever.
            world.clock.advance(HOUR * 3);
            rotate(&kms, "t", TakeOver::AfterLead).await.expect("rotated");
            let versions = kms.list_key_versions(&administrator(), &id("t")).await.expect("listed");
            let activates_at = versions[2].row.born.as_ref().expect("born").timeline.activates_at;
            // A rotation is a change: caches of the key set are waited for, whatever the lead.
            let lead = SignedDuration::from_secs(after.unwrap_or(before).max(320));
            assert_eq!(activates_at, world.clock.now() + lead, "{before} {after:?}");
        });
    }
}

#[test]
fn the_chain_leads_from_the_first_version_to_the_one_that_signs() {
    block_on(async {
        let (world, kms) = world().await;
        assert_eq!(bundle(&kms).await.chain, []);
        for number in 2..=4 {
            assert_eq!(rotate(&kms, "pub", TakeOver::AfterLead).await, Ok(number));
            assert_eq!(bundle(&kms).await.version, number - 1, "within the lead");
            world.clock.advance(HOUR * 2);
        }
        let made = bundle(&kms).await;
        assert_eq!(made.version, 4);
        opened(&kms, &made.bundle, 4).await;
        assert_eq!(chain(&kms, &made).await, [(1, 2), (2, 3), (3, 4)]);
        let statements = |action| world.log.events().iter().filter(|event| event.action == action).count();
        assert_eq!(statements(Action::CrossSignSuccessor), 6, "intent and outcome of each");
    });
}

#[test]
fn a_birth_that_is_resumed_brings_its_statement_along() {
    block_on(async {
        let (world, kms) = world().await;
        for fault in [HsmFault::GenerateLosesAnswer, HsmFault::SignFlipsBit] {
            world.hsm.set_fault(fault);
            rotate(&kms, "pub", TakeOver::AfterLead).await.expect_err("cut short");
            world.clock.advance(MINUTE * 20);
            assert_eq!(kms.resume_births(soon()).await, 1);
            world.clock.advance(HOUR * 3);
        }
        let made = bundle(&kms).await;
        assert_eq!(chain(&kms, &made).await, [(1, 2), (2, 3)]);
    });
}

#[test]
fn what_was_made_in_an_emergency_or_comes_from_a_revoked_version_is_to_be_pinned_anew() {
    block_on(async {
        let (world, kms) = world().await;
        rotate(&kms, "pub", TakeOver::AfterLead).await.expect("rotated");
        world.clock.advance(HOUR * 2);
        rotate(&kms, "pub", TakeOver::AtOnce).await.expect("rotated");
        let made = bundle(&kms).await;
        assert_eq!((made.version, made.chain.len()), (3, 0), "nobody vouches for it");
        for _ in 0..2 {
            rotate(&kms, "pub", TakeOver::AfterLead).await.expect("rotated");
            world.clock.advance(HOUR * 2);
        }
        assert_eq!(chain(&kms, &bundle(&kms).await).await, [(3, 4), (4, 5)]);

        let change = ChangeVersion { id: id("pub"), number: 4, request: Request::default() };
        let revocation = RevokeKeyVersion { change, reason: "a test".to_owned() };
        kms.revoke_key_version(&administrator(), revocation, soon()).await.expect("revoked");
        assert_eq!(bundle(&kms).await.chain, [], "what version 4 says is worth nothing, and 3 knows only 4");
        rotate(&kms, "pub", TakeOver::AfterLead).await.expect("rotated");
        world.clock.advance(HOUR * 2);
        assert_eq!(chain(&kms, &bundle(&kms).await).await, [(5, 6)]);
    });
}

#[test]
fn a_version_that_cannot_sign_holds_its_successor_up_until_it_is_put_aside() {
    block_on(async {
        let (world, kms) = world().await;
        let first = kms.list_key_versions(&administrator(), &id("pub")).await.expect("listed")[0].row.cka_id;
        world.hsm.lose(first);
        rotate(&kms, "pub", TakeOver::AfterLead).await.expect_err("nobody signs the statement");
        world.clock.advance(MINUTE * 20);
        assert_eq!(kms.resume_births(soon()).await, 0);
        let change = ChangeVersion { id: id("pub"), number: 1, request: Request::default() };
        kms.disable_key_version(&administrator(), change).await.expect("disabled");
        world.clock.advance(MINUTE * 20);
        assert_eq!(kms.resume_births(soon()).await, 1);
        world.clock.advance(HOUR * 2);
        let made = bundle(&kms).await;
        assert_eq!((made.version, made.chain.len()), (2, 0));
    });
}

#[test]
fn whoever_may_use_the_key_may_sign_bundles_and_each_is_on_record() {
    block_on(async {
        let (world, kms) = world().await;
        let user = |key| Caller::new("access-token:cron", Role::User, KeyScope::Only([id(key)].into()));
        let sign = async |caller: Caller| {
            kms.sign_key_set_bundle(&caller, SignKeySetBundle::new(id("pub")), soon()).await
        };
        assert_eq!(reason(sign(user("k")).await), "PERMISSION_DENIED");
        sign(user("pub")).await.expect("signed");
        let events = world.log.events();
        let [denied, signed] = &events[events.len() - 2..] else { panic!("two records") };
        for (event, outcome) in [(denied, Outcome::Denied), (signed, Outcome::Succeeded)] {
            assert_eq!((event.action, event.outcome), (Action::SignKeySetBundle, outcome));
            assert_eq!(event.key, Some(id("pub")));
        }
        assert_eq!((denied.version, signed.version), (None, Some(1)));

        world.hsm.set_fault(HsmFault::SignFlipsBit);
        assert_eq!(reason(sign(user("pub")).await), "INTERNAL", "verified before it is released");
    });
}
