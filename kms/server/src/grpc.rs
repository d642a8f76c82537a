//! The gRPC routes: our services behind authentication, health and reflection before it.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    BoxError, Router,
    body::Body,
    extract::Request,
    middleware::{from_fn_with_state, map_request},
};
use futures::{FutureExt as _, StreamExt as _, stream};
use kms_api_grpc::Services;
use kms_core::{AuditLog, Clock, Error, Hsm, Kms, Store};
use kms_proto::FILE_DESCRIPTOR_SET;
use tokio::time::{Instant, timeout_at};
use tonic::{Status, service::Routes};
use tonic_health::{ServingStatus, pb::FILE_DESCRIPTOR_SET as HEALTH_DESCRIPTOR_SET, server::HealthReporter};

use crate::{
    authn::{Authenticated, JwtVerifier, Lookup, Proofs},
    config,
    jwt::Issuers,
    metrics::{self, Metrics},
};

/// The whole server's entry in `grpc.health.v1`.
const WHOLE_SERVER: &str = "";
/// Bytes of a message from a stranger: what health and reflection are asked fits well.
const STRANGER_MESSAGE_BYTES_MAX: usize = 1024;
/// The body of a request has arrived after this time. Our services' own deadlines begin only then.
const BODY_ARRIVES_MAX: Duration = Duration::from_secs(10);

/// The routes, and the switch of their health. A path that nobody serves is UNIMPLEMENTED.
pub(crate) fn router<H: Hsm, S: Store, A: AuditLog, C: Clock>(
    service: &Arc<Kms<H, S, A, C>>,
    config: &config::Grpc,
    issuers: Issuers,
    metrics: Arc<Metrics>,
) -> anyhow::Result<(Router, Health)> {
    let lookup: Lookup = {
        let service = Arc::clone(service);
        // Behind the fence it may be one of a moment ago.
        let unknown = move |fence: Result<(), Error>| match fence {
            Ok(()) => kms_api_grpc::unauthenticated(),
            Err(error) => kms_api_grpc::status(&error),
        };
        Arc::new(move |sha256, certificate| {
            let caller = service.authenticate(sha256, certificate);
            caller.ok_or_else(|| Box::new(unknown(service.check_fence())))
        })
    };
    let proofs = Proofs { lookup, jwt: jwt(issuers) };
    let Services { keys, crypto, access, policy, approval, hsm, status } =
        Services::new(service, config.max_deadline);
    // A fresh reporter says SERVING for the whole server; one service of ours is never away alone.
    let (reporter, health) = tonic_health::server::health_reporter();
    let mut routes = Routes::new(health.max_decoding_message_size(STRANGER_MESSAGE_BYTES_MAX))
        .add_service(Authenticated::new(keys, proofs.clone()))
        .add_service(Authenticated::new(crypto, proofs.clone()))
        .add_service(Authenticated::new(access, proofs.clone()))
        .add_service(Authenticated::new(policy, proofs.clone()))
        .add_service(Authenticated::new(approval, proofs.clone()))
        .add_service(Authenticated::new(hsm, proofs.clone()))
        .add_service(Authenticated::new(status, proofs));
    if config.reflection {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(HEALTH_DESCRIPTOR_SET)
            .build_v1()
            .context("reflection")?;
        routes = routes.add_service(reflection.max_decoding_message_size(STRANGER_MESSAGE_BYTES_MAX));
    }
    let router = routes
        .prepare()
        .into_axum_router()
        .layer(map_request(|request| async { body_within(BODY_ARRIVES_MAX, request) }))
        .layer(from_fn_with_state(metrics, metrics::observe));
    Ok((router, Health(reporter)))
}

/// The verifier of JWTs, where somebody's are believed.
fn jwt(issuers: Issuers) -> Option<JwtVerifier> {
    if issuers.is_empty() {
        return None;
    }
    let issuers = Arc::new(issuers);
    Some(Arc::new(move |token: String| {
        let issuers = Arc::clone(&issuers);
        async move { issuers.principal(&token).await }.boxed()
    }))
}

/// The request with a body that fails when it has not ended in time. Trailers, of which gRPC has none in
/// requests, are left out.
fn body_within(time: Duration, request: Request) -> Request {
    let end = Instant::now() + time;
    request.map(|body| {
        Body::from_stream(stream::unfold(body.into_data_stream(), move |mut frames| async move {
            let frame = match timeout_at(end, frames.next()).await {
                Ok(frame) => frame?.map_err(BoxError::from),
                Err(_) => Err(Status::deadline_exceeded("the request did not arrive in time").into()),
            };
            Some((frame, frames))
        }))
    })
}

/// What `grpc.health.v1` says: whether calls are accepted. Whether the HSM answers is `/readyz`'s to say.
pub(crate) struct Health(HealthReporter);

