//! What operators, probes and scrapers ask: `/livez`, `/readyz`, `/metrics`.
//!
//! `/livez` asks nobody: a slow HSM must not make a supervisor restart us. `/readyz` asks the store and sends a
//! canary through the HSM; its answer is kept for a second, so that many probes are one canary.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{
        HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use kms_core::kms::Readiness;
use tokio::sync::Mutex;

use crate::metrics::{self, Metrics};

/// How long an answer about readiness stands.
const READINESS_KEPT: Duration = Duration::from_secs(1);

/// Asks the store and the HSM; bounded by itself.
pub(crate) type Probe = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Readiness> + Send>> + Send + Sync>;

struct Ops {
    probe: Probe,
    last: Mutex<Option<(Instant, Readiness)>>,
    metrics: Arc<Metrics>,
}

/// The routes, without a fallback.
pub(crate) fn router(probe: Probe, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .layer(map_response(nosniff))
        .with_state(Arc::new(Ops { probe, last: Mutex::new(None), metrics }))
}

async fn nosniff(mut response: Response) -> Response {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(ops): State<Arc<Ops>>) -> Response {
    let Readiness { hsm, store } = ops.readiness().await;
    let ready = hsm.is_ok() && store.is_ok();
    let text = |part: &Result<(), String>| match part {
        Ok(()) => "ok".to_owned(),
        Err(_) => "not ready".to_owned(),
    };
    let body = serde_json::json!({ "ready": ready, "hsm": text(&hsm), "store": text(&store) });
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], body.to_string())
        .into_response()
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
        for (part, result) in [("hsm", &readiness.hsm), ("store", &readiness.store)] {
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;
    use crate::metrics::Levels;

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new(Levels::numbered))
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
            Box::pin(async { Readiness { hsm: Err("slot 7 is on fire".into()), store: Ok(()) } })
        });
        let router = router(probe, metrics());
        for _ in 0..3 {
            let (status, body) = fetch(&router, "/readyz").await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(body, r#"{"hsm":"not ready","ready":false,"store":"ok"}"#);
        }
        assert_eq!(PROBES.load(Ordering::Relaxed), 1);
        assert_eq!(fetch(&router, "/livez").await.0, StatusCode::OK);
        assert_eq!(PROBES.load(Ordering::Relaxed), 1, "liveness asks nobody");
    }

    #[tokio::test]
    async fn metrics_are_openmetrics_with_base_units() {
        let probe: Probe = Box::new(|| Box::pin(async { Readiness { hsm: Ok(()), store: Ok(()) } }));
        let router = router(probe, metrics());
        let (status, text) = fetch(&router, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        for line in [
            "kms_hsm_workers_ready 1.0",
            "kms_hsm_workers_wanted 2.0",
            "kms_hsm_respawns_total 4",
            "kms_audit_records_total 5",
            "kms_audit_syncs_total 7",
            "kms_audit_free_bytes 10.0",
            "kms_store_generation 12.0",
            "kms_tls_certificate_expiry_timestamp_seconds{listener=\"grpc\"} 0",
            "kms_tls_reload_failures_total 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert_eq!(fetch(&router, "/readyz").await.0, StatusCode::OK);
    }
}
