//! Who may not work any more, and who may again.

use std::time::Duration;

use futures::{FutureExt as _, executor::block_on};
use kms_core::{
    Kms, Store as _,
    audit::Outcome,
    caller::{KeyScope, OwnRole, Role},
    error::Kind,
    fakes::{FakeKms, HsmFault, administrator, soon},
    store::{Transaction, Write},
    time::SignedDuration,
    verbs::CreateAccessToken,
};

use crate::fleet::{Fleet, Task, poll_once, reason, settings, to_sign};

fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn why(kms: &FakeKms) -> String {
    block_on(kms.check(soon())).fence.expect_err("fenced")
}

fn token(name: &str) -> CreateAccessToken {
    CreateAccessToken::new(name, OwnRole { role: Role::User, keys: KeyScope::All })
}

#[test]
fn a_replica_that_is_cut_off_stops_after_a_fence_says_why_and_recovers_alone() {
    let fleet = Fleet::with_key(2);
    fleet.beat();
    fleet.set_cut(1, true);
    fleet.elapse(secs(9));
    fleet.sign(1).expect("still in time");
    fleet.elapse(secs(1));
    let error = fleet.sign(1).expect_err("fenced");
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "FENCED"));
    assert!(error.retry_delay().is_some());
    assert!(why(&fleet.replicas[1]).contains("for 10 s"), "{}", why(&fleet.replicas[1]));
    assert_eq!(reason(block_on(fleet.disable(1))), Err("FENCED"));
    assert_eq!(reason(fleet.replicas[1].check_fence()), Err("FENCED"));
    fleet.sign(0).expect("the other one works");
    fleet.set_cut(1, false);
    fleet.beat();
    fleet.sign(1).expect("it works again");
    assert_eq!(block_on(fleet.replicas[1].check(soon())).fence, Ok(()));
}

#[test]
fn beats_without_an_answer_confirm_nothing_and_a_commit_of_our_own_neither() {
    let fleet = Fleet::with_key(1);
    fleet.turn_clocks(secs(9));
    block_on(fleet.replicas[0].create_access_token(&administrator(), token("t"))).expect("made");
    fleet.turn_clocks(secs(2));
    assert_eq!(reason(fleet.sign(0)), Err("FENCED"));
}

#[test]
fn a_signature_is_withheld_from_a_process_that_slept_over_it_and_the_book_says_so() {
    let fleet = Fleet::with_key(2);
    let (kms, admin) = (&fleet.replicas[1], administrator());
    fleet.worlds[1].hsm.set_fault(HsmFault::SignWaits);
    let mut signing: Task<_> = Box::pin(fleet.signing(1));
    poll_once(&mut signing);
    fleet.set_asleep(1, true);
    fleet.elapse(secs(11));
    assert_eq!(reason(block_on(signing)), Err("FENCED"));
    let last = fleet.worlds[1].log.events().pop().expect("a record");
    assert_eq!((last.outcome, last.reason), (Outcome::Failed, Some("FENCED".into())));

    fleet.set_asleep(1, false);
    fleet.beat();
    fleet.worlds[1].hsm.set_fault(HsmFault::SignWaits);
    let deadline = fleet.deadline(1);
    let mut batch: Task<_> = Box::pin(kms.batch_sign(&admin, vec![to_sign(), to_sign()], deadline));
    poll_once(&mut batch);
    fleet.turn_clocks(secs(11));
    for item in block_on(batch).expect("a batch") {
        assert_eq!(reason(item), Err("FENCED"));
    }
    let records = fleet.worlds[1].log.events();
    for record in &records[records.len() - 2..] {
        assert_eq!((record.outcome, record.reason.as_deref()), (Outcome::Failed, Some("FENCED")));
    }
}

#[test]
fn a_change_that_was_committed_is_answered_for_by_a_process_that_slept_over_it() {
    let fleet = Fleet::with_key(2);
    fleet.interleave();
    let mut disabling: Task<_> = Box::pin(fleet.disable(1));
    poll_once(&mut disabling);
    fleet.set_asleep(1, true);
    fleet.turn_clocks(secs(11));
    fleet.run(disabling).expect("a fact");
    fleet.beat();
    assert_eq!(reason(fleet.sign(0)), Err("NO_ACTIVE_VERSION"));
    assert_eq!(reason(fleet.sign(1)), Err("FENCED"));
}

#[test]
fn a_disable_that_was_acknowledged_is_in_effect_on_every_replica_also_on_one_that_is_cut_off() {
    for cut in [false, true] {
        let fleet = Fleet::with_key(3);
        fleet.beat();
        fleet.set_cut(2, cut);
        let before = kms_core::Clock::instant(&fleet.store.clock);
        fleet.run(fleet.disable(0)).expect("disabled");
        let took = kms_core::Clock::instant(&fleet.store.clock) - before;
        assert_eq!(reason(fleet.sign(1)), Err("NO_ACTIVE_VERSION"));
        let expected = if cut { "FENCED" } else { "NO_ACTIVE_VERSION" };
        assert_eq!(reason(fleet.sign(2)), Err(expected));
        assert_eq!(took >= secs(10), cut, "{took:?}");
    }
}

