//! What may be signed with which key, and by whom.

use super::*;

#[test]
fn claims_that_the_keys_rules_do_not_allow_are_not_signed_and_not_told() {
    block_on(async {
        let claim_rules = ClaimRules {
            issuers: vec!["https://issuer".to_owned()],
            audiences: vec!["one".to_owned(), "two".to_owned()],
            required: vec!["sub".to_owned()],
        };
        let (_, kms) = world_with(CreateKey { claim_rules, ..new("k") }).await;
        for good in [
            r#"{"iss":"https://issuer","aud":"one","sub":"s3cret"}"#,
            r#"{"iss":"https://issuer","aud":["two","one"],"sub":0}"#,
        ] {
            assert_eq!(jwt(&kms, good).await, Ok(1), "{good}");
        }
        for bad in [
            r#"{"aud":"one","sub":"s3cret"}"#,
            r#"{"iss":"https://s3cret","aud":"one","sub":"s"}"#,
            r#"{"iss":["https://issuer"],"aud":"one","sub":"s3cret"}"#,
            r#"{"iss":"https://issuer","sub":"s3cret"}"#,
            r#"{"iss":"https://issuer","aud":["one","s3cret"],"sub":"s"}"#,
            r#"{"iss":"https://issuer","aud":[],"sub":"s3cret"}"#,
            r#"{"iss":"https://issuer","aud":["one",1],"sub":"s3cret"}"#,
            r#"{"iss":"https://issuer","aud":"one"}"#,
            r#"{"iss":"https://issuer","aud":"one","sub":null}"#,
        ] {
            let error = jwt(&kms, bad).await.expect_err(bad);
            assert_eq!(error.reason(), "CLAIM_NOT_ALLOWED", "{bad}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        let empty = ClaimRules { required: vec![String::new()], ..ClaimRules::default() };
        let update = UpdateKey { claim_rules: Some(empty), ..UpdateKey::new(id("k")) };
        let error = kms.update_key(&administrator(), update).await.expect_err("empty");
        assert_eq!(error.field(), Some("claim_rules.required"));
    });
}

#[test]
fn bytes_of_a_callers_own_choice_are_a_right_of_their_own_with_a_key_of_tokens() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        let bytes = CreateKey { purpose: Purpose::Signature, ..new("bytes") };
        kms.create_key(&administrator(), bytes, soon()).await.expect("created");
        let caller = |role| Caller::new("access-token:c", role, KeyScope::All);
        let sign = |role, key: &str| {
            let input = ToSign::Message(b"hello".to_vec());
            let request = Sign { id: id(key), version: None, input, encoding: Encoding::Jose };
            let (kms, caller) = (&kms, caller(role));
            async move { kms.sign(&caller, request, soon()).await.map(drop) }
        };
        assert_eq!(reason(sign(Role::User, "k").await), "PERMISSION_DENIED");
        let last = world.log.events().pop().expect("a record");
        assert_eq!((last.action, last.outcome), (Action::SignRaw, Outcome::Denied));
        assert_eq!(reason(sign(Role::User, "bytes").await), "");
        assert_eq!(reason(sign(Role::RawSigner, "k").await), "");
        assert_eq!(reason(sign(Role::Administrator, "k").await), "");
        // What is not there is not told from what is.
        assert_eq!(reason(sign(Role::User, "absent").await), "NOT_FOUND");
        let token = SignJwt { id: id("bytes"), claims: b"{}".to_vec(), ttl: Some(HOUR), typ: None };
        assert_eq!(reason(kms.sign_jwt(&administrator(), token, soon()).await), "WRONG_PURPOSE");
    });
}

#[test]
fn a_key_with_which_bytes_may_be_signed_does_not_stand_in_the_set_of_the_issuer() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        let bytes = CreateKey { purpose: Purpose::Signature, ..new("bytes") };
        kms.create_key(&administrator(), bytes, soon()).await.expect("created");
        let kids = |key: Option<&KeyId>| {
            let set = kms.published_keys(key).expect("known").expect("there");
            let set: serde_json::Value = serde_json::from_slice(&set.body).expect("JSON");
            set["keys"].as_array().expect("keys").iter().map(|key| key["kid"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(kids(None), kids(Some(&id("k"))));
        assert_eq!(kids(Some(&id("bytes"))).len(), 1, "who asks for it gets it");
    });
}
