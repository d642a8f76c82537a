//! Measuring a token that nobody has a profile for: `kms hsm probe`.
//!
//! Logs in once, which spends a PIN try, and works with session objects alone (CKA_TOKEN false): when its sessions
//! close nothing of it is left in the token. What cannot be measured so (whether a process may be killed while it
//! starts, how an object looks that *another* process destroyed) is taken from the built-in profile.

use std::{borrow::Cow, num::NonZeroU32};

use cryptoki::{
    error::{Error, RvError},
    mechanism::{
        Mechanism, MechanismType,
        aead::GcmParams,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, AttributeType, ObjectHandle},
    session::{Session, UserType},
    slot::{Slot, TokenInfo},
    types::Ulong,
};
use kms_core::{
    algorithm::{Curve, KeySpec, Modulus},
    hsm::Usage,
};

use super::Login;
use crate::{
    TokenError, mechanism,
    module::{self, Module},
    profile::{self, Class, EdwardsParams, IvSource, OaepHash, Profile, code_name},
};

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// What a server may use.
    pub profile: Profile,
    /// What an operator should know besides, a sentence each.
    pub remarks: Vec<String>,
}

impl Login {
    /// Measures the token. Spends a PIN try, and refuses when the token remembers a wrong one. Tells `progress` what it
    /// is about to do.
    pub fn probe(self, mut progress: impl FnMut(&str)) -> Result<Measured, TokenError> {
        let Self { module, slot, pin, _starting, .. } = self;
        let info = module.pkcs11.get_token_info(slot)?;
        module::check_pin_flags(&info)?;
        progress("logging in, which spends a PIN try");
        let login = module.pkcs11.open_rw_session(slot)?;
        login.login(UserType::User, Some(&pin)).map_err(module::login_error)?;

        let mut probe = Probe { profile: base(&module, &info), remarks: Vec::new(), module, slot };
        probe.sessions(&info);
        progress("EdDSA: how a curve is named");
        probe.edwards_params()?;
        progress("key pairs: CKA_ALLOWED_MECHANISMS, CKA_COPYABLE, and a handle that was destroyed");
        probe.key_pair()?;
        progress("AES-GCM: whose IV is used, and a ciphertext that was tampered with");
        probe.gcm()?;
        progress("RSA-OAEP: its hashes (an RSA-2048 pair is generated)");
        probe.oaep()?;
        login.logout()?;
        Ok(Measured { profile: probe.profile, remarks: probe.remarks })
    }
}

struct Probe {
    module: Module,
    slot: Slot,
    profile: Profile,
    remarks: Vec<String>,
}

/// What C_Encrypt gave, and the IV as it left it.
#[derive(PartialEq, Eq)]
struct Encrypted {
    iv: [u8; 12],
    ciphertext: Vec<u8>,
}

/// What is assumed before anything is measured.
fn base(module: &Module, info: &TokenInfo) -> Profile {
    let text = |text: &str| Some(Cow::Owned(text.trim().to_owned()));
    let measured_on = profile::MeasuredOn {
        module_manufacturer: text(&module.manufacturer),
        module_description: text(&module.description),
        token_manufacturer: text(info.manufacturer_id()),
        token_model: text(info.model()),
    };
    let name = format!("{} {}", info.manufacturer_id().trim(), info.model().trim());
    Profile {
        name: Cow::Owned(name.trim().to_owned()),
        measured_on,
        edwards_params: None,
        sessions_max: None,
        iv_source: None,
        oaep_hashes: Cow::Borrowed(&[]),
        ..module.profile.clone()
    }
}

impl Probe {
    /// After any error a session is of no use (SoftHSM leaves the operation active in it), so each step has its own.
    fn session(&self) -> Result<Session, TokenError> {
        Ok(self.module.pkcs11.open_rw_session(self.slot)?)
    }

    fn has(&self, mechanism: MechanismType) -> bool {
        self.module.mechanisms(self.slot)(mechanism).is_some()
    }

    fn remark(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }

    fn sessions(&mut self, info: &TokenInfo) {
        self.profile.sessions_max =
            self.profile.session_cap(info).and_then(|cap| u32::try_from(cap).ok()).and_then(NonZeroU32::new);
    }

