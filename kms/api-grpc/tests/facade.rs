//! The facade over a core whose ports are fakes: generated clients, encoded messages, real signatures, and no
//! network in between.

#![expect(clippy::expect_used, reason = "a test stops where its ground is missing")]

use std::{sync::Arc, time::Duration};

use kms_api_grpc::{AccessService, CryptoService, KeyService, REQUEST_LEN_MAX, Services};
use kms_core::{
    Caller,
    caller::{KeyScope, Role},
    fakes::{ManualClock, MemoryLog, MemoryStore, SoftHsm, World, administrator},
    kms::Settings,
};
use kms_proto::v1::{
    self, SignatureFormat, access_service_client::AccessServiceClient,
    access_service_server::AccessServiceServer, batch_sign_result::Outcome,
    crypto_service_client::CryptoServiceClient, crypto_service_server::CryptoServiceServer,
    key_service_client::KeyServiceClient, key_service_server::KeyServiceServer, key_version::State,
    sign_request, verify_request,
};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

type Hsm = Arc<SoftHsm>;
type Store = Arc<MemoryStore>;
type Clock = Arc<ManualClock>;

struct Clients {
    keys: KeyServiceClient<KeyServiceServer<KeyService<Hsm, Store, MemoryLog, Clock>>>,
    crypto: CryptoServiceClient<CryptoServiceServer<CryptoService<Hsm, Store, MemoryLog, Clock>>>,
    access: AccessServiceClient<AccessServiceServer<AccessService<Hsm, Store, MemoryLog, Clock>>>,
}

async fn clients() -> Clients {
    let kms = World::default().open(Settings::default()).await.expect("an empty world opens");
    let services = Services::new(&Arc::new(kms), Duration::from_secs(60));
    Clients {
        keys: KeyServiceClient::new(services.keys),
        crypto: CryptoServiceClient::new(services.crypto),
        access: AccessServiceClient::new(services.access),
    }
}

/// A request as authentication hands it on.
fn by<T>(caller: Caller, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller);
    request
}

fn admin<T>(message: T) -> Request<T> {
    by(administrator(), message)
}

fn create(key_id: &str) -> v1::CreateKeyRequest {
    let key = v1::Key { algorithm: "ES256".into(), ..v1::Key::default() };
    v1::CreateKeyRequest { key_id: key_id.into(), key: Some(key), request_id: String::new() }
}

fn sign(name: &str) -> v1::SignRequest {
    let input = Some(sign_request::Input::Message(b"message".to_vec()));
    v1::SignRequest { name: name.into(), input, signature_format: 0 }
}

fn wrong_field(status: &Status) -> String {
    let request = status.get_details_bad_request().expect("BadRequest");
    request.field_violations[0].field.clone()
}

impl Clients {
    async fn create(&mut self, key_id: &str) -> v1::Key {
        self.keys.create_key(admin(create(key_id))).await.expect("a key").into_inner()
    }
}

#[tokio::test]
async fn a_request_without_a_caller_is_told_how_to_authenticate() {
    let request = v1::GetKeyRequest { name: "keys/a".into() };
    let status = clients().await.keys.get_key(request).await.expect_err("nobody");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("authorization: Bearer"), "{status:?}");
}

#[tokio::test]
async fn a_stranger_cannot_tell_a_forbidden_key_from_an_absent_one() {
    let mut clients = clients().await;
    clients.create("secret").await;
    let stranger = || Caller::new("access-token:stranger", Role::User, KeyScope::Only([].into()));
    let mut refusals = Vec::new();
    for name in ["keys/secret", "keys/absent"] {
        let status = clients.crypto.sign(by(stranger(), sign(name))).await.expect_err("denied");
        refusals.push((status.code(), status.message().to_owned(), status.details().to_vec()));
    }
    assert_eq!(refusals[0].0, Code::PermissionDenied);
    assert_eq!(refusals[0], refusals[1]);
}

