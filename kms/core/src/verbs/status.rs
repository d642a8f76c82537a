//! GetStatus: every replica, and what is wrong with it, as the one that is asked knows it.
//!
//! It is answered from memory: from the last pulse, from the rows, and from what this replica is. So it is answered
//! when the store is away, and says then how old the account is.

use std::time::Duration;

use crate::{
    Action, AuditLog, Caller, Clock, Error, Hsm, Kms, Store, Unsettled,
    replica::{FENCE, Lease, Replica, ReplicaId},
    report::Report,
    store::Generation,
    time::{SignedDuration, Timestamp},
    verbs::due::{destruction_due, rotation_due},
};

/// The service as a whole, as one replica knows it.
#[derive(Debug, Clone)]
pub struct Status {
    /// Who answers.
    pub replica: ReplicaId,
    /// The store's generation, as far as it is known.
    pub generation: Generation,
    /// When the store was last heard of: of then is what is told about others.
    pub heard_ago: Duration,
    /// Who does the background work, if anybody.
    pub lease: Option<Lease>,
    /// Every replica that the store had heard of lately, by its id.
    pub replicas: Vec<ReplicaStatus>,
    /// What is yet to be done.
    pub work: BackgroundWork,
}

/// One replica.
#[derive(Debug, Clone)]
pub struct ReplicaStatus {
    /// Who.
    pub id: ReplicaId,
    /// When its last beat came, by the store's clock; `None` when the store was never heard of.
    pub seen_at: Option<Timestamp>,
    /// How long it had been silent when the store was last heard of.
    pub silent_for: Duration,
    /// What it does.
    pub state: ReplicaState,
    /// Why it does not do all that it should, and what to do next.
    pub not_ready: Vec<String>,
    /// Of the rows that it works with; `None` before it serves.
    pub generation: Option<Generation>,
    /// By how many generations it is behind.
    pub lag: Option<u64>,
    /// Whether it holds the lease.
    pub leads: bool,
    /// Its own account; `None` when it cannot be read.
    pub report: Option<Report>,
}

/// What a replica does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaState {
    /// It does not say, or not in words that are known here.
    Unknown,
    /// It is not there yet.
    Starting,
    /// It answers; in recovery mode not everything.
    Serving,
    /// It admits nobody; or it must have stopped by itself, because the store has not heard of it for a fence.
    Fenced,
    /// It finishes what it has, and ends.
    Leaving,
}

/// What is done by the holder of the lease, and by makers of versions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackgroundWork {
    /// Versions that are being made, or are to be finished.
    pub births: u64,
    /// Keys whose next version is due.
    pub rotations_due: u64,
    /// Versions whose time to be destroyed has come. They stay while `keys.allow_destroy` is off.
    pub destructions_due: u64,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Every replica, the lease, and what is to be done. Answered behind the fence and in recovery mode too.
    pub async fn status(&self, caller: &Caller) -> Result<Status, Error> {
        let admission = self.gate.admit(caller, Action::GetStatus, None, self.clock.now()).await?;
        admission.settle(Ok(Unsettled::new(self.look_around()))).await
    }

    fn look_around(&self) -> Status {
        let (heard, ours) = (self.beats.heard(), self.generation());
        let (heard_ago, pulse) = match &heard {
            Some(heard) => (self.clock.instant().saturating_duration_since(heard.at), Some(&heard.pulse)),
            None => (Duration::MAX, None),
        };
        // A change of our own may be in the store since.
        let generation = pulse.map_or(ours, |pulse| pulse.generation.max(ours));
        let lease = pulse.and_then(|pulse| pulse.lease.clone());
        let seen = |replica: &Replica| {
            let silent_for =
                pulse.map_or(SignedDuration::ZERO, |pulse| pulse.now.duration_since(replica.seen_at));
            Seen { at: replica.seen_at, silent_for: silent_for.max(SignedDuration::ZERO).unsigned_abs() }
        };
        let of = |id: &ReplicaId, seen: Option<Seen>, known: Option<Generation>, report: Option<Report>| {
            let silent_for = seen.map_or(Duration::ZERO, |seen| seen.silent_for);
            ReplicaStatus {
                state: state(known, silent_for, report.as_ref()),
                id: id.clone(),
                seen_at: seen.map(|seen| seen.at),
                silent_for,
                not_ready: report.as_ref().map(Report::not_ready).unwrap_or_default(),
                generation: known,
                lag: known.map(|known| generation.0.saturating_sub(known.0)),
                leads: lease.as_ref().is_some_and(|lease| lease.holder == *id),
                report,
            }
        };
        let all = || pulse.iter().flat_map(|pulse| &pulse.replicas);
        let others = all().filter(|replica| replica.id != self.replica);
        let mut replicas: Vec<_> = others
            .map(|other| of(&other.id, Some(seen(other)), other.generation, Report::parse(&other.report)))
            .collect();
        // What we are is known here better than in the store, and also without it.
        let own = all().find(|replica| replica.id == self.replica).map(seen);
        let own = own.map(|own| Seen { silent_for: Duration::ZERO, ..own });
        replicas.push(of(&self.replica, own, Some(ours), Some(self.own_report())));
        replicas.sort_by(|one, other| one.id.cmp(&other.id));
        let (replica, work) = (self.replica.clone(), self.background_work());
        Status { replica, generation, heard_ago, lease, replicas, work }
    }

    /// What this replica said last, with what has changed since in core.
    fn own_report(&self) -> Report {
        Report {
            fenced: self.fenced().map(|fenced| fenced.to_string()),
            recovery: self.recovery().map(|recovery| recovery.to_string()),
            ..Report::parse(&self.beats.report()).unwrap_or_default()
        }
    }

    fn background_work(&self) -> BackgroundWork {
        let now = self.clock.now();
        let mut work = BackgroundWork::default();
        for entry in self.catalog.now().keys.values() {
            work.rotations_due += u64::from(rotation_due(entry, now).is_some());
            for row in entry.versions.iter().map(|version| &version.row) {
                work.births += u64::from(row.born.is_none());
                work.destructions_due += u64::from(destruction_due(row, now));
            }
        }
        work
    }
}

#[derive(Clone, Copy)]
struct Seen {
    at: Timestamp,
    silent_for: Duration,
}

fn state(known: Option<Generation>, silent_for: Duration, report: Option<&Report>) -> ReplicaState {
    match report {
        _ if silent_for >= FENCE => ReplicaState::Fenced,
        _ if known.is_none() => ReplicaState::Starting,
        Some(Report { leaving: Some(true), .. }) => ReplicaState::Leaving,
        Some(Report { fenced: Some(_), .. }) => ReplicaState::Fenced,
        Some(Report { leaving: Some(false), .. }) => ReplicaState::Serving,
        _ => ReplicaState::Unknown,
    }
}
