//! Subjects: one spelling each, or none.

use super::*;

#[tokio::test]
async fn a_subject_with_odd_characters_is_refused_and_not_made_even() {
    let cluster = Cluster::new(Signer::es256("k1"));
    for sub in [
        None,
        Some(json!(null)),
        Some(json!(1)),
        Some(json!(["auth"])),
        Some(json!({"name": "auth"})),
        Some(json!("")),
        Some(json!(" ")),
        Some(json!(" auth")),
        Some(json!("auth ")),
        Some(json!("au th")),
        Some(json!("auth\n")),
        Some(json!("au\u{0}th")),
        Some(json!("auth\u{7f}")),
        Some(json!("auth\u{200b}")),
        Some(json!("auth\u{202e}")),
        Some(json!("\u{430}uth")),
        Some(json!("a\u{fc}th")),
        Some(json!("au\u{308}th")),
        Some(json!("a%75th")),
        Some(json!("a\\uth")),
        Some(json!("a\"uth")),
        Some(json!("a".repeat(256))),
    ] {
        assert_eq!(cluster.said_of(&with("sub", sub.clone())).await, Err(Refusal::Subject), "{sub:?}");
    }
}

#[tokio::test]
async fn subjects_that_differ_are_callers_that_differ() {
    let cluster = Cluster::new(Signer::es256("k1"));
    let longest = "a".repeat(255);
    for sub in [
        "auth",
        "Auth",
        "AUTH",
        "auth/",
        "/auth",
        "a/../auth",
        "auth.",
        "repo:shop/auth:ref:refs/heads/main",
        &longest,
    ] {
        let said = cluster.said_of(&with("sub", json!(sub))).await;
        assert_eq!(said, Ok(format!("jwt:cluster/{sub}")), "{sub}");
    }
}

#[tokio::test]
async fn the_configuration_says_which_claim_is_the_subject() {
    let signer = Signer::es256("k1");
    let set = json!({"keys": [signer.jwk()]});
    let cluster = Cluster::with(signer, &set, "subject_claim = \"client_id\"");
    assert_eq!(cluster.said_of(&service_account()).await, Err(Refusal::Subject));
    let said = cluster.said_of(&with("client_id", json!("shop"))).await;
    assert_eq!(said, Ok("jwt:cluster/shop".to_owned()));
}