#[tokio::test]
async fn an_oversize_request_is_refused() {
    let mut clients = clients().await;
    let input = Some(sign_request::Input::Message(vec![0; REQUEST_LEN_MAX]));
    let request = v1::SignRequest { input, ..sign("keys/a") };
    let status = clients.crypto.sign(admin(request)).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_malformed_deadline_is_refused() {
    let mut request = admin(v1::GetKeyRequest { name: "keys/a".into() });
    request.metadata_mut().insert("grpc-timeout", "soon".parse().expect("a header value"));
    let status = clients().await.keys.get_key(request).await.expect_err("malformed");
    assert_eq!((status.code(), wrong_field(&status)), (Code::InvalidArgument, "grpc-timeout".into()));
}

#[tokio::test]
async fn what_is_wrong_in_a_request_is_named() {
    let mut clients = clients().await;
    clients.create("a").await;
    let key = v1::Key { name: "keys/a".into(), owner: "\n".into(), ..v1::Key::default() };
    let request = v1::UpdateKeyRequest { key: Some(key), ..v1::UpdateKeyRequest::default() };
    let status = clients.keys.update_key(admin(request)).await.expect_err("a control character");
    assert_eq!((status.code(), wrong_field(&status)), (Code::InvalidArgument, "key.owner".into()));
    let request =
        v1::SignJwtRequest { name: "keys/a".into(), claims_json: b"[]".into(), ..Default::default() };
    let status = clients.crypto.sign_jwt(admin(request)).await.expect_err("no object");
    assert_eq!((status.code(), wrong_field(&status)), (Code::InvalidArgument, "claims_json".into()));
}

#[tokio::test]
async fn a_name_is_taken_once_and_an_etag_guards_once() {
    let mut clients = clients().await;
    let made = clients.create("a").await;
    let status = clients.keys.create_key(admin(create("a"))).await.expect_err("taken");
    assert_eq!(status.code(), Code::AlreadyExists);

    let key = v1::Key { owner: "first".into(), ..made };
    let request = v1::UpdateKeyRequest { key: Some(key), ..v1::UpdateKeyRequest::default() };
    let updated =
        clients.keys.update_key(admin(request.clone())).await.expect("the etag is fresh").into_inner();
    assert_eq!(updated.owner, "first");
    let status = clients.keys.update_key(admin(request)).await.expect_err("the etag is stale");
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(status.get_details_error_info().expect("ErrorInfo").reason, "ETAG_MISMATCH");
}

#[tokio::test]
async fn a_retry_with_its_request_id_finds_the_key_that_it_made() {
    let mut clients = clients().await;
    let request =
        v1::CreateKeyRequest { request_id: "0b6f2d1c-95a1-4f6e-8a57-0d6c2f9b7e11".into(), ..create("a") };
    let first = clients.keys.create_key(admin(request.clone())).await.expect("made").into_inner();
    let again = clients.keys.create_key(admin(request.clone())).await.expect("found").into_inner();
    assert_eq!(first.uid, again.uid);
    let other = v1::CreateKeyRequest { key_id: "b".into(), ..request };
    let status = clients.keys.create_key(admin(other)).await.expect_err("used for another request");
    assert_eq!((status.code(), wrong_field(&status)), (Code::InvalidArgument, "request_id".into()));
}

#[tokio::test]
async fn a_change_whose_caller_went_away_is_finished() {
    let mut clients = clients().await;
    let mut keys = clients.keys.clone();
    tokio::select! {
        biased;
        _ = keys.create_key(admin(create("a"))) => panic!("on one thread the detached task cannot have run"),
        () = std::future::ready(()) => {}
    }
    let request = || admin(v1::GetKeyRequest { name: "keys/a".into() });
    while clients.keys.get_key(request()).await.map_or(true, |key| key.into_inner().primary.is_empty()) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn keys_are_listed_page_by_page_under_one_filter() {
    let mut clients = clients().await;
    for key_id in ["a", "b", "c"] {
        clients.create(key_id).await;
    }
    let filter = || "algorithm=ES256".to_owned();
    let request = v1::ListKeysRequest { page_size: 2, filter: filter(), ..Default::default() };
    let first = clients.keys.list_keys(admin(request)).await.expect("a page").into_inner();
    let page_token = first.next_page_token;

    let other = v1::ListKeysRequest { page_token: page_token.clone(), ..Default::default() };
    let status = clients.keys.list_keys(admin(other)).await.expect_err("another filter");
    assert_eq!((status.code(), wrong_field(&status)), (Code::InvalidArgument, "page_token".into()));

    let request = v1::ListKeysRequest { page_token, filter: filter(), ..Default::default() };
    let second = clients.keys.list_keys(admin(request)).await.expect("a page").into_inner();
    let names: Vec<_> = first.keys.iter().chain(&second.keys).map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["keys/a", "keys/b", "keys/c"]);
    assert_eq!(second.next_page_token, "");
}

#[tokio::test]
async fn a_key_rotates_and_its_versions_show_their_life() {
    let mut clients = clients().await;
    assert_eq!(clients.create("a").await.primary, "keys/a/versions/1");
    let request = v1::RotateKeyRequest { name: "keys/a".into(), ..Default::default() };
    let second = clients.keys.rotate_key(admin(request)).await.expect("rotated").into_inner();
    assert_eq!(
        (second.name.as_str(), second.state(), second.primary),
        ("keys/a/versions/2", State::PreActivation, false)
    );

    let request = v1::ListKeyVersionsRequest { parent: "keys/a".into(), page_size: 1, ..Default::default() };
    let page = clients.keys.list_key_versions(admin(request.clone())).await.expect("a page").into_inner();
    assert_eq!(page.key_versions[0].state(), State::Active);
    assert_eq!(page.key_versions[0].retire_time, second.activate_time);
    let disable = v1::DisableKeyVersionRequest { name: second.name.clone(), ..Default::default() };
    clients.keys.disable_key_version(admin(disable)).await.expect("disabled");
    let page = clients.keys.list_key_versions(admin(request.clone())).await.expect("a page").into_inner();
    assert_eq!(page.key_versions[0].retire_time, None, "nothing retires without a successor");
    let request = v1::ListKeyVersionsRequest { page_token: page.next_page_token, ..request };
    let page = clients.keys.list_key_versions(admin(request)).await.expect("a page").into_inner();
    assert_eq!((page.key_versions[0].state(), page.key_versions[0].number), (State::Suspended, 2));
    assert_eq!(page.next_page_token, "");

    let request = v1::DestroyKeyVersionRequest {
        name: second.name.clone(),
        confirm: second.name,
        ..Default::default()
    };
    let status = clients.keys.destroy_key_version(admin(request)).await.expect_err("not allowed by default");
    assert_eq!(status.code(), Code::FailedPrecondition);
    let failure = status.get_details_precondition_failure().expect("PreconditionFailure");
    assert_eq!(failure.violations[0].r#type, "DESTROY_NOT_ALLOWED");
}

#[tokio::test]
async fn a_signature_verifies_in_the_form_in_which_it_was_asked_for() {
    let mut clients = clients().await;
    clients.create("a").await;
    for format in [SignatureFormat::Der, SignatureFormat::Jose] {
        let request = v1::SignRequest { signature_format: format.into(), ..sign("keys/a") };
        let signed = clients.crypto.sign(admin(request)).await.expect("signed").into_inner();
        assert_eq!((signed.name.as_str(), signed.algorithm.as_str()), ("keys/a/versions/1", "ES256"));
        for (asked, valid) in [(format, true), (SignatureFormat::Der, format == SignatureFormat::Der)] {
            let request = v1::VerifyRequest {
                name: "keys/a".into(),
                input: Some(verify_request::Input::Message(b"message".to_vec())),
                signature: signed.signature.clone(),
                signature_format: asked.into(),
            };
            let verified = clients.crypto.verify(admin(request)).await.expect("an answer").into_inner();
            assert_eq!(verified.valid, valid, "{format:?} as {asked:?}");
            assert_eq!(verified.name.is_empty(), !valid);
        }
    }
}

#[tokio::test]
async fn a_token_names_the_version_whose_public_key_is_read() {
    let mut clients = clients().await;
    clients.create("a").await;
    let request = v1::SignJwtRequest {
        name: "keys/a".into(),
        claims_json: br#"{"sub":"me"}"#.into(),
        ttl: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        r#type: "at+jwt".into(),
    };
    let jwt = clients.crypto.sign_jwt(admin(request)).await.expect("signed").into_inner();
    assert_eq!(jwt.token.split('.').count(), 3);
    assert_eq!(jwt.expire_time.expect("an end").seconds, 1_800_000_060);
    let request = v1::GetPublicKeyRequest { name: jwt.name };
    let public = clients.keys.get_public_key(admin(request)).await.expect("a public key").into_inner();
    assert_eq!(public.kid, jwt.kid);
    assert!(public.jwk_json.contains(&jwt.kid) && public.pem.starts_with("-----BEGIN PUBLIC KEY-----"));
}

#[tokio::test]
async fn a_bundle_names_its_signer_its_number_and_its_times() {
    let mut clients = clients().await;
    clients.create("a").await;
    let key = v1::Key { algorithm: "ES256".into(), purpose: "jwks-bundle".into(), ..v1::Key::default() };
    let publisher = v1::CreateKeyRequest { key_id: "p".into(), key: Some(key), request_id: String::new() };
    let publisher = clients.keys.create_key(admin(publisher)).await.expect("a key").into_inner();
    assert_eq!(publisher.purpose, "jwks-bundle");
    let ttl = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let request = v1::SignKeySetBundleRequest { name: "keys/p".into(), keys: vec!["keys/a".into()], ttl };
    let bundle = clients.keys.sign_key_set_bundle(admin(request.clone())).await.expect("signed").into_inner();
    assert_eq!(bundle.bundle.split('.').count(), 3);
    assert_eq!((bundle.name.as_str(), bundle.chain.len()), ("keys/p/versions/1", 0));
    assert!(bundle.sequence > 0);
    let seconds = [bundle.not_before_time, bundle.not_after_time].map(|time| time.expect("a time").seconds);
    assert_eq!(seconds, [1_800_000_000, 1_800_000_060]);
    for (name, keys, ttl, wrong) in [
        ("keys/p/versions/1", "keys/a", ttl, "name"),
        ("keys/p", "a", ttl, "keys"),
        ("keys/p", "keys/p", ttl, "keys"),
        ("keys/p", "keys/a", Some(prost_types::Duration { seconds: 1, nanos: -1 }), "ttl"),
        ("keys/p", "keys/a", Some(prost_types::Duration { seconds: 7_200, nanos: 0 }), "ttl"),
    ] {
        let request = v1::SignKeySetBundleRequest { name: name.into(), keys: vec![keys.into()], ttl };
        let status = clients.keys.sign_key_set_bundle(admin(request)).await.expect_err(wrong);
        assert_eq!((status.code(), wrong_field(&status).as_str()), (Code::InvalidArgument, wrong));
    }
}

#[tokio::test]
async fn every_item_of_a_batch_has_its_own_outcome_in_its_own_place() {
    let mut clients = clients().await;
    clients.create("a").await;
    let requests: Vec<_> = ["keys/a", "odd", "keys/absent", "keys/a"].map(sign).into();
    let batch = clients.crypto.batch_sign(admin(v1::BatchSignRequest { requests })).await.expect("a batch");
    let codes = batch.into_inner().results.into_iter().map(|result| match result.outcome {
        Some(Outcome::Response(signed)) => {
            assert_eq!(signed.name, "keys/a/versions/1");
            Code::Ok
        }
        Some(Outcome::Error(status)) => Code::from(status.code),
        None => panic!("an item without an outcome"),
    });
    let codes: Vec<_> = codes.collect();
    assert_eq!(codes, [Code::Ok, Code::InvalidArgument, Code::NotFound, Code::Ok]);
    for count in [0, 129] {
        let requests = vec![sign("keys/a"); count];
        let status = clients.crypto.batch_sign(admin(v1::BatchSignRequest { requests })).await;
        assert_eq!(wrong_field(&status.expect_err("too few or too many")), "requests", "{count}");
    }
}

#[tokio::test]
async fn an_access_token_shows_its_secret_once_and_can_be_revoked_twice() {
    let mut clients = clients().await;
    let request = v1::CreateAccessTokenRequest {
        access_token_id: "ci".into(),
        access_token: Some(v1::AccessToken {
            role: "user".into(),
            keys: vec!["keys/a".into()],
            ..v1::AccessToken::default()
        }),
        ttl: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
    };
    let made = clients.access.create_access_token(admin(request)).await.expect("made").into_inner();
    assert!(!made.secret.is_empty());
    let listed = clients.access.list_access_tokens(admin(v1::ListAccessTokensRequest::default())).await;
    let listed = listed.expect("a page").into_inner().access_tokens;
    assert_eq!(listed, [made.access_token.expect("the row")]);
    assert_eq!(listed[0].expire_time.expect("an end").seconds, 1_800_000_060);
    for _ in 0..2 {
        let request = v1::RevokeAccessTokenRequest { name: "accessTokens/ci".into() };
        let revoked = clients.access.revoke_access_token(admin(request)).await.expect("revoked").into_inner();
        assert!(revoked.revoke_time.is_some());
    }
    let request = v1::RevokeAccessTokenRequest { name: "accessTokens/absent".into() };
    let status = clients.access.revoke_access_token(admin(request)).await.expect_err("absent");
    assert_eq!(status.code(), Code::NotFound);
}
