//! The cache of object handles: C_FindObjects is linear in the number of objects (18 ms at 1,000), a cached handle
//! costs nothing. Shared by the sessions of a process, for which object handles mean the same.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use cryptoki::object::ObjectHandle;
use kms_core::hsm::{CkaId, Fault, KeyRef, KnownAnswer};

/// Most handles that are kept.
const HANDLES_MAX: usize = 100_000;

/// Handles of keys that were compared with what is on record and proved themselves.
#[derive(Default)]
pub(super) struct Handles(Mutex<HashMap<CkaId, Resolved>>);

struct Resolved {
    handle: ObjectHandle,
    proof: Proof,
}

/// A handle, and the challenge that it has decrypted.
pub(super) type Challenged = (ObjectHandle, Arc<Challenge>);

/// What a pair that decrypts must open.
pub(super) struct Challenge {
    /// Encrypted to its public half.
    pub(super) sealed: Vec<u8>,
    /// Its modulus: big-endian, without a byte for the sign.
    pub(super) modulus: Vec<u8>,
}

/// By what a key has proved to be the one on record.
pub(super) enum Proof {
    /// It has signed a challenge for the public key of this hash.
    Signed([u8; 32]),
    /// It has decrypted `challenge`, which was encrypted to the public key of this hash.
    Decrypted { spki_sha256: [u8; 32], challenge: Arc<Challenge> },
    /// It has opened its known answer.
    Opened(KnownAnswer),
}

impl Challenge {
    /// Whether this can have been encrypted to the pair: it is as long as the modulus, and less (RFC 8017 §7.1.2).
    pub(super) fn is_ciphertext(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.modulus.len() && bytes < &self.modulus[..]
    }
}

impl Handles {
    /// The handle of a pair that signs, if known.
    pub(super) fn signing(&self, key: &KeyRef) -> Result<Option<ObjectHandle>, Fault> {
        self.lookup(key.id, |handle, proof| match proof {
            Proof::Signed(spki_sha256) if *spki_sha256 == key.spki_sha256 => Ok(Some(handle)),
            Proof::Signed(_) => Err(mismatch(key.id)),
            // Known for another use, which says nothing about this one.
            Proof::Decrypted { .. } | Proof::Opened(_) => Ok(None),
        })
    }

    /// The handle of a pair that decrypts, if known.
    pub(super) fn decrypting(&self, key: &KeyRef) -> Result<Option<Challenged>, Fault> {
        self.lookup(key.id, |handle, proof| match proof {
            Proof::Decrypted { spki_sha256, challenge } if *spki_sha256 == key.spki_sha256 => {
                Ok(Some((handle, Arc::clone(challenge))))
            }
            Proof::Decrypted { .. } => Err(mismatch(key.id)),
            Proof::Signed(_) | Proof::Opened(_) => Ok(None),
        })
    }

    /// The handle of a secret key, if known by this answer.
    pub(super) fn secret(&self, id: CkaId, answer: &KnownAnswer) -> Result<Option<ObjectHandle>, Fault> {
        // Another answer may be of the same key: it is for the key to say.
        self.lookup(id, |handle, proof| match proof {
            Proof::Opened(known) if known == answer => Ok(Some(handle)),
            Proof::Opened(_) | Proof::Signed(_) | Proof::Decrypted { .. } => Ok(None),
        })
    }

    pub(super) fn remember(&self, id: CkaId, handle: ObjectHandle, proof: Proof) {
        let mut handles = self.lock();
        if handles.len() >= HANDLES_MAX
            && let Some(any) = handles.keys().next().copied()
        {
            handles.remove(&any);
        }
        handles.insert(id, Resolved { handle, proof });
    }

    fn lookup<T>(
        &self,
        id: CkaId,
        known: impl FnOnce(ObjectHandle, &Proof) -> Result<Option<T>, Fault>,
    ) -> Result<Option<T>, Fault> {
        self.lock().get(&id).map_or(Ok(None), |resolved| known(resolved.handle, &resolved.proof))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_modulus_leaves_as_a_remainder_does_not_reach_the_token() {
        let challenge = Challenge { sealed: Vec::new(), modulus: vec![0xc0; 256] };
        let largest = [&[0xc0; 255][..], &[0xbf]].concat();
        assert!(challenge.is_ciphertext(&largest) && challenge.is_ciphertext(&[0; 256]));
        for bad in [vec![0xc0; 256], vec![0xff; 256], vec![1; 255], vec![1; 257], vec![1; 384], vec![]] {
            assert!(!challenge.is_ciphertext(&bad), "{} bytes", bad.len());
        }
    }
}
