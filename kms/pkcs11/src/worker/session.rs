//! One PKCS#11 session and what it does: generate, find, sign, destroy, check. Keys that wrap are in `wraps`, the
//! epoch's marks in `epoch`, listing in `listing`.
//!
//! After any error the session is replaced, for SoftHSM leaves the failed operation active in it. The login is held
//! by a session of its own, so that replacing never logs out.

use std::{io, ops::Deref, path::Path, sync::Arc};

use cryptoki::{
    error::{Error, RvError},
    object::ObjectHandle,
    session::{Session, SessionState},
    slot::Slot,
};
use kms_core::{
    Algorithm,
    algorithm::KeySpec,
    hsm::{CkaId, Fault, Found, KeyRef, NewKey, SignInput},
    signature,
};

use super::{
    handles::{Handles, Proof},
    locks::{ChangeLock, Locks},
    template,
};
use crate::{
    TokenError, mechanism,
    module::Module,
    profile::{Class, text},
    wire::{FOUND_OBJECTS_MAX, Operation, Outcome, Request},
};

/// The token of this process, shared by its sessions.
pub(super) struct Token {
    pub(super) module: Module,
    slot: Slot,
    /// At the time of the login.
    serial: String,
    pub(super) handles: Handles,
}

/// A session and its view of the token. Belongs to one thread.
pub(super) struct TokenSession {
    pub(super) token: Arc<Token>,
    pub(super) session: Current,
    pub(super) changes: ChangeLock,
}

/// The session in use. Empty only while it is being replaced: the token may have no room for the old one beside the
/// new one.
pub(super) struct Current(Option<Session>);

/// The HSM link is gone: answer with the fault, then exit.
pub(super) struct LinkLost(pub(super) Fault);

/// Why an operation did not succeed.
pub(super) enum Trouble {
    /// Something that we found out ourselves: the session is as it was.
    Fault(Fault),
    /// A C function failed.
    Error(Error),
}

impl Token {
    pub(super) fn new(module: Module, slot: Slot, serial: String) -> Self {
        Self { module, slot, serial, handles: Handles::default() }
    }

    fn open(&self) -> Result<Session, Error> {
        self.module.pkcs11.open_rw_session(self.slot)
    }
}

impl TokenSession {
    /// Opens a session.
    pub(super) fn open(token: Arc<Token>, locks: &Locks, lock_dir: &Path) -> Result<Self, TokenError> {
        let session = Current(Some(token.open()?));
        let changes = locks
            .changes(token.module.profile.changes_exclude_finds)
            .map_err(|error| TokenError::LockDir { dir: lock_dir.to_owned(), why: error.to_string() })?;
        Ok(Self { token, session, changes })
    }

    /// One canary, before callers rely on the session. The error is a text for the operator.
    pub(super) fn prove(&self) -> Result<(), String> {
        self.check().map_err(|trouble| match trouble {
            Trouble::Fault(fault) => fault.to_string(),
            Trouble::Error(error) => text(&error),
        })
    }

    /// Does what is asked, unless its deadline has passed.
    pub(super) fn perform(&mut self, request: &Request) -> Result<Result<Outcome, Fault>, LinkLost> {
        let result = in_time(request).and_then(|()| match &request.operation {
            Operation::Generate(new) => self.generate(request, new).map(|()| Outcome::Done),
            Operation::Find(id) => self.find(*id).map(Outcome::Found),
            Operation::Sign { key, algorithm, input } => {
                self.sign(request, key, *algorithm, input).map(Outcome::Signature)
            }
            Operation::Destroy(id) => self.destroy(request, *id).map(|()| Outcome::Done),
            Operation::Epoch(step) => self.epoch(request, *step).map(Outcome::Marks),
            Operation::Check => self.check().map(|()| Outcome::Done),
            Operation::List(after) => self.list(request, after.as_ref()).map(Outcome::Page),
            Operation::WrapKey { key, plaintext, aad } => {
                self.wrap_key(request, key, plaintext, &aad.0).map(Outcome::Wrapped)
            }
            Operation::UnwrapKey { key, wrapped, aad } => {
                self.unwrap_key(request, key, &wrapped.0, &aad.0).map(Outcome::Unwrapped)
            }
        });
        match result {
            Ok(outcome) => Ok(Ok(outcome)),
            Err(Trouble::Fault(fault @ Fault::Unavailable(_))) => Err(LinkLost(fault)),
            Err(Trouble::Fault(fault)) => Ok(Err(fault)),
            Err(Trouble::Error(error)) => self.recover(request, &error).map(Err),
        }
    }

