//! What operators, probes and scrapers ask: `/livez`, `/readyz`, `/metrics`.
//!
//! `/livez` asks nobody: a slow HSM must not make a supervisor restart us, not even while we start. `/readyz`
//! asks the store and the audit log and sends a canary through the HSM; its answer is kept for a second, so that
//! many probes are one canary.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Request, State},
    http::{
        HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::Mutex;
use tower::ServiceExt as _;

use crate::metrics::{self, Metrics};

/// How long an answer about readiness stands.
const READINESS_KEPT: Duration = Duration::from_secs(1);

/// Whoever comes too early is asked to come again after so many seconds.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// What works at this moment, part by part; the texts are for operators.
pub(crate) type Readiness = [(&'static str, Result<(), String>); 5];

/// The part that is not ready in recovery mode.
pub(crate) const EPOCH: &str = "epoch";

/// Asks every part; bounded by itself.
pub(crate) type Probe = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Readiness> + Send>> + Send + Sync>;

struct Ops {
    probe: Probe,
    /// Set when the server is asked to end: a balancer must look elsewhere while it still answers.
    leaving: Arc<AtomicBool>,
    last: Mutex<Option<(Instant, Readiness)>>,
    metrics: Arc<Metrics>,
}

/// The routes, without a fallback.
pub(crate) fn router(probe: Probe, leaving: Arc<AtomicBool>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .layer(map_response(nosniff))
        .with_state(Arc::new(Ops { probe, leaving, last: Mutex::new(None), metrics }))
}

/// While `full` is empty: `/livez` says that we live, and everything else is told to come again. From then on
/// `full` answers.
pub(crate) fn until_ready(full: Arc<OnceLock<Router>>) -> Router {
    let answer = async move |request: Request| match full.get() {
        // A layer here would be paid for with every request; its routes have their own.
        Some(full) => full.clone().oneshot(request).await.into_response(),
        None if request.uri().path() == "/livez" => nosniff(livez().await.into_response()).await,
        None => nosniff(starting()).await,
    };
    Router::new().fallback(answer)
}

fn starting() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, RETRY_AFTER_SECONDS)], "starting\n").into_response()
}

async fn nosniff(mut response: Response) -> Response {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(ops): State<Arc<Ops>>) -> Response {
    if ops.leaving.load(Ordering::Relaxed) {
        let body = serde_json::json!({ "ready": false, "leaving": true });
        return unavailable(body);
    }
    let readiness = ops.readiness().await;
    let ready = readiness.iter().all(|(_, result)| result.is_ok());
    let mut body = serde_json::json!({ "ready": ready });
    for (part, result) in readiness {
        body[part] = match (result, part) {
            (Ok(()), _) => "ok",
            // Nothing is broken: an administrator must decide.
            (Err(_), EPOCH) => "recovery mode: the database is older than the HSM has seen",
            (Err(_), _) => "not ready",
        }
        .into();
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], body.to_string())
        .into_response()
}

fn unavailable(body: serde_json::Value) -> Response {
    let head = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (StatusCode::SERVICE_UNAVAILABLE, head, body.to_string()).into_response()
}

