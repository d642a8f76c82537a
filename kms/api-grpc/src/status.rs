//! Core's errors as gRPC statuses with `google.rpc` details (AIP-193). The one place that maps them.

use std::collections::HashMap;

use kms_core::{Error, error::Kind};
use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, PreconditionViolation, StatusExt, pb};

/// `ErrorInfo.domain`: reasons are unique within it.
const DOMAIN: &str = "kms";
/// The entry of `ErrorInfo.metadata` that names what a program can go on with.
const RESOURCE: &str = "resource";

/// The status that a caller sees for `error`. An internal error is logged here and not shown.
pub fn status(error: &Error) -> Status {
    let about = error.resource().map(|name| (RESOURCE.to_owned(), name.to_owned()));
    let mut details =
        ErrorDetails::with_error_info(error.reason(), DOMAIN, about.into_iter().collect::<HashMap<_, _>>());
    if let Some(field) = error.field() {
        details.add_bad_request_violation(wire_path(field), error.to_string());
    }
    if let Some(delay) = error.retry_delay() {
        details.set_retry_info(Some(delay));
    }
    let (code, message) = match error.kind() {
        Kind::InvalidArgument => (Code::InvalidArgument, error.to_string()),
        Kind::PermissionDenied => (Code::PermissionDenied, error.to_string()),
        Kind::NotFound => (Code::NotFound, error.to_string()),
        Kind::Conflict if error.reason() == "ALREADY_EXISTS" => (Code::AlreadyExists, error.to_string()),
        Kind::Conflict => (Code::Aborted, error.to_string()),
        Kind::FailedPrecondition => {
            let violation = PreconditionViolation::new(error.reason(), "", error.to_string());
            details.set_precondition_failure(vec![violation]);
            (Code::FailedPrecondition, error.to_string())
        }
        Kind::ResourceExhausted => (Code::ResourceExhausted, error.to_string()),
        Kind::DeadlineExceeded => (Code::DeadlineExceeded, error.to_string()),
        Kind::Unavailable => (Code::Unavailable, error.to_string()),
        Kind::Internal => {
            tracing::error!(%error, "internal error");
            (Code::Internal, "internal error; the server's log says more".to_owned())
        }
    };
    Status::with_error_details(code, message, details)
}

