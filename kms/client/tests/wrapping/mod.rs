//! What envelopes ask of the service, and what they do not take for an answer.

use kms_client::{
    Client, Kind,
    envelope::{EncryptionContext, Kms, Primary},
    v1,
};
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt, pb};

use crate::{client, server::Server};

fn context() -> EncryptionContext {
    EncryptionContext::new([("tenant".to_owned(), "acme".to_owned())]).expect("it is one")
}

async fn served() -> (Server, Client) {
    let server = Server::start().await;
    let client = client(&server).await;
    (server, client)
}

#[tokio::test]
async fn a_data_key_is_asked_for_with_its_context_and_its_checksums_are_checked() {
    let (server, client) = served().await;
    let mut answer = v1::GenerateDataKeyResponse {
        plaintext: vec![1; 32],
        plaintext_crc32c: crc32c::crc32c(&[1; 32]),
        wrapped_key: vec![2; 9],
        wrapped_key_crc32c: crc32c::crc32c(&[2; 9]),
        ..Default::default()
    };
    server.answer_once(&answer);
    let generated = client.generate("keys/orders", &context()).await.expect("it is answered");
    assert_eq!(generated.plaintext.expose_secret(), [1; 32]);
    assert_eq!(generated.wrapped_key, [2; 9]);
    let request = &server.messages::<v1::GenerateDataKeyRequest>()[0];
    assert_eq!((request.name.as_str(), request.length), ("keys/orders", 0));
    assert_eq!(request.encryption_context["tenant"], "acme");

    for damaged in ["plaintext", "wrapped key"] {
        match damaged {
            "plaintext" => answer.plaintext[5] ^= 1,
            _ => answer.wrapped_key[5] ^= 1,
        }
        server.answer_once(&answer);
        let error = client.generate("keys/orders", &context()).await.expect_err(damaged);
        assert_eq!(error.kind(), Kind::Internal);
        assert!(!error.to_string().contains("[1, 1"), "{error}");
        answer.plaintext = vec![1; 32];
    }
}

#[tokio::test]
async fn a_wrapped_key_is_sent_with_its_checksum_and_a_damaged_answer_is_refused() {
    let (server, client) = served().await;
    let answer = v1::UnwrapKeyResponse {
        plaintext: vec![1; 32],
        plaintext_crc32c: crc32c::crc32c(&[1; 32]),
        ..Default::default()
    };
    server.answer_once(&answer);
    let key = Kms::unwrap_key(&client, "keys/orders", b"wrapped", &context()).await.expect("it is answered");
    assert_eq!(key.expose_secret(), [1; 32]);
    let request = &server.messages::<v1::UnwrapKeyRequest>()[0];
    assert_eq!(request.wrapped_key_crc32c, Some(crc32c::crc32c(b"wrapped")));
    assert_eq!(request.encryption_context["tenant"], "acme");

    server.answer_once(&v1::UnwrapKeyResponse { plaintext_crc32c: 7, ..answer });
    let error = Kms::unwrap_key(&client, "keys/orders", b"wrapped", &context()).await.expect_err("damaged");
    assert_eq!(error.kind(), Kind::Internal);
}

#[tokio::test]
async fn each_item_of_a_rewrap_has_its_own_result_and_none_may_be_missing() {
    let (server, client) = served().await;
    let moved = v1::RewrapKeyResponse {
        wrapped_key: b"moved".to_vec(),
        wrapped_key_crc32c: crc32c::crc32c(b"moved"),
        ..Default::default()
    };
    let details = ErrorDetails::with_error_info("NOT_OPENED", "kms", []);
    let refusal = Status::with_error_details(Code::InvalidArgument, "it does not open", details);
    let refusal = pb::Status::decode(refusal.details()).expect("the details are the status");
    let result = |outcome| v1::BatchRewrapKeyResult { outcome: Some(outcome) };
    let answer = v1::BatchRewrapKeyResponse {
        results: vec![
            result(v1::batch_rewrap_key_result::Outcome::Response(moved)),
            result(v1::batch_rewrap_key_result::Outcome::Error(refusal)),
        ],
    };
    let asked = vec![b"one".to_vec(), b"two".to_vec()];
    server.answer_once(&answer);
    let results = client.rewrap_keys("keys/orders", asked.clone()).await.expect("it is answered");
    assert_eq!(results[0].as_ref().expect("it was moved"), b"moved");
    assert_eq!(results[1].as_ref().expect_err("it was not").reason(), Some("NOT_OPENED"));

    server.answer_once(&v1::BatchRewrapKeyResponse { results: answer.results[..1].to_vec() });
    let error = client.rewrap_keys("keys/orders", asked).await.expect_err("one is missing");
    assert_eq!(error.kind(), Kind::Internal);
}

#[tokio::test]
async fn the_primary_version_is_read_from_the_key() {
    let (server, client) = served().await;
    let key = v1::Key {
        name: "keys/orders".into(),
        uid: "000102030405060708090a0b0c0d0e0f".into(),
        primary: "keys/orders/versions/12".into(),
        ..Default::default()
    };
    server.answer_once(&key);
    let key_uid = std::array::from_fn(|at| at as u8);
    let primary = client.primary("keys/orders").await.expect("it is answered");
    assert_eq!(primary, Primary { key_uid, version: 12 });

    server.answer_once(&v1::Key { primary: String::new(), ..key.clone() });
    let error = client.primary("keys/orders").await.expect_err("no version wraps");
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    server.answer_once(&v1::Key { primary: String::new(), ..key.clone() });
    assert_eq!(client.key_uid("keys/orders").await.expect("it needs no version"), key_uid);
    for uid in ["", "+00102030405060708090a0b0c0d0e0f", "0001"] {
        server.answer_once(&v1::Key { uid: uid.into(), ..key.clone() });
        let error = client.primary("keys/orders").await.expect_err("this is no uid");
        assert_eq!(error.kind(), Kind::Internal, "{uid:?}");
        server.answer_once(&v1::Key { uid: uid.into(), ..key.clone() });
        let error = client.key_uid("keys/orders").await.expect_err("this is no uid");
        assert_eq!(error.kind(), Kind::Internal, "{uid:?}");
    }
}
