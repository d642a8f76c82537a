//! `kms.v1.StatusService`: how the service is. What is wrong with a request is `status.rs`.

use std::time::Duration;

use kms_core::{
    AuditLog, Clock, Hsm, Store,
    report::{HsmLink, HsmReport},
    time::SignedDuration,
    verbs::{ReplicaState, ReplicaStatus, Status as ServiceStatus},
};
use kms_proto::v1::{self, hsm_link::State as WireLink, replica_status::State as WireState};
use tonic::{Request, Response, Status};

use crate::{
    call::{Call, Door, Kms},
    time::{duration, timestamp},
};

/// The service. Its requests must carry a [`kms_core::Caller`].
pub struct StatusService<H, S, A, C>(pub(crate) Door<H, S, A, C>);

#[tonic::async_trait]
impl<H: Hsm, S: Store, A: AuditLog, C: Clock> v1::status_service_server::StatusService
    for StatusService<H, S, A, C>
{
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::Status>, Status> {
        let verb =
            |kms: Kms<H, S, A, C>, call: Call, _| async move { kms.status(&call.caller).await.map(message) };
        self.0.run(request, verb).await
    }
}

fn message(status: ServiceStatus) -> v1::Status {
    let lease = |lease: kms_core::replica::Lease| v1::Lease {
        holder: lease.holder.to_string(),
        token: lease.token.0,
    };
    v1::Status {
        replica: status.replica.to_string(),
        generation: status.generation.0,
        heard_ago: Some(span(status.heard_ago)),
        lease: status.lease.map(lease),
        replicas: status.replicas.into_iter().map(replica).collect(),
        background_work: Some(v1::BackgroundWork {
            births: status.work.births,
            rotations_due: status.work.rotations_due,
            destructions_due: status.work.destructions_due,
        }),
    }
}

fn replica(replica: ReplicaStatus) -> v1::ReplicaStatus {
    let ReplicaStatus { id, seen_at, silent_for, state, not_ready, generation, lag, leads, report } = replica;
    let says = report.as_ref().is_some_and(|report| report.leaving.is_some());
    let report = report.unwrap_or_default();
    v1::ReplicaStatus {
        id: id.to_string(),
        state: wire_state(state).into(),
        not_ready,
        seen_time: seen_at.map(timestamp),
        silent_for: Some(span(silent_for)),
        generation: generation.map(|generation| generation.0),
        lag,
        leads,
        version: report.version.unwrap_or_default(),
        recovery_mode: says.then_some(report.recovery.is_some()),
        clock_skew: report.clock_skew_ms.map(|ms| duration(SignedDuration::from_millis(ms))),
        hsm: report.hsm.map(hsm),
        audit_records_waiting: report.audit.and_then(|audit| audit.records_waiting),
    }
}

fn hsm(report: HsmReport) -> v1::HsmLink {
    v1::HsmLink {
        state: wire_link(report.link).into(),
        workers_ready: report.workers_ready,
        workers_wanted: report.workers_wanted,
        spares_ready: report.spares_ready,
        spares_wanted: report.spares_wanted,
        workers_starting: report.workers_starting,
        workers_replaced: report.workers_replaced,
        calls: report.calls,
    }
}

fn wire_state(state: ReplicaState) -> WireState {
    match state {
        ReplicaState::Unknown => WireState::Unspecified,
        ReplicaState::Starting => WireState::Starting,
        ReplicaState::Serving => WireState::Serving,
        ReplicaState::Fenced => WireState::Fenced,
        ReplicaState::Leaving => WireState::Leaving,
    }
}

fn wire_link(link: Option<HsmLink>) -> WireLink {
    match link {
        None | Some(HsmLink::Unknown) => WireLink::Unspecified,
        Some(HsmLink::Starting) => WireLink::Starting,
        Some(HsmLink::Failing) => WireLink::Failing,
        Some(HsmLink::Ready) => WireLink::Ready,
        Some(HsmLink::PinRefused) => WireLink::PinRefused,
        Some(HsmLink::Abandoned) => WireLink::Abandoned,
    }
}

/// What is longer than a span can be is shown as the longest.
fn span(span: Duration) -> prost_types::Duration {
    duration(SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX))
}
