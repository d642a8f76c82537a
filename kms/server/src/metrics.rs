//! Metrics in the OpenMetrics text format: base units, and labels of which there are only so many: nothing per
//! caller, and of rotation alone something per key, for `http.metrics_keys_max` keys at most.

mod lanes;
mod limits;
mod rotation;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use jiff::{SignedDuration, Timestamp};
use kms_core::verbs::{AttributeAudits, Rotations};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use tonic::{Code, Status};

use rotation::RotationCollector;

/// `Content-Type` of [`Metrics::text`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is counted, and where it is read.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<MethodLabels, Histogram, fn() -> Histogram>,
    reload_failures: Counter,
}

/// Levels that others keep, looked at once per scrape.
#[derive(Debug, Clone)]
pub(crate) struct Levels {
    pub(crate) hsm: kms_core::hsm::Health,
    pub(crate) attribute_audits: AttributeAudits,
    pub(crate) audit: kms_audit::Health,
    pub(crate) store_generation: u64,
    pub(crate) replicas: usize,
    pub(crate) fenced: bool,
    pub(crate) leads: bool,
    pub(crate) clock_skew: Option<SignedDuration>,
    pub(crate) confirmed_age: Option<Duration>,
    pub(crate) recovery_mode: bool,
    pub(crate) epoch_pending: u64,
    pub(crate) refusals: kms_core::limits::Refusals,
    /// Per listener.
    pub(crate) certificates_expire: Vec<(&'static str, Timestamp)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: String,
}

impl Metrics {
    /// `levels` and `rotations` are called at each scrape and must not wait.
    pub(crate) fn new(
        levels: impl Fn() -> Levels + Send + Sync + 'static,
        rotations: impl Fn() -> Rotations + Send + Sync + 'static,
    ) -> Self {
        let mut unprefixed = Registry::default();
        unprefixed.register_collector(Box::new(RotationCollector(rotations)));
        let registry = unprefixed.sub_registry_with_prefix("kms");
        let requests = Family::default();
        let durations = Family::new_with_constructor(duration_buckets as fn() -> Histogram);
        let reload_failures = Counter::default();
        registry.register("grpc_requests", "Calls answered, by method and gRPC code", requests.clone());
        registry.register_with_unit(
            "grpc_request_duration",
            "From the arrival of a call's head to its answer, authentication included",
            Unit::Seconds,
            durations.clone(),
        );
        registry.register(
            "tls_reload_failures",
            "Certificates that changed on disk and could not be used",
            reload_failures.clone(),
        );
        registry.register("build", "This program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register_collector(Box::new(LevelsCollector(levels)));
        Self { registry: unprefixed, requests, durations, reload_failures }
    }

    /// Counts a certificate that changed and could not be used.
    pub(crate) fn count_reload_failure(&self) {
        self.reload_failures.inc();
    }

    /// Everything, as [`CONTENT_TYPE`] says.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

/// Middleware of the gRPC listener. All methods but health's `Watch` are unary, so a status that is not in the
/// head of the answer is OK.
pub(crate) async fn observe(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
    // The paths of calls that reach no method are the stranger's to choose; they share one label.
    let method = match code {
        Code::Unauthenticated | Code::Unimplemented => String::new(),
        _ => path,
    };
    metrics
        .durations
        .get_or_create(&MethodLabels { method: method.clone() })
        .observe(started.elapsed().as_secs_f64());
    metrics.requests.get_or_create(&RequestLabels { method, code: name(code) }).inc();
    response
}

/// 100 µs to 13 s.
fn duration_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 18))
}

/// Collects [`Levels`] when it is asked.
struct LevelsCollector<F>(F);

impl<F> fmt::Debug for LevelsCollector<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LevelsCollector")
    }
}

