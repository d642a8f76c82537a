//! What an operator plans and what happens to him: rotations at a time and at once, revocations, classes, rules over
//! claims, destruction by age. Over fakes.

#![expect(clippy::expect_used, reason = "a test's verdict is a panic")]

use futures::executor::block_on;
use kms_core::{
    Action, Algorithm, Error, Key, KeyId, KeyState, Store as _,
    audit::Outcome,
    caller::{Caller, KeyScope, Role},
    claim_rules::ClaimRules,
    class::{AskedPeriods, ClassName, KeyClass, PeriodChanges},
    fakes::{FakeKms, HsmFault, World, administrator, soon},
    key::{Purpose, TakeOver},
    kms::{Settings, VersionView},
    store::{Transaction, Write},
    time::SignedDuration,
    verbs::{
        ChangeVersion, CreateKey, Encoding, Request, RevokeKeyVersion, Revoked, RotateKey, Sign, SignJwt,
        ToSign, UpdateKey, UpdateKeyClass,
    },
};

mod classes;
mod destruction;
mod revocations;
mod rotations;
mod use_of_keys;

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