impl Health {
    /// From now on a load balancer should go elsewhere.
    pub(crate) async fn leave(&self) {
        self.0.set_service_status(WHOLE_SERVER, ServingStatus::NotServing).await;
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use axum::http::{Method, header};
    use kms_core::{
        caller::Role,
        fakes::{World, a_token},
        kms::Settings,
        store::{AccessToken, Transaction, Write},
    };
    use tonic::Code;
    use tower::ServiceExt as _;

    use super::*;
    use crate::metrics::{Levels, two_of_three};

    const CREDENTIAL: &str = "kms_test";
    const LIST_KEYS: &str = "/kms.v1.KeyService/ListKeys";
    const HEALTH: &str = "/grpc.health.v1.Health/Check";
    const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

    /// The routes over core's fakes, with one access token.
    async fn routes(reflection: bool) -> (Router, Health, Arc<Metrics>) {
        let world = World::default();
        let token = AccessToken {
            sha256: digest(&SHA256, CREDENTIAL.as_bytes()).as_ref().try_into().expect("32 bytes"),
            ..a_token("test", Role::Administrator)
        };
        let writes = vec![Write::InsertAccessToken(token)];
        world.store.commit(Transaction::new("test", writes)).await.expect("committed");
        let kms = Arc::new(world.open(Settings::default()).await.expect("a service"));
        let config = format!("tls_cert_file = ''\ntls_key_file = ''\nreflection = {reflection}");
        let config = toml::from_str(&config).expect("a section");
        let metrics = Arc::new(Metrics::new(Levels::numbered, two_of_three));
        let issuers = Issuers::new(&[], Arc::new(crate::clock::SystemClock));
        let (router, health) = router(&kms, &config, issuers, Arc::clone(&metrics)).expect("routes");
        (router, health, metrics)
    }

    /// Sends an empty message; the status, and whether a message came back.
    async fn call(router: &Router, path: &str, credential: Option<&str>) -> (Code, bool) {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers");
        if let Some(credential) = credential {
            request = request.header(header::AUTHORIZATION, format!("Bearer {credential}"));
        }
        let request = request.body(Body::from(vec![0; 5])).expect("a request");
        let response = router.clone().oneshot(request).await.expect("infallible");
        let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        (code, !body.is_empty())
    }

    #[tokio::test]
    async fn our_services_want_a_credential_and_unknown_paths_are_unimplemented() {
        let (router, _health, _metrics) = routes(false).await;
        for path in [
            LIST_KEYS,
            "/kms.v1.CryptoService/Sign",
            "/kms.v1.AccessService/CreateAccessToken",
            "/kms.v1.PolicyService/SetPolicy",
            "/kms.v1.ApprovalService/ExecuteProposal",
            "/kms.v1.HsmService/AcceptOlderStore",
            "/kms.v1.HsmService/GetInventory",
            "/kms.v1.StatusService/GetStatus",
        ] {
            assert_eq!(call(&router, path, None).await, (Code::Unauthenticated, false), "{path}");
            assert_eq!(
                call(&router, path, Some("kms_other")).await,
                (Code::Unauthenticated, false),
                "{path}"
            );
        }
        for path in ["/", "/kms.v1.NoService/Sign", "/kms.v1.KeyService", REFLECTION] {
            assert_eq!(call(&router, path, None).await, (Code::Unimplemented, false), "{path}");
        }
        let nowhere = call(&router, "/kms.v1.KeyService/NoMethod", Some(CREDENTIAL)).await;
        assert_eq!(nowhere, (Code::Unimplemented, false));
        assert_eq!(call(&router, LIST_KEYS, Some(CREDENTIAL)).await, (Code::Ok, true));
    }

    #[tokio::test]
    async fn health_needs_no_credential_and_says_when_we_leave() {
        let (router, health, _metrics) = routes(false).await;
        assert_eq!(call(&router, HEALTH, None).await, (Code::Ok, true));
        health.leave().await;
        let request = tonic_health::pb::HealthCheckRequest { service: WHOLE_SERVER.into() };
        let answer = tonic_health::pb::health_client::HealthClient::new(router).check(request).await;
        assert_eq!(
            answer.expect("an answer").into_inner().status,
            i32::from(ServingStatus::NotServing as u8)
        );
    }

    #[tokio::test]
    async fn a_stranger_may_send_only_small_messages() {
        let (router, _health, _metrics) = routes(false).await;
        let request =
            tonic_health::pb::HealthCheckRequest { service: "x".repeat(STRANGER_MESSAGE_BYTES_MAX) };
        let answer = tonic_health::pb::health_client::HealthClient::new(router).check(request).await;
        assert_eq!(answer.expect_err("too large").code(), Code::OutOfRange);
    }

    #[tokio::test]
    async fn a_body_that_does_not_arrive_in_time_ends_the_call() {
        let (router, _health, _metrics) = routes(false).await;
        for begun in [&b""[..], &[0, 0, 0, 0, 9]] {
            let begun = stream::iter([Ok::<_, BoxError>(begun)]).chain(stream::pending());
            let request = Request::post(HEALTH)
                .header(header::CONTENT_TYPE, "application/grpc")
                .body(Body::from_stream(begun))
                .expect("a request");
            let request = body_within(Duration::from_millis(10), request);
            let response = router.clone().oneshot(request).await.expect("infallible");
            let status = Status::from_header_map(response.headers()).expect("a status");
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        }
    }

    #[tokio::test]
    async fn reflection_is_there_only_when_it_is_configured() {
        let (router, _health, _metrics) = routes(true).await;
        assert_ne!(call(&router, REFLECTION, None).await.0, Code::Unimplemented);
    }

    #[tokio::test]
    async fn strangers_cannot_make_up_metrics() {
        let (router, _health, metrics) = routes(false).await;
        call(&router, LIST_KEYS, Some(CREDENTIAL)).await;
        call(&router, "/kms.v1.KeyService/MadeUp1", None).await;
        call(&router, "/kms.v1.KeyService/MadeUp2", Some(CREDENTIAL)).await;
        call(&router, "/made.up/3", None).await;
        let text = metrics.text().expect("text");
        assert!(!text.contains("MadeUp") && !text.contains("made.up"), "{text}");
        for line in [
            "kms_grpc_requests_total{method=\"/kms.v1.KeyService/ListKeys\",code=\"OK\"} 1",
            "kms_grpc_requests_total{method=\"\",code=\"UNAUTHENTICATED\"} 1",
            "kms_grpc_requests_total{method=\"\",code=\"UNIMPLEMENTED\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
