//! A token in memory: real keys and real signatures, and faults that are set by hand.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::{
    digest::Digest,
    encoding::{AsDer, PublicKeyX509Der},
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{self as lc, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaEncoding},
};

use kms_envelope::SecretBytes;

use super::{aes, store::yield_once};
use crate::{
    Algorithm, Grant, Hsm, Unsettled,
    algorithm::{Curve, Hash, KeySpec, Modulus, Scheme},
    epoch::{Mark, Step},
    hsm::{
        CkaId, Cursor, Fault, Found, Health, KekRef, KeyObject, KeyRef, NewKey, Object, Page, SecretKeyRef,
        SignInput, Usage,
    },
    lane::Lane,
    time::Deadline,
};

/// A token in memory.
#[derive(Default)]
pub struct SoftHsm(Mutex<State>);

#[derive(Default)]
pub(super) struct State {
    pub(super) pairs: HashMap<CkaId, Pair>,
    pub(super) secrets: HashMap<CkaId, aes::SecretKey>,
    /// Objects that were not generated here; none of them signs.
    pub(super) planted: Vec<Object>,
    marks: BTreeSet<Mark>,
    faults: Vec<HsmFault>,
    generated: u64,
    down: bool,
    interleaves: bool,
    wrapped_in: Option<Lane>,
}

/// What goes wrong at the next call that it fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HsmFault {
    /// Generate fails and makes nothing.
    GenerateFails,
    /// Generate makes the pair, but its answer is lost.
    GenerateLosesAnswer,
    /// Generate lets everybody else have a turn first.
    GenerateWaits,
    /// Generate makes a private key that could be extracted.
    GenerateExtractable,
    /// Generate makes a private key without its public key.
    GenerateHalf,
    /// Find fails.
    FindFails,
    /// List fails.
    ListFails,
    /// List leaves out every object: it came while others were read.
    ListMisses,
    /// Sign fails.
    SignFails,
    /// Sign lets everybody else have a turn first.
    SignWaits,
    /// Sign flips one bit.
    SignFlipsBit,
    /// Wrap fails.
    WrapFails,
    /// Unwrap fails.
    UnwrapFails,
    /// Unwrap opens what it must not, as a module does that ignores the IV or the AAD.
    UnwrapOpensGarbage,
    /// Reading the marks fails.
    EpochReadFails,
    /// A mark is not made.
    EpochCreateFails,
    /// A mark is made, but the answer is lost.
    EpochCreateLosesAnswer,
    /// A mark is not destroyed.
    EpochDestroyFails,
}

pub(super) struct Pair {
    pub(super) key: PrivateKey,
    pub(super) label: String,
    pub(super) object: KeyObject,
    pub(super) public: Vec<Vec<u8>>,
}

pub(super) enum PrivateKey {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl SoftHsm {
    /// Sets a fault; each happens once.
    pub fn set_fault(&self, fault: HsmFault) {
        self.lock().faults.push(fault);
    }

    /// Takes back every fault that has not happened.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Pairs in the token now, and pairs ever made.
    pub fn count(&self) -> (usize, u64) {
        let state = self.lock();
        (state.pairs.len(), state.generated)
    }

    /// In which lane the last wrap waited.
    pub fn last_lane(&self) -> Option<Lane> {
        self.lock().wrapped_in
    }

    /// Makes it unreachable, or reachable again.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
    }

    /// From now on everybody else has a turn before each operation.
    pub fn interleave(&self) {
        self.lock().interleaves = true;
    }

    async fn others_turn(&self, waits: Option<HsmFault>) {
        let yields = {
            let mut state = self.lock();
            waits.is_some_and(|fault| state.takes(fault)) || state.interleaves
        };
        if yields {
            yield_once().await;
        }
    }

    /// The epoch's marks in the token.
    pub fn marks(&self) -> Vec<Mark> {
        self.lock().marks.iter().copied().collect()
    }

    /// Puts a mark there, or takes it away, as somebody with the PIN could.
    pub fn set_mark(&self, mark: Mark, present: bool) {
        let mut state = self.lock();
        if present {
            state.marks.insert(mark)
        } else {
            state.marks.remove(&mark)
        };
    }

