//! What went wrong, decoded from `tonic::Status` and its `google.rpc` details (AIP-193).

use std::{error::Error as StdError, time::Duration};

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

use crate::unreached::Unreached;

/// What sort of failure this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request can never succeed as it stands.
    InvalidArgument,
    /// The credential is missing, wrong, expired or revoked.
    Unauthenticated,
    /// The caller may not do this, or the key does not exist.
    PermissionDenied,
    /// It does not exist.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// It changed since the caller read it; read it again.
    Aborted,
    /// The state of the key or of the service does not allow it.
    FailedPrecondition,
    /// A limit was reached; trying again later can succeed.
    ResourceExhausted,
    /// The deadline passed. The operation may or may not have happened.
    DeadlineExceeded,
    /// The service, its HSM or the network is away. The operation may or may not have happened.
    Unavailable,
    /// The server does not know this call.
    Unimplemented,
    /// A defect on the server's side, or an answer that makes no sense.
    Internal,
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
    reason: Option<String>,
    field_violations: Vec<FieldViolation>,
    retry_delay: Option<Duration>,
    never_sent: bool,
}

/// A field of the request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's path, as `kms.v1` names it.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl Error {
    /// What sort of failure this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// For people: says what to do next.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Machine-readable reason, UPPER_SNAKE_CASE; `None` when the failure did not come from the service.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// The fields that are wrong, if some are.
    pub fn field_violations(&self) -> &[FieldViolation] {
        &self.field_violations
    }

    /// When a retry makes sense, if the server said so.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.retry_delay
    }

    /// Whether the request has certainly had no effect, because no server has seen it.
    pub fn never_sent(&self) -> bool {
        self.never_sent
    }

    /// Whether another replica may fare better at once: this one was away, or cannot serve now.
    pub(crate) fn is_of_one_replica(&self) -> bool {
        self.kind == Kind::Unavailable
    }

    /// The caller's own mistake, found before anything was sent.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::bare(Kind::InvalidArgument, message.into())
    }

    /// Nothing was sent, because it could not succeed.
    pub(crate) fn refused(message: String) -> Self {
        Self::bare(Kind::FailedPrecondition, message)
    }

    /// An answer that no server of ours gives.
    pub(crate) fn senseless(why: &str) -> Self {
        Self::bare(Kind::Internal, format!("the service's answer makes no sense: {why}"))
    }

    /// A failure on this side of the wire, with all of its causes in the message.
    pub(crate) fn local(kind: Kind, what: &str, cause: &dyn StdError) -> Self {
        Self::bare(kind, format!("{what}: {}", causes(cause)))
    }

    /// Several failures of one sort, as one.
    pub(crate) fn all_of(failures: Vec<Self>) -> Self {
        let messages: Vec<String> = failures.into_iter().map(|failure| failure.message).collect();
        Self::bare(Kind::Unavailable, messages.join("; "))
    }

    /// This client's own clock ran out.
    pub(crate) fn deadline() -> Self {
        Self::bare(Kind::DeadlineExceeded, "the deadline passed before the server answered".to_owned())
    }

    fn bare(kind: Kind, message: String) -> Self {
        Self {
            kind,
            message,
            reason: None,
            field_violations: Vec::new(),
            retry_delay: None,
            never_sent: false,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        // Only a status that was made on this side has a source: the transport failed, whatever tonic calls it.
        if let Some(cause) = status.source() {
            if is_timeout(cause) {
                return Self::deadline();
            }
            let never_sent = unreached(cause).is_some_and(Unreached::never_sent);
            return Self { never_sent, ..Self::local(Kind::Unavailable, "the connection failed", cause) };
        }
        let details = status.get_error_details();
        Self {
            kind: Kind::from(status.code()),
            message: status.message().to_owned(),
            reason: details.error_info().map(|info| info.reason.clone()),
            field_violations: details
                .bad_request()
                .into_iter()
                .flat_map(|request| &request.field_violations)
                .map(|violation| FieldViolation {
                    field: violation.field.clone(),
                    description: violation.description.clone(),
                })
                .collect(),
            retry_delay: details.retry_info().and_then(|info| info.retry_delay),
            never_sent: false,
        }
    }
}

impl From<Code> for Kind {
    fn from(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::InvalidArgument,
            Code::Unauthenticated => Self::Unauthenticated,
            Code::PermissionDenied => Self::PermissionDenied,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::AlreadyExists,
            Code::Aborted => Self::Aborted,
            Code::FailedPrecondition => Self::FailedPrecondition,
            Code::ResourceExhausted => Self::ResourceExhausted,
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::Unavailable => Self::Unavailable,
            Code::Unimplemented => Self::Unimplemented,
            Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => Self::Internal,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        let said = |violation: &FieldViolation| violation.description == self.message;
        match self.field_violations.as_slice() {
            [only] if said(only) => write!(f, " ({})", only.field),
            violations => {
                violations.iter().try_for_each(|each| write!(f, "; {}: {}", each.field, each.description))
            }
        }
    }
}

impl StdError for Error {}

/// Whether tonic's own timer, which runs beside ours, was the one to fire.
fn is_timeout(error: &(dyn StdError + 'static)) -> bool {
    error.is::<TimeoutExpired>() || error.source().is_some_and(is_timeout)
}

/// What the connections' own error says, wherever it stands among the causes.
fn unreached<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Unreached> {
    error.downcast_ref().or_else(|| error.source().and_then(unreached))
}

/// The causes of `error`, outermost first, each said once.
fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn a_status_without_details_keeps_its_code_and_message() {
        let error = Error::from(Status::not_found("keys/a does not exist"));
        assert_eq!((error.kind(), error.message()), (Kind::NotFound, "keys/a does not exist"));
        assert_eq!((error.reason(), error.retry_delay()), (None, None));
        assert!(error.field_violations().is_empty());
    }

    #[test]
    fn details_are_decoded() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info("HSM_BUSY", "kms", [])
            .set_retry_info(Some(Duration::from_millis(70)))
            .add_bad_request_violation("name", "too long");
        let error = Error::from(Status::with_error_details(Code::ResourceExhausted, "busy", details));
        assert_eq!(error.kind(), Kind::ResourceExhausted);
        assert_eq!(error.reason(), Some("HSM_BUSY"));
        assert_eq!(error.retry_delay(), Some(Duration::from_millis(70)));
        assert_eq!(error.to_string(), "busy; name: too long");
    }

    #[test]
    fn a_failure_of_the_transport_is_unavailable() {
        let cause = std::io::Error::other("broken pipe");
        let error = Error::from(Status::from_error(Box::new(cause)));
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.message().contains("broken pipe"), "{error}");
    }
}