/// The same as a message, for one item of a batch.
pub(crate) fn message(error: &Error) -> pb::Status {
    let status = status(error);
    // `grpc-status-details-bin` holds exactly this message.
    pb::Status::decode(status.details()).unwrap_or_else(|_| pb::Status {
        code: i32::from(status.code()),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// Nobody was authenticated. One text for every reason: absent, unknown, expired and revoked look alike.
pub fn unauthenticated() -> Status {
    Status::with_error_details(
        Code::Unauthenticated,
        "no valid access token was presented; send metadata \"authorization: Bearer <credential>\" with one \
         that is neither expired nor revoked",
        ErrorDetails::with_error_info("UNAUTHENTICATED", DOMAIN, []),
    )
}

/// Core names fields flat; on the wire some of them lie inside a resource.
fn wire_path(field: &'static str) -> &'static str {
    match field {
        "algorithm" => "key.algorithm",
        "owner" => "key.owner",
        "labels" => "key.labels",
        "rotation_period" => "key.rotation_period",
        "publish_lead" => "key.publish_lead",
        "max_token_ttl" => "key.max_token_ttl",
        "class" => "key.class",
        "purpose" => "key.purpose",
        "overlap" => "key.overlap",
        "destroy_after" => "key.destroy_after",
        "claim_rules.issuers" => "key.claim_rules.issuers",
        "claim_rules.audiences" => "key.claim_rules.audiences",
        "claim_rules.required" => "key.claim_rules.required",
        "role" => "access_token.role",
        "approvals" => "key_class.approvals",
        same => same,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The code for every kind. A new kind does not compile without a row.
    fn expected(kind: Kind) -> Code {
        match kind {
            Kind::InvalidArgument => Code::InvalidArgument,
            Kind::PermissionDenied => Code::PermissionDenied,
            Kind::NotFound => Code::NotFound,
            Kind::Conflict => Code::Aborted,
            Kind::FailedPrecondition => Code::FailedPrecondition,
            Kind::ResourceExhausted => Code::ResourceExhausted,
            Kind::DeadlineExceeded => Code::DeadlineExceeded,
            Kind::Unavailable => Code::Unavailable,
            Kind::Internal => Code::Internal,
        }
    }

    #[test]
    fn every_kind_has_its_code_and_carries_its_reason() {
        for kind in [
            Kind::InvalidArgument,
            Kind::PermissionDenied,
            Kind::NotFound,
            Kind::Conflict,
            Kind::FailedPrecondition,
            Kind::ResourceExhausted,
            Kind::DeadlineExceeded,
            Kind::Unavailable,
            Kind::Internal,
        ] {
            let status = status(&Error::new(kind, "A_REASON", "do this"));
            assert_eq!(status.code(), expected(kind), "{kind:?}");
            assert_eq!(status.message() == "do this", kind != Kind::Internal, "{kind:?}");
            let info = status.get_details_error_info().expect("ErrorInfo is always there");
            assert_eq!((info.reason.as_str(), info.domain.as_str()), ("A_REASON", "kms"), "{kind:?}");
        }
    }

    #[test]
    fn an_internal_error_is_not_shown() {
        let status = status(&Error::internal("canary"));
        assert!(!format!("{status:?}").contains("canary"), "{status:?}");
        assert!(!status.details().windows(6).any(|window| window == b"canary"));
    }

    #[test]
    fn what_exists_already_is_told_from_what_has_changed() {
        let exists = Error::new(Kind::Conflict, "ALREADY_EXISTS", "keys/a exists already");
        assert_eq!(status(&exists).code(), Code::AlreadyExists);
        let changed = Error::new(Kind::Conflict, "ETAG_MISMATCH", "read it again");
        assert_eq!(status(&changed).code(), Code::Aborted);
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path_on_the_wire() {
        let violation = |field| {
            let status = status(&Error::invalid(field, "too long"));
            let request = status.get_details_bad_request().expect("BadRequest");
            let violation = request.field_violations.first().expect("one violation").clone();
            (violation.field, violation.description)
        };
        assert_eq!(violation("owner"), ("key.owner".into(), "too long".into()));
        assert_eq!(violation("request_id"), ("request_id".into(), "too long".into()));
    }

    #[test]
    fn a_missing_state_and_a_time_to_retry_are_said_in_details() {
        let error = Error::precondition("NO_ACTIVE_VERSION", "enable it");
        let failure = status(&error).get_details_precondition_failure().expect("PreconditionFailure");
        assert_eq!(failure.violations[0].r#type, "NO_ACTIVE_VERSION");
        let error = Error::new(Kind::ResourceExhausted, "HSM_BUSY", "later");
        let error = error.retry_after(Duration::from_millis(30));
        let info = status(&error).get_details_retry_info().expect("RetryInfo");
        assert_eq!(info.retry_delay, Some(Duration::from_millis(30)));
    }

    #[test]
    fn what_a_program_can_go_on_with_is_named() {
        let error = Error::precondition("APPROVAL_REQUIRED", "have it approved").about("proposals/1");
        let info = status(&error).get_details_error_info().expect("ErrorInfo");
        assert_eq!(info.metadata.get("resource").map(String::as_str), Some("proposals/1"));
        let info = status(&Error::denied()).get_details_error_info().expect("ErrorInfo");
        assert!(info.metadata.is_empty(), "{info:?}");
    }

    #[test]
    fn an_item_of_a_batch_fails_with_the_same_details() {
        let message = message(&Error::denied());
        assert_eq!(message.code, i32::from(Code::PermissionDenied));
        assert_eq!(message.message, Error::denied().to_string());
        assert_eq!(message.details.len(), 1);
    }
}
