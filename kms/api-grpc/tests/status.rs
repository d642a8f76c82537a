//! `StatusService` over a core whose ports are fakes.

#![expect(clippy::expect_used, reason = "a test stops where its ground is missing")]

use std::{sync::Arc, time::Duration};

use kms_api_grpc::Services;
use kms_core::{
    Caller,
    caller::{KeyScope, Role},
    fakes::{World, administrator},
    kms::Settings,
    report::{AuditReport, HsmLink, HsmReport, Report},
};
use kms_proto::v1::{self, hsm_link, replica_status, status_service_client::StatusServiceClient};
use tonic::{Code, Request, Status};

/// The status of one server whose last beat said `report`, for `caller`.
async fn status(report: &str, caller: Caller) -> Result<v1::Status, Status> {
    let kms = World::default().open(Settings::default()).await.expect("the service opens");
    kms.beat(true, report.to_owned()).await.expect("it beats");
    let services = Services::new(&Arc::new(kms), Duration::from_secs(60));
    let mut request = Request::new(v1::GetStatusRequest {});
    request.extensions_mut().insert(caller);
    Ok(StatusServiceClient::new(services.status).get_status(request).await?.into_inner())
}

#[tokio::test]
async fn a_user_is_refused() {
    let user = Caller::new("access-token:u", Role::User, KeyScope::All);
    assert_eq!(status("{}", user).await.expect_err("refused").code(), Code::PermissionDenied);
}

#[tokio::test]
async fn all_that_a_replica_says_about_itself_arrives() {
    let report = Report {
        version: Some("1.2.3".to_owned()),
        leaving: Some(false),
        clock_skew_ms: Some(-1_500),
        hsm: Some(HsmReport {
            link: Some(HsmLink::Failing),
            workers_ready: Some(1),
            workers_wanted: Some(2),
            spares_ready: Some(3),
            spares_wanted: Some(4),
            workers_starting: Some(5),
            workers_replaced: Some(6),
            calls: Some(7),
        }),
        audit: Some(AuditReport { refusing: Some(false), records_waiting: Some(8) }),
        ..Report::default()
    };
    let status = status(&report.to_json(), administrator()).await.expect("a status");
    let [replica] = &status.replicas[..] else { panic!("{status:?}") };
    assert_eq!(status.replica, replica.id);
    assert_eq!(status.lease.expect("a lease").holder, replica.id);
    assert_eq!(status.heard_ago, Some(prost_types::Duration::default()));
    assert!(status.background_work.is_some() && replica.seen_time.is_some() && replica.leads);
    assert_eq!((replica.state(), replica.lag), (replica_status::State::Serving, Some(0)));
    assert_eq!(replica.generation, Some(status.generation));
    assert!(replica.not_ready[0].contains("kms doctor"), "{:?}", replica.not_ready);
    assert_eq!((replica.version.as_str(), replica.recovery_mode), ("1.2.3", Some(false)));
    assert_eq!(replica.clock_skew, Some(prost_types::Duration { seconds: -1, nanos: -500_000_000 }));
    assert_eq!(replica.audit_records_waiting, Some(8));
    let expected = v1::HsmLink {
        state: hsm_link::State::Failing.into(),
        workers_ready: Some(1),
        workers_wanted: Some(2),
        spares_ready: Some(3),
        spares_wanted: Some(4),
        workers_starting: Some(5),
        workers_replaced: Some(6),
        calls: Some(7),
    };
    assert_eq!(replica.hsm, Some(expected));
}

#[tokio::test]
async fn what_a_replica_does_not_say_is_absent() {
    let status = status("{\"hsm\":{\"link\":\"dreaming\"}}", administrator()).await.expect("a status");
    let replica = &status.replicas[0];
    assert_eq!((replica.state(), replica.recovery_mode), (replica_status::State::Unspecified, None));
    assert!(replica.version.is_empty() && replica.clock_skew.is_none());
    assert_eq!(replica.hsm, Some(v1::HsmLink::default()));
}
