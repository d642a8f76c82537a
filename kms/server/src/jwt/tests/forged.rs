//! Tokens that the issuer did not make, or not like this (RFC 8725 §2).

use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;

use super::{AUTH, Cluster, signer::encode, *};

/// Signed with a secret that everybody can read.
fn hs256(secret: &[u8], header: &Value, claims: &Value) -> String {
    let signed =
        format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", encode(tag.as_ref()))
}

#[tokio::test]
async fn a_token_without_a_signature_is_refused() {
    let cluster = Cluster::new(Signer::rs256("k1"));
    let good = cluster.signer.token(&service_account());
    let (signed, _) = good.rsplit_once('.').expect("three parts");
    assert_eq!(cluster.said(&format!("{signed}.")).await, Err(Refusal::Signature));
    assert_eq!(cluster.said(signed).await, Err(Refusal::Malformed));
    for alg in ["none", "None", "NONE", "nOnE", "", "rs256", "RS256 "] {
        let header = json!({"alg": alg, "kid": "k1"});
        let token = cluster.signer.token_with_header(&header, &service_account());
        let (unsigned, _) = token.rsplit_once('.').expect("three parts");
        for token in [&token, &format!("{unsigned}.")] {
            assert_eq!(cluster.said(token).await, Err(Refusal::Algorithm), "{alg:?}");
        }
    }
    for header in
        [json!({"kid": "k1"}), json!({"alg": null, "kid": "k1"}), json!({"alg": ["RS256"], "kid": "k1"})]
    {
        let token = cluster.signer.token_with_header(&header, &service_account());
        assert_eq!(cluster.said(&token).await, Err(Refusal::Algorithm), "{header}");
    }
}

#[tokio::test]
async fn a_public_key_is_no_shared_secret() {
    let cluster = Cluster::new(Signer::rs256("k1"));
    let spki = cluster.signer.spki();
    let lines: Vec<_> = BASE64_STANDARD.encode(&spki).into_bytes().chunks(64).map(<[u8]>::to_vec).collect();
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        String::from_utf8(lines.join(&b'\n')).expect("base64")
    );
    let n = cluster.signer.jwk()["n"].as_str().expect("a modulus").to_owned();
    let modulus = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(&n).expect("octets");
    let jwk = cluster.signer.jwk().to_string();
    let secrets: [&[u8]; 6] =
        [pem.as_bytes(), pem.trim_end().as_bytes(), &spki, n.as_bytes(), &modulus, jwk.as_bytes()];
    for secret in secrets {
        for alg in ["HS256", "RS256", "ES256"] {
            let token = hs256(secret, &json!({"alg": alg, "kid": "k1"}), &service_account());
            let refused = cluster.said(&token).await.expect_err("forged");
            let expected = match alg {
                "HS256" => Refusal::Algorithm,
                "ES256" => Refusal::NoSuchKey,
                _ => Refusal::Signature,
            };
            assert_eq!(refused, expected, "{alg}");
        }
    }
}

#[tokio::test]
async fn a_shared_secret_in_the_key_set_is_not_used() {
    let signer = Signer::rs256("k1");
    let secret = json!({"kty": "oct", "kid": "k2", "alg": "HS256", "k": encode(b"geheim")});
    let cluster = Cluster::with(signer.clone(), &json!({"keys": [secret, signer.jwk()]}), "");
    let token = hs256(b"geheim", &json!({"alg": "HS256", "kid": "k2"}), &service_account());
    assert_eq!(cluster.said(&token).await, Err(Refusal::Algorithm));
    assert_eq!(cluster.said_of(&service_account()).await, Ok(AUTH.to_owned()));
}

