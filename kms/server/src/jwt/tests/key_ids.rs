//! Which key: the one that the token names, of the issuer that it names, and no other.

use super::*;

/// Two issuers with a key each, both called `k1` when `kid` says so.
fn two(kids: [&str; 2]) -> (TempDir, Issuers, [Signer; 2]) {
    let dir = tempfile::tempdir().expect("a directory");
    let signers = kids.map(Signer::es256);
    let mut text = String::new();
    for (name, signer) in ["a", "b"].into_iter().zip(&signers) {
        let keys = dir.path().join(name);
        fs::write(&keys, json!({"keys": [signer.jwk()]}).to_string()).expect("written");
        text += &format!(
            "[[jwt_issuer]]\nname = {name:?}\nissuer = \"https://{name}\"\naudiences = [\"kms\"]\n\
             jwks_file = {keys:?}\n"
        );
    }
    let rules = toml::from_str::<Authn>(&text).expect("a configuration").jwt_issuer;
    (dir, Issuers::new(&rules, Arc::new(ManualClock::default())), signers)
}

#[tokio::test]
async fn a_key_of_one_issuer_proves_nothing_for_another() {
    for (kids, refusal) in [(["k1", "k1"], Refusal::Signature), (["k1", "k2"], Refusal::NoSuchKey)] {
        let (_dir, issuers, [a, b]) = two(kids);
        for (signer, iss, expected) in [
            (&a, "https://a", Ok("jwt:a/system:serviceaccount:shop:auth".to_owned())),
            (&b, "https://b", Ok("jwt:b/system:serviceaccount:shop:auth".to_owned())),
            (&a, "https://b", Err(refusal)),
            (&b, "https://a", Err(refusal)),
        ] {
            let token = signer.token(&with("iss", json!(iss)));
            assert_eq!(said(&issuers, &token).await, expected, "{kids:?} {iss}");
        }
        // With the other issuer's key id.
        let token = a.called(kids[1]).token(&with("iss", json!("https://b")));
        assert_eq!(said(&issuers, &token).await, Err(Refusal::Signature), "{kids:?}");
    }
}

#[tokio::test]
async fn a_key_id_is_a_text_to_compare_and_nothing_else() {
    let (one, other) = (Signer::es256("k1"), Signer::es256("k2"));
    let set = json!({"keys": [one.jwk(), other.jwk()]});
    let cluster = Cluster::with(one.clone(), &set, "");
    assert_eq!(cluster.said(&one.called("k2").token(&service_account())).await, Err(Refusal::Signature));
    let path = cluster.keys.to_string_lossy().into_owned();
    for kid in [
        "",
        "K1",
        "k1 ",
        "k1\u{0}",
        "k%31",
        "../k1",
        "../../../../dev/null",
        &path,
        "file:///dev/null",
        "http://127.0.0.1:1/k1",
        "' OR 1=1 --",
        "$(id)",
        "0",
        "keys[0]",
    ] {
        let token = one.called(kid).token(&service_account());
        assert_eq!(cluster.said(&token).await, Err(Refusal::NoSuchKey), "{kid:?}");
    }
    assert_eq!(cluster.said(&one.token(&service_account())).await, Ok(AUTH.to_owned()));
    assert_eq!(cluster.said(&other.token(&service_account())).await, Ok(AUTH.to_owned()));
}

#[tokio::test]
async fn a_token_without_a_key_id_is_taken_only_when_one_key_alone_fits() {
    let (one, other, rsa) = (Signer::es256("k1"), Signer::es256("k2"), Signer::rs256("k3"));
    let nameless = one.token_with_header(&json!({"alg": "ES256"}), &service_account());
    for (keys, expected) in [
        (json!([one.jwk()]), Ok(AUTH.to_owned())),
        (json!([one.jwk(), rsa.jwk()]), Ok(AUTH.to_owned())),
        (json!([one.jwk(), other.jwk()]), Err(Refusal::AmbiguousKey)),
        (json!([other.jwk()]), Err(Refusal::Signature)),
        (json!([rsa.jwk()]), Err(Refusal::NoSuchKey)),
    ] {
        let cluster = Cluster::with(one.clone(), &json!({"keys": keys}), "");
        assert_eq!(cluster.said(&nameless).await, expected, "{keys}");
    }
}

#[tokio::test]
async fn a_key_id_that_stands_twice_in_the_set_is_nobodys() {
    let (one, other) = (Signer::es256("k1"), Signer::es256("k1"));
    let cluster = Cluster::with(one.clone(), &json!({"keys": [one.jwk(), other.jwk()]}), "");
    for signer in [&one, &other] {
        assert_eq!(cluster.said(&signer.token(&service_account())).await, Err(Refusal::AmbiguousKey));
    }
    // One that is of another kind cannot be meant.
    let cluster = Cluster::with(one.clone(), &json!({"keys": [one.jwk(), Signer::rs256("k1").jwk()]}), "");
    assert_eq!(cluster.said_of(&service_account()).await, Ok(AUTH.to_owned()));
}

#[tokio::test]
async fn a_key_without_an_id_is_not_the_one_that_a_token_names() {
    let signer = Signer::es256("k1");
    let mut jwk = signer.jwk();
    jwk.as_object_mut().expect("an object").remove("kid");
    let cluster = Cluster::with(signer, &json!({"keys": [jwk]}), "");
    assert_eq!(cluster.said_of(&service_account()).await, Err(Refusal::NoSuchKey));
    let nameless = cluster.signer.token_with_header(&json!({"alg": "ES256"}), &service_account());
    assert_eq!(cluster.said(&nameless).await, Ok(AUTH.to_owned()));
}
