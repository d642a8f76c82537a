//! The mechanism table: which CKM_* makes a key, and which one signs or unwraps with it (PKCS#11 v3.1 §6).
//!
//! The token always gets what the oldest module understands: a digest for ECDSA and PSS, a DigestInfo for PKCS #1
//! v1.5, the whole message for EdDSA. Keys are wrapped as data, by C_Encrypt and C_Decrypt. Adding an algorithm is one
//! row here and one in core's table.

use std::borrow::Cow;

use cryptoki::{
    error::Error,
    mechanism::{
        Mechanism, MechanismInfo, MechanismType,
        aead::GcmParams,
        eddsa::{EddsaParams, EddsaSignatureScheme},
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource, PkcsPssParams},
    },
    object::{Attribute, KeyType},
    types::Ulong,
};
use kms_core::{
    Algorithm,
    algorithm::{Curve, Hash, KeySpec, Scheme},
    hsm::{Fault, SignInput, Usage},
};

use crate::profile::{OaepHash, Profile};

/// Longest message in bytes that an EdDSA key signs: it travels whole to the token.
pub const MESSAGE_LEN_MAX: usize = 192 * 1024;

/// How a kind of key is made.
pub(crate) struct Generation {
    /// CKM_*_KEY_PAIR_GEN, or CKM_*_KEY_GEN.
    pub(crate) mechanism: Mechanism<'static>,
    /// What the public template adds, or that of a secret key: curve, modulus or length.
    pub(crate) parameters: Vec<Attribute>,
    /// CKA_ALLOWED_MECHANISMS of the private or secret key.
    pub(crate) allowed: Vec<MechanismType>,
}

/// What an algorithm needs from the token.
struct Need {
    generate: MechanismType,
    operate: MechanismType,
    /// Key size in the mechanisms' own unit (bits, of the curve or the modulus; bytes of an AES key).
    size: usize,
}

/// Length in bytes of the IV of a key wrap with AES-GCM.
pub(crate) const IV_LEN: usize = 12;
/// Length in bytes of its tag.
pub(crate) const TAG_LEN: usize = 16;

/// How a key of this kind is made, for this use.
pub(crate) fn generation(spec: KeySpec, usage: Usage, profile: &Profile) -> Generation {
    match spec {
        KeySpec::Ec(curve) => Generation {
            mechanism: Mechanism::EccKeyPairGen,
            parameters: vec![Attribute::EcParams(curve_oid_der(curve).to_vec())],
            allowed: vec![MechanismType::ECDSA],
        },
        KeySpec::Rsa(modulus) => Generation {
            mechanism: Mechanism::RsaPkcsKeyPairGen,
            parameters: vec![
                Attribute::ModulusBits(Ulong::new(modulus as u64)),
                Attribute::PublicExponent(vec![1, 0, 1]),
            ],
            allowed: match usage {
                Usage::Decrypt => vec![MechanismType::RSA_PKCS_OAEP],
                Usage::Sign | Usage::EncryptDecrypt => {
                    vec![MechanismType::RSA_PKCS, MechanismType::RSA_PKCS_PSS]
                }
            },
        },
        KeySpec::Ed25519 => Generation {
            mechanism: Mechanism::EccEdwardsKeyPairGen,
            parameters: vec![Attribute::EcParams(profile.ed25519_params().to_vec())],
            allowed: vec![MechanismType::EDDSA],
        },
        KeySpec::Aes256 => Generation {
            mechanism: Mechanism::AesKeyGen,
            parameters: vec![Attribute::ValueLen(Ulong::new(AES_256_LEN as u64))],
            allowed: vec![MechanismType::AES_GCM],
        },
    }
}

/// How `algorithm` signs.
pub(crate) fn signing(algorithm: Algorithm) -> Result<Mechanism<'static>, Fault> {
    Ok(match algorithm.scheme() {
        Scheme::Ecdsa(_) => Mechanism::Ecdsa,
        Scheme::Pkcs1(_) => Mechanism::RsaPkcs,
        Scheme::Pss(hash) => {
            let (hash_alg, mgf) = match hash {
                Hash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
                Hash::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
                Hash::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
            };
            Mechanism::RsaPkcsPss(PkcsPssParams {
                hash_alg,
                mgf,
                s_len: Ulong::new(hash.digest_len() as u64),
            })
        }
        Scheme::EdDsa => Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519)),
        Scheme::AesGcmKeyWrap | Scheme::RsaOaep(_) => return Err(does_not_sign(algorithm)),
    })
}

/// AES-GCM with a tag of 128 bits. An HSM that makes the IV itself writes it to `iv`.
pub(crate) fn aes_gcm<'a>(iv: &'a mut [u8; IV_LEN], aad: &'a [u8]) -> Result<Mechanism<'a>, Error> {
    Ok(Mechanism::AesGcm(GcmParams::new(iv, aad, Ulong::new(8 * TAG_LEN as u64))?))
}