impl<F: Fn() -> Levels + Send + Sync + 'static> prometheus_client::collector::Collector
    for LevelsCollector<F>
{
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Levels {
            hsm,
            attribute_audits,
            audit,
            store_generation,
            replicas,
            fenced,
            leads,
            clock_skew,
            confirmed_age,
            recovery_mode,
            epoch_pending,
            refusals,
            certificates_expire,
        } = (self.0)();
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        gauge(
            "hsm_workers_ready",
            "Workers that are logged in and answering",
            None,
            hsm.workers_ready.into(),
        )?;
        gauge("hsm_workers_wanted", "Workers that there should be", None, hsm.workers_wanted.into())?;
        gauge(
            "hsm_spares_ready",
            "Workers beside them that are ready to take over",
            None,
            hsm.spares_ready.into(),
        )?;
        gauge("hsm_spares_wanted", "Such workers that there should be", None, hsm.spares_wanted.into())?;
        gauge("hsm_requests_in_flight", "Requests queued for or in the HSM", None, hsm.in_flight.into())?;
        gauge(
            "audit_refusing",
            "1 while the audit log takes no records",
            None,
            f64::from(u8::from(audit.refusal.is_some())),
        )?;
        gauge(
            "audit_slots_taken",
            "Operations under way or waiting for their record",
            None,
            audit.slots_taken as f64,
        )?;
        gauge("audit_slots_max", "Most operations that may be under way", None, audit.slots_max as f64)?;
        gauge(
            "audit_free",
            "Free space on the audit log's file system",
            Some(&Unit::Bytes),
            audit.free_bytes as f64,
        )?;
        gauge(
            "audit_last_sync_duration",
            "How long the last sync took",
            Some(&Unit::Seconds),
            audit.last_sync_seconds,
        )?;
        gauge("store_generation", "Transactions committed to the store", None, store_generation as f64)?;
        gauge("replicas", "Servers that the store has heard of lately", None, replicas as f64)?;
        gauge(
            "replica_fenced",
            "1: the store does not confirm what this server knows",
            None,
            f64::from(u8::from(fenced)),
        )?;
        gauge("lease_held", "1: this server does the background work", None, f64::from(u8::from(leads)))?;
        if let Some(skew) = clock_skew {
            let help = "How far this server's clock is ahead of the store's, as far as it is known";
            gauge("clock_skew", help, Some(&Unit::Seconds), skew.as_secs_f64())?;
        }
        if let Some(age) = confirmed_age {
            let help = "Since the store confirmed what this server knows";
            gauge("generation_confirmed_age", help, Some(&Unit::Seconds), age.as_secs_f64())?;
        }
        gauge(
            "recovery_mode",
            "1 while the store is older than the HSM has seen, and nothing is signed",
            None,
            f64::from(u8::from(recovery_mode)),
        )?;
        gauge(
            "epoch_pending",
            "Moves of the epoch that the HSM does not hold yet",
            None,
            epoch_pending as f64,
        )?;
        let mut expiry = encoder.encode_descriptor(
            "tls_certificate_expiry_timestamp",
            "When the served certificate expires, since 1970",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for (listener, at) in certificates_expire {
            ConstGauge::new(at.as_second()).encode(expiry.encode_family(&[("listener", listener)])?)?;
        }
        encode_counts(&mut encoder, &attribute_audits)?;
        lanes::encode(&mut encoder, &hsm.lanes)?;
        limits::encode(&mut encoder, &refusals)?;
        let mut counter = |name: &str, help: &str, value: u64| {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
        };
        counter(
            "key_versions_suspended_by_audit",
            "Key versions that the attribute audit took out of service",
            attribute_audits.suspended,
        )?;
        counter("hsm_respawns", "Workers that had to be replaced", hsm.respawns)?;
        counter("hsm_recycled", "Workers that were replaced for their age or memory", hsm.recycled)?;
        counter(
            "hsm_repeated_requests",
            "Requests given to another worker because theirs had ended",
            hsm.repeated,
        )?;
        counter("audit_records", "Audit records made durable", audit.records_written)?;
        counter("audit_syncs", "Syncs of the audit log", audit.syncs)?;
        counter(
            "audit_records_lost",
            "Records of abandoned operations that could not be kept",
            audit.records_lost,
        )
    }
}

/// Nothing before the first look at the token: no number is better than a wrong one.
fn encode_counts(encoder: &mut DescriptorEncoder<'_>, audits: &AttributeAudits) -> fmt::Result {
    if let Some(counts) = audits.counts {
        let help = "CKA_IDs in the token, or missing there, by what they mean";
        let mut objects = encoder.encode_descriptor("hsm_objects", help, None, MetricType::Gauge)?;
        for (state, count) in counts.iter() {
            let state = state.to_string();
            ConstGauge::new(count as f64).encode(objects.encode_family(&[("state", state.as_str())])?)?;
        }
    }
    if let Some(at) = audits.last_success {
        let gauge = ConstGauge::new(at.as_second());
        let help = "When an attribute audit last came to its end, since 1970";
        let name = "attribute_audit_last_success_timestamp";
        gauge.encode(encoder.encode_descriptor(name, help, Some(&Unit::Seconds), gauge.metric_type())?)?;
    }
    Ok(())
}

/// The codes as gRPC's documents write them.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
pub(crate) use rotation::tests::two_of_three;

#[cfg(test)]
impl Levels {
    /// Another number in every place.
    pub(crate) fn numbered() -> Self {
        Self {
            hsm: kms_core::hsm::Health {
                workers_ready: 1,
                workers_wanted: 2,
                in_flight: 3,
                respawns: 4,
                spares_ready: 13,
                spares_wanted: 16,
                recycled: 14,
                repeated: 15,
                lanes: lanes::tests::numbered(),
            },
            attribute_audits: AttributeAudits {
                counts: Some(kms_core::inventory::Inventory::default().counts()),
                last_success: Some(Timestamp::UNIX_EPOCH),
                suspended: 17,
            },
            audit: kms_audit::Health {
                refusal: None,
                records_written: 5,
                bytes_written: 6,
                syncs: 7,
                last_sync_seconds: 0.5,
                slots_taken: 8,
                records_waiting: 18,
                slots_max: 9,
                free_bytes: 10,
                records_lost: 11,
            },
            store_generation: 12,
            replicas: 3,
            fenced: false,
            leads: true,
            clock_skew: Some(SignedDuration::from_millis(-1_500)),
            confirmed_age: Some(Duration::from_millis(250)),
            recovery_mode: true,
            epoch_pending: 13,
            refusals: kms_core::limits::Refusals { by_limit: [41, 42, 43], unrecorded: 44 },
            certificates_expire: vec![("grpc", Timestamp::UNIX_EPOCH)],
        }
    }
}
