//! The pool as core sees it: what a worker cannot do, or what does not fit, is refused before it takes a place.

use std::sync::atomic::Ordering;

use kms_core::{
    Algorithm, Grant, Hsm, Unsettled,
    algorithm::{KeySpec, Modulus},
    epoch::{Mark, Step},
    hsm::{
        CkaId, Cursor, Fault, Found, Health, KekRef, KeyRef, NewKey, Page, SecretKeyRef, SignInput, Usage,
    },
    time::Deadline,
};
use kms_envelope::SecretBytes;

use super::Pool;
use crate::{
    mechanism::{self, IV_LEN, TAG_LEN},
    wire::{Opaque, Operation, Outcome},
};

/// Longest CKA_LABEL in bytes.
const LABEL_LEN_MAX: usize = 255;

/// Longest key in bytes that is wrapped.
pub const PLAINTEXT_LEN_MAX: usize = 1024;
/// Longest AAD in bytes that a wrap is bound to.
pub const AAD_LEN_MAX: usize = 4096;

/// The sizes of an RSA key, and so of what is encrypted to it.
const MODULI: [Modulus; 3] = [Modulus::Bits2048, Modulus::Bits3072, Modulus::Bits4096];

impl Hsm for Pool {
    async fn generate(&self, grant: &Grant, new: &NewKey, deadline: Deadline) -> Result<(), Fault> {
        let kind: (KeySpec, Usage) = (new.spec, new.usage);
        self.require(|algorithm| (algorithm.key_spec(), algorithm.usage()) == kind, kind)?;
        if new.label.len() > LABEL_LEN_MAX {
            return Err(Fault::Unsupported(format!("a label has at most {LABEL_LEN_MAX} bytes")));
        }
        done(self.call(grant, Operation::Generate(new.clone()), deadline).await?)
    }

    async fn find(&self, grant: &Grant, id: CkaId, deadline: Deadline) -> Result<Found, Fault> {
        match self.call(grant, Operation::Find(id), deadline).await? {
            Outcome::Found(found) => Ok(found),
            other => Err(unexpected(&other)),
        }
    }

    async fn list(&self, grant: &Grant, after: Option<Cursor>, deadline: Deadline) -> Result<Page, Fault> {
        match self.call(grant, Operation::List(after), deadline).await? {
            Outcome::Page(page) => Ok(page),
            other => Err(unexpected(&other)),
        }
    }

    async fn sign(
        &self,
        grant: &Grant,
        key: &KeyRef,
        algorithm: Algorithm,
        input: SignInput,
        deadline: Deadline,
    ) -> Result<Unsettled<Vec<u8>>, Fault> {
        mechanism::check_input(algorithm, &input)?;
        self.require(|supported| supported == algorithm, algorithm)?;
        match self.call(grant, Operation::Sign { key: key.clone(), algorithm, input }, deadline).await? {
            Outcome::Signature(signature) => Ok(Unsettled::new(signature)),
            other => Err(unexpected(&other)),
        }
    }

    async fn wrap_key(
        &self,
        grant: &Grant,
        key: &SecretKeyRef,
        plaintext: SecretBytes,
        aad: Vec<u8>,
        deadline: Deadline,
    ) -> Result<Unsettled<Vec<u8>>, Fault> {
        let (len, aad_len) = (plaintext.expose_secret().len(), aad.len());
        if !(1..=PLAINTEXT_LEN_MAX).contains(&len) || aad_len > AAD_LEN_MAX {
            return Err(Fault::Failed(format!(
                "a wrap takes 1 to {PLAINTEXT_LEN_MAX} bytes with at most {AAD_LEN_MAX} of AAD, and {len} with \
                 {aad_len} were given"
            )));
        }
        self.require(|supported| supported == Algorithm::A256GcmKw, Algorithm::A256GcmKw)?;
        let operation = Operation::WrapKey { key: key.clone(), plaintext, aad: Opaque(aad) };
        match self.call(grant, operation, deadline).await? {
            Outcome::Wrapped(wrapped) => Ok(Unsettled::new(wrapped)),
            other => Err(unexpected(&other)),
        }
    }

