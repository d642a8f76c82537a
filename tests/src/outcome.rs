//! How a call was refused, in the terms of AIP-193.

use anyhow::bail;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A refusal as a program reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// `google.rpc.ErrorInfo.reason`; empty when there is none.
    pub reason: String,
    /// The field that `google.rpc.BadRequest` names; empty when there is none.
    pub field: String,
    /// For people.
    pub message: String,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
        let violations = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
        let field = violations.first().map(|violation| violation.field.clone()).unwrap_or_default();
        // What broke a connection stands in the sources only.
        let mut message = status.message().to_owned();
        let mut source = std::error::Error::source(&status);
        while let Some(error) = source {
            message = format!("{message}: {error}");
            source = error.source();
        }
        Self { code: status.code(), reason, field, message }
    }
}

/// The refusal of a call that must not succeed.
pub fn refusal<T>(result: Result<T, Status>) -> anyhow::Result<Refusal> {
    match result {
        Ok(_) => bail!("a call that must be refused succeeded"),
        Err(status) => Ok(status.into()),
    }
}
