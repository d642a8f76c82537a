//! The routes as a verifier meets them, over core's fakes.
#![expect(clippy::expect_used, clippy::panic, reason = "how a test fails")]

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use kms_core::{
    Algorithm,
    fakes::{World, administrator, soon},
    kms::Settings,
    verbs::CreateKey,
};
use serde_json::Value;
use tower::ServiceExt as _;

const ISSUER: &str = "https://kms.example.com";
const KEYS: &str = "/.well-known/jwks.json";
const CONFIGURATION: &str = "/.well-known/openid-configuration";

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(&name).unwrap_or_else(|| panic!("no {name}")).to_str().expect("text")
    }
}

/// The routes over a service with the key `web`.
async fn routes() -> Router {
    routes_of(&World::default()).await
}

async fn routes_of(world: &World) -> Router {
    let kms = world.open(Settings::default()).await.expect("a service");
    let create = CreateKey::new("web".parse().expect("a name"), Algorithm::Es256);
    kms.create_key(&administrator(), create, soon()).await.expect("a key");
    kms_api_jwks::router(Arc::new(kms), ISSUER)
}

async fn ask(routes: &Router, method: Method, path: &str, known: Option<&str>) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(etag) = known {
        request = request.header(header::IF_NONE_MATCH, etag);
    }
    let request = request.body(Body::empty()).expect("a request");
    let (head, body) = routes.clone().oneshot(request).await.expect("infallible").into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body").into();
    Answer { status: head.status, headers: head.headers, body }
}

async fn get(routes: &Router, path: &str) -> Answer {
    ask(routes, Method::GET, path, None).await
}

#[tokio::test]
async fn a_server_that_was_cut_off_for_longer_than_a_cache_may_live_asks_to_come_again() {
    let world = World::default();
    let routes = routes_of(&world).await;
    for (elapsed, expected) in [(0, "max-age=300"), (200, "max-age=102")] {
        world.clock.elapse(Duration::from_secs(elapsed));
        let served = get(&routes, KEYS).await;
        assert_eq!(served.status, StatusCode::OK);
        assert!(served.header(header::CACHE_CONTROL).contains(expected), "after {elapsed} s");
    }
    world.clock.elapse(Duration::from_secs(103));
    for path in [KEYS, CONFIGURATION, "/keys/web/jwks.json"] {
        let refused = get(&routes, path).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(refused.header(header::RETRY_AFTER), "1", "{path}");
    }
}

#[tokio::test]
async fn unknown_paths_are_404_and_never_redirects() {
    let routes = routes().await;
    for path in [
        "/",
        "/.well-known/jwks.json/",
        "/.well-known/openid-configuration/",
        "/.well-known/jwks",
        "//.well-known/jwks.json",
        "/keys/web",
        "/keys/web/",
        "/keys/web/jwks.json/",
        "/keys/other/jwks.json",
        "/keys/WEB/jwks.json",
        "/keys/%ff/jwks.json",
        "/keys/we%2Fb/jwks.json",
        "/keys//jwks.json",
    ] {
        let answer = get(&routes, path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.json()["error"], "not_found", "{path}");
        assert_eq!(answer.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff", "{path}");
    }
}

#[tokio::test]
async fn other_methods_are_405_and_say_which_are_allowed() {
    let routes = routes().await;
    for path in [KEYS, CONFIGURATION, "/keys/web/jwks.json"] {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let answer = ask(&routes, method, path, None).await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert_eq!(answer.header(header::ALLOW), "GET,HEAD", "{path}");
        }
    }
}

#[tokio::test]
async fn the_key_set_of_all_and_of_one_hold_the_public_key_and_nothing_else() {
    let routes = routes().await;
    let (all, one) = (get(&routes, KEYS).await, get(&routes, "/keys/web/jwks.json").await);
    assert_eq!(all.body, one.body);
    for answer in [&all, &one] {
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header(header::CONTENT_TYPE), "application/jwk-set+json");
        assert!(answer.header(header::CACHE_CONTROL).starts_with("public, max-age="));
        assert_eq!(answer.header(header::ACCESS_CONTROL_ALLOW_ORIGIN), "*");
    }
    let keys = all.json();
    let jwk = keys["keys"][0].as_object().expect("a key");
    let mut members: Vec<_> = jwk.keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["alg", "crv", "kid", "kty", "use", "x", "y"]);
    assert_eq!(jwk["alg"], "ES256");
}

#[tokio::test]
async fn who_has_the_current_document_is_told_so_without_a_body() {
    let routes = routes().await;
    for path in [KEYS, CONFIGURATION, "/keys/web/jwks.json"] {
        let first = get(&routes, path).await;
        let etag = first.header(header::ETAG);
        assert!(etag.starts_with('"') && etag.ends_with('"'), "strong: {etag}");
        let known = ask(&routes, Method::GET, path, Some(etag)).await;
        assert_eq!(known.status, StatusCode::NOT_MODIFIED, "{path}");
        assert!(known.body.is_empty());
        assert_eq!(known.header(header::ETAG), etag);
        assert_eq!(known.header(header::CACHE_CONTROL), first.header(header::CACHE_CONTROL));
        let stale = ask(&routes, Method::GET, path, Some("\"stale\"")).await;
        assert_eq!((stale.status, stale.body), (StatusCode::OK, first.body.clone()));
    }
}

#[tokio::test]
async fn head_answers_like_get_without_the_body() {
    let routes = routes().await;
    let (get, head) = (get(&routes, KEYS).await, ask(&routes, Method::HEAD, KEYS, None).await);
    assert_eq!(head.status, StatusCode::OK);
    assert!(head.body.is_empty());
    assert_eq!(head.header(header::CONTENT_LENGTH), get.body.len().to_string());
    assert_eq!(head.header(header::ETAG), get.header(header::ETAG));
    assert_eq!(head.header(header::CONTENT_TYPE), get.header(header::CONTENT_TYPE));
}

#[tokio::test]
async fn discovery_points_to_the_keys_and_lists_what_signs() {
    let answer = get(&routes().await, CONFIGURATION).await;
    assert_eq!(answer.header(header::CONTENT_TYPE), "application/json");
    let metadata = answer.json();
    assert_eq!(metadata["issuer"], ISSUER);
    assert_eq!(metadata["jwks_uri"], format!("{ISSUER}{KEYS}"));
    assert_eq!(metadata["id_token_signing_alg_values_supported"], serde_json::json!(["ES256"]));
}
