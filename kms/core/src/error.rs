//! Core's one error type: what went wrong, in terms a caller or an operator can act on.
//!
//! Every facade maps [`Kind`] to its own codes in one file. The message is safe to show to the caller: it
//! never holds key material, claims, a PIN or a credential, and it says what to do next.

use std::{borrow::Cow, time::Duration};

/// What sort of failure this is. Eight that somebody can act on, and [`Kind::Internal`] for our own defects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request can never succeed as it stands.
    InvalidArgument,
    /// Policy denies it, or the key is absent and the caller may not know that.
    PermissionDenied,
    /// The key or version does not exist (told only to callers who may know).
    NotFound,
    /// It exists already, or it changed since the caller read it.
    Conflict,
    /// The request is fine; the state of the key or of the service is not.
    FailedPrecondition,
    /// A limit was reached; trying again later can succeed.
    ResourceExhausted,
    /// The caller's deadline passed. The operation may or may not have happened.
    DeadlineExceeded,
    /// The HSM, the store or the audit log cannot be used right now.
    Unavailable,
    /// A defect of ours or of the token: nothing the caller can do.
    Internal,
}

/// A failure, with a machine-readable reason (AIP-193 `ErrorInfo.reason`) and a message for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: Kind,
    reason: &'static str,
    message: Cow<'static, str>,
    field: Option<&'static str>,
    resource: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
}

impl Error {
    /// A failure of `kind`, with an UPPER_SNAKE_CASE `reason` and a `message` that says what to do next.
    pub fn new(kind: Kind, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, reason, message: message.into(), field: None, resource: None, retry_after: None }
    }

    /// The request is wrong in `field` (the field's name in `kms.v1`).
    pub fn invalid(field: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { field: Some(field), ..Self::new(Kind::InvalidArgument, "INVALID_ARGUMENT", message) }
    }

    /// Denied. One text for every denial: a stranger learns neither the rule nor whether the key exists.
    pub fn denied() -> Self {
        Self::new(
            Kind::PermissionDenied,
            "PERMISSION_DENIED",
            "permission denied, or the key does not exist; ask an administrator for access",
        )
    }

    /// The named thing does not exist.
    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(Kind::NotFound, "NOT_FOUND", format!("{what} does not exist"))
    }

    /// What was to be decrypted does not open. One text for every reason, so that nobody learns anything by trying.
    pub fn not_opened() -> Self {
        Self::new(
            Kind::InvalidArgument,
            "NOT_OPENED",
            "it does not open: check that the key, the encryption context and the bytes are those it was made with",
        )
    }

    /// The state of the key forbids it.
    pub fn precondition(reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::FailedPrecondition, reason, message)
    }

    /// Something that we depend on is away.
    pub fn unavailable(reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Unavailable, reason, message)
    }

    /// A defect: ours, or the token's.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Internal, "INTERNAL", message)
    }

    /// The caller's deadline has passed.
    pub fn deadline() -> Self {
        Self::new(Kind::DeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline passed before the HSM answered")
    }

    /// Adds the time after which a retry makes sense.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }

    /// Adds the name of what it is about, where a program should be able to go on with it.
    #[must_use]
    pub fn about(self, resource: impl Into<Cow<'static, str>>) -> Self {
        Self { resource: Some(resource.into()), ..self }
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Machine-readable reason, UPPER_SNAKE_CASE, stable over releases.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The field of the request that is wrong, if one is.
    pub fn field(&self) -> Option<&'static str> {
        self.field
    }

    /// The name of what it is about, e.g. `proposals/…`, if a program can go on with it.
    pub fn resource(&self) -> Option<&str> {
        self.resource.as_deref()
    }

    /// When a retry makes sense, if that is known.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.retry_after
    }
}