    /// Replaces the session after a failed C function, and says what the caller gets. See [`Class`].
    fn recover(&mut self, request: &Request, error: &Error) -> Result<Fault, LinkLost> {
        let class = self.token.module.profile.class(error);
        let fault = class.fault(error);
        match class {
            Class::Session | Class::Device => return Err(LinkLost(fault)),
            Class::Input | Class::Configuration | Class::Capacity => {}
            Class::Ambiguous | Class::StaleHandle => {
                if let Some(id) = request.operation.used_key() {
                    self.token.handles.forget(id);
                }
                self.replace()?;
                let lost = |_| LinkLost(Fault::Unavailable(format!("{fault}, and the canary after it too")));
                return self.check().map(|()| fault.clone()).map_err(lost);
            }
        }
        self.replace().map(|()| fault)
    }

    fn generate(&self, request: &Request, new: &NewKey) -> Result<(), Trouble> {
        let generation = mechanism::generation(new.spec, new.usage, &self.token.module.profile);
        let make = |with_allowed| match new.spec {
            KeySpec::Aes256 => {
                let secret = template::secret(new, &generation, with_allowed);
                self.session.generate_key(&generation.mechanism, &secret).map(drop)
            }
            KeySpec::Ec(_) | KeySpec::Rsa(_) | KeySpec::Ed25519 => {
                let public = template::public(new, &generation);
                let private = template::private(new, &generation, with_allowed);
                self.session.generate_key_pair(&generation.mechanism, &public, &private).map(drop)
            }
        };
        let _changing = self.changes.changing()?;
        in_time(request)?;
        // SoftHSM 2.6.1: a process that writes without having read since another wrote takes the new state for
        // its own, and never sees the other's objects. A search makes it read.
        self.objects(new.id)?;
        match make(true) {
            // The token does not know CKA_ALLOWED_MECHANISMS; nothing was made.
            Err(Error::Pkcs11(RvError::AttributeTypeInvalid, _)) => make(false),
            made => made,
        }?;
        Ok(())
    }

    fn find(&mut self, id: CkaId) -> Result<Found, Trouble> {
        match self.find_once(id) {
            Err(Trouble::Error(error)) if self.is_stale(&error) => {
                // Gone between search and reading, or the login is: look once more.
                self.replace()?;
                self.find_once(id)
            }
            result => result,
        }
    }

    fn find_once(&self, id: CkaId) -> Result<Found, Trouble> {
        let _searching = self.changes.searching()?;
        let objects = self.objects(id)?;
        let mut found = Found::default();
        // Whoever has the PIN may have put any number there.
        for handle in objects.private.into_iter().take(FOUND_OBJECTS_MAX.into()) {
            let attributes = self.session.get_attributes(handle, &template::PRIVATE_ATTRIBUTES)?;
            found.private.push(template::key_object(&attributes));
        }
        for handle in objects.secret.into_iter().take(FOUND_OBJECTS_MAX.into()) {
            let attributes = self.session.get_attributes(handle, &template::SECRET_ATTRIBUTES)?;
            found.secret.push(template::key_object(&attributes));
        }
        for handle in objects.public.into_iter().take(FOUND_OBJECTS_MAX.into()) {
            found.public.push(self.spki(handle)?.unwrap_or_default());
        }
        Ok(found)
    }

    fn sign(
        &mut self,
        request: &Request,
        key: &KeyRef,
        algorithm: Algorithm,
        input: &SignInput,
    ) -> Result<Vec<u8>, Trouble> {
        let data = mechanism::sign_data(algorithm, input)?;
        match self.sign_once(request, key, algorithm, &data) {
            Err(Trouble::Error(error)) if self.is_stale(&error) => {
                // Destroyed and perhaps made again by somebody else: look once more.
                self.token.handles.forget(key.id);
                self.replace()?;
                self.sign_once(request, key, algorithm, &data)
            }
            result => result,
        }
    }

    fn sign_once(
        &self,
        request: &Request,
        key: &KeyRef,
        algorithm: Algorithm,
        data: &[u8],
    ) -> Result<Vec<u8>, Trouble> {
        let handle = match self.token.handles.signing(key)? {
            Some(handle) => handle,
            None => {
                let handle = self.resolve(key, algorithm)?;
                in_time(request)?;
                handle
            }
        };
        let signature = self.session.sign(&mechanism::signing(algorithm)?, handle, data)?;
        if signature.len() != algorithm.signature_len() {
            let text = format!("C_Sign gave {} bytes for {algorithm}", signature.len());
            return Err(Fault::Failed(text).into());
        }
        Ok(signature)
    }

