//! What every [`Hsm`] must do with keys that wrap.

use kms_envelope::SecretBytes;

use super::{Suite, fresh_id};
use crate::{
    Algorithm, Hsm, Unsettled,
    algorithm::KeySpec,
    hsm::{CkaId, Fault, Half, KekRef, KeyRef, KnownAnswer, NewKey, Object, SecretKeyRef},
    key_wrap,
    time::Deadline,
};

pub(super) async fn run<H: Hsm>(suite: &Suite<'_, H>, algorithm: Algorithm) {
    let key = a_new_key_is_found_and_listed_with_the_right_template(suite, algorithm).await;
    what_is_wrapped_opens_under_its_key_and_aad_alone(suite, &key).await;
    every_wrap_has_an_iv_of_its_own(suite, &key).await;
    garbage_does_not_open_and_harms_nothing_that_follows(suite, &key).await;
    another_key_on_record_is_a_mismatch(suite, &key).await;
    expired_work_is_not_done(suite, &key).await;
    a_destroyed_key_is_gone_and_may_be_destroyed_again(suite, &key).await;
}

/// A key, and for a pair its public half.
struct Kek {
    algorithm: Algorithm,
    key: KekRef,
    spki: Option<Vec<u8>>,
}

async fn a_new_key_is_found_and_listed_with_the_right_template<H: Hsm>(
    suite: &Suite<'_, H>,
    algorithm: Algorithm,
) -> Kek {
    let (id, label) = (fresh_id(), format!("conformance/{algorithm}"));
    let new = NewKey { id, label: label.clone(), spec: algorithm.key_spec(), usage: algorithm.usage() };
    suite.hsm.generate(&suite.grant, &new, suite.deadline).await.expect("generate");
    let found = suite.hsm.find(&suite.grant, id, suite.deadline).await.expect("find");
    let (key, spki, halves) = match (&found.private[..], &found.public[..], &found.secret[..]) {
        ([private], [spki], []) => {
            assert_eq!(private.deviation(algorithm.usage()), None, "{algorithm}");
            let halves = vec![Half::Private(*private), Half::Public(Some(spki.clone()))];
            (KekRef::Pair(KeyRef::new(id, spki)), Some(spki.clone()), halves)
        }
        ([], [], [secret]) => {
            assert_eq!(algorithm.key_spec(), KeySpec::Aes256);
            assert_eq!(secret.deviation(algorithm.usage()), None, "{algorithm}");
            (KekRef::Secret(born(suite, id).await), None, vec![Half::Secret(*secret)])
        }
        _ => panic!("{algorithm}: neither a pair nor a secret key: {found:?}"),
    };
    let cka_id = id.as_bytes().to_vec();
    let object = |half| Object { cka_id: cka_id.clone(), label: label.clone(), half };
    let expected: Vec<_> = halves.into_iter().map(object).collect();
    let listed = suite.listed().await.into_iter().filter(|object| object.cka_id == cka_id);
    assert_eq!(listed.collect::<Vec<_>>(), expected, "{algorithm}");
    Kek { algorithm, key, spki }
}

/// As a birth does it.
async fn born<H: Hsm>(suite: &Suite<'_, H>, id: CkaId) -> SecretKeyRef {
    let unknown = SecretKeyRef { id, known_answer: None };
    let text = SecretBytes::new(KnownAnswer::TEXT.to_vec());
    let wrapped = suite.hsm.wrap_key(&suite.grant, &unknown, text, KnownAnswer::aad(id), suite.deadline);
    let answer = wrapped.await.map(Unsettled::open_for_conformance).expect("wrap");
    SecretKeyRef::new(id, KnownAnswer::from_bytes(&answer).expect("IV, text and tag"))
}

async fn what_is_wrapped_opens_under_its_key_and_aad_alone<H: Hsm>(suite: &Suite<'_, H>, kek: &Kek) {
    for len in [16, 32, 64, 100] {
        let plaintext: Vec<u8> = (0..len).map(|byte: u8| byte.wrapping_mul(3)).collect();
        for aad in [&b""[..], b"a", &[7; 88]] {
            let wrapped = wrap(suite, kek, &plaintext, aad).await;
            assert_eq!(unwrap(suite, &kek.key, wrapped.clone(), aad).await.as_deref(), Ok(&plaintext[..]));
            let other = [aad, b"x"].concat();
            assert_eq!(
                unwrap(suite, &kek.key, wrapped, &other).await,
                Err(Fault::NotOpened),
                "{}",
                kek.algorithm
            );
        }
    }
    if kek.spki.is_none() {
        let plaintext = vec![9; 1024];
        let wrapped = wrap(suite, kek, &plaintext, b"long").await;
        assert_eq!(wrapped.len(), 12 + 1024 + 16);
        assert_eq!(unwrap(suite, &kek.key, wrapped, b"long").await, Ok(plaintext));
    }
}

