//! Rotations by schedule, and what comes between: an HSM that is away, a scheduler that dies, days of downtime, clocks
//! that jump, answers that are lost, and keys that are not as one expects.

use std::{
    task::{Context, Waker},
    time::Duration,
};

use futures::{FutureExt as _, executor::block_on};
use kms_core::{
    Clock as _, KeyState, KeyVersion,
    fakes::{HsmFault, administrator},
    key::Timeline,
    replica::LIVE_MAX,
    store::Fault,
    time::SignedDuration,
    verbs::{ChangeVersion, Request, SignJwt},
};

use crate::fleet::{Fleet, Task, creation_with, id, poll_once, reason, update_of};

/// So long that whoever did not beat is taken for dead.
const LONG: Duration = Duration::from_secs(LIVE_MAX.as_secs() + 1);

/// The lead of the keys here.
const LEAD: SignedDuration = SignedDuration::from_hours(1);

/// The period of the keys here.
const PERIOD: SignedDuration = SignedDuration::from_hours(24);

fn hours(count: i64) -> SignedDuration {
    SignedDuration::from_hours(count)
}

fn minutes(count: i64) -> SignedDuration {
    SignedDuration::from_mins(count)
}

/// So many replicas with the key `k`, which rotates daily.
fn daily(count: usize) -> Fleet {
    let fleet = Fleet::of(count);
    let request = creation_with("k", |periods| periods.rotation_period = Some(PERIOD));
    let admin = administrator();
    fleet.run(fleet.replicas[0].create_key(&admin, request, fleet.deadline(0))).expect("created");
    fleet
}

/// The same, when its first rotation falls due.
fn due(count: usize) -> Fleet {
    let fleet = daily(count);
    fleet.advance(PERIOD - LEAD);
    fleet
}

pub(crate) fn timeline(row: &KeyVersion) -> Timeline {
    row.born.as_ref().unwrap_or_else(|| panic!("version {} is not born", row.number)).timeline
}

fn signer(fleet: &Fleet, replica: usize) -> u32 {
    fleet.sign(replica).expect("signs").version
}

/// The key has two versions, of which the second has its whole lead, takes over then, and all is known that the token
/// holds.
fn assert_rotated_once(fleet: &Fleet, replica: usize, case: &str) {
    fleet.beat();
    let rows = fleet.rows();
    assert_eq!(rows.len(), 2, "{case}");
    let known: Vec<_> =
        rows.iter().flat_map(|row| row.earlier_attempts.iter().chain([&row.cka_id])).collect();
    assert!(fleet.store.hsm.ids().iter().all(|cka_id| known.contains(&cka_id)), "{case}: a lost key");
    let [first, second] = [0, 1].map(|place: usize| timeline(&rows[place]));
    assert!(second.activates_at.duration_since(second.published_at) >= LEAD, "{case}: {second:?}");
    assert_eq!(first.retires_at, Some(second.activates_at), "{case}");
    assert_eq!(published(fleet, replica), 2, "{case}");
    assert_eq!(signer(fleet, replica), 1, "{case}");
    let left = second.activates_at.duration_since(fleet.worlds[replica].clock.now());
    fleet.advance(left - SignedDuration::from_secs(1));
    assert_eq!(signer(fleet, replica), 1, "{case}");
    fleet.advance(SignedDuration::from_secs(1));
    assert_eq!(signer(fleet, replica), 2, "{case}");
}

pub(crate) fn published(fleet: &Fleet, replica: usize) -> usize {
    let set = fleet.replicas[replica].published_keys(Some(&id("k"))).expect("fresh").expect("a set");
    let json: serde_json::Value = serde_json::from_slice(&set.body).expect("JSON");
    json["keys"].as_array().expect("keys").len()
}

/// What any replica signs with stands in the key sets of all.
fn assert_what_signs_is_published(fleet: &Fleet, case: &str) {
    for replica in 0..fleet.replicas.len() {
        let kid = fleet.sign(replica).expect(case).kid.to_string();
        for other in &fleet.replicas {
            let set = other.published_keys(Some(&id("k"))).expect("fresh").expect("a set");
            assert!(String::from_utf8_lossy(&set.body).contains(&kid), "{case}: {kid} is not everywhere");
        }
    }
}

