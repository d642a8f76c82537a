//! Key sets: what is passed over in one, and what is none.

use super::{
    super::key_set::{KeySet, Unusable},
    signer::encode,
    *,
};
use crate::config::JwtAlgorithm;

fn changed(jwk: Value, name: &str, value: Value) -> Value {
    let mut jwk = jwk;
    jwk[name] = value;
    jwk
}

fn parse(keys: &Value) -> Result<KeySet, Unusable> {
    KeySet::parse(json!({"keys": keys}).to_string().as_bytes())
}

#[test]
fn a_key_that_is_weak_private_or_for_something_else_is_passed_over() {
    let (rsa, ec, p384, ed) = (
        Signer::rs256("k1").jwk(),
        Signer::es256("k1").jwk(),
        Signer::es384("k1").jwk(),
        Signer::ed25519("k1").jwk(),
    );
    let modulus = |bits: usize| {
        let mut octets = vec![0xff; bits.div_ceil(8)];
        octets[0] >>= octets.len() * 8 - bits;
        json!(encode(&octets))
    };
    for jwk in [
        changed(rsa.clone(), "n", modulus(1024)),
        changed(rsa.clone(), "n", modulus(2047)),
        changed(rsa.clone(), "n", modulus(8193)),
        changed(rsa.clone(), "n", json!(encode(&[vec![0; 200], vec![0xff; 128]].concat()))),
        changed(rsa.clone(), "n", json!("")),
        changed(rsa.clone(), "n", json!(null)),
        changed(rsa.clone(), "n", json!("+/=")),
        changed(rsa.clone(), "e", json!("")),
        changed(rsa.clone(), "e", json!(encode(&[1]))),
        changed(rsa.clone(), "e", json!(encode(&[4]))),
        changed(rsa.clone(), "use", json!("enc")),
        changed(rsa.clone(), "use", json!("SIG")),
        changed(rsa.clone(), "use", json!("")),
        changed(rsa.clone(), "key_ops", json!([])),
        changed(rsa.clone(), "key_ops", json!(["sign"])),
        changed(rsa.clone(), "key_ops", json!(["encrypt", "wrapKey"])),
        changed(rsa.clone(), "alg", json!("RSA-OAEP")),
        changed(rsa.clone(), "alg", json!("HS256")),
        changed(rsa.clone(), "alg", json!("ES256")),
        changed(rsa.clone(), "kty", json!("rsa")),
        changed(rsa.clone(), "kty", json!("oct")),
        changed(rsa.clone(), "kid", json!(1)),
        changed(rsa.clone(), "d", json!("AQAB")),
        changed(ec.clone(), "crv", json!("P-384")),
        changed(ec.clone(), "crv", json!("secp256k1")),
        changed(ec.clone(), "crv", json!(null)),
        changed(ec.clone(), "x", json!(encode(&[1; 31]))),
        changed(ec.clone(), "y", json!(encode(&[1; 33]))),
        changed(ec.clone(), "y", json!(null)),
        changed(ec.clone(), "alg", json!("ES384")),
        changed(ec.clone(), "alg", json!("RS256")),
        changed(p384.clone(), "crv", json!("P-256")),
        changed(ed.clone(), "crv", json!("X25519")),
        changed(ed.clone(), "crv", json!("Ed448")),
        changed(ed.clone(), "x", json!(encode(&[1; 33]))),
        json!({}),
        json!(null),
        json!("k1"),
        json!([]),
    ] {
        assert_eq!(parse(&json!([jwk])).err(), Some(Unusable::NoKeys), "{jwk}");
        // Beside a good one it does no harm.
        let set = parse(&json!([jwk, ec])).expect("a key");
        assert!(set.pick(None, JwtAlgorithm::Es256).is_ok(), "{jwk}");
    }
    for jwk in [
        changed(rsa.clone(), "key_ops", json!(["verify"])),
        changed(rsa.clone(), "use", json!(null)),
        changed(rsa.clone(), "n", modulus(2048)),
        changed(rsa, "x5c", json!(["AAAA"])),
        ec,
        p384,
        ed,
    ] {
        assert!(parse(&json!([jwk])).is_ok(), "{jwk}");
    }
}

#[test]
fn a_point_off_the_curve_verifies_nothing() {
    let signer = Signer::es256("k1");
    let set =
        parse(&json!([changed(signer.jwk(), "x", json!(encode(&[1; 32])))])).expect("a key of its form");
    let key = set.pick(Some("k1"), JwtAlgorithm::Es256).expect("it fits");
    assert!(!key.verifies(JwtAlgorithm::Es256, b"", &vec![1; 64]));
}

#[test]
fn what_is_no_key_set_is_told_apart() {
    let jwk = Signer::es256("k1").jwk();
    let twice = format!("{{\"keys\":[{jwk}],\"keys\":[{jwk}]}}");
    for text in [
        "",
        "{}",
        "[]",
        "null",
        "<html></html>",
        "{\"keys\":{}}",
        "{\"keys\":null}",
        "\u{feff}{\"keys\":[]}",
        &twice,
    ] {
        assert_eq!(KeySet::parse(text.as_bytes()).err(), Some(Unusable::NoSet), "{text}");
    }
    assert_eq!(KeySet::parse(&[0xff; 16]).err(), Some(Unusable::NoSet));
    assert_eq!(parse(&json!([])).err(), Some(Unusable::NoKeys));
    assert!(parse(&json!(vec![&jwk; 256])).is_ok());
    assert_eq!(parse(&json!(vec![&jwk; 257])).err(), Some(Unusable::TooManyKeys));
    // A member that stands twice.
    let text = jwk.to_string();
    let text = format!("{{\"keys\":[{{\"kid\":\"k2\",{}]}}", &text[1..]);
    assert_eq!(KeySet::parse(text.as_bytes()).err(), Some(Unusable::NoKeys));
}
