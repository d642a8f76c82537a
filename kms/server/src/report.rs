//! What this server says about itself in its beats: gathered from every room, because only here all of them are known.
//! The words for people are core's; here are only facts, and none that names a file.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use kms_audit::FileLog;
use kms_core::{
    Hsm as _,
    report::{AuditReport, HsmLink, HsmReport, Report},
};
use kms_pkcs11::pool::Status;

use crate::Service;

/// Composes the reports of this server.
#[derive(Clone)]
pub(crate) struct Reporter {
    audit: Arc<FileLog>,
    leaving: Arc<AtomicBool>,
}

impl Reporter {
    /// Of a server with this audit log.
    pub(crate) fn new(audit: &Arc<FileLog>) -> Self {
        Self { audit: Arc::clone(audit), leaving: Arc::default() }
    }

    /// To be set when the server is asked to end.
    pub(crate) fn leaving(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.leaving)
    }

    /// How the server is now, for a beat. It must not wait.
    pub(crate) fn report(&self, service: &Service) -> String {
        let (health, audit) = (service.hsm().health(), self.audit.health());
        let skew = service.clock_skew().map(|skew| i64::try_from(skew.as_millis()).unwrap_or(i64::MAX));
        let (ready, wanted) =
            (health.workers_ready + health.spares_ready, health.workers_wanted + health.spares_wanted);
        let report = Report {
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            leaving: Some(self.leaving.load(Ordering::Relaxed)),
            fenced: service.fenced().map(|fenced| fenced.to_string()),
            recovery: service.recovery().map(|recovery| recovery.to_string()),
            clock_skew_ms: skew,
            hsm: Some(HsmReport {
                link: Some(link(&service.hsm().status().borrow())),
                workers_ready: Some(health.workers_ready),
                workers_wanted: Some(health.workers_wanted),
                spares_ready: Some(health.spares_ready),
                spares_wanted: Some(health.spares_wanted),
                workers_starting: Some(wanted.saturating_sub(ready)),
                workers_replaced: Some(health.respawns),
                calls: Some(health.in_flight),
            }),
            audit: Some(AuditReport {
                refusing: Some(audit.refusal.is_some()),
                records_waiting: Some(audit.records_waiting as u64),
            }),
        };
        report.to_json()
    }
}

/// Without the texts: they are about files of this host, and stand in its log.
fn link(status: &Status) -> HsmLink {
    match status {
        Status::Starting => HsmLink::Starting,
        Status::Failing { .. } => HsmLink::Failing,
        Status::Ready => HsmLink::Ready,
        Status::PinRefused(_) => HsmLink::PinRefused,
        Status::Abandoned => HsmLink::Abandoned,
    }
}
