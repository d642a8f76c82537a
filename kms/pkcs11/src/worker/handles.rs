//! The cache of object handles: C_FindObjects is linear in the number of objects (18 ms at 1,000), a cached handle
//! costs nothing. Shared by the sessions of a process, for which object handles mean the same.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use cryptoki::object::ObjectHandle;
use kms_core::hsm::{CkaId, Fault, KeyRef};

/// Most handles that are kept.
const HANDLES_MAX: usize = 100_000;

/// Private key handles that were compared with the key on record and proved themselves.
#[derive(Default)]
pub(super) struct Handles(Mutex<HashMap<CkaId, Resolved>>);

struct Resolved {
    private: ObjectHandle,
    spki_sha256: [u8; 32],
}

impl Handles {
    /// The handle of `key`, if known.
    pub(super) fn lookup(&self, key: &KeyRef) -> Result<Option<ObjectHandle>, Fault> {
        match self.lock().get(&key.id) {
            Some(resolved) if resolved.spki_sha256 == key.spki_sha256 => Ok(Some(resolved.private)),
            Some(_) => Err(mismatch(key.id)),
            None => Ok(None),
        }
    }

    pub(super) fn remember(&self, key: &KeyRef, private: ObjectHandle) {
        let mut handles = self.lock();
        if handles.len() >= HANDLES_MAX
            && let Some(any) = handles.keys().next().copied()
        {
            handles.remove(&any);
        }
        handles.insert(key.id, Resolved { private, spki_sha256: key.spki_sha256 });
    }

    pub(super) fn forget(&self, id: CkaId) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<CkaId, Resolved>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The token holds another public key under this id.
pub(super) fn mismatch(id: CkaId) -> Fault {
    Fault::KeyMismatch(format!("the public key under CKA_ID {id} is another one"))
}
