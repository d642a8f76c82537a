//! Keys that wrap: C_Encrypt and C_Decrypt with AES-GCM (PKCS#11 v3.1 §6.13.3) and RSA-OAEP (§6.1.8).
//!
//! What a wrong key encrypts is lost, and nothing tells: so a wrap is released only when the same handle has decrypted
//! it, and has opened the known answer of the key on record after that. And a ciphertext that does not open looks, on
//! many tokens, as a lost link or a stale handle does: so the same handle must open what it has opened before, and what
//! was asked is tried once more, before either is blamed. Whoever sends garbage costs us a session, and no worker,
//! whatever the token says to it.
//!
//! A module that ignores the IV that it is given opens all that it makes, for it ignores that of C_Decrypt too: so each
//! wrap is compared with the known answer, whose keystream nothing else may have (NIST SP 800-38D §8).

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use cryptoki::{
    context::Function,
    error::{Error, RvError},
    object::ObjectHandle,
};
use kms_core::{
    hsm::{CkaId, Fault, KekRef, KeyRef, KnownAnswer, SecretKeyRef},
    key_wrap,
};
use kms_envelope::SecretBytes;
use rustix::rand::GetRandomFlags;

use super::{
    handles::{Challenge, Proof},
    session::{TokenSession, Trouble, in_time},
};
use crate::{
    mechanism::{self, IV_LEN, TAG_LEN},
    profile::{Class, IvSource},
    public_key,
    wire::Request,
};

/// A key that was found and has proved itself.
struct Kek {
    id: CkaId,
    handle: ObjectHandle,
    decrypts: Decrypts,
}

/// How it decrypts, and what it must open to prove itself.
enum Decrypts {
    /// AES-GCM. `None` at its birth: there is nothing to prove itself by.
    Secret(Option<KnownAnswer>),
    /// RSA-OAEP: this was encrypted to its public half.
    Pair(Arc<Challenge>),
}

/// Why a key has not proved itself.
enum Doubt {
    /// What it opened is something else, or it says that this does not open.
    Another,
    /// This need not be about the key.
    Unclear(Error),
}

/// Least length in bytes of a text whose keystream tells: by chance, two are the same once in 2^128.
const KEYSTREAM_LEN_MIN: usize = 16;

impl TokenSession {
    /// IV ‖ ciphertext ‖ tag.
    pub(super) fn wrap_key(
        &mut self,
        request: &Request,
        key: &SecretKeyRef,
        plaintext: &SecretBytes,
        aad: &[u8],
    ) -> Result<Vec<u8>, Trouble> {
        match self.wrap_once(request, key, plaintext, aad) {
            Ok(Some(wrapped)) => return Ok(wrapped),
            Ok(None) => {}
            Err(Trouble::Error(error)) if self.is_stale(&error) => {}
            Err(trouble) => return Err(trouble),
        }
        // Destroyed and perhaps made again by somebody else, or spoilt: look once more.
        self.start_over(key.id)?;
        self.wrap_once(request, key, plaintext, aad)?.ok_or_else(|| {
            let text = "what C_Encrypt gave does not open under the key on record, twice; nothing was released. \
                        Look at the HSM";
            Fault::Failed(text.to_owned()).into()
        })
    }