/// RSAES-OAEP with SHA-256 and MGF1-SHA-256.
pub(crate) fn rsa_oaep_256(label: &[u8]) -> Mechanism<'_> {
    let source =
        if label.is_empty() { PkcsOaepSource::empty() } else { PkcsOaepSource::data_specified(label) };
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, source))
}

/// Refuses an input that does not fit: a digest of another length, a digest for EdDSA, a message for the rest.
pub(crate) fn check_input(algorithm: Algorithm, input: &SignInput) -> Result<(), Fault> {
    match (algorithm.hash(), input) {
        _ if algorithm.is_key_wrap() => Err(does_not_sign(algorithm)),
        (Some(hash), SignInput::Digest(digest)) if digest.len() == hash.digest_len() => Ok(()),
        (Some(hash), SignInput::Digest(digest)) => Err(Fault::Failed(format!(
            "{algorithm} signs a digest of {} bytes, and {} were given",
            hash.digest_len(),
            digest.len()
        ))),
        (None, SignInput::Message(message)) if message.len() <= MESSAGE_LEN_MAX => Ok(()),
        (None, SignInput::Message(message)) => Err(Fault::Failed(format!(
            "{algorithm} signs a message of at most {MESSAGE_LEN_MAX} bytes, and {} were given",
            message.len()
        ))),
        (Some(_), SignInput::Message(_)) => {
            Err(Fault::Failed(format!("{algorithm} signs a digest, and a message was given")))
        }
        (None, SignInput::Digest(_)) => {
            Err(Fault::Failed(format!("{algorithm} signs a message, and a digest was given")))
        }
    }
}

/// The bytes that C_Sign gets.
pub(crate) fn sign_data(algorithm: Algorithm, input: &SignInput) -> Result<Cow<'_, [u8]>, Fault> {
    check_input(algorithm, input)?;
    let (SignInput::Digest(bytes) | SignInput::Message(bytes)) = input;
    Ok(match algorithm.scheme() {
        Scheme::Pkcs1(hash) => Cow::Owned([digest_info_head(hash), bytes].concat()),
        Scheme::Ecdsa(_) | Scheme::Pss(_) | Scheme::EdDsa => Cow::Borrowed(bytes),
        Scheme::AesGcmKeyWrap | Scheme::RsaOaep(_) => return Err(does_not_sign(algorithm)),
    })
}

/// Mechanisms that `algorithm` needs and the token lacks: an empty list means that it can be used.
pub(crate) fn missing(
    algorithm: Algorithm,
    profile: &Profile,
    info: impl Fn(MechanismType) -> Option<MechanismInfo>,
) -> Vec<&'static str> {
    let need = need(algorithm);
    // A token that leaves the sizes at zero does not tell them.
    let fits = |info: &MechanismInfo| {
        info.max_key_size() == 0 || (info.min_key_size()..=info.max_key_size()).contains(&need.size)
    };
    let generates = |info: &MechanismInfo| match algorithm.key_spec() {
        KeySpec::Aes256 => info.generate(),
        KeySpec::Ec(_) | KeySpec::Rsa(_) | KeySpec::Ed25519 => info.generate_key_pair(),
    };
    let operates = |info: &MechanismInfo| match algorithm.scheme() {
        Scheme::AesGcmKeyWrap => info.encrypt() && info.decrypt(),
        Scheme::RsaOaep(_) => info.decrypt(),
        Scheme::Ecdsa(_) | Scheme::Pkcs1(_) | Scheme::Pss(_) | Scheme::EdDsa => info.sign(),
    };
    let mut missing = Vec::new();
    if !info(need.generate).is_some_and(|info| generates(&info) && fits(&info)) {
        missing.push(name(need.generate));
    }
    if !info(need.operate).is_some_and(|info| operates(&info) && fits(&info)) {
        missing.push(name(need.operate));
    } else if need.operate == MechanismType::RSA_PKCS_OAEP && !profile.oaep_hashes.contains(&OaepHash::Sha256)
    {
        // No flag of the mechanism tells: SoftHSM 2.6.1 has it with SHA-1 alone.
        missing.push("CKM_RSA_PKCS_OAEP with SHA-256");
    }
    missing
}

/// The kind of key that these attributes of a public key object describe.
pub(crate) fn key_spec(key_type: KeyType, ec_params: &[u8]) -> Option<KeySpec> {
    match key_type {
        KeyType::EC => [Curve::P256, Curve::P384, Curve::P521]
            .into_iter()
            .find(|curve| curve_oid_der(*curve) == ec_params)
            .map(KeySpec::Ec),
        KeyType::EC_EDWARDS => [ED25519_NAME, ED25519_OID].contains(&ec_params).then_some(KeySpec::Ed25519),
        _ => None,
    }
}

/// Length in bytes of an AES-256 key.
const AES_256_LEN: usize = 32;

