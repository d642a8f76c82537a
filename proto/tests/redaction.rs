//! Debug output of messages with payloads and credentials shows none of their bytes, however deep they lie.

use std::fmt::Debug;

use kms_proto::v1::{
    AcceptOlderStoreRequest, BatchSignRequest, BatchSignResponse, BatchSignResult, CreateAccessTokenResponse,
    ExecuteProposalResponse, SignJwtRequest, SignJwtResponse, SignRequest, SignResponse, VerifyRequest,
    batch_sign_result, sign_request, verify_request,
};

const CANARY: &str = "canary-7f3a9";

fn assert_hidden(message: impl Debug) {
    // prost prints strings as text and bytes as lists of numbers.
    let as_list = format!("{:?}", CANARY.as_bytes());
    let as_list = as_list.trim_matches(['[', ']']);
    for shown in [format!("{message:?}"), format!("{message:#?}").replace(",\n", ",").replace(' ', "")] {
        assert!(!shown.contains(CANARY), "the canary is shown: {shown}");
        assert!(!shown.contains(as_list), "the canary's bytes are shown: {shown}");
        assert!(!shown.contains(&as_list.replace(' ', "")), "the canary's bytes are shown: {shown}");
    }
}

fn sign_request(input: sign_request::Input) -> SignRequest {
    SignRequest { name: "keys/k".into(), input: Some(input), signature_format: 0 }
}

fn sign_response() -> SignResponse {
    SignResponse { signature: CANARY.into(), ..SignResponse::default() }
}

#[test]
fn what_is_to_be_signed_is_not_shown() {
    for input in [sign_request::Input::Message(CANARY.into()), sign_request::Input::Digest(CANARY.into())] {
        assert_hidden(&input);
        assert_hidden(sign_request(input.clone()));
        assert_hidden(BatchSignRequest { requests: vec![sign_request(input)] });
    }
    assert_hidden(AcceptOlderStoreRequest { confirm: CANARY.into() });
    assert_hidden(SignJwtRequest { claims_json: CANARY.into(), ..SignJwtRequest::default() });
}

#[test]
fn what_is_to_be_verified_is_not_shown() {
    for input in [verify_request::Input::Message(CANARY.into()), verify_request::Input::Digest(CANARY.into())]
    {
        assert_hidden(&input);
        assert_hidden(VerifyRequest {
            input: Some(input),
            signature: CANARY.into(),
            ..VerifyRequest::default()
        });
    }
}

#[test]
fn signatures_tokens_and_credentials_are_not_shown() {
    assert_hidden(sign_response());
    let outcome = batch_sign_result::Outcome::Response(sign_response());
    assert_hidden(&outcome);
    assert_hidden(BatchSignResponse { results: vec![BatchSignResult { outcome: Some(outcome) }] });
    assert_hidden(SignJwtResponse { token: CANARY.into(), ..SignJwtResponse::default() });
    assert_hidden(CreateAccessTokenResponse { secret: CANARY.into(), access_token: None });
    assert_hidden(ExecuteProposalResponse { secret: CANARY.into(), ..Default::default() });
}

#[test]
fn what_is_safe_is_shown() {
    let shown = format!("{:?}", sign_request(sign_request::Input::Message(vec![0; 7])));
    assert_eq!(
        shown,
        r#"SignRequest { name: "keys/k", input: Some(Message([7 bytes])), signature_format: Unspecified }"#
    );
}
