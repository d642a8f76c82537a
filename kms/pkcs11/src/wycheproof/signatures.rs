//! Signatures, under the mechanism and over the bytes that C_Sign gets. C_Verify is not the product's, but the
//! mechanisms are: a token that takes what it must not, or a row of the table that means something else to it, shows.

use cryptoki::object::{Attribute, KeyType, ObjectClass};
use der::{
    Decode as _, Encode as _,
    asn1::{OctetStringRef, UintRef},
};
use kms_core::{Algorithm, algorithm::KeySpec, signature, verbs::Encoding};
use spki::SubjectPublicKeyInfoRef;

use super::{
    Token, on_both,
    signature_sets::{self, Group},
};
use crate::{
    mechanism,
    profile::{Profile, SOFTHSM},
    public_key::PublicKey,
};

#[test]
fn a_token_verifies_what_it_must_and_nothing_else() {
    on_both("signatures::judged_by_the_token");
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn judged_by_the_token() {
    let mut token = Token::of_this_process();
    let has = token.module.algorithms(token.slot).unwrap();
    let groups =
        [signature_sets::ecdsa(), signature_sets::eddsa(), signature_sets::pkcs1(), signature_sets::pss()];
    let (mut tried, mut wrong) = (0, Vec::new());
    for group in groups.iter().flatten().filter(|group| group.encoding == Encoding::Jose) {
        let Some(algorithm) = group.algorithm.filter(|algorithm| has.contains(algorithm)) else { continue };
        let key = token.import(&template(algorithm, group, &token.module.profile));
        let shown = token.keys.get_attributes(key, &PublicKey::ATTRIBUTES).unwrap();
        let spki = PublicKey::from_attributes(&shown).unwrap().spki().unwrap();
        assert_eq!(spki, group.spki, "{}: the key is shown as it was imported", group.set);
        for vector in &group.vectors {
            let input = signature::input_of(algorithm, &vector.message);
            let data = mechanism::sign_data(algorithm, &input).unwrap();
            let verified = token.makes(|session| {
                session.verify(&mechanism::signing(algorithm).unwrap(), key, &data, &vector.signature)
            });
            if verified.is_some() != vector.valid {
                wrong.push(format!(
                    "{} {} ({}), valid: {}",
                    group.set, vector.id, vector.comment, vector.valid
                ));
            }
            tried += 1;
        }
        token.keys.destroy_object(key).unwrap();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Kryoptic has EdDSA where its OpenSSL is 3.2 or newer.
    let softhsm = token.module.profile.name == SOFTHSM.name;
    let ed25519 = if softhsm || has.contains(&Algorithm::Ed25519) { 151 } else { 0 };
    assert_eq!(tried, 3978 + ed25519);
}

/// The public key of a group.
fn template(algorithm: Algorithm, group: &Group, profile: &Profile) -> Vec<Attribute> {
    let info = SubjectPublicKeyInfoRef::from_der(&group.spki).unwrap();
    let bits = info.subject_public_key.as_bytes().unwrap();
    let mut template =
        vec![Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::Private(false), Attribute::Verify(true)];
    let point = || {
        let point = OctetStringRef::new(bits).unwrap().to_der().unwrap();
        let mut attributes =
            mechanism::generation(algorithm.key_spec(), algorithm.usage(), profile).parameters;
        attributes.push(Attribute::EcPoint(point));
        attributes
    };
    match algorithm.key_spec() {
        KeySpec::Ec(_) => {
            template.push(Attribute::KeyType(KeyType::EC));
            template.extend(point());
        }
        KeySpec::Ed25519 => {
            template.push(Attribute::KeyType(KeyType::EC_EDWARDS));
            template.extend(point());
        }
        KeySpec::Rsa(_) => {
            let numbers = Vec::<UintRef<'_>>::from_der(bits).unwrap();
            let [modulus, exponent] = numbers[..] else { panic!("no RSA key") };
            template.push(Attribute::KeyType(KeyType::RSA));
            template.push(Attribute::Modulus(modulus.as_bytes().to_vec()));
            template.push(Attribute::PublicExponent(exponent.as_bytes().to_vec()));
        }
        KeySpec::Aes256 => panic!("no key of signatures"),
    }
    template
}
