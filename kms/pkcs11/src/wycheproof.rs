//! Promise 30 on the token: Wycheproof's vectors through the product's own mechanism table, on SoftHSM and Kryoptic.
//!
//! The keys of the vectors are imported as session objects (PKCS#11 v3.1 §5.7.1), which nothing of the product can do:
//! this file is compiled into this crate's unit tests and into nothing else. A token finds its configuration by the
//! environment of its process, so every test runs an ignored one in a process of its own.

mod key_wraps;
#[path = "../../core/tests/wycheproof/sets.rs"]
mod signature_sets;
mod signatures;

use std::process::Command;

use cryptoki::{
    error::Error,
    object::{Attribute, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
};
use kms_softhsm::{EphemeralToken, unless_left_out};

use crate::{Uri, module::Module, pin, profile::Class};

/// A token that is logged in to, and its two sessions: what failed once in a session may be left active in it, and
/// what was imported in a session goes with it.
struct Token {
    module: Module,
    slot: Slot,
    /// Holds the login and the imported keys.
    keys: Session,
    /// Works with them; replaced after every error, as a worker does.
    work: Option<Session>,
}

impl Token {
    /// The one that the environment names.
    fn of_this_process() -> Self {
        let uri: Uri = std::env::var("TEST_URI").unwrap().parse().unwrap();
        let module = Module::load(&uri.module_path).unwrap();
        let (slot, _) = module.token(&uri).unwrap();
        let keys = module.pkcs11.open_rw_session(slot).unwrap();
        keys.login(UserType::User, Some(&pin::read(&uri.pin_source.unwrap()).unwrap())).unwrap();
        Self { module, slot, keys, work: None }
    }

    /// Puts a key into the token until this process ends.
    fn import(&self, template: &[Attribute]) -> ObjectHandle {
        self.keys.create_object(&[&[Attribute::Token(false)], template].concat()).unwrap()
    }

    /// What the token makes of one vector; `None` when it refuses. A refusal that looked like a lost HSM would end a
    /// worker, so that a caller's bytes could.
    fn makes<T>(&mut self, of: impl FnOnce(&Session) -> Result<T, Error>) -> Option<T> {
        let session =
            self.work.take().unwrap_or_else(|| self.module.pkcs11.open_rw_session(self.slot).unwrap());
        match of(&session) {
            Ok(made) => {
                self.work = Some(session);
                Some(made)
            }
            Err(error) => {
                let class = self.module.profile.class(&error);
                assert!(!matches!(class, Class::Session | Class::Device), "{error:?} is {class:?}");
                None
            }
        }
    }
}

/// Runs an ignored test of this module for a SoftHSM token, and for a Kryoptic one with the same words.
fn on_both(test: &str) {
    let softhsm = EphemeralToken::new().unwrap();
    let kryoptic = unless_left_out(EphemeralToken::kryoptic()).unwrap();
    for token in std::iter::once(softhsm).chain(kryoptic) {
        let (variable, conf) = token.env();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("wycheproof::{test}"), "--ignored", "--nocapture"])
            .env(variable, conf)
            .env("TEST_URI", token.uri())
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success() && out.contains("1 passed"),
            "{}: {out}{err}",
            token.module().display()
        );
    }
}