    fn edwards_params(&mut self) -> Result<(), TokenError> {
        if !self.has(MechanismType::ECC_EDWARDS_KEY_PAIR_GEN) {
            self.remark("It has no EdDSA (CKM_EC_EDWARDS_KEY_PAIR_GEN).");
            return Ok(());
        }
        for form in [EdwardsParams::Name, EdwardsParams::Oid] {
            let profile = Profile { edwards_params: Some(form), ..self.profile.clone() };
            let generation = mechanism::generation(KeySpec::Ed25519, Usage::Sign, &profile);
            if generate(&self.session()?, &generation, &[Attribute::Sign(true)]).is_ok() {
                self.profile = profile;
                return Ok(());
            }
        }
        self.remark("It has CKM_EC_EDWARDS_KEY_PAIR_GEN, and generates Ed25519 neither by name nor by OID.");
        Ok(())
    }

    fn key_pair(&mut self) -> Result<(), TokenError> {
        let generation = mechanism::generation(KeySpec::Ec(Curve::P256), Usage::Sign, &self.profile);
        let signs = [Attribute::Sign(true)];
        for (attribute, kind, name) in [
            (
                Attribute::AllowedMechanisms(generation.allowed.clone()),
                AttributeType::AllowedMechanisms,
                "CKA_ALLOWED_MECHANISMS",
            ),
            (Attribute::Copyable(false), AttributeType::Copyable, "CKA_COPYABLE"),
        ] {
            let session = self.session()?;
            let private = [&signs[..], std::slice::from_ref(&attribute)].concat();
            let text = match generate(&session, &generation, &private) {
                Err(error) => format!("{name} cannot be set ({}).", profile::text(&error)),
                Ok((_, private)) => match session.get_attributes(private, &[kind]) {
                    Ok(read) if read == [attribute] => {
                        format!("{name} is taken, and reads back as it was set.")
                    }
                    Ok(_) => format!("{name} is taken, and does not read back as it was set."),
                    Err(error) => format!("{name} is taken; reading it fails ({}).", profile::text(&error)),
                },
            };
            self.remark(text);
        }
        let session = self.session()?;
        let (_, private) = generate(&session, &generation, &signs)?;
        session.destroy_object(private)?;
        if let Err(Error::Pkcs11(code, _)) = session.sign(&Mechanism::Ecdsa, private, &[1; 32]) {
            if self.profile.class_of(code) != Class::StaleHandle {
                self.profile.errors.set(code, Class::StaleHandle);
            }
            self.remark(format!(
                "A handle that this process destroyed gives {}; one that another process destroyed was not measured.",
                code_name(code)
            ));
        }
        Ok(())
    }

