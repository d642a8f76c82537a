//! The algorithm table: JOSE names and everything that core must know about each. Signatures, and key wraps.
//!
//! Names are those of the IANA "JSON Web Signature and Encryption Algorithms" registry (RFC 7518 §3.1 and §4.1,
//! RFC 8037, RFC 9864). An RSA name may carry the modulus size: `RS256` is `RS256-2048`. Adding an algorithm
//! is one row here and one in `kms/pkcs11/src/mechanism.rs`.

use std::{fmt, str::FromStr};

use crate::{Error, hsm::Usage};

/// An algorithm of signatures or of key wraps, together with the kind of key that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256(Modulus),
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384(Modulus),
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512(Modulus),
    /// RSASSA-PSS with SHA-256, MGF1-SHA-256, salt as long as the hash.
    Ps256(Modulus),
    /// RSASSA-PSS with SHA-384, MGF1-SHA-384, salt as long as the hash.
    Ps384(Modulus),
    /// RSASSA-PSS with SHA-512, MGF1-SHA-512, salt as long as the hash.
    Ps512(Modulus),
    /// EdDSA on Curve25519 under its fully specified name (RFC 9864).
    Ed25519,
    /// EdDSA on Curve25519 under the older, polymorphic name (RFC 8037), for verifiers that know no other.
    EdDsa,
    /// Key wrap with AES-256-GCM: the key-encryption key is a secret key in the token (RFC 7518 §4.7).
    A256GcmKw,
    /// Key wrap with RSAES-OAEP, SHA-256 and MGF1-SHA-256: whoever has the public half wraps (RFC 7518 §4.3).
    RsaOaep256(Modulus),
}

/// Size of an RSA modulus in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum Modulus {
    /// 2048 bits: the least that RFC 7518 §3.3 allows.
    Bits2048 = 2048,
    /// 3072 bits: 128-bit security (SP 800-57 part 1, table 2).
    Bits3072 = 3072,
    /// 4096 bits.
    Bits4096 = 4096,
}

/// What the token must generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeySpec {
    /// An elliptic-curve pair on a NIST curve.
    Ec(Curve),
    /// An RSA pair with public exponent 65537.
    Rsa(Modulus),
    /// An Ed25519 pair.
    Ed25519,
    /// A secret AES key of 256 bits.
    Aes256,
}

/// A NIST prime curve (SP 800-186).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    /// P-256, secp256r1.
    P256,
    /// P-384, secp384r1.
    P384,
    /// P-521, secp521r1.
    P521,
}

/// How the message is hashed before it is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hash {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-384, 48 bytes.
    Sha384,
    /// SHA-512, 64 bytes.
    Sha512,
}

/// What is done with the key, apart from the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// ECDSA (FIPS 186-5 §6).
    Ecdsa(Hash),
    /// RSASSA-PKCS1-v1_5 (RFC 8017 §8.2).
    Pkcs1(Hash),
    /// RSASSA-PSS, MGF1 with the same hash, salt as long as the hash (RFC 7518 §3.5).
    Pss(Hash),
    /// Pure EdDSA: the token sees the whole message (RFC 8032 §5.1).
    EdDsa,
    /// AES-GCM with an IV of 96 bits and a tag of 128 (SP 800-38D).
    AesGcmKeyWrap,
    /// RSAES-OAEP, MGF1 with the same hash (RFC 8017 §7.1).
    RsaOaep(Hash),
}

impl Algorithm {
    /// Every algorithm, in the order in which documents list them: signatures, then key wraps.
    pub const ALL: [Self; 27] = {
        let mut all = [Self::A256GcmKw; 27];
        let (mut i, mut j) = (0, 0);
        while i < Self::SIGNATURES.len() {
            all[i] = Self::SIGNATURES[i];
            i += 1;
        }
        while j < Self::KEY_WRAPS.len() {
            all[i + j] = Self::KEY_WRAPS[j];
            j += 1;
        }
        all
    };