    /// `None` for a wrap that must not be released.
    fn wrap_once(
        &mut self,
        request: &Request,
        key: &SecretKeyRef,
        plaintext: &SecretBytes,
        aad: &[u8],
    ) -> Result<Option<Vec<u8>>, Trouble> {
        let kek = self.secret(request, key)?;
        let plaintext = plaintext.expose_secret();
        let mut iv = self.iv()?;
        let made = self.session.encrypt(&mechanism::aes_gcm(&mut iv, aad)?, kek.handle, plaintext)?;
        if iv == [0; IV_LEN] {
            let text = "C_Encrypt left an IV of zeros; the profile says iv_source = \"hsm\", so measure the HSM anew \
                        with `kms hsm probe`";
            return Err(Fault::Failed(text.to_owned()).into());
        }
        if made.len() != plaintext.len() + TAG_LEN {
            let text = format!("C_Encrypt gave {} bytes for {} with AES-GCM", made.len(), plaintext.len());
            return Err(Fault::Failed(text).into());
        }
        if kek.repeats_keystream(plaintext, &made) {
            let text = "C_Encrypt ignored the IV, and encrypts all under one keystream; nothing was released. Wrap \
                        with no key of this token, and ask its vendor for a module that heeds pIv of CK_GCM_PARAMS";
            return Err(Fault::Failed(text.to_owned()).into());
        }
        let wrapped = [&iv[..], &made].concat();
        let right = match self.decrypt(&kek, &wrapped, aad) {
            Ok(opened) => verify_slices_are_equal(opened.expose_secret(), plaintext).is_ok(),
            Err(error) if self.may_be_input(&error) => {
                self.replace()?;
                false
            }
            Err(error) => return Err(error.into()),
        };
        // In this order: a handle that has come to mean another key meanwhile must not release anything.
        Ok((right && self.proves(&kek)?).then_some(wrapped))
    }

    /// Decrypts what was wrapped.
    pub(super) fn unwrap_key(
        &mut self,
        request: &Request,
        key: &KekRef,
        wrapped: &[u8],
        aad: &[u8],
    ) -> Result<SecretBytes, Trouble> {
        match self.unwrap_once(request, key, wrapped, aad) {
            Ok(Some(plaintext)) => return Ok(plaintext),
            Ok(None) => {}
            Err(Trouble::Error(error)) if self.is_stale(&error) => {}
            Err(trouble) => return Err(trouble),
        }
        // The handle is not that of the key any more: look once more.
        self.start_over(key.id())?;
        self.unwrap_once(request, key, wrapped, aad)?.ok_or_else(|| {
            let text =
                "the key on record has just opened what it must, and now does not, twice; look at the HSM";
            Fault::Failed(text.to_owned()).into()
        })
    }