#[tokio::test]
async fn a_changed_token_and_one_of_a_stranger_are_refused() {
    let cluster = Cluster::new(Signer::es256("k1"));
    let token = cluster.signer.token(&service_account());
    let parts: Vec<_> = token.split('.').collect();
    let admin = encode(with("sub", json!("system:serviceaccount:shop:admin")).to_string().as_bytes());
    let stranger = Signer::es256("k1").token(&service_account());
    let stranger = stranger.rsplit('.').next().expect("a signature");
    for token in [
        format!("{}.{admin}.{}", parts[0], parts[2]),
        format!("{}.{}.{stranger}", parts[0], parts[1]),
        format!("{}.{}.{}", parts[0], parts[1], encode(&[0; 64])),
        Signer::es256("k1").token(&service_account()),
    ] {
        assert_eq!(cluster.said(&token).await, Err(Refusal::Signature));
    }
    assert_eq!(cluster.said(&token).await, Ok(AUTH.to_owned()));
}

#[tokio::test]
async fn a_token_that_a_key_of_another_kind_would_have_to_verify_is_refused() {
    let ec = Signer::es256("k1");
    let set = json!({"keys": [Signer::rs256("k1").jwk()]});
    let cluster = Cluster::with(ec, &set, "algorithms = [\"RS256\", \"PS256\", \"ES256\", \"ES384\"]");
    // An EC signature for an id that is an RSA key's.
    assert_eq!(cluster.said_of(&service_account()).await, Err(Refusal::NoSuchKey));
    // The key says that it is for RS256 alone.
    let header = json!({"alg": "PS256", "kid": "k1"}).to_string();
    let pss = Signer::rs256("k1").token_as("PS256", &header, &service_account().to_string());
    assert_eq!(cluster.said(&pss).await, Err(Refusal::NoSuchKey));
    // An algorithm that the issuer may not use, with a key that could.
    let cluster = Cluster::with(Signer::es256("k1"), &set, "algorithms = [\"PS256\"]");
    let token = Signer::rs256("k1").token(&service_account());
    assert_eq!(cluster.said(&token).await, Err(Refusal::Algorithm));
}

#[tokio::test]
async fn keys_that_a_header_brings_along_are_not_looked_at() {
    let cluster = Cluster::new(Signer::es256("k1"));
    let stranger = Signer::es256("k1");
    for (name, value) in [
        ("jwk", stranger.jwk()),
        ("jku", json!("http://127.0.0.1:1/keys")),
        ("x5u", json!("http://127.0.0.1:1/chain")),
        ("x5c", json!([BASE64_STANDARD.encode(stranger.spki())])),
    ] {
        let mut header = json!({"alg": "ES256", "kid": "k1"});
        header[name] = value;
        let forged = stranger.token_with_header(&header, &service_account());
        assert_eq!(cluster.said(&forged).await, Err(Refusal::Signature), "{name}");
        let own = cluster.signer.token_with_header(&header, &service_account());
        assert_eq!(cluster.said(&own).await, Ok(AUTH.to_owned()), "{name} is ignored");
    }
}

#[tokio::test]
async fn a_header_that_is_critical_or_of_another_type_is_refused() {
    let cluster = Cluster::new(Signer::es256("k1"));
    let said = async |name: &str, value: Value| {
        let mut header = json!({"alg": "ES256", "kid": "k1"});
        header[name] = value;
        cluster.said(&cluster.signer.token_with_header(&header, &service_account())).await
    };
    for crit in [json!([]), json!(["exp"]), json!(["b64"]), json!(null), json!("b64")] {
        assert_eq!(said("crit", crit.clone()).await, Err(Refusal::CriticalHeader), "{crit}");
    }
    for typ in ["JWE", "secevent+jwt", "dpop+jwt", "logout+jwt", "", "JWT ", "JW\u{212a}"] {
        assert_eq!(said("typ", json!(typ)).await, Err(Refusal::Type), "{typ:?}");
    }
    assert_eq!(said("typ", json!(["JWT"])).await, Err(Refusal::Type));
    for typ in ["JWT", "jwt", "at+jwt", "AT+JWT"] {
        assert_eq!(said("typ", json!(typ)).await, Ok(AUTH.to_owned()), "{typ:?}");
    }
}