    /// Finds the pair, compares its public key with the one on record, and lets it sign a challenge.
    fn resolve(&self, key: &KeyRef, algorithm: Algorithm) -> Result<ObjectHandle, Trouble> {
        let (private, spki) = self.pair(key)?;
        // Begins with a NUL, so that no message of a caller can look like it.
        let challenge = [&b"\0kms-pkcs11 challenge\0"[..], key.id.as_bytes(), &key.spki_sha256].concat();
        let input = signature::input_of(algorithm, &challenge);
        let data = mechanism::sign_data(algorithm, &input)?;
        let signature = self.session.sign(&mechanism::signing(algorithm)?, private, &data)?;
        if !signature::verifies(algorithm, &spki, &input, &signature) {
            let text = format!("the private key under CKA_ID {} does not belong to its public key", key.id);
            return Err(Fault::KeyMismatch(text).into());
        }
        self.token.handles.remember(key.id, private, Proof::Signed(key.spki_sha256));
        Ok(private)
    }

    fn destroy(&self, request: &Request, id: CkaId) -> Result<(), Trouble> {
        let _changing = self.changes.changing()?;
        in_time(request)?;
        self.token.handles.forget(id);
        let objects = self.objects(id)?;
        // The private half first: a public key that is left over harms nobody.
        for handle in objects.secret.into_iter().chain(objects.private).chain(objects.public) {
            match self.session.destroy_object(handle) {
                // Somebody else was faster.
                Err(error) if self.is_stale(&error) => {}
                destroyed => destroyed?,
            }
        }
        let left = self.objects(id)?;
        if left.private.is_empty() && left.public.is_empty() && left.secret.is_empty() {
            Ok(())
        } else {
            Err(Fault::Failed(format!("C_DestroyObject succeeded, but CKA_ID {id} is still there")).into())
        }
    }

    fn check(&self) -> Result<(), Trouble> {
        self.logged_in()?;
        // A token that was initialised anew keeps its slot, its label perhaps, and none of our keys.
        let info = self.token.module.pkcs11.get_token_info(self.token.slot)?;
        let (serial, found) = (&self.token.serial, info.serial_number().trim());
        if found != serial {
            let text = format!(
                "the token with the serial number {serial} is gone, in its slot is {found:?} now: was it initialised \
                 anew? Its keys are gone then; restore it, or correct serial= in hsm.uri"
            );
            return Err(Fault::Unavailable(text).into());
        }
        match self.session.generate_random_vec(16) {
            Ok(_) | Err(Error::Pkcs11(RvError::RandomNoRng, _)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Without login private objects cannot be seen, and no search may be taken for proof that there is none.
    pub(super) fn logged_in(&self) -> Result<(), Trouble> {
        match self.session.get_session_info()?.session_state() {
            SessionState::RwUser => Ok(()),
            _ => Err(Fault::Unavailable("the token has logged us out".to_owned()).into()),
        }
    }

    pub(super) fn is_stale(&self, error: &Error) -> bool {
        self.token.module.profile.class(error) == Class::StaleHandle
    }

    pub(super) fn replace(&mut self) -> Result<(), LinkLost> {
        self.session.0 = None;
        let fresh = self.token.open().map_err(|error| LinkLost(Fault::Unavailable(text(&error))))?;
        self.session.0 = Some(fresh);
        Ok(())
    }
}

impl Deref for Current {
    type Target = Session;

    #[expect(clippy::expect_used, reason = "a session that cannot be replaced ends the worker")]
    fn deref(&self) -> &Session {
        // Unwrap safety: empty only inside `replace`, whose failure is `LinkLost`, after which nothing is performed.
        self.0.as_ref().expect("the worker ended")
    }
}

/// Work whose caller has gone is dropped before it reaches the token.
pub(super) fn in_time(request: &Request) -> Result<(), Trouble> {
    if request.deadline_ns <= crate::clock::monotonic_ns() {
        return Err(Fault::DeadlineExceeded.into());
    }
    Ok(())
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<LinkLost> for Trouble {
    fn from(LinkLost(fault): LinkLost) -> Self {
        Self::Fault(fault)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Fault(Fault::Failed(format!("the lock between processes failed: {error}")))
    }
}
