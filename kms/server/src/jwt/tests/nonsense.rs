//! Whatever a stranger sends: it is refused, and nothing breaks.

use proptest::prelude::*;

use super::*;

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
}

fn said(cluster: &Cluster, token: &str) -> Result<String, Refusal> {
    RUNTIME.with(|runtime| runtime.block_on(cluster.said(token)))
}

/// A JSON object of members that matter, with values of every kind.
fn object() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "alg", "kid", "typ", "crit", "iss", "aud", "sub", "exp", "nbf", "iat", "x",
    ]);
    let value = prop_oneof![
        Just(format!("{ISS:?}")),
        Just("\"kms\"".to_owned()),
        Just("[\"kms\"]".to_owned()),
        Just("\"ES256\"".to_owned()),
        Just("1800000600".to_owned()),
        Just("-1e308".to_owned()),
        Just("{\"a\":[null]}".to_owned()),
        any::<f64>().prop_map(|number| json!(number).to_string()),
        any::<String>().prop_map(|text| json!(text).to_string()),
    ];
    prop::collection::vec((name, value), 0..8).prop_map(|members| {
        let members: Vec<_> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    })
}

#[test]
fn what_a_stranger_makes_up_is_refused() {
    let cluster = Cluster::new(Signer::es256("k1"));
    let stranger = Signer::es256("k1");
    proptest!(|(header in object(), claims in object())| {
        prop_assert!(said(&cluster, &stranger.token_of(&header, &claims)).is_err());
    });
    proptest!(|(text in any::<String>())| {
        prop_assert!(said(&cluster, &text).is_err());
    });
    proptest!(|(text in "[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,90}")| {
        prop_assert!(said(&cluster, &text).is_err());
    });
}

#[test]
fn every_change_of_one_character_is_refused() {
    let cluster = Cluster::new(Signer::es256("k1"));
    let good = cluster.signer.token(&service_account());
    assert_eq!(said(&cluster, &good), Ok(AUTH.to_owned()));
    let len = good.len();
    proptest!(|(at in 0..len, other in "[A-Za-z0-9_.=-]")| {
        let changed = format!("{}{other}{}", &good[..at], &good[at + 1..]);
        prop_assume!(changed != good);
        prop_assert!(said(&cluster, &changed).is_err());
    });
}

#[test]
fn whatever_an_issuer_claims_becomes_a_canonical_name_or_nobody() {
    let cluster = Cluster::new(Signer::es256("k1"));
    proptest!(|(sub in any::<String>())| {
        if let Ok(name) = said(&cluster, &cluster.signer.token(&with("sub", json!(sub)))) {
            prop_assert_eq!(name, format!("jwt:cluster/{}", sub));
        }
    });
}