async fn every_wrap_has_an_iv_of_its_own<H: Hsm>(suite: &Suite<'_, H>, kek: &Kek) {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..64 {
        let wrapped = wrap(suite, kek, &[1; 32], b"same").await;
        assert!(seen.insert(wrapped[..12].to_vec()), "{}: an IV came twice", kek.algorithm);
    }
}

async fn garbage_does_not_open_and_harms_nothing_that_follows<H: Hsm>(suite: &Suite<'_, H>, kek: &Kek) {
    let whole = wrap(suite, kek, &[5; 32], b"aad").await;
    let flipped = |place: usize| {
        let mut wrapped = whole.clone();
        wrapped[place] ^= 1;
        wrapped
    };
    let mut garbage = vec![vec![], vec![0; 11], vec![0; 12], vec![0; 28], vec![0; 1052]];
    garbage.extend([0, 11, 12, whole.len() / 2, whole.len() - 1].map(flipped));
    garbage.extend([whole[..whole.len() - 1].to_vec(), [&whole[..], &[0]].concat()]);
    for wrapped in garbage {
        let len = wrapped.len();
        let opened = unwrap(suite, &kek.key, wrapped, b"aad").await;
        assert_eq!(opened, Err(Fault::NotOpened), "{}: {len} bytes", kek.algorithm);
        assert_eq!(
            unwrap(suite, &kek.key, whole.clone(), b"aad").await,
            Ok(vec![5; 32]),
            "{}",
            kek.algorithm
        );
    }
}

async fn another_key_on_record_is_a_mismatch<H: Hsm>(suite: &Suite<'_, H>, kek: &Kek) {
    let wrapped = wrap(suite, kek, &[5; 32], b"aad").await;
    let id = kek.key.id();
    let wrong = match &kek.key {
        KekRef::Secret(_) => {
            let other = KnownAnswer::from_bytes(&[3; KnownAnswer::LEN]).expect("of that length");
            KekRef::Secret(SecretKeyRef::new(id, other))
        }
        KekRef::Pair(_) => KekRef::Pair(KeyRef { id, spki_sha256: [0; 32] }),
    };
    let opened = unwrap(suite, &wrong, wrapped, b"aad").await;
    assert!(matches!(opened, Err(Fault::KeyMismatch(_))), "{}: {opened:?}", kek.algorithm);
    if let KekRef::Secret(wrong) = &wrong {
        let text = SecretBytes::new(vec![5; 32]);
        let wrapped = suite.hsm.wrap_key(&suite.grant, wrong, text, vec![], suite.deadline).await;
        assert!(matches!(wrapped, Err(Fault::KeyMismatch(_))), "{}", kek.algorithm);
    }
}

async fn expired_work_is_not_done<H: Hsm>(suite: &Suite<'_, H>, kek: &Kek) {
    let past = Deadline::at(std::time::Instant::now());
    let wrapped = wrap(suite, kek, &[5; 32], b"aad").await;
    let opened = suite.hsm.unwrap_key(&suite.grant, &kek.key, wrapped, b"aad".to_vec(), past).await;
    assert!(matches!(opened, Err(Fault::DeadlineExceeded)), "{}", kek.algorithm);
}

async fn a_destroyed_key_is_gone_and_may_be_destroyed_again<H: Hsm>(suite: &Suite<'_, H>, kek: &Kek) {
    let (id, wrapped) = (kek.key.id(), wrap(suite, kek, &[5; 32], b"aad").await);
    for _ in 0..2 {
        suite.hsm.destroy(&suite.grant, id, suite.deadline).await.expect("destroy");
    }
    let found = suite.hsm.find(&suite.grant, id, suite.deadline).await.expect("find");
    assert_eq!((found.private.len(), found.public.len(), found.secret.len()), (0, 0, 0), "{}", kek.algorithm);
    let opened = unwrap(suite, &kek.key, wrapped, b"aad").await;
    assert_eq!(opened, Err(Fault::KeyNotFound), "{}: a cached handle outlived its key", kek.algorithm);
}

async fn wrap<H: Hsm>(suite: &Suite<'_, H>, kek: &Kek, plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
    match (&kek.key, &kek.spki) {
        (KekRef::Secret(key), _) => {
            let text = SecretBytes::new(plaintext.to_vec());
            let wrapped = suite.hsm.wrap_key(&suite.grant, key, text, aad.to_vec(), suite.deadline).await;
            wrapped.map(Unsettled::open_for_conformance).expect("wrap")
        }
        (KekRef::Pair(_), Some(spki)) => key_wrap::oaep_encrypt(spki, plaintext, aad).expect("encrypt"),
        (KekRef::Pair(_), None) => panic!("a pair without its public half"),
    }
}

async fn unwrap<H: Hsm>(
    suite: &Suite<'_, H>,
    key: &KekRef,
    wrapped: Vec<u8>,
    aad: &[u8],
) -> Result<Vec<u8>, Fault> {
    let opened = suite.hsm.unwrap_key(&suite.grant, key, wrapped, aad.to_vec(), suite.deadline).await;
    opened.map(|opened| opened.open_for_conformance().expose_secret().to_vec())
}