    async fn unwrap_key(
        &self,
        grant: &Grant,
        key: &KekRef,
        wrapped: Vec<u8>,
        aad: Vec<u8>,
        deadline: Deadline,
    ) -> Result<Unsettled<SecretBytes>, Fault> {
        let len_fits = match key {
            KekRef::Secret(_) => {
                (1..=PLAINTEXT_LEN_MAX).contains(&wrapped.len().saturating_sub(IV_LEN + TAG_LEN))
            }
            KekRef::Pair(_) => MODULI.iter().any(|modulus| wrapped.len() == modulus.bits() / 8),
        };
        if !len_fits || aad.len() > AAD_LEN_MAX {
            return Err(Fault::NotOpened);
        }
        match key {
            KekRef::Secret(_) => {
                self.require(|supported| supported == Algorithm::A256GcmKw, Algorithm::A256GcmKw)?;
            }
            KekRef::Pair(_) => {
                self.require(|supported| supported.usage() == Usage::Decrypt, "RSA-OAEP-256")?;
            }
        }
        let operation = Operation::UnwrapKey { key: key.clone(), wrapped: Opaque(wrapped), aad: Opaque(aad) };
        match self.call(grant, operation, deadline).await? {
            Outcome::Unwrapped(plaintext) => Ok(Unsettled::new(plaintext)),
            other => Err(unexpected(&other)),
        }
    }

    async fn destroy(&self, grant: &Grant, id: CkaId, deadline: Deadline) -> Result<(), Fault> {
        done(self.call(grant, Operation::Destroy(id), deadline).await?)
    }

    async fn epoch(&self, grant: &Grant, step: Step, deadline: Deadline) -> Result<Vec<Mark>, Fault> {
        match self.call(grant, Operation::Epoch(step), deadline).await? {
            Outcome::Marks(marks) => Ok(marks),
            other => Err(unexpected(&other)),
        }
    }

    async fn check(&self, grant: &Grant, deadline: Deadline) -> Result<(), Fault> {
        done(self.call(grant, Operation::Check, deadline).await?)
    }

    fn supports(&self, algorithm: Algorithm) -> bool {
        self.require(|supported| supported == algorithm, algorithm).is_ok()
    }

    fn token_serial(&self) -> String {
        self.token().map(|token| token.token_serial.clone()).unwrap_or_default()
    }

    fn health(&self) -> Health {
        Health {
            workers_ready: self.shared.workers_ready.load(Ordering::Relaxed),
            workers_wanted: u32::from(self.shared.config.workers),
            in_flight: self.shared.queue.len(),
            respawns: self.shared.respawns.load(Ordering::Relaxed),
            spares_ready: self.shared.spares_ready.load(Ordering::Relaxed),
            spares_wanted: self.shared.config.spare_workers.into(),
            recycled: self.shared.recycled.load(Ordering::Relaxed),
            repeated: self.shared.repeated.load(Ordering::Relaxed),
            lanes: self.shared.queue.lanes(),
        }
    }
}

impl Pool {
    fn require(
        &self,
        supported: impl Fn(Algorithm) -> bool,
        what: impl std::fmt::Debug,
    ) -> Result<(), Fault> {
        match &*self.shared.token.load() {
            Some(token) if !token.algorithms.iter().any(|algorithm| supported(*algorithm)) => {
                Err(Fault::Unsupported(format!(
                    "the token lacks the mechanisms for {what:?}; `kms doctor` names them"
                )))
            }
            _ => Ok(()),
        }
    }
}

fn done(outcome: Outcome) -> Result<(), Fault> {
    match outcome {
        Outcome::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(outcome: &Outcome) -> Fault {
    Fault::Failed(format!("a worker answered another question: {outcome:?}"))
}
