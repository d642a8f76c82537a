//! An issuer's keys (RFC 7517 §5), and the one among them that fits a token.
//!
//! A key that we cannot use, or that says it is for something else, is passed over, as §5 asks; a set without one that
//! is left is no set.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, crypto::aws_lc};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::refusal::Refusal;
use crate::config::JwtAlgorithm;

/// Most keys in a set.
const KEYS_MAX: usize = 256;
/// Shortest and longest RSA modulus in bits (RFC 7518 §3.3; the library's limit).
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The keys of one moment.
#[derive(Debug)]
pub(super) struct KeySet(Vec<Key>);

/// A public key that verifies signatures.
#[derive(Debug, Clone)]
pub(super) struct Key {
    kid: Option<String>,
    kind: Kind,
    /// The one algorithm that it is for, if it says so.
    algorithm: Option<JwtAlgorithm>,
    key: DecodingKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// Why a text is no key set.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Unusable {
    #[error("it is no JWK set; expected {{\"keys\": [...]}}")]
    NoSet,
    #[error("it has more than {KEYS_MAX} keys")]
    TooManyKeys,
    #[error(
        "none of its keys verifies signatures: RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519, public"
    )]
    NoKeys,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Box<RawValue>>,
}

/// The members of a JWK that matter (RFC 7517 §4, RFC 7518 §6, RFC 8037 §2); one that stands twice is an error.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<IgnoredAny>,
}

impl KeySet {
    /// The keys of a JWK set that verify signatures.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Unusable> {
        let jwks: Jwks = serde_json::from_slice(text).map_err(|_| Unusable::NoSet)?;
        if jwks.keys.len() > KEYS_MAX {
            return Err(Unusable::TooManyKeys);
        }
        let jwk = |text: &RawValue| serde_json::from_str(text.get()).ok();
        let keys: Vec<_> = jwks.keys.iter().filter_map(|text| Key::parse(jwk(text)?)).collect();
        if keys.is_empty() { Err(Unusable::NoKeys) } else { Ok(Self(keys)) }
    }

    /// The one key that fits. A token that names none has its key when no other fits.
    pub(super) fn pick(&self, kid: Option<&str>, algorithm: JwtAlgorithm) -> Result<&Key, Refusal> {
        let fits = |key: &&Key| key.fits(algorithm) && (kid.is_none() || key.kid.as_deref() == kid);
        let mut fitting = self.0.iter().filter(fits);
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            (None, _) => Err(Refusal::NoSuchKey),
            (Some(_), Some(_)) => Err(Refusal::AmbiguousKey),
        }
    }
}

impl Key {
    /// `None` when it is private, for something else, or of a kind that we do not know.
    fn parse(jwk: Jwk) -> Option<Self> {
        let is_for_signatures = jwk.usage.as_deref().is_none_or(|usage| usage == "sig")
            && jwk.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        // A private key that is published proves nothing.
        if !is_for_signatures || jwk.d.is_some() {
            return None;
        }
        let algorithm = match &jwk.alg {
            Some(name) => Some(JwtAlgorithm::named(name)?),
            None => None,
        };
        let (kind, key) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", None) => (Kind::Rsa, rsa(&jwk)?),
            ("EC", Some("P-256")) => (Kind::P256, ec(&jwk, 32)?),
            ("EC", Some("P-384")) => (Kind::P384, ec(&jwk, 48)?),
            ("OKP", Some("Ed25519")) => {
                (Kind::Ed25519, DecodingKey::from_ed_der(&octets(jwk.x.as_ref()?, 32)?))
            }
            _ => return None,
        };
        let key = Self { kid: jwk.kid, kind, algorithm, key };
        // One that says an algorithm that its kind cannot do fits none.
        key.algorithm.is_none_or(|algorithm| key.fits(algorithm)).then_some(key)
    }

    fn fits(&self, algorithm: JwtAlgorithm) -> bool {
        Kind::of(algorithm) == self.kind && self.algorithm.is_none_or(|only| only == algorithm)
    }

    /// Whether `signature` over `signed` is this key's.
    pub(super) fn verifies(&self, algorithm: JwtAlgorithm, signed: &[u8], signature: &Vec<u8>) -> bool {
        // Named, not the process's default: that one panics when another crate turns a second backend on.
        (aws_lc::DEFAULT_PROVIDER.verifier_factory)(&named(algorithm), &self.key)
            .is_ok_and(|verifier| verifier.verify(signed, signature).is_ok())
    }
}

impl Kind {
    fn of(algorithm: JwtAlgorithm) -> Self {
        match algorithm {
            JwtAlgorithm::Rs256 | JwtAlgorithm::Rs384 | JwtAlgorithm::Rs512 => Self::Rsa,
            JwtAlgorithm::Ps256 | JwtAlgorithm::Ps384 | JwtAlgorithm::Ps512 => Self::Rsa,
            JwtAlgorithm::Es256 => Self::P256,
            JwtAlgorithm::Es384 => Self::P384,
            JwtAlgorithm::EdDsa => Self::Ed25519,
        }
    }
}

fn named(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::Rs256 => Algorithm::RS256,
        JwtAlgorithm::Rs384 => Algorithm::RS384,
        JwtAlgorithm::Rs512 => Algorithm::RS512,
        JwtAlgorithm::Ps256 => Algorithm::PS256,
        JwtAlgorithm::Ps384 => Algorithm::PS384,
        JwtAlgorithm::Ps512 => Algorithm::PS512,
        JwtAlgorithm::Es256 => Algorithm::ES256,
        JwtAlgorithm::Es384 => Algorithm::ES384,
        JwtAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}

fn rsa(jwk: &Jwk) -> Option<DecodingKey> {
    let number = |text: &String| {
        let octets = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let zeros = octets.iter().take_while(|octet| **octet == 0).count();
        Some(octets[zeros..].to_vec())
    };
    let (n, e) = (number(jwk.n.as_ref()?)?, number(jwk.e.as_ref()?)?);
    let spare = n.first()?.leading_zeros() as usize;
    let is_odd = e.last().is_some_and(|last| last % 2 == 1) && e != [1];
    (RSA_BITS.contains(&(n.len() * 8 - spare)) && is_odd)
        .then(|| DecodingKey::from_rsa_raw_components(&n, &e))
}

/// An uncompressed point (SEC 1 §2.3.3); whether it lies on the curve is the library's to say.
fn ec(jwk: &Jwk, len: usize) -> Option<DecodingKey> {
    let point = [vec![4], octets(jwk.x.as_ref()?, len)?, octets(jwk.y.as_ref()?, len)?].concat();
    Some(DecodingKey::from_ec_der(&point))
}

fn octets(text: &str, len: usize) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok().filter(|octets| octets.len() == len)
}
