//! The status as it is printed: all fields for programs, or a header and a line per replica.

use kms_client::v1;
use serde::Serialize;

use super::problems::span;
use crate::view::{lower, some, time_text};

/// Of the table, in this order.
pub(super) const COLUMNS: [&str; 12] = [
    "replica",
    "state",
    "leads",
    "generation",
    "lag",
    "seen",
    "hsm",
    "workers",
    "calls",
    "audit",
    "clock",
    "version",
];

/// The service as a whole.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    replica: String,
    generation: u64,
    heard_ago: String,
    lease: Option<Lease>,
    replicas: Vec<Replica>,
    background_work: BackgroundWork,
}

#[derive(Debug, Serialize)]
struct Lease {
    holder: String,
    token: u64,
}

#[derive(Debug, Default, Serialize)]
struct BackgroundWork {
    births: u64,
    rotations_due: u64,
    destructions_due: u64,
}

#[derive(Debug, Serialize)]
struct Replica {
    id: String,
    state: String,
    not_ready: Vec<String>,
    seen_time: Option<String>,
    silent_for: Option<String>,
    generation: Option<u64>,
    lag: Option<u64>,
    leads: bool,
    version: Option<String>,
    recovery_mode: Option<bool>,
    clock_skew: Option<String>,
    hsm: Option<HsmLink>,
    audit_records_waiting: Option<u64>,
}

#[derive(Debug, Serialize)]
struct HsmLink {
    state: String,
    workers_ready: Option<u32>,
    workers_wanted: Option<u32>,
    spares_ready: Option<u32>,
    spares_wanted: Option<u32>,
    workers_starting: Option<u32>,
    workers_replaced: Option<u64>,
    calls: Option<u32>,
}

/// What stands above the table.
#[derive(Debug, Serialize)]
pub(super) struct Header<'a> {
    generation: u64,
    lease_holder: Option<&'a str>,
    answered_by: &'a str,
    heard_ago: &'a str,
    births: u64,
    rotations_due: u64,
    destructions_due: u64,
}

/// A line of the table.
#[derive(Debug, Serialize)]
pub(super) struct Row<'a> {
    replica: &'a str,
    state: String,
    leads: bool,
    generation: Option<u64>,
    lag: Option<u64>,
    seen: Option<String>,
    hsm: Option<&'a str>,
    workers: Option<String>,
    calls: Option<u32>,
    audit: Option<u64>,
    clock: Option<&'a str>,
    version: Option<&'a str>,
}

impl Status {
    pub(super) fn header(&self) -> Header<'_> {
        let BackgroundWork { births, rotations_due, destructions_due } = self.background_work;
        Header {
            generation: self.generation,
            lease_holder: self.lease.as_ref().map(|lease| lease.holder.as_str()),
            answered_by: &self.replica,
            heard_ago: &self.heard_ago,
            births,
            rotations_due,
            destructions_due,
        }
    }

    pub(super) fn rows(&self) -> Vec<Row<'_>> {
        self.replicas.iter().map(Replica::row).collect()
    }
}

impl Replica {
    fn row(&self) -> Row<'_> {
        let recovers = self.recovery_mode == Some(true);
        Row {
            replica: &self.id,
            state: if recovers { format!("{}, recovery mode", self.state) } else { self.state.clone() },
            leads: self.leads,
            generation: self.generation,
            lag: self.lag,
            seen: self.silent_for.as_ref().map(|span| format!("{span} ago")),
            hsm: self.hsm.as_ref().map(|hsm| hsm.state.as_str()),
            workers: self.hsm.as_ref().and_then(HsmLink::workers),
            calls: self.hsm.as_ref().and_then(|hsm| hsm.calls),
            audit: self.audit_records_waiting,
            clock: self.clock_skew.as_deref(),
            version: self.version.as_deref(),
        }
    }
}

impl HsmLink {
    /// Ready of wanted, then the same of spare ones.
    fn workers(&self) -> Option<String> {
        let (ready, wanted) = (self.workers_ready?, self.workers_wanted?);
        let (spares, spares_wanted) = (self.spares_ready?, self.spares_wanted?);
        Some(format!("{ready}/{wanted} +{spares}/{spares_wanted}"))
    }
}

impl From<v1::Status> for Status {
    fn from(status: v1::Status) -> Self {
        let work = status.background_work.unwrap_or_default();
        Self {
            replica: status.replica,
            generation: status.generation,
            heard_ago: text(&status.heard_ago.unwrap_or_default()),
            lease: status.lease.map(|lease| Lease { holder: lease.holder, token: lease.token }),
            replicas: status.replicas.into_iter().map(Into::into).collect(),
            background_work: BackgroundWork {
                births: work.births,
                rotations_due: work.rotations_due,
                destructions_due: work.destructions_due,
            },
        }
    }
}

impl From<v1::ReplicaStatus> for Replica {
    fn from(replica: v1::ReplicaStatus) -> Self {
        Self {
            state: state(replica.state().as_str_name()),
            id: replica.id,
            not_ready: replica.not_ready,
            seen_time: replica.seen_time.and_then(time_text),
            silent_for: replica.silent_for.as_ref().map(text),
            generation: replica.generation,
            lag: replica.lag,
            leads: replica.leads,
            version: some(replica.version),
            recovery_mode: replica.recovery_mode,
            clock_skew: replica.clock_skew.as_ref().map(text),
            hsm: replica.hsm.map(Into::into),
            audit_records_waiting: replica.audit_records_waiting,
        }
    }
}

impl From<v1::HsmLink> for HsmLink {
    fn from(hsm: v1::HsmLink) -> Self {
        Self {
            state: state(hsm.state().as_str_name()),
            workers_ready: hsm.workers_ready,
            workers_wanted: hsm.workers_wanted,
            spares_ready: hsm.spares_ready,
            spares_wanted: hsm.spares_wanted,
            workers_starting: hsm.workers_starting,
            workers_replaced: hsm.workers_replaced,
            calls: hsm.calls,
        }
    }
}

fn state(name: &str) -> String {
    if name == "STATE_UNSPECIFIED" { "unknown".to_owned() } else { lower(name) }
}

/// To the millisecond, as JSON writes `google.protobuf.Duration`: clocks differ by less than a second.
fn text(duration: &prost_types::Duration) -> String {
    let ms = span(Some(duration)).as_millis();
    let (sign, ms) = (if ms < 0 { "-" } else { "" }, ms.unsigned_abs());
    format!("{sign}{}.{:03}s", ms / 1_000, ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_shown_to_the_millisecond_and_nothing_has_no_sign() {
        for (seconds, nanos, shown) in [
            (0, -999_999, "0.000s"),
            (0, -1_000_000, "-0.001s"),
            (-1, -500_000_000, "-1.500s"),
            (12, 34_000_000, "12.034s"),
        ] {
            assert_eq!(text(&prost_types::Duration { seconds, nanos }), shown);
        }
    }
}
