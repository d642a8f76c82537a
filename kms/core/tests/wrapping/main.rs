//! Keys that wrap: what opens and what does not, what rotation moves, how often a version wraps, and when it may go.
//! Over fakes.

#![expect(clippy::expect_used, reason = "a test's verdict is a panic")]

use std::collections::BTreeMap;

use futures::executor::block_on;
use kms_core::{
    Algorithm, Caller, Error, KeyId, KeyState, WrapLimits,
    caller::{KeyScope, Role},
    fakes::{FakeKms, World, administrator, soon},
    kms::Settings,
    time::SignedDuration,
    verbs::{
        ChangeVersion, CreateKey, Opened, Request, RevokeKeyVersion, RewrapKey, RotateKey, UnwrapKey,
        WrapKey, Wrapped,
    },
};
use kms_envelope::{EncryptionContext, SecretBytes, WrappedKey};

mod budget;
mod destruction;
mod envelopes;
mod opening;
mod rotation;

const SECOND: SignedDuration = SignedDuration::from_secs(1);
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// What is wrapped.
const SECRET: [u8; 32] = [0x5a; 32];

fn id(name: &str) -> KeyId {
    name.parse().expect("a key's name")
}

fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
    let owned = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    EncryptionContext::new(owned).expect("a context")
}

fn as_role(role: Role) -> Caller {
    Caller::new("access-token:somebody", role, KeyScope::All)
}

async fn world_with(settings: Settings, names: &[&str]) -> (World, FakeKms) {
    let world = World::default();
    let kms = world.open(settings).await.expect("opens");
    for name in names {
        let key = CreateKey::new(id(name), Algorithm::A256GcmKw);
        kms.create_key(&administrator(), key, soon()).await.expect("created");
    }
    (world, kms)
}

async fn a_world() -> (World, FakeKms) {
    world_with(Settings { allow_destroy: true, ..Settings::default() }, &["k"]).await
}

fn to_wrap(name: &str, context: EncryptionContext) -> WrapKey {
    WrapKey { id: id(name), plaintext: SecretBytes::new(SECRET.to_vec()), context, data_key_id: None }
}

async fn wrap(kms: &FakeKms, name: &str, context: &EncryptionContext) -> Result<Wrapped, Error> {
    kms.wrap_key(&as_role(Role::User), to_wrap(name, context.clone()), soon()).await
}

async fn unwrap(
    kms: &FakeKms,
    name: &str,
    wrapped: &WrappedKey,
    context: &EncryptionContext,
) -> Result<Opened, Error> {
    unwrap_as(kms, Role::User, name, wrapped, context).await
}

async fn unwrap_as(
    kms: &FakeKms,
    role: Role,
    name: &str,
    wrapped: &WrappedKey,
    context: &EncryptionContext,
) -> Result<Opened, Error> {
    let request = UnwrapKey { id: id(name), wrapped: wrapped.clone(), context: context.clone() };
    kms.unwrap_key(&as_role(role), request, soon()).await
}

async fn rewrap(kms: &FakeKms, role: Role, wrapped: &WrappedKey) -> Result<WrappedKey, Error> {
    let request = RewrapKey { id: id("k"), wrapped: wrapped.clone() };
    kms.rewrap_key(&as_role(role), request, soon()).await.map(|rewrapped| rewrapped.moved)
}

/// The next version, and its time.
async fn rotate(world: &World, kms: &FakeKms) {
    kms.rotate_key(&administrator(), RotateKey::new(id("k")), soon()).await.expect("rotated");
    world.clock.advance(SECOND * 30);
}

async fn revoke(kms: &FakeKms, number: u32) {
    let request = RevokeKeyVersion { change: change(number), reason: "seen on a paste site".to_owned() };
    kms.revoke_key_version(&administrator(), request, soon()).await.expect("revoked");
}

fn change(number: u32) -> ChangeVersion {
    ChangeVersion { id: id("k"), number, request: Request::default() }
}

async fn states(kms: &FakeKms) -> Vec<KeyState> {
    let versions = kms.list_key_versions(&administrator(), &id("k")).await.expect("listed");
    versions.into_iter().map(|version| version.state.expect("born")).collect()
}

fn reason<T>(result: Result<T, Error>) -> Option<&'static str> {
    result.err().map(|error| error.reason())
}