    /// `None` when the handle does not open what it has opened before.
    fn unwrap_once(
        &mut self,
        request: &Request,
        key: &KekRef,
        wrapped: &[u8],
        aad: &[u8],
    ) -> Result<Option<SecretBytes>, Trouble> {
        let kek = match key {
            KekRef::Secret(key) => self.secret(request, key)?,
            KekRef::Pair(key) => self.private(request, key)?,
        };
        if !kek.fits(wrapped) {
            return Err(Fault::NotOpened.into());
        }
        let error = match self.decrypt(&kek, wrapped, aad) {
            Ok(plaintext) => return Ok(Some(plaintext)),
            Err(error) if self.may_be_input(&error) => error,
            Err(error) => return Err(error.into()),
        };
        self.replace()?;
        if !self.proves(&kek)? {
            return Ok(None);
        }
        if is_about_ciphertext(&error) {
            return Err(Fault::NotOpened.into());
        }
        // Only this once, perhaps.
        in_time(request)?;
        match self.decrypt(&kek, wrapped, aad) {
            Ok(plaintext) => Ok(Some(plaintext)),
            Err(error) if self.may_be_input(&error) => {
                self.replace()?;
                Err(Fault::NotOpened.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The secret key on record.
    fn secret(&mut self, request: &Request, key: &SecretKeyRef) -> Result<Kek, Trouble> {
        let kek = |handle| Kek { id: key.id, handle, decrypts: Decrypts::Secret(key.known_answer.clone()) };
        if let Some(answer) = &key.known_answer
            && let Some(handle) = self.token.handles.secret(key.id, answer)?
        {
            return Ok(kek(handle));
        }
        let objects = {
            let _searching = self.changes.searching()?;
            self.objects(key.id)?
        };
        let kek = match (&objects.private[..], &objects.public[..], &objects.secret[..]) {
            ([], _, []) => return Err(Fault::KeyNotFound.into()),
            ([], [], [secret]) => kek(*secret),
            _ => return Err(objects.crowd(key.id, "one secret object").into()),
        };
        if let Some(answer) = &key.known_answer {
            self.prove_on_record(&kek)?;
            self.token.handles.remember(key.id, kek.handle, Proof::Opened(answer.clone()));
        }
        in_time(request)?;
        Ok(kek)
    }

    /// The private key on record.
    fn private(&mut self, request: &Request, key: &KeyRef) -> Result<Kek, Trouble> {
        let kek = |handle, challenge: &Arc<Challenge>| Kek {
            id: key.id,
            handle,
            decrypts: Decrypts::Pair(Arc::clone(challenge)),
        };
        if let Some((handle, challenge)) = self.token.handles.decrypting(key)? {
            return Ok(kek(handle, &challenge));
        }
        let (handle, spki) = self.pair(key)?;
        let sealed = key_wrap::oaep_encrypt(&spki, KnownAnswer::TEXT, &KnownAnswer::aad(key.id))
            .map_err(|error| Fault::KeyMismatch(error.to_string()))?;
        let modulus = public_key::rsa_modulus(&spki).map_err(Fault::KeyMismatch)?;
        let challenge = Arc::new(Challenge { sealed, modulus });
        let kek = kek(handle, &challenge);
        self.prove_on_record(&kek)?;
        let proof = Proof::Decrypted { spki_sha256: key.spki_sha256, challenge };
        self.token.handles.remember(key.id, handle, proof);
        in_time(request)?;
        Ok(kek)
    }

    /// Refuses a key that does not open what the key on record opens.
    fn prove_on_record(&mut self, kek: &Kek) -> Result<(), Trouble> {
        // Twice: an alarm should not come of one hiccup.
        if self.proves(kek)? {
            return Ok(());
        }
        match self.doubt(kek)? {
            None => return Ok(()),
            Some(Doubt::Another) => {}
            // Nor of a link that is lost and does not say so. On some tokens, SoftHSM among them, all looks like that.
            Some(Doubt::Unclear(error)) => {
                if !self.opens_its_own(kek)? {
                    return Err(error.into());
                }
            }
        }
        let what = match kek.decrypts {
            Decrypts::Secret(_) => "does not open its known answer: it is another key",
            Decrypts::Pair(_) => "does not belong to its public key",
        };
        Err(Fault::KeyMismatch(format!("the key under CKA_ID {} {what}", kek.id)).into())
    }

    /// Whether the handle opens what its key must open. Leaves a session that can be used.
    fn proves(&mut self, kek: &Kek) -> Result<bool, Trouble> {
        Ok(self.doubt(kek)?.is_none())
    }

    /// `None` when the handle opens what its key must open. Leaves a session that can be used.
    fn doubt(&mut self, kek: &Kek) -> Result<Option<Doubt>, Trouble> {
        let proof: &[u8] = match &kek.decrypts {
            Decrypts::Secret(None) => return Ok(None),
            Decrypts::Secret(Some(answer)) => answer.as_bytes(),
            Decrypts::Pair(challenge) => &challenge.sealed,
        };
        let error = match self.decrypt(kek, proof, &KnownAnswer::aad(kek.id)) {
            Ok(opened) => {
                return Ok((opened.expose_secret() != KnownAnswer::TEXT).then_some(Doubt::Another));
            }
            Err(error) => error,
        };
        match self.token.module.profile.class(&error) {
            Class::Input => {
                self.replace()?;
                Ok(Some(Doubt::Another))
            }
            Class::Configuration | Class::Ambiguous => {
                self.replace()?;
                Ok(Some(Doubt::Unclear(error)))
            }
            // What we made ourselves is no garbage: here it is the link.
            Class::StaleHandle | Class::Session | Class::Device | Class::Capacity => Err(error.into()),
        }
    }

    /// Whether C_Decrypt works with this handle: then what it does not open is another key's.
    fn opens_its_own(&mut self, kek: &Kek) -> Result<bool, Trouble> {
        match kek.decrypts {
            Decrypts::Secret(_) => {}
            // Whoever has its public key on record cannot ask it for more.
            Decrypts::Pair(_) => return Ok(false),
        }
        let (mut iv, aad) = (self.iv()?, KnownAnswer::aad(kek.id));
        let made =
            self.session.encrypt(&mechanism::aes_gcm(&mut iv, &aad)?, kek.handle, KnownAnswer::TEXT)?;
        match self.decrypt(kek, &[&iv[..], &made].concat(), &aad) {
            Ok(opened) => Ok(opened.expose_secret() == KnownAnswer::TEXT),
            Err(_) => {
                self.replace()?;
                Ok(false)
            }
        }
    }

    fn decrypt(&self, kek: &Kek, wrapped: &[u8], aad: &[u8]) -> Result<SecretBytes, Error> {
        let opened = match &kek.decrypts {
            Decrypts::Secret(_) => {
                let refused = Error::Pkcs11(RvError::EncryptedDataLenRange, Function::Decrypt);
                let Some((iv, sealed)) = wrapped.split_first_chunk::<IV_LEN>() else { return Err(refused) };
                // A buffer of our own: some HSMs write to it.
                let opened =
                    self.session.decrypt(&mechanism::aes_gcm(&mut { *iv }, aad)?, kek.handle, sealed)?;
                let opened = SecretBytes::new(opened);
                if opened.expose_secret().len() + TAG_LEN != sealed.len() {
                    return Err(refused);
                }
                return Ok(opened);
            }
            Decrypts::Pair(_) => self.session.decrypt(&mechanism::rsa_oaep_256(aad), kek.handle, wrapped)?,
        };
        Ok(SecretBytes::new(opened))
    }

    /// What C_Encrypt is given as the IV: never the same twice, whichever of two generators fails.
    fn iv(&self) -> Result<[u8; IV_LEN], Trouble> {
        let mut iv = [0; IV_LEN];
        if self.token.module.profile.iv_source == Some(IvSource::Hsm) {
            return Ok(iv);
        }
        let len = rustix::rand::getrandom(&mut iv, GetRandomFlags::empty());
        if len != Ok(IV_LEN) {
            return Err(Fault::Failed(format!("the system's generator gave no IV: {len:?}")).into());
        }
        match self.session.generate_random_vec(IV_LEN as u32) {
            Ok(second) => iv.iter_mut().zip(second).for_each(|(byte, second)| *byte ^= second),
            Err(Error::Pkcs11(RvError::RandomNoRng, _)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(iv)
    }

    /// A fresh session, and no handle of the key.
    fn start_over(&mut self, id: CkaId) -> Result<(), Trouble> {
        self.token.handles.forget(id);
        Ok(self.replace()?)
    }

    /// Whether a failed C_Decrypt may be about the ciphertext: on some token each of these codes is. A device that is
    /// really gone does not open what we made ourselves either.
    fn may_be_input(&self, error: &Error) -> bool {
        match self.token.module.profile.class(error) {
            Class::Input | Class::Configuration | Class::Ambiguous | Class::StaleHandle => true,
            Class::Device => {
                matches!(error, Error::Pkcs11(_, Function::DecryptInit | Function::Decrypt))
            }
            Class::Session | Class::Capacity => false,
        }
    }
}

impl Kek {
    /// Whether the token may be asked to open this.
    fn fits(&self, wrapped: &[u8]) -> bool {
        match &self.decrypts {
            Decrypts::Secret(_) => true,
            Decrypts::Pair(challenge) => challenge.is_ciphertext(wrapped),
        }
    }

    /// Whether this was encrypted under the IV of the known answer. A short text does not tell.
    fn repeats_keystream(&self, plaintext: &[u8], made: &[u8]) -> bool {
        let Decrypts::Secret(Some(answer)) = &self.decrypts else { return false };
        let keystream = |text: &[u8], sealed: &[u8]| -> Vec<u8> {
            let len = KnownAnswer::TEXT.len().min(plaintext.len());
            text.iter().zip(sealed).take(len).map(|(text, sealed)| text ^ sealed).collect()
        };
        let known = keystream(KnownAnswer::TEXT, &answer.as_bytes()[IV_LEN..]);
        known.len() >= KEYSTREAM_LEN_MIN && known == keystream(plaintext, made)
    }
}

/// Whether the code says that this does not open, and can say nothing else.
fn is_about_ciphertext(error: &Error) -> bool {
    matches!(error, Error::Pkcs11(RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange, _))
}