#[tokio::test]
async fn a_name_that_stands_twice_is_refused() {
    let cluster = Cluster::new(Signer::es256("k1"));
    let (header, claims) = (json!({"alg": "ES256", "kid": "k1"}).to_string(), service_account().to_string());
    let twice = |object: &str, member: &str| format!("{{{member},{}", &object[1..]);
    for member in ["\"alg\":\"ES256\"", "\"alg\":\"none\"", "\"kid\":\"k1\"", "\"\\u0061lg\":\"none\""] {
        let token = cluster.signer.token_of(&twice(&header, member), &claims);
        assert_eq!(cluster.said(&token).await, Err(Refusal::Malformed), "{member}");
    }
    for member in [
        "\"sub\":\"system:admin\"",
        "\"aud\":[\"kms\"]",
        "\"exp\":1",
        "\"iss\":\"x\"",
        "\"s\\u0075b\":\"x\"",
        "\"jti\":1",
    ] {
        let token = cluster.signer.token_of(&header, &twice(&claims, member));
        assert_eq!(cluster.said(&token).await, Err(Refusal::Malformed), "{member}");
    }
    let token = cluster.signer.token_of(&twice(&header, "\"x\":1"), &twice(&claims, "\"y\":1"));
    assert_eq!(cluster.said(&token).await, Ok(AUTH.to_owned()), "once is as good as never");
}

#[tokio::test]
async fn what_is_no_compact_jws_or_too_long_is_refused() {
    let cluster = Cluster::new(Signer::es256("k1"));
    let good = cluster.signer.token(&service_account());
    let parts: Vec<_> = good.split('.').collect();
    for bad in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        "....".to_owned(),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}.{good}"),
        format!("{good}="),
        format!("{good} "),
        format!(" {good}"),
        format!("{good}\n"),
        format!("{}=.{}.{}", parts[0], parts[1], parts[2]),
        format!("{}.{}", parts[0], parts[1]),
        format!("{}..{}", parts[0], parts[2]),
        good.replace('.', "\u{ff0e}"),
        cluster.signer.token_of("[]", &service_account().to_string()),
        cluster.signer.token_of("{\"alg\":\"ES256\"}", "[]"),
        cluster.signer.token_of("{\"alg\":\"ES256\"}", "\"sub\""),
        cluster.signer.token_of("{\"alg\":\"ES256\"}", &format!("{} x", service_account())),
        cluster.signer.token_of("{\"alg\":\"ES256\",\"kid\":1}", &service_account().to_string()),
        cluster.signer.token_of("{\"alg\":\"ES256\",\"kid\":null}", &service_account().to_string()),
        cluster.signer.token_of("{\"alg\":\"ES256\"}", &"[".repeat(3_000)),
    ] {
        assert_eq!(cluster.said(&bad).await, Err(Refusal::Malformed), "{bad:?}");
    }
    // A part cannot have just any length in base64, but two of them together can.
    let padded = |(header, claims): (usize, usize)| {
        let header = json!({"alg": "ES256", "kid": "k1", "padding": "a".repeat(header)});
        cluster.signer.token_with_header(&header, &with("padding", json!("a".repeat(claims))))
    };
    let of_len = |len: usize| {
        let paddings = (0..3).flat_map(|header| (5_400..5_700).map(move |claims| (header, claims)));
        paddings.map(padded).find(|token| token.len() == len).expect("a token")
    };
    assert_eq!(cluster.said(&of_len(8_192)).await, Ok(AUTH.to_owned()));
    assert_eq!(cluster.said(&of_len(8_193)).await, Err(Refusal::TooLong));
    assert_eq!(cluster.said(&format!("{}.{}", "a".repeat(1 << 20), good)).await, Err(Refusal::TooLong));
}

#[tokio::test]
async fn the_last_bits_of_a_signature_have_one_spelling() {
    let cluster = Cluster::new(Signer::es256("k1"));
    let good = cluster.signer.token(&service_account());
    // 64 octets in 86 characters: four bits of the last one mean nothing, and must be zero.
    let last = good.chars().last().expect("a character");
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let next = alphabet.chars().skip_while(|c| *c != last).nth(1).expect("its four last bits are zero");
    let respelt = format!("{}{next}", &good[..good.len() - 1]);
    assert_eq!(cluster.said(&respelt).await, Err(Refusal::Malformed));
    assert_eq!(cluster.said(&good).await, Ok(AUTH.to_owned()));
}
