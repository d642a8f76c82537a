//! JSON Web Keys (RFC 7517, RFC 7518 §6, RFC 8037) and their thumbprints (RFC 7638).

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use der::{Decode as _, asn1::ObjectIdentifier, asn1::UintRef};
use serde::Serialize;
use spki::SubjectPublicKeyInfoRef;

use crate::{
    Algorithm, Error,
    algorithm::{Curve, Hash, KeySpec},
};

/// RFC 5480 §2.1.1.
const ID_EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// RFC 8017 appendix A.1.
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// RFC 8410 §3.
const ID_ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Names one version of an asymmetric key: base64url of its SHA-256 thumbprint (RFC 7638 §3).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kid(Arc<str>);

/// A public key as verifiers, or those who wrap, fetch it: `kty` and its members, then `kid`, `use` and `alg`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Jwk {
    #[serde(flatten)]
    members: Members,
    kid: String,
    #[serde(rename = "use")]
    purpose: &'static str,
    alg: &'static str,
}

/// The members that make the key, each variant's in the lexicographic order that RFC 7638 §3.2 asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Members {
    Ec { crv: &'static str, kty: &'static str, x: String, y: String },
    Okp { crv: &'static str, kty: &'static str, x: String },
    Rsa { e: String, kty: &'static str, n: String },
}

impl Jwk {
    /// The JWK of a SubjectPublicKeyInfo (DER), which must be of exactly the kind and size that `algorithm`
    /// needs: a key of another curve or modulus is refused.
    pub fn from_spki(algorithm: Algorithm, spki: &[u8]) -> Result<Self, Error> {
        let members = Members::from_spki(algorithm.key_spec(), spki).ok_or_else(|| {
            Error::internal(format!("a public key is not a well-formed key for {algorithm}"))
        })?;
        let kid = members.thumbprint()?;
        let purpose = if algorithm.is_key_wrap() { "enc" } else { "sig" };
        Ok(Self { members, kid, purpose, alg: algorithm.jose_name() })
    }

    /// Its kid.
    pub fn kid(&self) -> Kid {
        Kid(self.kid.as_str().into())
    }

    /// The JWK as JSON text.
    pub fn to_json(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(|error| Error::internal(format!("cannot write a JWK: {error}")))
    }
}

impl Members {
    fn from_spki(spec: KeySpec, spki: &[u8]) -> Option<Self> {
        let info = SubjectPublicKeyInfoRef::from_der(spki).ok()?;
        let key = info.subject_public_key.as_bytes()?;
        match spec {
            KeySpec::Ec(curve) if info.algorithm.oid == ID_EC_PUBLIC_KEY => {
                if info.algorithm.parameters_oid().ok()? != curve.oid() {
                    return None;
                }
                let (&form, coordinates) = key.split_first()?;
                let uncompressed = form == 4 && coordinates.len() == 2 * curve.coordinate_len();
                let (x, y) = uncompressed.then(|| coordinates.split_at(curve.coordinate_len()))?;
                Some(Self::Ec { crv: curve.jose_name(), kty: "EC", x: base64url(x), y: base64url(y) })
            }
            KeySpec::Ed25519 if info.algorithm.oid == ID_ED25519 && key.len() == 32 => {
                Some(Self::Okp { crv: "Ed25519", kty: "OKP", x: base64url(key) })
            }
            KeySpec::Rsa(modulus) if info.algorithm.oid == RSA_ENCRYPTION => {
                let key = rsa::pkcs1::RsaPublicKeyRef::from_der(key).ok()?;
                let bits = key.modulus.as_bytes().len() * 8;
                let exact = bits == modulus.bits() && leading_bit(&key.modulus);
                exact.then(|| Self::Rsa {
                    e: base64url(key.public_exponent.as_bytes()),
                    kty: "RSA",
                    n: base64url(key.modulus.as_bytes()),
                })
            }
            KeySpec::Ec(_) | KeySpec::Ed25519 | KeySpec::Rsa(_) | KeySpec::Aes256 => None,
        }
    }

    fn thumbprint(&self) -> Result<String, Error> {
        let canonical = serde_json::to_vec(self)
            .map_err(|error| Error::internal(format!("cannot write a JWK: {error}")))?;
        Ok(base64url(Hash::Sha256.digest(&canonical).as_ref()))
    }
}

impl Curve {
    /// The named-curve OID (RFC 5480 §2.1.1.1).
    pub fn oid(self) -> ObjectIdentifier {
        match self {
            Self::P256 => ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7"),
            Self::P384 => ObjectIdentifier::new_unwrap("1.3.132.0.34"),
            Self::P521 => ObjectIdentifier::new_unwrap("1.3.132.0.35"),
        }
    }
}

impl Kid {
    /// The text of the `kid`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A kid that was computed at birth and stored.
    pub fn from_stored(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Kid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn leading_bit(modulus: &UintRef<'_>) -> bool {
    modulus.as_bytes().first().is_some_and(|byte| byte & 0x80 != 0)
}

pub(crate) fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::algorithm::Modulus;

    /// The key of RFC 7638 §3.1 as a SubjectPublicKeyInfo.
    fn rfc7638_spki() -> Vec<u8> {
        use rsa::{BoxedUint, RsaPublicKey, pkcs8::EncodePublicKey as _};
        let n = URL_SAFE_NO_PAD
            .decode(concat!(
                "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZ",
                "CiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZ",
                "gnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBni",
                "Iqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
            ))
            .expect("base64url");
        RsaPublicKey::new(BoxedUint::from_be_slice_vartime(&n), BoxedUint::from_be_slice_vartime(&[1, 0, 1]))
            .expect("a public key")
            .to_public_key_der()
            .expect("DER")
            .into_vec()
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_7638() {
        let jwk = Jwk::from_spki(Algorithm::Rs256(Modulus::Bits2048), &rfc7638_spki()).expect("a JWK");
        assert_eq!(jwk.kid().as_str(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }

    #[test]
    fn the_ed25519_thumbprint_is_that_of_rfc_8037() {
        let mut spki = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        spki.extend(
            URL_SAFE_NO_PAD.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").expect("base64url"),
        );
        let jwk = Jwk::from_spki(Algorithm::EdDsa, &spki).expect("a JWK");
        assert_eq!(jwk.kid().as_str(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn a_key_of_another_size_or_kind_is_refused() {
        for wrong in [Algorithm::Rs256(Modulus::Bits3072), Algorithm::Es256, Algorithm::Ed25519] {
            assert!(Jwk::from_spki(wrong, &rfc7638_spki()).is_err(), "{wrong}");
        }
        let p256 = STANDARD
            .decode("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==")
            .expect("base64");
        assert!(Jwk::from_spki(Algorithm::Es256, &p256).is_ok());
        assert!(Jwk::from_spki(Algorithm::Es384, &p256).is_err());
        assert!(Jwk::from_spki(Algorithm::Es256, &p256[..p256.len() - 1]).is_err());
    }
}
