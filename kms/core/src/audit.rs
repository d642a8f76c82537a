//! The audit port: what is recorded, and the promise that a record is durable before its result leaves.
//!
//! [`AuditLog::reserve`] takes a place before the operation begins, so that a full or broken log refuses work
//! instead of losing records; [`AuditLog::record`] returns once the records are on stable storage.

use std::{borrow::Cow, future::Future, sync::Arc};

use serde::Serialize;

use crate::{
    Action, Error, KeyId,
    class::ClassName,
    hsm::{CKA_ID_LEN_MAX, hex},
    time::Timestamp,
    verbs::ATTESTATION_LEN_MAX,
};

/// An append-only, durable log. Implemented by `kms/audit`; passes `conformance::audit`.
pub trait AuditLog: Send + Sync + 'static {
    /// A place that was taken in the log. Dropping it unused gives it back.
    type Slot: Send + Sync + 'static;

    /// Takes a place, in memory and at once, or says why nothing may be done now.
    fn reserve(&self) -> Result<Self::Slot, Refused>;

    /// Appends all of `records`, in order, and returns when all of them are durable. On an error none of
    /// the results that they stand for may be released.
    fn record(&self, records: Vec<(Self::Slot, Event)>) -> impl Future<Output = Result<(), Refused>> + Send;

    /// Appends without waiting: for grants dropped by a client that went away. Never blocks.
    fn record_later(&self, slot: Self::Slot, event: Event);
}

/// The log cannot take a record. No operation may proceed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the audit log refuses records: {0}")]
pub struct Refused(pub String);

/// One line of the log. Field order is the order on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When the operation was admitted, UTC.
    pub at: Timestamp,
    /// Operation id: joins an intent with its outcome. Unique within one installation.
    pub operation: OperationId,
    /// Intent or outcome.
    pub phase: Phase,
    /// Canonical name of the caller, or `system:…` for our own work.
    pub caller: Arc<str>,
    /// What was asked.
    pub action: Action,
    /// The key, when one was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// The version that did the work, or that is to be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// What else it is about: an access token's name, a class of keys, a CKA_ID in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Arc<str>>,
    /// How it ended; for an intent, that it was allowed.
    pub outcome: Outcome,
    /// Machine-readable reason of a denial or failure; for a denial the rule that denied, e.g. `NO_RULE` or `policy:ID`. Also why a version was
    /// taken out of service by the attribute audit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
}

/// What an operation is about, known before it begins: all of its records tell it, a denial's too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    pub(crate) key: Option<KeyId>,
    pub(crate) version: Option<u32>,
    pub(crate) target: Option<Arc<str>>,
}

/// Intent or outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A change of state is about to be made.
    Intent,
    /// The operation ended.
    Outcome,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Allowed, for an intent.
    Allowed,
    /// Done; the result was released after this record.
    Succeeded,
    /// Denied by policy.
    Denied,
    /// Tried and failed; no result was released.
    Failed,
    /// The client went away before the end; no result was released.
    Abandoned,
}

/// 128 bits: the process's random prefix and a counter, in hexadecimal on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OperationId(u128);

impl Subject {
    /// One version of a key.
    pub fn of_version(key: &KeyId, number: u32) -> Self {
        Self { version: Some(number), ..Some(key).into() }
    }

    /// The same, with what somebody says about it, if that is anything that a record holds.
    pub(crate) fn saying(self, words: &str) -> Self {
        let is_text =
            (1..=ATTESTATION_LEN_MAX).contains(&words.len()) && !words.chars().any(char::is_control);
        Self { target: is_text.then(|| words.into()), ..self }
    }

    /// A class of keys.
    pub fn of_class(name: ClassName) -> Self {
        Self { target: Some(name.as_str().into()), ..Self::default() }
    }

    /// An access token. A name that none can have is left out: it may be anything, a credential even.
    pub fn of_access_token(name: &str) -> Self {
        Self { target: name.parse::<KeyId>().ok().map(|_| name.into()), ..Self::default() }
    }

    /// A role binding or a proposal, by its name.
    pub(crate) fn of_access(name: &str) -> Self {
        Self { target: Some(name.into()), ..Self::default() }
    }

    /// The objects under a CKA_ID. One that is longer than any we take is left out.
    pub fn of_objects(cka_id: &[u8]) -> Self {
        let is_possible = (1..=CKA_ID_LEN_MAX).contains(&cka_id.len());
        Self { target: is_possible.then(|| hex(cka_id).into()), ..Self::default() }
    }
}

impl From<Option<&KeyId>> for Subject {
    fn from(key: Option<&KeyId>) -> Self {
        Self { key: key.cloned(), ..Self::default() }
    }
}

impl OperationId {
    pub(crate) fn new(prefix: u64, counter: u64) -> Self {
        Self((u128::from(prefix) << 64) | u128::from(counter))
    }
}

impl std::fmt::Display for OperationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::fmt::Debug for OperationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OperationId({self})")
    }
}

impl Serialize for OperationId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<Refused> for Error {
    fn from(_: Refused) -> Self {
        Self::unavailable(
            "AUDIT_UNAVAILABLE",
            "the audit log cannot take a record, so nothing is done; an operator must look at its disk",
        )
    }
}