#[test]
fn while_the_hsm_cannot_make_the_next_version_the_old_one_signs_on_and_the_rotation_is_made_good() {
    for is_away in [true, false] {
        let fleet = due(2);
        fleet.store.hsm.set_down(is_away);
        for _ in 0..90 {
            if !is_away {
                fleet.store.hsm.set_fault(HsmFault::GenerateFails);
                assert_eq!(signer(&fleet, 1), 1);
            }
            assert_eq!(fleet.tick(0), 0, "nothing succeeds");
            fleet.store.hsm.clear_faults();
            assert_eq!(fleet.rows().len(), 2, "it is begun once");
            fleet.advance(minutes(1));
        }
        fleet.store.hsm.set_down(false);
        assert_eq!(signer(&fleet, 1), 1, "half an hour after it should have stopped");
        fleet.advance(minutes(10));
        assert_eq!((fleet.tick(0), fleet.tick(0)), (1, 0));
        assert_rotated_once(&fleet, 1, &format!("away: {is_away}"));
    }
}

#[test]
fn a_scheduler_that_dies_between_any_two_steps_is_succeeded_by_one_that_makes_one_version_with_its_lead() {
    let mut context = Context::from_waker(Waker::noop());
    for steps in 1.. {
        let fleet = due(3);
        fleet.interleave();
        let mut round: Task<_> = Box::pin(fleet.replicas[0].run_due(fleet.deadline(0)));
        let died = (0..steps).all(|_| round.as_mut().poll(&mut context).is_pending());
        drop(round);
        if !died {
            assert!(steps > 15, "{steps} steps only");
            break;
        }
        fleet.set_asleep(0, true);
        fleet.elapse(LONG);
        for _ in 0..3 {
            fleet.tick(1);
            fleet.tick(2);
            fleet.advance(minutes(1));
        }
        assert_rotated_once(&fleet, 1, &format!("after {steps} steps"));
    }
}

#[test]
fn however_many_days_all_were_down_one_rotation_follows_and_its_lead_is_kept() {
    for days in [1, 10] {
        let fleet = daily(2);
        fleet.advance(PERIOD * days);
        let fleet = fleet.restarted();
        assert_eq!(signer(&fleet, 1), 1);
        let began = fleet.store.clock.now();
        assert_eq!(fleet.tick(0), 1);
        assert_rotated_once(&fleet, 1, &format!("{days} days"));
        for _ in 0..21 {
            fleet.advance(hours(1));
            assert_eq!(fleet.tick(0) + fleet.tick(1), 0, "{days} days: what was missed is not made up for");
        }
        fleet.advance(began.saturating_add(PERIOD).expect("a time").duration_since(fleet.store.clock.now()));
        assert_eq!(fleet.tick(0), 1, "{days} days: the next one a period later");
    }
}

#[test]
fn a_version_made_by_a_replica_whose_clock_has_just_jumped_has_its_lead_by_everybody_elses() {
    for by in [hours(1), hours(-1)] {
        for scheduled in [true, false] {
            let fleet = due(2);
            let is_published_from = fleet.store.clock.now();
            fleet.worlds[0].clock.advance(by);
            // Before the beat that notices.
            let mut rotation: Task<_> = Box::pin(fleet.rotate(0, None));
            let done = if scheduled { fleet.tick(0) } else { usize::from(begins(&mut rotation)) };
            fleet.beat();
            let case = format!("{by:#}, by schedule: {scheduled}, {done} done");
            assert_eq!(reason(fleet.sign(0)), Err("FENCED"), "{case}");
            assert_eq!(fleet.tick(0), 0, "{case}: nor is anything done");
            assert_eq!(signer(&fleet, 1), 1, "{case}");
            fleet.elapse(LONG);
            fleet.tick(1);
            let second = timeline(&fleet.rows()[1]);
            assert!(second.activates_at.duration_since(is_published_from) >= LEAD, "{case}: {second:?}");
            assert_eq!(fleet.rows().len(), 2, "{case}");
        }
    }
}

/// Whether it does its own work and waits for the others, who have no turn. One that does not is refused.
fn begins<T>(task: &mut Task<'_, Result<T, kms_core::Error>>) -> bool {
    let mut outcome = None;
    for _ in 0..3 {
        outcome = outcome.or_else(|| task.as_mut().now_or_never());
    }
    outcome.is_none()
}

