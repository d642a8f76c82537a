//! What replicas tell about each other, also when they cannot work.

use std::time::Duration;

use futures::executor::block_on;
use kms_core::{
    Action, Caller,
    audit::Outcome,
    caller::{KeyScope, Role},
    fakes::administrator,
    replica::LIVE_MAX,
    report::Report,
    time::SignedDuration,
    verbs::{ReplicaState, ReplicaStatus, Status},
};

use crate::fleet::{Fleet, id, reason};

fn status(fleet: &Fleet, asked: usize) -> Status {
    block_on(fleet.replicas[asked].status(&administrator())).expect("it answers")
}

/// How `asked` sees `shown`.
fn view(fleet: &Fleet, asked: usize, shown: usize) -> ReplicaStatus {
    let shown = fleet.replicas[shown].replica().clone();
    let found = status(fleet, asked).replicas.into_iter().find(|replica| replica.id == shown);
    found.expect("it is shown")
}

fn says(fleet: &Fleet, replica: usize, report: &Report) {
    block_on(fleet.replicas[replica].beat(true, report.to_json())).expect("it beats");
}

fn serving() -> Report {
    Report { leaving: Some(false), ..Report::default() }
}

#[test]
fn only_an_administrator_of_every_key_is_told() {
    let fleet = Fleet::with_key(1);
    for (role, scope) in [
        (Role::User, KeyScope::All),
        (Role::User, KeyScope::Only([id("k")].into())),
        (Role::Administrator, KeyScope::Only([id("k")].into())),
    ] {
        let caller = Caller::new("access-token:t", role, scope);
        assert_eq!(
            reason(block_on(fleet.replicas[0].status(&caller))),
            Err("PERMISSION_DENIED"),
            "{caller:?}"
        );
        let last = fleet.worlds[0].log.events().pop().expect("a record");
        assert_eq!((last.action, last.outcome), (Action::GetStatus, Outcome::Denied));
    }
}

#[test]
fn there_is_no_answer_without_its_record() {
    let fleet = Fleet::with_key(1);
    fleet.worlds[0].log.set_full(true);
    let refused = block_on(fleet.replicas[0].status(&administrator()));
    assert_eq!(reason(refused), Err("AUDIT_UNAVAILABLE"));
    fleet.worlds[0].log.set_full(false);
    fleet.worlds[0].log.set_broken(true);
    let refused = block_on(fleet.replicas[0].status(&administrator()));
    assert_eq!(reason(refused), Err("AUDIT_UNAVAILABLE"));
}

#[test]
fn every_replica_shows_all_of_them_their_lag_and_who_leads() {
    let fleet = Fleet::with_key(3);
    fleet.beat();
    fleet.set_asleep(2, true);
    fleet.run(fleet.disable(0)).expect("disabled");
    fleet.elapse(Duration::from_secs(1));
    (0..2).for_each(|replica| says(&fleet, replica, &serving()));
    fleet.beat();
    let all = status(&fleet, 1);
    assert_eq!((all.replicas.len(), &all.replica), (3, fleet.replicas[1].replica()));
    assert_eq!(all.generation, fleet.replicas[0].generation());
    assert_eq!(all.lease.expect("a lease").holder, *fleet.replicas[0].replica());
    assert!(view(&fleet, 1, 0).leads && !view(&fleet, 1, 1).leads);
    assert_eq!(view(&fleet, 1, 0).lag, Some(0));
    let behind = view(&fleet, 1, 2);
    assert!(behind.lag > Some(0) && behind.silent_for >= Duration::from_secs(1), "{behind:?}");
}

#[test]
fn a_report_that_nobody_can_read_is_shown_as_unknown() {
    let fleet = Fleet::with_key(2);
    for odd in ["", "[]", "{\"leaving\":3}"] {
        block_on(fleet.replicas[1].beat(true, odd.to_owned())).expect("it beats");
        block_on(fleet.replicas[0].beat(true, "{}".to_owned())).expect("it beats");
        let shown = view(&fleet, 0, 1);
        assert_eq!((shown.state, shown.report), (ReplicaState::Unknown, None), "{odd}");
    }
    says(&fleet, 1, &Report { leaving: Some(true), ..Report::default() });
    says(&fleet, 0, &serving());
    assert_eq!(view(&fleet, 0, 1).state, ReplicaState::Leaving);
    assert_eq!(view(&fleet, 0, 0).state, ReplicaState::Serving);
}

#[test]
fn a_replica_that_is_silent_has_stopped_after_a_fence_and_is_gone_soon_after() {
    let fleet = Fleet::with_key(2);
    (0..2).for_each(|replica| says(&fleet, replica, &serving()));
    fleet.set_asleep(1, true);
    fleet.elapse(Duration::from_secs(10));
    assert_eq!(view(&fleet, 0, 1).state, ReplicaState::Fenced);
    fleet.elapse(LIVE_MAX);
    assert_eq!(status(&fleet, 0).replicas.len(), 1);
}

#[test]
fn a_replica_that_is_cut_off_still_says_how_it_is_and_how_old_that_is() {
    let fleet = Fleet::with_key(2);
    (0..2).for_each(|replica| says(&fleet, replica, &serving()));
    says(&fleet, 1, &serving());
    fleet.set_cut(1, true);
    fleet.turn_clocks(Duration::from_secs(11));
    assert_eq!(reason(fleet.sign(1)), Err("FENCED"));
    let all = status(&fleet, 1);
    assert_eq!((all.replicas.len(), all.heard_ago), (2, Duration::from_secs(11)));
    let own = view(&fleet, 1, 1);
    assert_eq!(own.state, ReplicaState::Fenced);
    assert!(own.not_ready.iter().any(|text| text.contains("for 11 s")), "{own:?}");
    assert_eq!(view(&fleet, 1, 0).state, ReplicaState::Serving, "as it was when it was last heard of");
    let last = fleet.worlds[1].log.events().pop().expect("a record");
    assert_eq!((last.action, last.outcome), (Action::GetStatus, Outcome::Succeeded));
}

#[test]
fn a_clock_that_is_wrong_is_shown_by_the_replica_that_has_it() {
    let fleet = Fleet::with_key(2);
    says(&fleet, 1, &serving());
    fleet.worlds[1].clock.advance(SignedDuration::from_secs(-6));
    fleet.beat();
    assert_eq!(fleet.replicas[1].clock_skew(), Some(SignedDuration::from_secs(-6)));
    fleet.replicas[1].set_report(serving().to_json());
    let own = view(&fleet, 1, 1);
    assert_eq!((own.state, own.lag), (ReplicaState::Fenced, Some(0)));
    assert!(own.not_ready.iter().any(|text| text.contains("6 s behind")), "{own:?}");
}

#[test]
fn an_older_store_and_the_work_that_is_due_are_shown() {
    let fleet = Fleet::with_key(1);
    let older = fleet.store.store.copy();
    fleet.run(fleet.disable(0)).expect("disabled");
    fleet.destroy(0, 1);
    assert_eq!(status(&fleet, 0).work.destructions_due, 0);
    fleet.advance(SignedDuration::from_hours(31 * 24));
    assert_eq!(status(&fleet, 0).work.destructions_due, 1);

    fleet.store.store.fail_over_to(&older);
    let kms = block_on(fleet.worlds[0].join(crate::fleet::settings())).expect("opens");
    let all = block_on(kms.status(&administrator())).expect("in recovery mode too");
    let own = all.replicas.iter().find(|replica| replica.id == *kms.replica()).expect("itself");
    assert!(own.not_ready.iter().any(|text| text.contains("accept-older-store")), "{own:?}");
}