    /// The state, for an operation that is in time.
    fn reach(&self, deadline: Deadline) -> Result<MutexGuard<'_, State>, Fault> {
        check_deadline(deadline)?;
        let state = self.lock();
        if state.down { Err(Fault::Unavailable("set by the test".to_owned())) } else { Ok(state) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hsm for Arc<SoftHsm> {
    async fn generate(&self, _: &Grant, new: &NewKey, deadline: Deadline) -> Result<(), Fault> {
        self.others_turn(Some(HsmFault::GenerateWaits)).await;
        let mut state = self.reach(deadline)?;
        if state.takes(HsmFault::GenerateFails) {
            return Err(Fault::Unavailable("set by the test".to_owned()));
        }
        let extractable = state.takes(HsmFault::GenerateExtractable);
        let object = KeyObject { extractable, ..KeyObject::as_it_must_be(new.usage) };
        if new.spec == KeySpec::Aes256 {
            let key = aes::SecretKey::generate(new.label.clone(), object)?;
            state.secrets.insert(new.id, key);
            state.generated += 1;
            return match state.takes(HsmFault::GenerateLosesAnswer) {
                true => Err(Fault::Unavailable("the answer was lost".to_owned())),
                false => Ok(()),
            };
        }
        let (key, spki) = generate(new.spec)?;
        let public = if state.takes(HsmFault::GenerateHalf) { vec![] } else { vec![spki] };
        state.pairs.insert(new.id, Pair { key, label: new.label.clone(), object, public });
        state.generated += 1;
        if state.takes(HsmFault::GenerateLosesAnswer) {
            return Err(Fault::Unavailable("the answer was lost".to_owned()));
        }
        Ok(())
    }

    async fn find(&self, _: &Grant, id: CkaId, deadline: Deadline) -> Result<Found, Fault> {
        self.others_turn(None).await;
        let mut state = self.reach(deadline)?;
        if state.takes(HsmFault::FindFails) {
            return Err(Fault::Unavailable("set by the test".to_owned()));
        }
        Ok(state.find(id))
    }

    async fn list(&self, _: &Grant, after: Option<Cursor>, deadline: Deadline) -> Result<Page, Fault> {
        let mut state = self.reach(deadline)?;
        if state.takes(HsmFault::ListFails) {
            return Err(Fault::Unavailable("set by the test".to_owned()));
        }
        if state.takes(HsmFault::ListMisses) {
            return Ok(Page::default());
        }
        Ok(state.list(after.as_ref()))
    }

    async fn sign(
        &self,
        _: &Grant,
        key: &KeyRef,
        algorithm: Algorithm,
        input: SignInput,
        deadline: Deadline,
    ) -> Result<Unsettled<Vec<u8>>, Fault> {
        self.others_turn(Some(HsmFault::SignWaits)).await;
        let mut state = self.reach(deadline)?;
        if state.takes(HsmFault::SignFails) {
            return Err(Fault::Failed("C_Sign: CKR_DEVICE_ERROR, set by the test".to_owned()));
        }
        let flips = state.takes(HsmFault::SignFlipsBit);
        let mut signature = state.pair(key)?.key.sign(algorithm, &input)?;
        if flips && let Some(byte) = signature.last_mut() {
            *byte ^= 1;
        }
        Ok(Unsettled::new(signature))
    }

    async fn wrap_key(
        &self,
        grant: &Grant,
        key: &SecretKeyRef,
        plaintext: SecretBytes,
        aad: Vec<u8>,
        deadline: Deadline,
    ) -> Result<Unsettled<Vec<u8>>, Fault> {
        self.others_turn(None).await;
        let mut state = self.reach(deadline)?;
        state.wrapped_in = Some(grant.lane());
        if state.takes(HsmFault::WrapFails) {
            return Err(Fault::Failed("C_Encrypt: CKR_DEVICE_ERROR, set by the test".to_owned()));
        }
        let secret = state.secret(key)?;
        Ok(Unsettled::new(secret.wrap(&plaintext, &aad)?))
    }

    async fn unwrap_key(
        &self,
        _: &Grant,
        key: &KekRef,
        wrapped: Vec<u8>,
        aad: Vec<u8>,
        deadline: Deadline,
    ) -> Result<Unsettled<SecretBytes>, Fault> {
        self.others_turn(None).await;
        let mut state = self.reach(deadline)?;
        if state.takes(HsmFault::UnwrapFails) {
            return Err(Fault::Failed("C_Decrypt: CKR_DEVICE_ERROR, set by the test".to_owned()));
        }
        let opened = match key {
            KekRef::Secret(key) => state.secret(key)?.unwrap(wrapped, &aad),
            KekRef::Pair(key) => state.pair(key)?.key.oaep_decrypt(&wrapped, &aad),
        };
        match opened {
            Err(Fault::NotOpened) if state.takes(HsmFault::UnwrapOpensGarbage) => {
                Ok(Unsettled::new(SecretBytes::new(vec![0; 32])))
            }
            opened => opened.map(Unsettled::new),
        }
    }

    async fn destroy(&self, _: &Grant, id: CkaId, deadline: Deadline) -> Result<(), Fault> {
        let mut state = self.reach(deadline)?;
        state.pairs.remove(&id);
        state.secrets.remove(&id);
        Ok(())
    }

    async fn epoch(&self, _: &Grant, step: Step, deadline: Deadline) -> Result<Vec<Mark>, Fault> {
        self.others_turn(None).await;
        let mut state = self.reach(deadline)?;
        let fails = match step {
            Step::Read => HsmFault::EpochReadFails,
            Step::Create(_) => HsmFault::EpochCreateFails,
            Step::Destroy(_) => HsmFault::EpochDestroyFails,
        };
        if state.takes(fails) {
            return Err(Fault::Unavailable("set by the test".to_owned()));
        }
        match step {
            Step::Read => false,
            Step::Create(mark) => state.marks.insert(mark),
            Step::Destroy(mark) => state.marks.remove(&mark),
        };
        if matches!(step, Step::Create(_)) && state.takes(HsmFault::EpochCreateLosesAnswer) {
            return Err(Fault::Unavailable("the answer was lost".to_owned()));
        }
        Ok(state.marks.iter().copied().collect())
    }

    async fn check(&self, _: &Grant, deadline: Deadline) -> Result<(), Fault> {
        self.reach(deadline).map(drop)
    }

    fn supports(&self, _: Algorithm) -> bool {
        true
    }

    fn token_serial(&self) -> String {
        "fake0000000000000".to_owned()
    }

    fn health(&self) -> Health {
        Health { workers_ready: u32::from(!self.lock().down), workers_wanted: 1, ..Health::default() }
    }
}

impl KeyObject {
    /// A private key that signs, as its template asks for.
    pub const AS_IT_MUST_BE: Self = Self {
        token: true,
        private: true,
        sensitive: true,
        extractable: false,
        always_sensitive: true,
        never_extractable: true,
        local: true,
        modifiable: false,
        copyable: Some(false),
        sign: true,
        encrypt: false,
        decrypt: false,
        other_use: false,
    };

    /// A key of that use, as its template asks for.
    pub const fn as_it_must_be(usage: Usage) -> Self {
        let (sign, encrypt, decrypt) = match usage {
            Usage::Sign => (true, false, false),
            Usage::Decrypt => (false, false, true),
            Usage::EncryptDecrypt => (false, true, true),
        };
        Self { sign, encrypt, decrypt, ..Self::AS_IT_MUST_BE }
    }
}

impl State {
    fn pair(&self, key: &KeyRef) -> Result<&Pair, Fault> {
        let pair = self.pairs.get(&key.id).ok_or(Fault::KeyNotFound)?;
        if !pair.public.iter().any(|spki| KeyRef::new(key.id, spki) == *key) {
            return Err(Fault::KeyMismatch("another public key".to_owned()));
        }
        Ok(pair)
    }

    fn secret(&self, key: &SecretKeyRef) -> Result<&aes::SecretKey, Fault> {
        let secret = self.secrets.get(&key.id).ok_or(Fault::KeyNotFound)?;
        match &key.known_answer {
            Some(answer) if !secret.gave(answer, key.id) => {
                Err(Fault::KeyMismatch("another secret key".to_owned()))
            }
            Some(_) | None => Ok(secret),
        }
    }

    fn takes(&mut self, fault: HsmFault) -> bool {
        let place = self.faults.iter().position(|set| *set == fault);
        place.map(|place| self.faults.remove(place)).is_some()
    }
}

pub(super) fn generate(spec: KeySpec) -> Result<(PrivateKey, Vec<u8>), Fault> {
    let failed = |_| Fault::Failed("key generation".to_owned());
    Ok(match spec {
        KeySpec::Ec(curve) => {
            let pair = EcdsaKeyPair::generate(ecdsa(curve)).map_err(failed)?;
            let spki = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).map_err(failed)?;
            let spki = spki.as_ref().to_vec();
            (PrivateKey::Ec(pair), spki)
        }
        KeySpec::Rsa(modulus) => {
            let size = match modulus {
                Modulus::Bits2048 => KeySize::Rsa2048,
                Modulus::Bits3072 => KeySize::Rsa3072,
                Modulus::Bits4096 => KeySize::Rsa4096,
            };
            let pair = RsaKeyPair::generate(size).map_err(failed)?;
            let spki = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).map_err(failed)?;
            let spki = spki.as_ref().to_vec();
            (PrivateKey::Rsa(pair), spki)
        }
        KeySpec::Ed25519 => {
            let pair = Ed25519KeyPair::generate().map_err(failed)?;
            let spki = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).map_err(failed)?;
            let spki = spki.as_ref().to_vec();
            (PrivateKey::Ed25519(pair), spki)
        }
        KeySpec::Aes256 => return Err(Fault::Failed("a secret key is no pair".to_owned())),
    })
}