/// PrintableString "edwards25519" (PKCS#11 v3.1 §6.3.3).
pub(crate) const ED25519_NAME: &[u8] = b"\x13\x0cedwards25519";
/// OBJECT IDENTIFIER 1.3.101.112 (RFC 8410 §3).
pub(crate) const ED25519_OID: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

/// The named curve as an OBJECT IDENTIFIER (RFC 5480 §2.1.1.1), DER.
fn curve_oid_der(curve: Curve) -> &'static [u8] {
    match curve {
        Curve::P256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        Curve::P384 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
        Curve::P521 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23],
    }
}

/// What stands before the digest in a DigestInfo (RFC 8017 §9.2, note 1).
fn digest_info_head(hash: Hash) -> &'static [u8] {
    match hash {
        Hash::Sha256 => b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
        Hash::Sha384 => b"\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
        Hash::Sha512 => b"\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
    }
}

fn need(algorithm: Algorithm) -> Need {
    let (generate, size) = match algorithm.key_spec() {
        KeySpec::Ec(Curve::P256) => (MechanismType::ECC_KEY_PAIR_GEN, 256),
        KeySpec::Ec(Curve::P384) => (MechanismType::ECC_KEY_PAIR_GEN, 384),
        KeySpec::Ec(Curve::P521) => (MechanismType::ECC_KEY_PAIR_GEN, 521),
        KeySpec::Rsa(modulus) => (MechanismType::RSA_PKCS_KEY_PAIR_GEN, modulus.bits()),
        KeySpec::Ed25519 => (MechanismType::ECC_EDWARDS_KEY_PAIR_GEN, 256),
        KeySpec::Aes256 => (MechanismType::AES_KEY_GEN, AES_256_LEN),
    };
    let operate = match algorithm.scheme() {
        Scheme::Ecdsa(_) => MechanismType::ECDSA,
        Scheme::Pkcs1(_) => MechanismType::RSA_PKCS,
        Scheme::Pss(_) => MechanismType::RSA_PKCS_PSS,
        Scheme::EdDsa => MechanismType::EDDSA,
        Scheme::AesGcmKeyWrap => MechanismType::AES_GCM,
        Scheme::RsaOaep(_) => MechanismType::RSA_PKCS_OAEP,
    };
    Need { generate, operate, size }
}

fn does_not_sign(algorithm: Algorithm) -> Fault {
    Fault::Unsupported(format!("{algorithm} wraps keys and does not sign"))
}

fn name(mechanism: MechanismType) -> &'static str {
    match mechanism {
        MechanismType::ECC_KEY_PAIR_GEN => "CKM_EC_KEY_PAIR_GEN",
        MechanismType::RSA_PKCS_KEY_PAIR_GEN => "CKM_RSA_PKCS_KEY_PAIR_GEN",
        MechanismType::ECC_EDWARDS_KEY_PAIR_GEN => "CKM_EC_EDWARDS_KEY_PAIR_GEN",
        MechanismType::ECDSA => "CKM_ECDSA",
        MechanismType::RSA_PKCS => "CKM_RSA_PKCS",
        MechanismType::RSA_PKCS_PSS => "CKM_RSA_PKCS_PSS",
        MechanismType::EDDSA => "CKM_EDDSA",
        MechanismType::AES_KEY_GEN => "CKM_AES_KEY_GEN",
        MechanismType::AES_GCM => "CKM_AES_GCM",
        MechanismType::RSA_PKCS_OAEP => "CKM_RSA_PKCS_OAEP",
        _ => "another mechanism",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_does_not_fit_its_algorithm_is_refused() {
        for algorithm in Algorithm::KEY_WRAPS {
            let message = SignInput::Message(vec![0; 7]);
            assert!(check_input(algorithm, &message).is_err(), "{algorithm} does not sign");
        }
        for algorithm in Algorithm::SIGNATURES {
            let right = algorithm.hash().map_or(7, Hash::digest_len);
            let digest = |len| check_input(algorithm, &SignInput::Digest(vec![0; len]));
            let message = |len| check_input(algorithm, &SignInput::Message(vec![0; len]));
            if algorithm.hash().is_some() {
                assert!(digest(right).is_ok());
                for wrong in [0, 20, right - 1, right + 1] {
                    assert!(matches!(digest(wrong), Err(Fault::Failed(_))), "{algorithm} took {wrong}");
                }
                assert!(message(right).is_err());
            } else {
                assert!(digest(32).is_err() && message(0).is_ok() && message(MESSAGE_LEN_MAX).is_ok());
                assert!(message(MESSAGE_LEN_MAX + 1).is_err());
            }
        }
    }

    #[test]
    fn a_digest_info_says_the_length_of_its_digest() {
        for hash in [Hash::Sha256, Hash::Sha384, Hash::Sha512] {
            let head = digest_info_head(hash);
            assert_eq!(usize::from(head[head.len() - 1]), hash.digest_len());
            assert_eq!(usize::from(head[1]), head.len() - 2 + hash.digest_len());
        }
    }
}