#[test]
fn a_store_that_went_backwards_fences_until_a_restart_whose_epoch_decides() {
    let fleet = Fleet::with_key(2);
    let standby = fleet.store.store.copy();
    fleet.run(fleet.disable(0)).expect("disabled");
    fleet.store.store.fail_over_to(&standby);
    fleet.beat();
    for replica in [0, 1] {
        assert_eq!(reason(fleet.sign(replica)), Err("FENCED"));
        assert!(why(&fleet.replicas[replica]).contains("restart"), "{}", why(&fleet.replicas[replica]));
    }
    // Others bring the generation up again: what was lost does not come back.
    for name in ["a", "b", "c", "d"] {
        commit_token(&fleet, name);
    }
    fleet.elapse(secs(2));
    assert_eq!(reason(fleet.sign(0)), Err("FENCED"));
    let restarted = block_on(fleet.worlds[0].join(settings())).expect("opens");
    assert!(restarted.recovery().is_some(), "the token has seen a newer store");
}

#[test]
fn commits_that_a_failover_put_in_the_place_of_others_under_the_same_number_are_seen() {
    let fleet = Fleet::with_key(1);
    let kms = &fleet.replicas[0];
    let standby = fleet.store.store.copy();
    block_on(kms.create_access_token(&administrator(), token("lost"))).expect("made");
    fleet.set_cut(0, true);
    fleet.beat();
    fleet.store.store.fail_over_to(&standby);
    commit_token(&fleet, "other");
    let before = kms.generation();
    fleet.set_cut(0, false);
    fleet.beat();
    assert_eq!(kms.generation(), before, "the same number");
    let tokens = block_on(kms.list_access_tokens(&administrator())).expect("tokens");
    let names: Vec<_> = tokens.iter().map(|token| token.name.as_str()).collect();
    assert_eq!(names, ["other"]);
}

fn commit_token(fleet: &Fleet, name: &str) {
    let made = kms_core::fakes::a_token(name, Role::User);
    let transaction = Transaction::new("by another server", vec![Write::InsertAccessToken(made)]);
    block_on(fleet.store.store.commit(transaction)).expect("committed");
}

#[test]
fn a_clock_that_differs_by_more_than_five_seconds_fences_at_once_and_until_it_is_right() {
    let fleet = Fleet::with_key(2);
    for (by, text) in [(6, "6 s ahead"), (-6, "6 s behind")] {
        let by = SignedDuration::from_secs(by);
        fleet.worlds[1].clock.advance(by);
        fleet.beat();
        assert_eq!(reason(fleet.sign(1)), Err("FENCED"));
        assert!(why(&fleet.replicas[1]).contains(text), "{}", why(&fleet.replicas[1]));
        assert_eq!(reason(fleet.replicas[1].published_keys(None)), Err("FENCED"));
        fleet.sign(0).expect("the other one works");
        fleet.worlds[1].clock.advance(-by);
        fleet.beat();
        fleet.sign(1).expect("it works again");
    }
    fleet.worlds[1].clock.advance(SignedDuration::from_secs(5));
    fleet.beat();
    fleet.sign(1).expect("as much is allowed");
    fleet.store.store.shift_clock(SignedDuration::from_secs(-6));
    fleet.beat();
    assert_eq!([0, 1].map(|replica| reason(fleet.sign(replica))), [Err("FENCED"); 2], "the store's is wrong");
    let refused = block_on(fleet.worlds[0].join(settings())).map(|_: Kms<_, _, _, _>| ());
    assert_eq!(reason(refused), Err("FENCED"), "nobody starts so");
}

#[test]
fn a_replica_that_knows_more_than_its_last_beat_said_does_not_wait_for_the_next_one() {
    let fleet = Fleet::with_key(2);
    fleet.beat();
    let waits = |replica: usize| fleet.replicas[replica].changed(secs(1)).now_or_never().is_none();
    assert!(waits(0) && waits(1), "everything was said");
    let mut disabling: Task<'_, _> = Box::pin(fleet.disable(0));
    poll_once(&mut disabling);
    assert!(!waits(0), "who waits for this replica has not heard of its own commit");
    // The other one hears of it by something else than its beat, and says so.
    assert!(waits(1));
    block_on(fleet.replicas[1].run_due(soon()));
    assert!(waits(1), "it has said that it has it");
    fleet.run(disabling).expect("disabled");
}
