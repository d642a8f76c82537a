//! The mechanism table: which CKM_* makes a key and which one signs (PKCS#11 v3.1 §6).
//!
//! The token always gets what the oldest module understands: a digest for ECDSA and PSS, a DigestInfo for PKCS #1
//! v1.5, the whole message for EdDSA. Adding an algorithm is one row here and one in core's table.

use std::borrow::Cow;

use cryptoki::{
    mechanism::{
        Mechanism, MechanismInfo, MechanismType,
        eddsa::{EddsaParams, EddsaSignatureScheme},
        rsa::{PkcsMgfType, PkcsPssParams},
    },
    object::{Attribute, KeyType},
    types::Ulong,
};
use kms_core::{
    Algorithm,
    algorithm::{Curve, Hash, KeySpec, Scheme},
    hsm::{Fault, SignInput},
};

use crate::profile::Profile;

/// Longest message in bytes that an EdDSA key signs: it travels whole to the token.
pub const MESSAGE_LEN_MAX: usize = 192 * 1024;

/// How a kind of key is made.
pub(crate) struct Generation {
    /// CKM_*_KEY_PAIR_GEN.
    pub(crate) mechanism: Mechanism<'static>,
    /// What the public template adds: curve or modulus.
    pub(crate) public: Vec<Attribute>,
    /// CKA_ALLOWED_MECHANISMS of the private key.
    pub(crate) allowed: Vec<MechanismType>,
}

/// What a signature needs from the token.
struct Need {
    generate: MechanismType,
    sign: MechanismType,
    /// Key size in the mechanism's own unit (bits, of the curve or the modulus).
    size: usize,
}

/// How a key of this kind is made.
pub(crate) fn generation(spec: KeySpec, profile: &Profile) -> Generation {
    match spec {
        KeySpec::Ec(curve) => Generation {
            mechanism: Mechanism::EccKeyPairGen,
            public: vec![Attribute::EcParams(curve_oid_der(curve).to_vec())],
            allowed: vec![MechanismType::ECDSA],
        },
        KeySpec::Rsa(modulus) => Generation {
            mechanism: Mechanism::RsaPkcsKeyPairGen,
            public: vec![
                Attribute::ModulusBits(Ulong::new(modulus as u64)),
                Attribute::PublicExponent(vec![1, 0, 1]),
            ],
            allowed: vec![MechanismType::RSA_PKCS, MechanismType::RSA_PKCS_PSS],
        },
        KeySpec::Ed25519 => Generation {
            mechanism: Mechanism::EccEdwardsKeyPairGen,
            public: vec![Attribute::EcParams(profile.ed25519_params().to_vec())],
            allowed: vec![MechanismType::EDDSA],
        },
    }
}

/// How `algorithm` signs.
pub(crate) fn signing(algorithm: Algorithm) -> Mechanism<'static> {
    match algorithm.scheme() {
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
    }
}

/// Refuses an input that does not fit: a digest of another length, a digest for EdDSA, a message for the rest.
pub(crate) fn check_input(algorithm: Algorithm, input: &SignInput) -> Result<(), Fault> {
    match (algorithm.hash(), input) {
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
    })
}

/// Mechanisms that `algorithm` needs and the token lacks: an empty list means that it can be used.
pub(crate) fn missing(
    algorithm: Algorithm,
    info: impl Fn(MechanismType) -> Option<MechanismInfo>,
) -> Vec<&'static str> {
    let need = need(algorithm);
    // A token that leaves the sizes at zero does not tell them.
    let fits = |info: &MechanismInfo| {
        info.max_key_size() == 0 || (info.min_key_size()..=info.max_key_size()).contains(&need.size)
    };
    let mut missing = Vec::new();
    if !info(need.generate).is_some_and(|info| info.generate_key_pair() && fits(&info)) {
        missing.push(name(need.generate));
    }
    if !info(need.sign).is_some_and(|info| info.sign() && fits(&info)) {
        missing.push(name(need.sign));
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
    };
    let sign = match algorithm.scheme() {
        Scheme::Ecdsa(_) => MechanismType::ECDSA,
        Scheme::Pkcs1(_) => MechanismType::RSA_PKCS,
        Scheme::Pss(_) => MechanismType::RSA_PKCS_PSS,
        Scheme::EdDsa => MechanismType::EDDSA,
    };
    Need { generate, sign, size }
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
        _ => "another mechanism",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_does_not_fit_its_algorithm_is_refused() {
        for algorithm in Algorithm::ALL {
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
