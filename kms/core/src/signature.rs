//! Signatures in software: verification (FIPS 186-5, RFC 8017, RFC 8032) and the two ways to write ECDSA.
//!
//! Nothing here signs. Verification runs on every signature before it is released, and for callers of Verify.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    digest::Digest,
    signature::{self as lc, ParsedPublicKey, VerificationAlgorithm},
};
use der::{Decode as _, Encode as _, Sequence, asn1::UintRef};

use crate::{
    Algorithm, Error,
    algorithm::{Curve, Hash, KeySpec, Scheme},
    hsm::{CkaId, KeyRef, SignInput},
    jwk::Jwk,
};

/// A version's public key, parsed once, and where its private half lives.
pub(crate) struct PublicKey {
    algorithm: Algorithm,
    parsed: ParsedPublicKey,
    jwk: Jwk,
    spki: Arc<[u8]>,
    key_ref: KeyRef,
}

/// RFC 3279 §2.2.3.
#[derive(Sequence)]
struct EcdsaSigValue<'a> {
    r: UintRef<'a>,
    s: UintRef<'a>,
}

impl PublicKey {
    /// Parses a SubjectPublicKeyInfo (DER) that must suit `algorithm` exactly.
    pub(crate) fn from_spki(algorithm: Algorithm, id: CkaId, spki: &[u8]) -> Result<Self, Error> {
        let jwk = Jwk::from_spki(algorithm, spki)?;
        let parsed = ParsedPublicKey::new(verification(algorithm), spki)
            .map_err(|_| Error::internal(format!("a public key is not valid for {algorithm}")))?;
        Ok(Self { algorithm, parsed, jwk, spki: spki.into(), key_ref: KeyRef::new(id, spki) })
    }

    /// What it verifies.
    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its JWK.
    pub(crate) fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// Whether it was parsed from these bytes, of a pair with that CKA_ID.
    pub(crate) fn is(&self, id: CkaId, spki: &[u8]) -> bool {
        self.key_ref.id == id && *self.spki == *spki
    }

    /// Where its private half lives.
    pub(crate) fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }

    /// Its SubjectPublicKeyInfo, DER.
    pub(crate) fn spki(&self) -> &Arc<[u8]> {
        &self.spki
    }

    /// Whether `signature` (as JOSE writes it) is one over `input`. Anything malformed is simply not valid.
    pub(crate) fn verifies(&self, input: &SignInput, signature: &[u8]) -> bool {
        !self.algorithm.is_key_wrap()
            && signature.len() == self.algorithm.signature_len()
            && match (input, self.algorithm.hash()) {
                (SignInput::Digest(bytes), Some(hash)) => Digest::import_less_safe(bytes, hash.aws_lc())
                    .and_then(|digest| self.parsed.verify_digest_sig(&digest, signature))
                    .is_ok(),
                (SignInput::Message(message), None) => self.parsed.verify_sig(message, signature).is_ok(),
                (SignInput::Digest(_), None) | (SignInput::Message(_), Some(_)) => false,
            }
    }
}

/// Whether `signature` (as JOSE writes it) is one over `input` under this SubjectPublicKeyInfo (DER).
/// For the HSM room, which checks a handle with a challenge before its first use.
pub fn verifies(algorithm: Algorithm, spki: &[u8], input: &SignInput, signature: &[u8]) -> bool {
    PublicKey::from_spki(algorithm, CkaId::from_bytes([0; 16]), spki)
        .is_ok_and(|key| key.verifies(input, signature))
}

/// What the token must see of `message`: its digest, or for EdDSA the whole of it.
pub fn input_of(algorithm: Algorithm, message: &[u8]) -> SignInput {
    match algorithm.hash() {
        Some(hash) => SignInput::Digest(hash.digest(message).as_ref().to_vec()),
        None => SignInput::Message(message.to_vec()),
    }
}

/// An ECDSA signature `r ‖ s` as DER (RFC 3279 §2.2.3). Other signatures have one form only and pass as they are.
pub(crate) fn jose_to_der(algorithm: Algorithm, signature: Vec<u8>) -> Result<Vec<u8>, Error> {
    let KeySpec::Ec(curve) = algorithm.key_spec() else { return Ok(signature) };
    let malformed = || Error::internal("the HSM gave an ECDSA signature of the wrong length");
    if signature.len() != 2 * curve.coordinate_len() {
        return Err(malformed());
    }
    let (r, s) = signature.split_at(curve.coordinate_len());
    UintRef::new(r)
        .and_then(|r| Ok(EcdsaSigValue { r, s: UintRef::new(s)? }))
        .and_then(|value| value.to_der())
        .map_err(|_| malformed())
}

/// The inverse; `None` when it is not DER of two integers that fit the curve.
pub(crate) fn der_to_jose(algorithm: Algorithm, signature: &[u8]) -> Option<Vec<u8>> {
    let KeySpec::Ec(curve) = algorithm.key_spec() else { return Some(signature.to_vec()) };
    let value = EcdsaSigValue::from_der(signature).ok()?;
    let mut jose = Vec::with_capacity(2 * curve.coordinate_len());
    for integer in [value.r, value.s] {
        let bytes = integer.as_bytes();
        let padding = curve.coordinate_len().checked_sub(bytes.len())?;
        jose.resize(jose.len() + padding, 0);
        jose.extend_from_slice(bytes);
    }
    Some(jose)
}

fn verification(algorithm: Algorithm) -> &'static dyn VerificationAlgorithm {
    match algorithm.scheme() {
        Scheme::Ecdsa(_) => match algorithm.key_spec() {
            KeySpec::Ec(Curve::P384) => &lc::ECDSA_P384_SHA384_FIXED,
            KeySpec::Ec(Curve::P521) => &lc::ECDSA_P521_SHA512_FIXED,
            KeySpec::Ec(Curve::P256) | KeySpec::Rsa(_) | KeySpec::Ed25519 | KeySpec::Aes256 => {
                &lc::ECDSA_P256_SHA256_FIXED
            }
        },
        // A pair that wraps verifies nothing, and its public half is parsed like any other.
        Scheme::Pkcs1(Hash::Sha256) | Scheme::RsaOaep(_) | Scheme::AesGcmKeyWrap => {
            &lc::RSA_PKCS1_2048_8192_SHA256
        }
        Scheme::Pkcs1(Hash::Sha384) => &lc::RSA_PKCS1_2048_8192_SHA384,
        Scheme::Pkcs1(Hash::Sha512) => &lc::RSA_PKCS1_2048_8192_SHA512,
        Scheme::Pss(Hash::Sha256) => &lc::RSA_PSS_2048_8192_SHA256,
        Scheme::Pss(Hash::Sha384) => &lc::RSA_PSS_2048_8192_SHA384,
        Scheme::Pss(Hash::Sha512) => &lc::RSA_PSS_2048_8192_SHA512,
        Scheme::EdDsa => &lc::ED25519,
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}, kid {})", self.algorithm, self.jwk.kid())
    }
}
