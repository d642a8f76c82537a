//! What a token claims: for whom, from when to when, and what the configuration asks for beside.

use std::time::Duration;

use super::*;

#[tokio::test]
async fn a_token_for_others_is_refused() {
    let cluster = Cluster::new(Signer::es256("k1"));
    for aud in [
        None,
        Some(json!(null)),
        Some(json!("")),
        Some(json!([])),
        Some(json!("KMS")),
        Some(json!("kms ")),
        Some(json!("kms/")),
        Some(json!("k")),
        Some(json!("kms2")),
        Some(json!(ISS)),
        Some(json!(["vault", "https://kubernetes.default.svc"])),
        Some(json!([["kms"]])),
        Some(json!(["kms", 1])),
        Some(json!({"kms": true})),
        Some(json!(1)),
    ] {
        assert_eq!(cluster.said_of(&with("aud", aud.clone())).await, Err(Refusal::Audience), "{aud:?}");
    }
    for aud in [json!("kms"), json!(["kms"]), json!(["vault", "kms"])] {
        assert_eq!(cluster.said_of(&with("aud", aud.clone())).await, Ok(AUTH.to_owned()), "{aud}");
    }
}

#[tokio::test]
async fn a_token_of_an_issuer_that_nobody_named_is_refused() {
    let cluster = Cluster::new(Signer::es256("k1"));
    let slash = format!("{ISS}/");
    let upper = ISS.to_uppercase();
    for iss in
        [None, Some(json!(null)), Some(json!("")), Some(json!([ISS])), Some(json!(slash)), Some(json!(upper))]
    {
        assert_eq!(cluster.said_of(&with("iss", iss.clone())).await, Err(Refusal::UnknownIssuer), "{iss:?}");
    }
}

#[tokio::test]
async fn a_token_ends_a_minute_after_its_end_and_begins_a_minute_before_its_beginning() {
    let cluster = Cluster::new(Signer::es256("k1"));
    for (claim, offset, expected) in [
        ("exp", -61, Err(Refusal::Expired)),
        ("exp", -60, Err(Refusal::Expired)),
        ("exp", -59, Ok(())),
        ("exp", 1, Ok(())),
        ("nbf", 61, Err(Refusal::NotYetValid)),
        ("nbf", 60, Ok(())),
        ("nbf", -1_000_000_000, Ok(())),
        ("iat", 61, Err(Refusal::NotYetValid)),
        ("iat", 60, Ok(())),
    ] {
        let said = cluster.said_of(&with(claim, json!(NOW + offset))).await;
        assert_eq!(said.map(drop), expected, "{claim} {offset}");
    }
    // The same token, as our clock goes on.
    let token = cluster.signer.token(&service_account());
    cluster.clock.elapse(Duration::from_secs(3_659));
    assert_eq!(cluster.said(&token).await, Ok(AUTH.to_owned()));
    cluster.clock.elapse(Duration::from_secs(1));
    assert_eq!(cluster.said(&token).await, Err(Refusal::Expired));
}

#[tokio::test]
async fn a_time_that_is_none_is_refused() {
    let cluster = Cluster::new(Signer::es256("k1"));
    assert_eq!(cluster.said_of(&with("exp", None)).await, Err(Refusal::Expired), "no end");
    let header = json!({"alg": "ES256", "kid": "k1"}).to_string();
    for claim in ["exp", "nbf", "iat"] {
        for time in [
            "-1",
            "-0.5",
            "-1e300",
            "1e300",
            "253402300800",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551616",
            "\"1800000600\"",
            "\"\"",
            "null",
            "true",
            "[1800000600]",
            "{}",
        ] {
            // Not taken from a `Value`, which could not hold some of them.
            let claims = with(claim, json!("HERE")).to_string().replace("\"HERE\"", time);
            let token = cluster.signer.token_of(&header, &claims);
            assert_eq!(cluster.said(&token).await, Err(Refusal::Malformed), "{claim} {time}");
        }
        let claims = with(claim, json!("HERE")).to_string();
        for no_number in ["1e999", "NaN", "Infinity", "0x10", "01"] {
            let token = cluster.signer.token_of(&header, &claims.replace("\"HERE\"", no_number));
            assert_eq!(cluster.said(&token).await, Err(Refusal::Malformed), "{claim} {no_number}");
        }
    }
}

#[tokio::test]
async fn a_part_of_a_second_shortens_a_life() {
    let cluster = Cluster::new(Signer::es256("k1"));
    let at = |offset: f64| json!(NOW as f64 + offset);
    for (claim, offset, expected) in [
        ("exp", 600.5, Ok(())),
        ("exp", -59.5, Err(Refusal::Expired)),
        ("nbf", 59.5, Ok(())),
        ("nbf", 60.5, Err(Refusal::NotYetValid)),
        ("iat", 60.5, Err(Refusal::NotYetValid)),
    ] {
        let said = cluster.said_of(&with(claim, at(offset))).await;
        assert_eq!(said.map(drop), expected, "{claim} {offset}");
    }
}

#[tokio::test]
async fn a_token_that_lives_longer_than_its_issuer_may_let_it_is_refused() {
    let signer = Signer::es256("k1");
    let set = json!({"keys": [signer.jwk()]});
    let cluster = Cluster::with(signer, &set, "max_lifetime = \"1h\"");
    let lives = |iat: Option<i64>, exp: i64| {
        let mut claims = with("iat", iat.map(|iat| json!(iat)));
        claims["exp"] = json!(exp);
        claims
    };
    for (iat, exp, expected) in [
        (Some(NOW), NOW + 3_600, Ok(())),
        (Some(NOW), NOW + 3_601, Err(Refusal::Lifetime)),
        // Almost over, but it was alive for too long.
        (Some(NOW - 7_200), NOW + 1, Err(Refusal::Lifetime)),
        (None, NOW + 3_600, Ok(())),
        (None, NOW + 3_601, Err(Refusal::Lifetime)),
        (Some(0), 253_402_300_799, Err(Refusal::Lifetime)),
        (None, 253_402_300_799, Err(Refusal::Lifetime)),
    ] {
        let said = cluster.said_of(&lives(iat, exp)).await;
        assert_eq!(said.map(drop), expected, "{iat:?} {exp}");
    }
}

#[tokio::test]
async fn a_claim_that_the_configuration_requires_must_be_there_and_be_this_text() {
    let signer = Signer::es256("k1");
    let set = json!({"keys": [signer.jwk()]});
    let more = "required_claims = { repository = \"shop/auth\", ref = \"refs/heads/main\" }";
    let cluster = Cluster::with(signer, &set, more);
    let claims = |repository: Value, branch: Value| {
        let mut claims = service_account();
        claims["repository"] = repository;
        claims["ref"] = branch;
        claims
    };
    let main = json!("refs/heads/main");
    assert_eq!(cluster.said_of(&service_account()).await, Err(Refusal::RequiredClaim));
    for other in [json!("shop/Auth"), json!("shop/auth2"), json!(["shop/auth"]), json!(null), json!(true)] {
        let said = cluster.said_of(&claims(other.clone(), main.clone())).await;
        assert_eq!(said, Err(Refusal::RequiredClaim), "{other}");
    }
    let said = cluster.said_of(&claims(json!("shop/auth"), json!("refs/heads/main2"))).await;
    assert_eq!(said, Err(Refusal::RequiredClaim));
    assert_eq!(cluster.said_of(&claims(json!("shop/auth"), main)).await, Ok(AUTH.to_owned()));
}