/// One that waits for the others, who have no turn, has done its own work.
fn poll_thrice<T>(task: &mut Task<'_, T>) -> usize {
    (0..3).for_each(|_| poll_once(task));
    1
}

#[test]
fn a_version_enabled_by_a_replica_whose_clock_was_just_set_back_has_its_lead_by_everybody_elses() {
    let fleet = Fleet::with_key(2);
    fleet.run(fleet.rotate(0, None)).expect("rotates");
    let change = || ChangeVersion { id: id("k"), number: 2, request: Request::default() };
    let admin = administrator();
    fleet.run(fleet.replicas[0].disable_key_version(&admin, change())).expect("disables");
    fleet.advance(hours(3));
    fleet.worlds[0].clock.advance(hours(-1));
    let mut enabling: Task<_> =
        Box::pin(fleet.replicas[0].enable_key_version(&admin, change(), fleet.deadline(0)));
    let _ = poll_thrice(&mut enabling);
    fleet.beat();
    assert_eq!(signer(&fleet, 1), 1);
    fleet.advance(LEAD - SignedDuration::from_secs(1));
    assert_eq!(signer(&fleet, 1), 1);
}

#[test]
fn a_token_life_shortened_by_a_replica_whose_clock_was_just_set_back_strands_no_token() {
    let fleet = Fleet::of(2);
    let (admin, short) = (administrator(), SignedDuration::from_secs(10));
    let request = creation_with("k", |periods| periods.publish_lead = Some(short));
    fleet.run(fleet.replicas[0].create_key(&admin, request, fleet.deadline(0))).expect("created");
    let long = SignJwt { id: id("k"), claims: b"{}".to_vec(), ttl: Some(hours(1)), typ: None };
    let token = block_on(fleet.replicas[1].sign_jwt(&admin, long, fleet.deadline(1))).expect("a token");
    fleet.worlds[0].clock.advance(hours(-1));
    let shorten = update_of(|periods| periods.max_token_ttl = Some(Some(short)));
    let mut updating: Task<_> = Box::pin(fleet.replicas[0].update_key(&admin, shorten));
    let _ = poll_thrice(&mut updating);
    fleet.beat();
    fleet.run(fleet.rotate(1, None)).expect("rotates");
    let withdrawn_at = timeline(&fleet.rows()[0]).withdrawn_at.expect("withdrawn");
    assert!(withdrawn_at > token.expires_at, "{withdrawn_at} is before {}", token.expires_at);
}

#[test]
fn when_all_clocks_jump_an_hour_something_signs_and_is_published_and_no_version_comes_too_many() {
    let before_and_after_each_event = [
        PERIOD - LEAD - minutes(30),
        PERIOD - LEAD + minutes(10),
        PERIOD - minutes(10),
        PERIOD + minutes(1),
        PERIOD + hours(2),
    ];
    for moment in before_and_after_each_event {
        for by in [hours(1), hours(-1)] {
            let fleet = daily(3);
            let case = format!("{by:#} at {moment:#}");
            let live = |span: SignedDuration| {
                for _ in 0..span.as_mins() / 10 {
                    fleet.advance(minutes(10));
                    (0..3).for_each(|replica| {
                        let _ = fleet.tick(replica);
                    });
                    fleet.beat();
                    assert_what_signs_is_published(&fleet, &case);
                }
            };
            live(moment);
            fleet.advance(by);
            assert_what_signs_is_published(&fleet, &case);
            live(PERIOD * 2);
            let rows = fleet.rows();
            let timelines: Vec<_> = rows.iter().map(timeline).collect();
            for pair in timelines.windows(2) {
                let [before, after] = [pair[0], pair[1]];
                let lead = after.activates_at.duration_since(after.published_at);
                assert!(lead >= LEAD, "{case}: {after:?}");
                assert!(
                    after.activates_at.duration_since(before.activates_at) >= PERIOD,
                    "{case}: {after:?}"
                );
            }
            let passed = fleet.store.clock.now().duration_since(timelines[0].activates_at);
            let expected = 1 + (passed + LEAD).as_hours() / PERIOD.as_hours();
            assert!((expected - 1..=expected).contains(&(rows.len() as i64)), "{case}: {rows:?}");
        }
    }
}

