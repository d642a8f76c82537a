//! Public keys as the token shows them, turned into SubjectPublicKeyInfo (RFC 5480, RFC 8410, RFC 8017 appendix A.1).

use cryptoki::object::{Attribute, AttributeType, KeyType};
use der::{
    Decode, Encode,
    asn1::{AnyRef, BitStringRef, ObjectIdentifier, OctetStringRef, UintRef},
};
use kms_core::algorithm::{Curve, KeySpec};
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use crate::mechanism;

/// A public key read from a token.
pub(crate) struct PublicKey {
    algorithm: KeyAlgorithm,
    /// What the BIT STRING of the SPKI holds.
    bits: Vec<u8>,
}

/// A public key object that makes no sense; the text says why.
pub(crate) type Unreadable = String;

#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyAlgorithm {
    Ec(Curve),
    Rsa,
    Ed25519,
}

impl PublicKey {
    /// The attributes to ask for.
    pub(crate) const ATTRIBUTES: [AttributeType; 5] = [
        AttributeType::KeyType,
        AttributeType::EcParams,
        AttributeType::EcPoint,
        AttributeType::Modulus,
        AttributeType::PublicExponent,
    ];

    /// Reads a key from [`PublicKey::ATTRIBUTES`].
    pub(crate) fn from_attributes(attributes: &[Attribute]) -> Result<Self, Unreadable> {
        let (mut key_type, mut params, mut point, mut modulus, mut exponent) =
            (None, &[][..], None, None, None);
        for attribute in attributes {
            match attribute {
                Attribute::KeyType(found) => key_type = Some(*found),
                Attribute::EcParams(bytes) => params = bytes,
                Attribute::EcPoint(bytes) => point = Some(bytes),
                Attribute::Modulus(bytes) => modulus = Some(bytes),
                Attribute::PublicExponent(bytes) => exponent = Some(bytes),
                _ => {}
            }
        }
        let key_type = key_type.ok_or("CKA_KEY_TYPE is missing")?;
        if key_type == KeyType::RSA {
            let modulus = modulus.ok_or("CKA_MODULUS is missing")?;
            let exponent = exponent.ok_or("CKA_PUBLIC_EXPONENT is missing")?;
            let bits = rsa_public_key(modulus, exponent).map_err(|error| error.to_string())?;
            return Ok(Self { algorithm: KeyAlgorithm::Rsa, bits });
        }
        let point = point.ok_or("CKA_EC_POINT is missing")?;
        let (algorithm, len) = match mechanism::key_spec(key_type, params) {
            Some(KeySpec::Ec(curve)) => (KeyAlgorithm::Ec(curve), 1 + 2 * curve.coordinate_len()),
            Some(KeySpec::Ed25519) => (KeyAlgorithm::Ed25519, 32),
            _ => return Err("CKA_EC_PARAMS names a curve that is not ours".to_owned()),
        };
        // PKCS#11 v3.1 §6.3.3: a DER OCTET STRING; some tokens leave its head out.
        let bits = match <&OctetStringRef>::from_der(point) {
            Ok(inner) if inner.as_bytes().len() == len => inner.as_bytes(),
            _ if point.len() == len => point,
            _ => {
                return Err(format!(
                    "CKA_EC_POINT has {} bytes, which is no point of its curve",
                    point.len()
                ));
            }
        };
        if matches!(algorithm, KeyAlgorithm::Ec(_)) && bits.first() != Some(&4) {
            return Err("CKA_EC_POINT is compressed".to_owned());
        }
        Ok(Self { algorithm, bits: bits.to_vec() })
    }