    fn gcm(&mut self) -> Result<(), TokenError> {
        if !self.has(MechanismType::AES_GCM) || !self.has(MechanismType::AES_KEY_GEN) {
            self.remark("It has no AES-GCM (CKM_AES_GCM).");
            return Ok(());
        }
        let session = self.session()?;
        let template = [
            Attribute::Token(false),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::ValueLen(Ulong::new(32)),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
        ];
        let key = session.generate_key(&Mechanism::AesKeyGen, &template)?;
        let mut made = None;
        // Some tokens that make the IV themselves insist on zeros in its place.
        for given in [[0x5a; 12], [0; 12]] {
            let (one, other) = (self.encrypt(key, given)?, self.encrypt(key, given)?);
            let (Some(one), Some(other)) = (one, other) else { continue };
            // The same key, IV and text give the same ciphertext, and nothing else does.
            let callers = one.iv == given && one == other;
            self.profile.iv_source = Some(if callers { IvSource::Caller } else { IvSource::Hsm });
            let under_another =
                if callers { self.encrypt(key, given.map(|byte| !byte))? } else { Some(other) };
            if under_another.is_none_or(|another| another.ciphertext == one.ciphertext) {
                self.remark(IGNORES_IV);
            }
            made = Some(one);
            break;
        }
        let Some(Encrypted { iv, ciphertext }) = made else {
            self.remark("It has CKM_AES_GCM, and encrypted under no IV of 12 bytes.");
            return Ok(());
        };
        let tampered: Vec<u8> = ciphertext.iter().map(|byte| byte ^ 1).collect();
        for (mut iv, aad, ciphertext, changed) in [
            (iv, &b""[..], &tampered, "CIPHERTEXT"),
            (iv.map(|byte| !byte), b"", &ciphertext, "IV"),
            (iv, b"another", &ciphertext, "AAD"),
        ] {
            let mechanism = mechanism::aes_gcm(&mut iv, aad)?;
            match self.session()?.decrypt(&mechanism, key, ciphertext) {
                Ok(_) => {
                    self.remark(format!("Its AES-GCM OPENS WITH ANOTHER {changed}: wrap with no key of it."));
                }
                Err(Error::Pkcs11(code, _)) => self.tampered(code, "AES-GCM"),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Notes what a tampered ciphertext gives.
    fn tampered(&mut self, code: RvError, with: &str) {
        // Whoever can send us a ciphertext must not be able to end a worker with it.
        if !matches!(self.profile.class_of(code), Class::Input | Class::Configuration | Class::Ambiguous) {
            self.profile.errors.set(code, Class::Ambiguous);
        }
        self.remark(format!("A tampered {with} ciphertext gives {}.", code_name(code)));
    }

    /// IV and ciphertext as they come back, or `None` where the token refuses.
    fn encrypt(&self, key: ObjectHandle, mut iv: [u8; 12]) -> Result<Option<Encrypted>, TokenError> {
        let mechanism = Mechanism::AesGcm(gcm_params(&mut iv)?);
        let encrypted = self.session()?.encrypt(&mechanism, key, TEXT);
        drop(mechanism);
        Ok(encrypted.ok().map(|ciphertext| Encrypted { iv, ciphertext }))
    }

    fn oaep(&mut self) -> Result<(), TokenError> {
        if !self.has(MechanismType::RSA_PKCS_OAEP) {
            self.remark("It has no RSA-OAEP (CKM_RSA_PKCS_OAEP).");
            return Ok(());
        }
        let rsa = KeySpec::Rsa(Modulus::Bits2048);
        let mut generation = mechanism::generation(rsa, Usage::Decrypt, &self.profile);
        generation.parameters.push(Attribute::Encrypt(true));
        let session = self.session()?;
        let pair = generate(&session, &generation, &[Attribute::Decrypt(true)]);
        let (public, private) = match pair {
            Ok(pair) => pair,
            Err(error) => {
                self.remark(format!("An RSA pair for OAEP cannot be made ({}).", profile::text(&error)));
                return Ok(());
            }
        };
        let mut taken = Vec::new();
        for (hash, digest, mgf) in OAEP {
            // Key wraps have a label. They do not use SHA-1, with which SoftHSM 2.6.1 takes none.
            let source = match hash {
                OaepHash::Sha1 => PkcsOaepSource::empty(),
                OaepHash::Sha256 | OaepHash::Sha384 | OaepHash::Sha512 => {
                    PkcsOaepSource::data_specified(b"a label")
                }
            };
            let params = || PkcsOaepParams::new(digest, mgf, source);
            let encrypted = self.session()?.encrypt(&Mechanism::RsaPkcsOaep(params()), public, TEXT);
            let Ok(mut encrypted) = encrypted else { continue };
            let decrypted = self.session()?.decrypt(&Mechanism::RsaPkcsOaep(params()), private, &encrypted);
            if decrypted.is_ok_and(|text| text == TEXT) {
                taken.push(hash);
            }
            // The one that key wraps use.
            if taken.last() == Some(&OaepHash::Sha256) && hash == OaepHash::Sha256 {
                encrypted.iter_mut().skip(1).for_each(|byte| *byte ^= 1);
                let opened = self.session()?.decrypt(&Mechanism::RsaPkcsOaep(params()), private, &encrypted);
                if let Err(Error::Pkcs11(code, _)) = opened {
                    self.tampered(code, "RSA-OAEP");
                }
            }
        }
        self.profile.oaep_hashes = Cow::Owned(taken);
        Ok(())
    }
}

const IGNORES_IV: &str =
    "Its AES-GCM IGNORES THE IV, and so gives away what it encrypts: wrap with no key of it.";

/// What is encrypted.
const TEXT: &[u8] = b"kms hsm probe";

const OAEP: [(OaepHash, MechanismType, PkcsMgfType); 4] = [
    (OaepHash::Sha1, MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
    (OaepHash::Sha256, MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    (OaepHash::Sha384, MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
    (OaepHash::Sha512, MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
];

fn gcm_params(iv: &mut [u8; 12]) -> Result<GcmParams<'_>, Error> {
    GcmParams::new(iv, b"", Ulong::new(128))
}

/// A pair of session objects, which goes with `session`.
fn generate(
    session: &Session,
    generation: &mechanism::Generation,
    private: &[Attribute],
) -> Result<(ObjectHandle, ObjectHandle), Error> {
    let public = [&[Attribute::Token(false)][..], &generation.parameters].concat();
    let fixed = [
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
    ];
    let private = [&fixed[..], private].concat();
    session.generate_key_pair(&generation.mechanism, &public, &private)
}