#[test]
fn a_scheduled_rotation_whose_commits_fail_or_lose_their_answers_is_one_rotation() {
    let faults = [Fault::Unknown("lost".to_owned()), Fault::Unavailable("full".to_owned())];
    for fault in faults {
        for commit in 0..3 {
            let fleet = due(2);
            fleet.store.store.fail_after(commit, fault.clone());
            // The third one only tells the store what the token holds.
            assert_eq!(fleet.tick(0), usize::from(commit == 2), "{fault}, commit {commit}");
            for _ in 0..4 {
                fleet.advance(minutes(1));
                fleet.tick(0);
            }
            assert_rotated_once(&fleet, 1, &format!("{fault}, commit {commit}"));
        }
    }
}

#[test]
fn rotating_a_key_that_is_still_being_made_ends_that_birth_and_begins_no_other() {
    let fleet = Fleet::of(2);
    fleet.store.hsm.set_down(true);
    fleet.run(fleet.create(0, "k", None)).expect_err("no HSM");
    fleet.run(fleet.rotate(0, None)).expect_err("still none");
    let elsewhere = reason(fleet.run(fleet.rotate(1, None)));
    assert_eq!(elsewhere, Err("CREATION_IN_PROGRESS"), "its maker lives");
    fleet.store.hsm.set_down(false);
    assert_eq!(fleet.run(fleet.rotate(0, None)).expect("it is made").row.number, 1);
    assert_eq!(signer(&fleet, 1), 1);
    fleet.store.hsm.set_fault(HsmFault::GenerateFails);
    fleet.run(fleet.rotate(0, None)).expect_err("generate fails");
    assert_eq!(fleet.run(fleet.rotate(0, None)).expect("it goes on").row.number, 2);
    assert_eq!(fleet.rows().len(), 2);
    assert_eq!(fleet.run(fleet.rotate(0, None)).expect("another one").row.number, 3);
}

#[test]
fn a_key_whose_only_version_is_disabled_or_destroyed_gets_one_that_is_published_before_it_signs() {
    for destroyed in [false, true] {
        let fleet = Fleet::with_key(2);
        fleet.run(fleet.disable(0)).expect("disabled");
        if destroyed {
            fleet.destroy(0, 1);
            fleet.advance(hours(30 * 24));
            assert_eq!((fleet.tick(0), fleet.store.hsm.count().0), (1, 0));
            fleet.beat();
        }
        let next = fleet.run(fleet.rotate(1, None)).expect("rotates");
        assert_eq!((next.row.number, next.state), (2, Some(KeyState::PreActivation)));
        assert_eq!(published(&fleet, 0), 1);
        let error = fleet.sign(0).expect_err("it does not sign yet");
        let told = format!("version 2 signs from {}", timeline(&next.row).activates_at);
        assert_eq!(error.reason(), "NO_ACTIVE_VERSION");
        assert!(error.to_string().contains(&told), "{error}");
        fleet.advance(LEAD);
        assert_eq!([0, 1].map(|replica| signer(&fleet, replica)), [2, 2]);
    }
}

#[test]
fn of_two_scheduled_destructions_each_is_done_when_it_is_due() {
    let fleet = Fleet::with_key(1);
    fleet.run(fleet.rotate(0, None)).expect("rotates");
    let (kms, admin) = (&fleet.replicas[0], administrator());
    for number in [2, 1] {
        let change = || ChangeVersion { id: id("k"), number, request: Request::default() };
        fleet.run(kms.disable_key_version(&admin, change())).expect("disabled");
        fleet.destroy(0, number);
        fleet.advance(hours(24));
    }
    fleet.advance(hours(28 * 24));
    let destroyed = || fleet.rows().iter().map(|row| row.destroyed_at.is_some()).collect::<Vec<_>>();
    assert_eq!((fleet.tick(0), fleet.tick(0), destroyed()), (1, 0, vec![false, true]));
    fleet.advance(hours(24));
    assert_eq!((fleet.tick(0), fleet.tick(0), destroyed()), (1, 0, vec![true, true]));
}

#[test]
fn a_key_whose_only_version_is_disabled_rotates_by_schedule_too() {
    let fleet = due(2);
    fleet.run(fleet.disable(0)).expect("disabled");
    assert_eq!(fleet.tick(0), 1);
    fleet.advance(LEAD);
    assert_eq!(signer(&fleet, 1), 2);
}