    /// SubjectPublicKeyInfo, DER.
    pub(crate) fn spki(&self) -> Result<Vec<u8>, Unreadable> {
        let (oid, parameters) = match &self.algorithm {
            KeyAlgorithm::Ec(curve) => {
                let oid = match curve {
                    Curve::P256 => &P256,
                    Curve::P384 => &P384,
                    Curve::P521 => &P521,
                };
                (EC_PUBLIC_KEY, Some(AnyRef::from(oid)))
            }
            KeyAlgorithm::Rsa => (RSA_ENCRYPTION, Some(AnyRef::NULL)),
            KeyAlgorithm::Ed25519 => (ED25519, None),
        };
        BitStringRef::from_bytes(&self.bits)
            .and_then(|subject_public_key| {
                SubjectPublicKeyInfoRef {
                    algorithm: AlgorithmIdentifierRef { oid, parameters },
                    subject_public_key,
                }
                .to_der()
            })
            .map_err(|error| error.to_string())
    }
}

/// The modulus of an RSA key (SubjectPublicKeyInfo, DER): big-endian, without a byte for the sign.
pub(crate) fn rsa_modulus(spki: &[u8]) -> Result<Vec<u8>, Unreadable> {
    let modulus = || {
        let key = SubjectPublicKeyInfoRef::from_der(spki)?.subject_public_key;
        let key = key.as_bytes().ok_or(der::Tag::BitString.value_error())?;
        AnyRef::from_der(key)?.sequence(|numbers| {
            let modulus = UintRef::decode(numbers)?.as_bytes().to_vec();
            UintRef::decode(numbers)?;
            Ok(modulus)
        })
    };
    modulus().map_err(|error: der::Error| error.to_string())
}

fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> der::Result<Vec<u8>> {
    let numbers = [UintRef::new(modulus)?.to_der()?, UintRef::new(exponent)?.to_der()?].concat();
    AnyRef::new(der::Tag::Sequence, &numbers)?.to_der()
}

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

#[cfg(test)]
mod tests {
    use super::*;

    fn read(attributes: &[Attribute]) -> Result<PublicKey, Unreadable> {
        PublicKey::from_attributes(attributes)
    }

    #[test]
    fn points_that_do_not_fit_their_curve_are_refused() {
        let p256 = Attribute::EcParams(b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07".to_vec());
        let compressed = [&[2][..], &[1; 64]].concat();
        for point in [vec![], vec![4; 64], vec![4; 66], [&[0x04, 0x20][..], &[1; 32]].concat(), compressed] {
            assert!(
                read(&[Attribute::KeyType(KeyType::EC), p256.clone(), Attribute::EcPoint(point)]).is_err()
            );
        }
        assert!(read(&[]).is_err());
        assert!(read(&[Attribute::KeyType(KeyType::RSA), Attribute::Modulus(vec![1; 256])]).is_err());
    }

    #[test]
    fn the_modulus_of_a_key_is_the_one_that_the_token_showed() {
        // With its highest bit set, as of any key of a whole number of bytes: DER adds a zero.
        let modulus: Vec<u8> = (0..=255).map(|byte| byte | 0x80).collect();
        let key = read(&[
            Attribute::KeyType(KeyType::RSA),
            Attribute::Modulus(modulus.clone()),
            Attribute::PublicExponent(vec![1, 0, 1]),
        ]);
        let spki = key.and_then(|key| key.spki()).unwrap();
        assert_eq!(rsa_modulus(&spki).unwrap(), modulus);
        assert!(rsa_modulus(&spki[..spki.len() - 1]).is_err() && rsa_modulus(&[]).is_err());
    }

    #[test]
    fn an_ed25519_point_becomes_the_spki_of_rfc_8410() {
        for params in [mechanism::ED25519_NAME, mechanism::ED25519_OID] {
            let point = [&[0x04, 0x20][..], &[9; 32]].concat();
            let key = read(&[
                Attribute::KeyType(KeyType::EC_EDWARDS),
                Attribute::EcParams(params.to_vec()),
                Attribute::EcPoint(point),
            ]);
            let head = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
            assert_eq!(key.unwrap_or_else(|e| panic!("{e}")).spki().unwrap(), [&head[..], &[9; 32]].concat());
        }
    }
}
