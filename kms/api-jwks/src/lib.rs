//! The public keys over HTTP, for everybody who verifies our tokens: JWK Sets (RFC 7517 §5) and OpenID Connect
//! Discovery 1.0 §4.
//!
//! Everything here is public, so it asks for no caller and any web page may read it. The bytes and their ETag
//! depend only on the keys and the time: every replica gives the same. There are no redirects, because some
//! verifiers refuse to follow them: a path is right, or it is 404.

mod conditional;
mod discovery;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Path, Request, State, rejection::PathRejection},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use kms_core::{AuditLog, Clock, Error, Hsm, Kms, Store, verbs::PublishedKeys};

use crate::{
    conditional::{Document, cache_control},
    discovery::Discovery,
};

/// RFC 7517 §8.5.2.
const JWK_SET_TYPE: &str = "application/jwk-set+json";

/// What every handler needs.
struct Published<H, S, A, C> {
    kms: Arc<Kms<H, S, A, C>>,
    discovery: Discovery,
}

/// The routes, with a fallback that answers 404 to everything else. `issuer` is the issuer identifier, a URL
/// without trailing slash, published exactly as it is given.
pub fn router<H, S, A, C>(kms: Arc<Kms<H, S, A, C>>, issuer: &str) -> Router
where
    H: Hsm,
    S: Store,
    A: AuditLog,
    C: Clock,
{
    Router::new()
        .route(discovery::JWKS_PATH, get(all_keys))
        .route("/.well-known/openid-configuration", get(configuration))
        .route("/keys/{key}/jwks.json", get(keys_of_one))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(map_response(public))
        .with_state(Arc::new(Published { kms, discovery: Discovery::new(issuer) }))
}

/// `GET /.well-known/jwks.json`: the published keys of all names.
async fn all_keys<H: Hsm, S: Store, A: AuditLog, C: Clock>(
    State(published): State<Arc<Published<H, S, A, C>>>,
    request: Request,
) -> Response {
    answer(published.kms.published_keys(None), request.headers(), jwk_set)
}

/// `GET /keys/{key}/jwks.json`: the published keys of one name.
async fn keys_of_one<H: Hsm, S: Store, A: AuditLog, C: Clock>(
    State(published): State<Arc<Published<H, S, A, C>>>,
    key: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    match key.ok().and_then(|Path(key)| key.parse().ok()) {
        Some(key) => answer(published.kms.published_keys(Some(&key)), request.headers(), jwk_set),
        None => absent(),
    }
}

/// `GET /.well-known/openid-configuration`.
async fn configuration<H: Hsm, S: Store, A: AuditLog, C: Clock>(
    State(published): State<Arc<Published<H, S, A, C>>>,
    request: Request,
) -> Response {
    answer(published.kms.published_keys(None), request.headers(), |keys| published.discovery.document(&keys))
}

/// The document about some keys, if there are such and this replica knows them well enough.
fn answer(
    keys: Result<Option<PublishedKeys>, Error>,
    headers: &HeaderMap,
    document: impl FnOnce(PublishedKeys) -> Document,
) -> Response {
    match keys {
        Ok(Some(keys)) => document(keys).answer(headers),
        Ok(None) => absent(),
        Err(error) => not_now(error.retry_delay()),
    }
}

fn jwk_set(keys: PublishedKeys) -> Document {
    Document {
        content_type: HeaderValue::from_static(JWK_SET_TYPE),
        body: keys.body,
        etag: conditional::etag(keys.etag),
        cache_control: cache_control(keys.max_age_seconds),
    }
}

async fn not_found() -> Response {
    absent()
}

fn absent() -> Response {
    refusal(StatusCode::NOT_FOUND, "not_found")
}

/// Another replica may know.
fn not_now(retry_after: Option<Duration>) -> Response {
    let mut response = refusal(StatusCode::SERVICE_UNAVAILABLE, "unavailable");
    let seconds = retry_after.map_or(1, |after| after.as_secs().max(1));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

async fn method_not_allowed() -> Response {
    refusal(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
}

fn refusal(status: StatusCode, error: &'static str) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], format!(r#"{{"error":"{error}"}}"#)).into_response()
}

/// The keys are public: every web page may read them, and no browser may take them for something else.
async fn public(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