    /// Those that wrap keys.
    pub const KEY_WRAPS: [Self; 4] = [
        Self::A256GcmKw,
        Self::RsaOaep256(Modulus::Bits2048),
        Self::RsaOaep256(Modulus::Bits3072),
        Self::RsaOaep256(Modulus::Bits4096),
    ];

    /// Those that sign.
    pub const SIGNATURES: [Self; 23] = {
        use Algorithm::{Ed25519, EdDsa, Es256, Es384, Es512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        use Modulus::{Bits2048, Bits3072, Bits4096};
        [
            Es256,
            Es384,
            Es512,
            Rs256(Bits2048),
            Rs256(Bits3072),
            Rs256(Bits4096),
            Rs384(Bits2048),
            Rs384(Bits3072),
            Rs384(Bits4096),
            Rs512(Bits2048),
            Rs512(Bits3072),
            Rs512(Bits4096),
            Ps256(Bits2048),
            Ps256(Bits3072),
            Ps256(Bits4096),
            Ps384(Bits2048),
            Ps384(Bits3072),
            Ps384(Bits4096),
            Ps512(Bits2048),
            Ps512(Bits3072),
            Ps512(Bits4096),
            Ed25519,
            EdDsa,
        ]
    };

    /// The table: JOSE `alg`, key, scheme.
    fn row(self) -> (&'static str, KeySpec, Scheme) {
        use Hash::{Sha256, Sha384, Sha512};
        match self {
            Self::Es256 => ("ES256", KeySpec::Ec(Curve::P256), Scheme::Ecdsa(Sha256)),
            Self::Es384 => ("ES384", KeySpec::Ec(Curve::P384), Scheme::Ecdsa(Sha384)),
            Self::Es512 => ("ES512", KeySpec::Ec(Curve::P521), Scheme::Ecdsa(Sha512)),
            Self::Rs256(n) => ("RS256", KeySpec::Rsa(n), Scheme::Pkcs1(Sha256)),
            Self::Rs384(n) => ("RS384", KeySpec::Rsa(n), Scheme::Pkcs1(Sha384)),
            Self::Rs512(n) => ("RS512", KeySpec::Rsa(n), Scheme::Pkcs1(Sha512)),
            Self::Ps256(n) => ("PS256", KeySpec::Rsa(n), Scheme::Pss(Sha256)),
            Self::Ps384(n) => ("PS384", KeySpec::Rsa(n), Scheme::Pss(Sha384)),
            Self::Ps512(n) => ("PS512", KeySpec::Rsa(n), Scheme::Pss(Sha512)),
            Self::Ed25519 => ("Ed25519", KeySpec::Ed25519, Scheme::EdDsa),
            Self::EdDsa => ("EdDSA", KeySpec::Ed25519, Scheme::EdDsa),
            Self::A256GcmKw => ("A256GCMKW", KeySpec::Aes256, Scheme::AesGcmKeyWrap),
            Self::RsaOaep256(n) => ("RSA-OAEP-256", KeySpec::Rsa(n), Scheme::RsaOaep(Sha256)),
        }
    }

    /// The `alg` value of JOSE headers and JWKs, without a modulus size.
    pub fn jose_name(self) -> &'static str {
        self.row().0
    }

    /// What the token must generate.
    pub fn key_spec(self) -> KeySpec {
        self.row().1
    }

    /// What is done with the key.
    pub fn scheme(self) -> Scheme {
        self.row().2
    }

    /// Whether it wraps keys, and does not sign.
    pub fn is_key_wrap(self) -> bool {
        matches!(self.scheme(), Scheme::AesGcmKeyWrap | Scheme::RsaOaep(_))
    }