impl PrivateKey {
    fn oaep_decrypt(&self, wrapped: &[u8], label: &[u8]) -> Result<SecretBytes, Fault> {
        let Self::Rsa(pair) = self else { return Err(Fault::Failed("no RSA key".to_owned())) };
        aes::oaep_decrypt(pair, wrapped, label)
    }

    fn sign(&self, algorithm: Algorithm, input: &SignInput) -> Result<Vec<u8>, Fault> {
        let refused = || Fault::Failed("C_Sign: CKR_DATA_LEN_RANGE".to_owned());
        let digest = || match (input, algorithm.hash()) {
            (SignInput::Digest(bytes), Some(hash)) => {
                Digest::import_less_safe(bytes, hash.aws_lc()).map_err(|_| refused())
            }
            _ => Err(refused()),
        };
        match self {
            Self::Ec(pair) => Ok(pair.sign_digest(&digest()?).map_err(|_| refused())?.as_ref().to_vec()),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign_digest(rsa(algorithm), &digest()?, &mut signature).map_err(|_| refused())?;
                Ok(signature)
            }
            Self::Ed25519(pair) => match input {
                SignInput::Message(message) => Ok(pair.sign(message).as_ref().to_vec()),
                SignInput::Digest(_) => Err(refused()),
            },
        }
    }
}

