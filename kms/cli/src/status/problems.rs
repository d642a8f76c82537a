//! What is wrong, a line each, with what to do next.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use kms_client::v1::{self, hsm_link::State as Link, replica_status::State};

/// A beat that is so late is no accident.
const SILENT_MAX: SignedDuration = SignedDuration::from_secs(3);
/// A clock that is so far off is not looked after; it stops the replica at 5 s.
const CLOCK_SKEW_MAX: SignedDuration = SignedDuration::from_secs(1);

/// All of it; nothing when all is well.
pub(super) fn of(status: &v1::Status) -> Vec<String> {
    let mut wrong = Vec::new();
    let heard_ago = span(status.heard_ago.as_ref());
    if heard_ago > SILENT_MAX {
        wrong.push(format!(
            "{} last heard of the database {} s ago, and what it shows of others is of then: see whether the database \
             runs and can be reached from there, and ask another replica",
            status.replica,
            heard_ago.as_secs()
        ));
    }
    if status.lease.is_none() {
        wrong.push(
            "nobody holds the lease, so nothing is rotated or destroyed when it is due: a live replica takes it \
             within 12 s; if it stays so, see the servers' logs"
                .to_owned(),
        );
    }
    for replica in &status.replicas {
        let id = &replica.id;
        wrong.extend(of_replica(replica).into_iter().map(|problem| format!("{id}: {problem}")));
    }
    let versions: BTreeSet<_> = status.replicas.iter().map(|replica| replica.version.as_str()).collect();
    let versions: Vec<_> = versions.into_iter().filter(|version| !version.is_empty()).collect();
    if versions.len() > 1 {
        wrong.push(format!("the replicas run versions {}: bring all to one", versions.join(" and ")));
    }
    wrong
}

fn of_replica(replica: &v1::ReplicaStatus) -> Vec<String> {
    let mut wrong = replica.not_ready.clone();
    let silent_for = span(replica.silent_for.as_ref());
    let seconds = silent_for.as_secs();
    if replica.state() == State::Fenced && replica.not_ready.is_empty() {
        wrong.push(format!(
            "not heard of for {seconds} s, so it has stopped by itself or is gone, and soon nobody waits for it: see \
             whether its host runs and reaches the database"
        ));
    } else if silent_for > SILENT_MAX {
        wrong.push(format!(
            "not heard of for {seconds} s: see whether its host runs and reaches the database"
        ));
    }
    if replica.state() == State::Unspecified {
        wrong.push(
            "it does not say how it is: it has just begun, or is of another release; see its log".to_owned(),
        );
    }
    if let Some(lag @ 1..) = replica.lag {
        wrong.push(format!("behind by {lag}, which is normal for a moment; if it stays so, see its log"));
    }
    wrong.extend(replica.hsm.as_ref().and_then(workers_missing));
    let skew = span(replica.clock_skew.as_ref());
    if skew.abs() > CLOCK_SKEW_MAX && replica.not_ready.is_empty() {
        wrong.push(format!(
            "its clock is {:.1} s {} the database's, and at 5 s it stops: see to the time service on both",
            skew.abs().as_secs_f64(),
            if skew.is_negative() { "behind" } else { "ahead of" }
        ));
    }
    wrong
}

/// While the link as a whole is not ready, that is said already.
fn workers_missing(hsm: &v1::HsmLink) -> Option<String> {
    let ready = hsm.workers_ready?.saturating_add(hsm.spares_ready?);
    let wanted = hsm.workers_wanted?.saturating_add(hsm.spares_wanted?);
    (hsm.state() == Link::Ready && ready < wanted).then(|| {
        format!("{ready} of {wanted} HSM workers are ready, and others are being started; if it stays so, see its log")
    })
}

pub(super) fn span(duration: Option<&prost_types::Duration>) -> SignedDuration {
    duration.map_or(SignedDuration::ZERO, |span| SignedDuration::new(span.seconds, span.nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spoil = fn(&mut v1::Status);

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    fn replica(id: &str) -> v1::ReplicaStatus {
        let hsm = v1::HsmLink {
            state: Link::Ready.into(),
            workers_ready: Some(2),
            workers_wanted: Some(2),
            spares_ready: Some(1),
            spares_wanted: Some(1),
            ..Default::default()
        };
        v1::ReplicaStatus {
            id: id.to_owned(),
            state: State::Serving.into(),
            lag: Some(0),
            version: "1.0.0".to_owned(),
            clock_skew: seconds(0),
            silent_for: seconds(1),
            hsm: Some(hsm),
            ..Default::default()
        }
    }

    fn well() -> v1::Status {
        v1::Status {
            replica: "a".to_owned(),
            heard_ago: seconds(1),
            lease: Some(v1::Lease { holder: "a".to_owned(), token: 1 }),
            replicas: vec![replica("a"), replica("b")],
            ..Default::default()
        }
    }

    #[test]
    fn each_thing_that_is_wrong_has_its_line_and_when_all_is_well_there_is_none() {
        assert_eq!(of(&well()), Vec::<String>::new());
        let spoilt: [(&str, Spoil); 10] = [
            ("a last heard of the database 9 s ago", |status| status.heard_ago = seconds(9)),
            ("nobody holds the lease", |status| status.lease = None),
            ("versions 1.0.0 and 2.0.0", |status| status.replicas[1].version = "2.0.0".into()),
            ("b: fenced: so", |status| {
                status.replicas[1].set_state(State::Fenced);
                status.replicas[1].not_ready = vec!["fenced: so".into()];
            }),
            ("b: not heard of for 11 s, so it has stopped", |status| {
                status.replicas[1].set_state(State::Fenced);
                status.replicas[1].silent_for = seconds(11);
            }),
            ("b: not heard of for 5 s", |status| status.replicas[1].silent_for = seconds(5)),
            ("b: it does not say how it is", |status| status.replicas[1].set_state(State::Unspecified)),
            ("b: behind by 3", |status| status.replicas[1].lag = Some(3)),
            ("b: its clock is 2.0 s behind", |status| status.replicas[1].clock_skew = seconds(-2)),
            ("b: 2 of 3 HSM workers", |status| {
                status.replicas[1].hsm.get_or_insert_default().spares_ready = Some(0);
            }),
        ];
        for (expected, spoil) in spoilt {
            let mut status = well();
            spoil(&mut status);
            let wrong = of(&status);
            assert!(matches!(&wrong[..], [line] if line.contains(expected)), "{expected}: {wrong:?}");
        }
    }

    #[test]
    fn what_a_replica_does_not_say_is_not_held_against_it() {
        let mut status = well();
        status.replicas[1].hsm = Some(v1::HsmLink::default());
        (status.replicas[1].version, status.replicas[1].clock_skew) = (String::new(), None);
        (status.replicas[1].lag, status.replicas[1].silent_for) = (None, None);
        status.replicas[1].set_state(State::Starting);
        assert_eq!(of(&status), Vec::<String>::new());
    }
}
