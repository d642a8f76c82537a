//! Who may do what, and who approved it: role bindings, the policy document, proposals.

#![expect(clippy::expect_used, reason = "a test's verdict is a panic")]

mod bindings;
mod cost;
mod documents;
mod proposals;
mod renewal;
mod roles;

use std::collections::BTreeMap;

use futures::executor::block_on;
use kms_core::{
    Action, Algorithm, Caller, Error, KeyId,
    access::Scope,
    caller::{KeyScope, OwnRole, Role},
    class::ClassName,
    fakes::{FakeKms, World, administrator, soon},
    kms::Settings,
    principal::Principal,
    verbs::{CreateAccessToken, CreateKey, CreateRoleBinding, Question},
};

fn id(name: &str) -> KeyId {
    name.parse().expect("a name")
}

fn principal(name: &str) -> Principal {
    name.parse().expect("a principal")
}

fn named(name: &str) -> Caller {
    Caller::named(&principal(name))
}

fn reason<T>(outcome: Result<T, Error>) -> Result<(), &'static str> {
    outcome.map(drop).map_err(|error| error.reason())
}

/// A world whose service may destroy, with a key of tokens `signs` (team auth, class jwt-signing), one that wraps `wraps` (team
/// data, class database), and a root key `roots`.
async fn a_world() -> (World, FakeKms) {
    let world = World::default();
    let kms = world.open(Settings { allow_destroy: true, ..Settings::default() }).await.expect("opens");
    for (name, algorithm, class, team) in [
        ("signs", Algorithm::Es256, ClassName::JwtSigning, "auth"),
        ("wraps", Algorithm::A256GcmKw, ClassName::Database, "data"),
        ("roots", Algorithm::Es256, ClassName::Root, "core"),
    ] {
        let request = CreateKey {
            class,
            labels: [("team".to_owned(), team.to_owned())].into(),
            owner: format!("{team}@example.org"),
            ..CreateKey::new(id(name), algorithm)
        };
        kms.create_key(&administrator(), request, soon()).await.expect("created");
    }
    (world, kms)
}

fn binding(name: &str, who: &str, role: Role, on: &str) -> CreateRoleBinding {
    CreateRoleBinding {
        name: id(name),
        principal: principal(who),
        role,
        only: Vec::new(),
        on: on.parse::<Scope>().expect("a scope"),
        required_context: BTreeMap::new(),
        not_before: None,
        expires_at: None,
    }
}

async fn bind(kms: &FakeKms, name: &str, who: &str, role: Role, on: &str) {
    let bound = kms.create_role_binding(&administrator(), binding(name, who, role, on)).await;
    kms_core::fakes::with_consent(kms, bound).await.expect("bound");
}

/// A second and a third administrator who have rows.
async fn make_administrators(kms: &FakeKms) {
    for name in ["admin", "second"] {
        let own = OwnRole { role: Role::Administrator, keys: KeyScope::All };
        kms.create_access_token(&administrator(), CreateAccessToken::new(name, own)).await.expect("made");
    }
}

/// Whether policy would allow it, and by which rules.
async fn explained(kms: &FakeKms, caller: &str, action: Action, key: Option<&str>) -> (bool, Vec<String>) {
    let question = Question { caller: caller.to_owned(), action, key: key.map(id), context: BTreeMap::new() };
    let mut told = kms.explain_policy(&administrator(), vec![question], None).await.expect("explained");
    let told = told.remove(0);
    (told.allowed, told.rules)
}

async fn allows(kms: &FakeKms, caller: &str, action: Action, key: Option<&str>) -> bool {
    explained(kms, caller, action, key).await.0
}