fn ecdsa(curve: Curve) -> &'static EcdsaSigningAlgorithm {
    match curve {
        Curve::P256 => &lc::ECDSA_P256_SHA256_FIXED_SIGNING,
        Curve::P384 => &lc::ECDSA_P384_SHA384_FIXED_SIGNING,
        Curve::P521 => &lc::ECDSA_P521_SHA512_FIXED_SIGNING,
    }
}

fn rsa(algorithm: Algorithm) -> &'static dyn RsaEncoding {
    match algorithm.scheme() {
        Scheme::Pkcs1(Hash::Sha384) => &lc::RSA_PKCS1_SHA384,
        Scheme::Pkcs1(Hash::Sha512) => &lc::RSA_PKCS1_SHA512,
        Scheme::Pss(Hash::Sha256) => &lc::RSA_PSS_SHA256,
        Scheme::Pss(Hash::Sha384) => &lc::RSA_PSS_SHA384,
        Scheme::Pss(Hash::Sha512) => &lc::RSA_PSS_SHA512,
        Scheme::Pkcs1(Hash::Sha256)
        | Scheme::Ecdsa(_)
        | Scheme::EdDsa
        | Scheme::AesGcmKeyWrap
        | Scheme::RsaOaep(_) => &lc::RSA_PKCS1_SHA256,
    }
}

fn check_deadline(deadline: Deadline) -> Result<(), Fault> {
    let left = deadline.instant().saturating_duration_since(std::time::Instant::now());
    if left == Duration::ZERO { Err(Fault::DeadlineExceeded) } else { Ok(()) }
}
