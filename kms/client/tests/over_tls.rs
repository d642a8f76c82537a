//! The client against a real gRPC server over TLS, which fails as often as a test tells it to.

#![expect(clippy::expect_used, reason = "a test stops where its ground is missing")]

mod replicas;
mod server;
mod wrapping;

use std::time::Duration;

use kms_client::{Client, Kind, Options, v1};
use server::Server;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

fn options(server: &Server) -> Options {
    Options { ca_pem: Some(server.ca_pem.clone()), ..Options::new(server.addr(), "a-credential".into()) }
}

async fn client(server: &Server) -> Client {
    Client::connect(options(server)).await.expect("the server is there")
}

#[tokio::test]
async fn a_server_with_a_strangers_certificate_is_refused() {
    let (server, stranger) = (Server::start().await, Server::start().await);
    let options = Options { ca_pem: Some(stranger.ca_pem.clone()), ..options(&server) };
    let error = Client::connect(options).await.expect_err("nothing vouches for it");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.message().contains("certificate"), "{error}");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_as_the_cause() {
    let options = options(&Server::start().await);
    let options = Options { addr: "localhost:1".into(), ..options };
    let error = Client::connect(options).await.expect_err("nobody listens on port 1");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.message().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_final_error_is_not_repeated() {
    let server = Server::start().await;
    server.fail_once(Status::permission_denied("no"));
    let error = client(&server).await.sign(v1::SignRequest::default()).await.expect_err("denied");
    assert_eq!((error.kind(), error.message()), (Kind::PermissionDenied, "no"));
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn making_an_access_token_is_never_repeated() {
    let server = Server::start().await;
    server.fail_once(Status::unavailable("away"));
    let request = v1::CreateAccessTokenRequest::default();
    let error = client(&server).await.create_access_token(request).await.expect_err("away");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_full_queue_is_tried_again_only_when_the_server_says_when() {
    let server = Server::start().await;
    let client = client(&server).await;
    server.fail_once(Status::resource_exhausted("full"));
    let error = client.sign(v1::SignRequest::default()).await.expect_err("no word of when");
    assert_eq!(error.kind(), Kind::ResourceExhausted);

    let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1)));
    server.fail_once(Status::with_error_details(Code::ResourceExhausted, "full", details));
    client.sign(v1::SignRequest::default()).await.expect("the second attempt succeeds");
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_is_not_begun() {
    let server = Server::start().await;
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(3600)));
    server.fail_once(Status::with_error_details(Code::ResourceExhausted, "full", details));
    let error = client(&server).await.sign(v1::SignRequest::default()).await.expect_err("too long to wait");
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    assert_eq!(error.retry_delay(), Some(Duration::from_secs(3600)));
}

#[tokio::test]
async fn a_version_that_the_service_does_not_know_is_asked_for_three_times_at_most() {
    let server = Server::start().await;
    for _ in 0..10 {
        let mut details = ErrorDetails::with_error_info("VERSION_NOT_KNOWN", "kms", []);
        details.set_retry_info(Some(Duration::from_millis(1)));
        server.fail_once(Status::with_error_details(Code::Unavailable, "not known here yet", details));
    }
    let error = client(&server).await.sign(v1::SignRequest::default()).await.expect_err("it is invented");
    assert_eq!(error.reason(), Some("VERSION_NOT_KNOWN"));
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn no_time_is_too_long() {
    let server = Server::start().await;
    let options = Options { timeout: Duration::MAX, connect_timeout: Duration::MAX, ..options(&server) };
    let client = Client::connect(options).await.expect("the server is there");
    let details = ErrorDetails::with_retry_info(Some(Duration::MAX));
    server.fail_once(Status::with_error_details(Code::ResourceExhausted, "full", details));
    let error = client.sign(v1::SignRequest::default()).await.expect_err("too long to wait");
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    client.sign(v1::SignRequest::default()).await.expect("it is answered");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_left_at_the_deadline() {
    let server = Server::start().await;
    let options = Options { timeout: Duration::from_millis(100), ..options(&server) };
    let client = Client::connect(options).await.expect("the server is there");
    server.stall();
    let error = client.sign(v1::SignRequest::default()).await.expect_err("nobody answers");
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    let error = client.crypto().sign(v1::SignRequest::default()).await.expect_err("nobody answers");
    assert_eq!(kms_client::Error::from(error).kind(), Kind::DeadlineExceeded);
}

#[tokio::test]
async fn a_change_is_repeated_under_one_request_id() {
    let server = Server::start().await;
    server.fail_once(Status::unavailable("away"));
    client(&server).await.rotate_key(v1::RotateKeyRequest::default()).await.expect("the second succeeds");
    let ids: Vec<String> =
        server.messages::<v1::RotateKeyRequest>().into_iter().map(|m| m.request_id).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[0].len(), 36);
}

#[tokio::test]
async fn a_request_id_of_the_callers_own_is_kept() {
    let server = Server::start().await;
    let request = v1::RotateKeyRequest { request_id: "mine".into(), ..Default::default() };
    client(&server).await.rotate_key(request).await.expect("it succeeds");
    assert_eq!(server.messages::<v1::RotateKeyRequest>()[0].request_id, "mine");
}

#[tokio::test]
async fn every_call_carries_the_credential_and_a_deadline() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.sign(v1::SignRequest::default()).await.expect("the typed call succeeds");
    client.crypto().sign(v1::SignRequest::default()).await.expect("the generated client's call succeeds");
    assert_eq!(server.seen().len(), 2);
    for headers in server.seen() {
        assert_eq!(headers.get("authorization").expect("a credential"), "Bearer a-credential");
        assert!(headers.contains_key("grpc-timeout"), "no deadline in {headers:?}");
    }
}

#[tokio::test]
async fn a_server_that_comes_back_is_found_again() {
    let mut server = Server::start().await;
    let client = client(&server).await;
    client.sign(v1::SignRequest::default()).await.expect("before");
    server.restart().await;
    // On a task of its own: the future of a call must be Send.
    let after = tokio::spawn(async move { client.sign(v1::SignRequest::default()).await });
    after.await.expect("no panic").expect("after");
}