async fn scrape(State(ops): State<Arc<Ops>>) -> Response {
    match ops.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

impl Ops {
    /// One probe at a time: those who come meanwhile wait for it and share its answer.
    async fn readiness(&self) -> Readiness {
        let mut last = self.last.lock().await;
        if let Some((at, readiness)) = &*last
            && at.elapsed() < READINESS_KEPT
        {
            return readiness.clone();
        }
        let readiness = (self.probe)().await;
        for (part, result) in &readiness {
            if let Err(error) = result {
                tracing::warn!(part, error, "not ready");
            }
        }
        *last = Some((Instant::now(), readiness.clone()));
        readiness
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use axum::body::Body;

    use super::*;
    use crate::metrics::{Levels, two_of_three};

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new(Levels::numbered, two_of_three))
    }

    async fn fetch(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = router.clone().oneshot(request).await.expect("infallible");
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        (status, String::from_utf8(body.into()).expect("UTF-8"))
    }

    #[tokio::test]
    async fn readiness_names_what_is_not_ready_asks_once_a_second_and_keeps_details_to_itself() {
        static PROBES: AtomicUsize = AtomicUsize::new(0);
        let probe: Probe = Box::new(|| {
            PROBES.fetch_add(1, Ordering::Relaxed);
            Box::pin(async {
                [
                    ("hsm", Err("slot 7 is on fire".into())),
                    ("store", Ok(())),
                    ("audit", Ok(())),
                    (EPOCH, Ok(())),
                    ("fence", Ok(())),
                ]
            })
        });
        let router = router(probe, Arc::default(), metrics());
        for _ in 0..3 {
            let (status, body) = fetch(&router, "/readyz").await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(
                body,
                r#"{"ready":false,"hsm":"not ready","store":"ok","audit":"ok","epoch":"ok","fence":"ok"}"#
            );
        }
        assert_eq!(PROBES.load(Ordering::Relaxed), 1);
        assert_eq!(fetch(&router, "/livez").await.0, StatusCode::OK);
        assert_eq!(PROBES.load(Ordering::Relaxed), 1, "liveness asks nobody");
    }

    #[tokio::test]
    async fn while_we_start_only_liveness_is_answered_and_then_everything() {
        let full = Arc::new(OnceLock::new());
        let router = until_ready(Arc::clone(&full));
        assert_eq!(fetch(&router, "/livez").await, (StatusCode::OK, "ok\n".to_owned()));
        for path in ["/readyz", "/.well-known/jwks.json", "/"] {
            assert_eq!(fetch(&router, path).await.0, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        }
        for path in ["/livez", "/readyz"] {
            let request = Request::get(path).body(Body::empty()).expect("a request");
            let response = router.clone().oneshot(request).await.expect("infallible");
            assert_eq!(response.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff", "{path}");
        }
        let routes = Router::new().route("/readyz", get(async || "ready"));
        full.set(routes).expect("set once");
        assert_eq!(fetch(&router, "/readyz").await, (StatusCode::OK, "ready".to_owned()));
        assert_eq!(fetch(&router, "/").await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn metrics_are_openmetrics_with_base_units() {
        let parts = ["hsm", "store", "audit", EPOCH, "fence"];
        let probe: Probe = Box::new(move || Box::pin(async move { parts.map(|part| (part, Ok(()))) }));
        let router = router(probe, Arc::default(), metrics());
        let (status, text) = fetch(&router, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        for line in [
            "kms_hsm_workers_ready 1.0",
            "kms_hsm_workers_wanted 2.0",
            "kms_hsm_respawns_total 4",
            "kms_hsm_objects{state=\"quarantined\"} 0.0",
            "kms_attribute_audit_last_success_timestamp_seconds 0",
            "kms_key_versions_suspended_by_audit_total 17",
            "kms_audit_records_total 5",
            "kms_audit_syncs_total 7",
            "kms_audit_free_bytes 10.0",
            "kms_store_generation 12.0",
            "kms_replicas 3.0",
            "kms_replica_fenced 0.0",
            "kms_lease_held 1.0",
            "kms_clock_skew_seconds -1.5",
            "kms_generation_confirmed_age_seconds 0.25",
            "kms_recovery_mode 1.0",
            "kms_epoch_pending 13.0",
            "kms_hsm_lane_requests_waiting{lane=\"unseal\"} 20",
            "kms_hsm_lane_requests_refused_total{lane=\"unseal\"} 21.0",
            "kms_hsm_lane_requests_sent_total{lane=\"wrap\"} 26.0",
            "kms_hsm_lane_wait_seconds_total{lane=\"sign\"} 0.031",
            "kms_rate_limited_total{limit=\"key\"} 42",
            "kms_rate_limited_unrecorded_total 44",
            "key_rotation_success{key=\"bare\"} 0",
            "key_rotation_success{key=\"full\"} 1",
            "key_expiry_timestamp{key=\"full\"} 2000",
            "kms_key_version_age_seconds{key=\"full\"} 100",
            "kms_key_next_publish_timestamp_seconds{key=\"full\"} 1500",
            "kms_key_next_activate_timestamp_seconds{key=\"full\"} 2100",
            "kms_key_next_retire_timestamp_seconds{key=\"full\"} 2200",
            "kms_key_promotion_seconds{key=\"full\"} 1100",
            "kms_key_jwks_versions{key=\"bare\"} 0",
            "kms_key_jwks_versions{key=\"full\"} 2",
            "kms_key_rotation_failures_total{key=\"full\"} 3",
            "kms_keys 3",
            "kms_keys_without_series 1",
            "kms_keys_rotation_overdue 4",
            "kms_keys_rotation_failing 5",
            "kms_keys_without_active_version 6",
            "kms_keys_without_successor 7",
            "kms_key_expiry_earliest_timestamp_seconds 1900",
            "kms_rotation_failures_total 8",
            "kms_tls_certificate_expiry_timestamp_seconds{listener=\"grpc\"} 0",
            "kms_tls_reload_failures_total 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("key_expiry_timestamp{key=\"bare\"}"), "no plan, no expiry:\n{text}");
        assert_eq!(fetch(&router, "/readyz").await.0, StatusCode::OK);
    }
}
