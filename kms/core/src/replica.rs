//! Replicas: servers that share one store and one token, and answer as one.
//!
//! Each keeps the store's rows in memory and sends a [`Beat`] about once a second; what comes back, the [`Pulse`],
//! confirms the generation of its rows. Whoever cannot confirm it for a [`FENCE`] stops working by itself, so that
//! nobody has to reach a replica that is cut off in order to stop it. Background work is done by the one replica
//! that holds the [`Lease`]; its token stands in every transaction of that work, so that a holder which has slept
//! through the end of its lease writes nothing.

use std::{fmt, time::Duration};

use crate::{store::Generation, time::Timestamp};

/// How long a replica works on without a confirmation of its generation.
pub const FENCE: Duration = Duration::from_secs(10);

/// From one beat to the next.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// A replica that the store has not heard of for so long is fenced or dead: the fence, counted from when it sent its
/// last beat, and what two clocks may differ in their rate.
pub const LIVE_MAX: Duration = Duration::from_secs(12);

/// How far a replica's clock may be from the store's.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5);

/// How far the clocks of two replicas may be apart: one ahead of the store's, one behind it.
pub const CLOCKS_APART_MAX: Duration = Duration::from_secs(10);

/// One run of one server. Readable, and never used again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaId(String);

/// What a replica tells the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Who.
    pub replica: ReplicaId,
    /// Of the rows that it works with; `None` before it serves.
    pub generation: Option<Generation>,
    /// Whether it would do the background work: it keeps the lease that it has, or takes one that is over.
    pub leads: bool,
    /// How it is, for operators, as one JSON object of at most [`Beat::REPORT_LEN_MAX`] bytes.
    pub report: String,
}

/// What the store answers, all of it as of one moment after the beat was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulse {
    /// The store's generation.
    pub generation: Generation,
    /// The store's clock.
    pub now: Timestamp,
    /// Who does the background work, if anybody.
    pub lease: Option<Lease>,
    /// Who was heard of in the last [`LIVE_MAX`], by the store's clock, in the order of their ids; the asking one
    /// among them.
    pub replicas: Vec<Replica>,
}

/// The right to do the background work, until [`LIVE_MAX`] after its holder's last beat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Whose.
    pub holder: ReplicaId,
    /// Counts the holders.
    pub token: LeaseToken,
}

/// The fencing token of a lease: higher with each holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LeaseToken(pub u64);

/// A replica as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Who.
    pub id: ReplicaId,
    /// When its last beat came, by the store's clock.
    pub seen_at: Timestamp,
    /// Of the rows that it worked with then.
    pub generation: Option<Generation>,
    /// Its own report.
    pub report: String,
}

impl Beat {
    /// Longest report, in bytes.
    pub const REPORT_LEN_MAX: usize = 16 * 1024;
}

impl ReplicaId {
    /// Takes a name that no other run of any server has.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