    /// What its private or secret key may do in the token.
    pub fn usage(self) -> Usage {
        match self.scheme() {
            Scheme::AesGcmKeyWrap => Usage::EncryptDecrypt,
            Scheme::RsaOaep(_) => Usage::Decrypt,
            Scheme::Ecdsa(_) | Scheme::Pkcs1(_) | Scheme::Pss(_) | Scheme::EdDsa => Usage::Sign,
        }
    }

    /// The hash of the message, or `None` for EdDSA, which hashes inside, and for key wraps.
    pub fn hash(self) -> Option<Hash> {
        match self.scheme() {
            Scheme::Ecdsa(h) | Scheme::Pkcs1(h) | Scheme::Pss(h) => Some(h),
            Scheme::EdDsa | Scheme::AesGcmKeyWrap | Scheme::RsaOaep(_) => None,
        }
    }

    /// Length in bytes of a signature as JOSE writes it (`r ‖ s` for ECDSA); 0 where nothing signs.
    pub fn signature_len(self) -> usize {
        match self.key_spec() {
            _ if self.is_key_wrap() => 0,
            KeySpec::Ec(curve) => 2 * curve.coordinate_len(),
            KeySpec::Rsa(modulus) => modulus.bits() / 8,
            KeySpec::Ed25519 => 64,
            KeySpec::Aes256 => 0,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key_spec() {
            KeySpec::Rsa(modulus) => write!(f, "{}-{}", self.jose_name(), modulus.bits()),
            KeySpec::Ec(_) | KeySpec::Ed25519 | KeySpec::Aes256 => f.write_str(self.jose_name()),
        }
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|alg| {
                alg.to_string() == text
                    || (alg.jose_name() == text
                        && !matches!(
                            alg.key_spec(),
                            KeySpec::Rsa(Modulus::Bits3072) | KeySpec::Rsa(Modulus::Bits4096)
                        ))
            })
            .ok_or_else(|| {
                Error::invalid(
                    "algorithm",
                    "unknown algorithm; to sign use ES256, ES384, ES512, Ed25519, EdDSA, or RS256, RS384, RS512, \
                     PS256, PS384, PS512 with -2048 (default), -3072 or -4096; to wrap keys A256GCMKW, or \
                     RSA-OAEP-256 with the same sizes",
                )
            })
    }
}

impl Modulus {
    /// The size in bits.
    pub fn bits(self) -> usize {
        usize::from(self as u16)
    }
}

impl Curve {
    /// Length in bytes of one coordinate, of `r` and of `s`.
    pub fn coordinate_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// The `crv` value of a JWK (RFC 7518 §6.2.1.1).
    pub fn jose_name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }
}

impl Hash {
    /// Length of a digest in bytes.
    pub fn digest_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The digest of `message`.
    pub fn digest(self, message: &[u8]) -> aws_lc_rs::digest::Digest {
        aws_lc_rs::digest::digest(self.aws_lc(), message)
    }

    pub(crate) fn aws_lc(self) -> &'static aws_lc_rs::digest::Algorithm {
        match self {
            Self::Sha256 => &aws_lc_rs::digest::SHA256,
            Self::Sha384 => &aws_lc_rs::digest::SHA384,
            Self::Sha512 => &aws_lc_rs::digest::SHA512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_as_itself() {
        for alg in Algorithm::ALL {
            assert_eq!(alg.to_string().parse::<Algorithm>(), Ok(alg));
        }
    }

    #[test]
    fn a_bare_rsa_name_means_2048_bits() {
        assert_eq!("PS384".parse(), Ok(Algorithm::Ps384(Modulus::Bits2048)));
    }

    #[test]
    fn none_hmac_and_near_misses_are_refused() {
        for bad in [
            "none",
            "HS256",
            "es256",
            "ES256K",
            "RS256-1024",
            "ES256-2048",
            "",
            "RS256 ",
            "A128GCMKW",
            "RSA-OAEP",
        ] {
            assert!(bad.parse::<Algorithm>().is_err(), "{bad:?} was taken");
        }
    }
}
