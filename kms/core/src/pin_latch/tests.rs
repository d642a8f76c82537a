//! The state machine as a table, and two processes that race for one latch.

use std::sync::Arc;

use futures::executor::block_on;

use super::*;
use crate::fakes::MemoryStore;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a time")
}

fn by(name: &str, second: i64) -> Option<Try> {
    Some(Try { by: Holder::new(name), since: at(second) })
}

fn unproven(trying: Option<Try>) -> State {
    State::Unproven { trying }
}

fn proven(trying: Option<Try>, deaths: u32) -> State {
    State::Proven { trying, deaths }
}

fn refused(text: &str) -> State {
    State::Refused { text: text.to_owned(), at: at(0) }
}

const FLEET: Others = Others::AliveFor(SignedDuration::from_secs(30));

#[test]
fn whoever_asks_tries_waits_or_is_refused() {
    // Who else may live, what stands there, and what follows: the row, and the answer's first letter.
    let cases = [
        (Others::Dead, unproven(None), Some(unproven(by("me", 100))), "Y"),
        (Others::Dead, unproven(by("me", 99)), Some(unproven(by("me", 100))), "Y"),
        (Others::Dead, unproven(by("other", 99)), None, "N"),
        (FLEET, unproven(by("other", 70)), None, "B"),
        (FLEET, unproven(by("other", 69)), None, "N"),
        (FLEET, unproven(by("other", 131)), None, "N"),
        (Others::Dead, proven(None, 1), Some(proven(by("me", 100), 1)), "Y"),
        (Others::Dead, proven(by("other", 99), 0), Some(proven(by("me", 100), 1)), "Y"),
        (FLEET, proven(by("other", 99), 0), None, "B"),
        (FLEET, proven(by("other", 69), 0), Some(proven(by("me", 100), 1)), "Y"),
        (FLEET, refused("why"), None, "N"),
        (Others::Dead, refused("why"), None, "N"),
    ];
    for (others, state, row, answer) in cases {
        let (written, taken) = match state.take(&Holder::new("me"), others, at(100)) {
            Step::Write(state, taken) => (Some(state), taken),
            Step::Answer(taken) => (None, taken),
        };
        assert_eq!(written, row, "{others:?} {state:?}");
        assert!(format!("{taken:?}").starts_with(answer), "{others:?} {state:?}: {taken:?}");
    }
}

#[test]
fn the_last_try_in_a_row_that_was_left_behind_latches_and_says_what_to_do() {
    let step = proven(by("other", 99), DEATHS_MAX - 1).take(&Holder::new("me"), Others::Dead, at(100));
    let Step::Write(State::Refused { text, at: since }, Taken::No(answer)) = step else { panic!("{step:?}") };
    assert_eq!((&text, since), (&answer, at(100)));
    assert!(text.contains("other began at") && text.contains("kms hsm login"), "{text}");
}

#[test]
fn what_came_of_a_try_decides_the_next() {
    use Outcome::{Died, NotTried, Succeeded};
    let me = |second| by("me", second);
    let wrong = Outcome::Refused("wrong".to_owned());
    let died = Died("signal: 11".to_owned());
    let cases = [
        (unproven(me(9)), &Succeeded, State::PROVEN),
        (unproven(me(9)), &NotTried, State::UNTRIED),
        (unproven(me(9)), &wrong, refused("wrong")),
        (proven(me(9), 1), &Succeeded, State::PROVEN),
        (proven(me(9), 1), &NotTried, proven(None, 1)),
        (proven(me(9), 0), &died, proven(None, 1)),
        (proven(me(9), 0), &wrong, refused("wrong")),
        // Somebody took it over, or it was settled before.
        (proven(by("other", 9), 1), &Succeeded, proven(by("other", 9), 1)),
        (proven(by("other", 9), 1), &died, proven(by("other", 9), 1)),
        (proven(by("other", 9), 1), &wrong, refused("wrong")),
        (refused("before"), &Succeeded, refused("before")),
        (proven(None, 0), &died, proven(None, 0)),
    ];
    for (state, outcome, expected) in cases {
        let settled = state.clone().settled(&Holder::new("me"), outcome, at(0));
        assert_eq!(settled, expected, "{state:?} {outcome:?}");
    }
    for state in [unproven(me(9)), proven(me(9), DEATHS_MAX - 1)] {
        let settled = state.settled(&Holder::new("me"), &died, at(0));
        let State::Refused { text, .. } = settled else { panic!("{settled:?}") };
        assert!(text.contains("signal: 11") && text.contains("kms hsm login"), "{text}");
    }
}

#[test]
fn a_wrong_pin_is_tried_once_by_a_fleet_that_starts_again_and_again() {
    let store = Arc::new(MemoryStore::default());
    let mut tries = 0;
    for start in 0..100 {
        let fleet: Vec<_> = (0..3).map(|n| latch(&store, &format!("{start}/{n}"), FLEET)).collect();
        let asked = fleet.iter().map(|latch| latch.take("serial", at(start)));
        let taken = block_on(futures::future::join_all(asked));
        for (latch, taken) in fleet.iter().zip(taken) {
            if taken == Ok(Taken::Yes) {
                tries += 1;
                let wrong = Outcome::Refused("wrong".to_owned());
                let text = block_on(latch.settle("serial", &wrong, at(start))).expect("it writes");
                assert_eq!(text.as_deref(), Some("wrong"));
            }
        }
    }
    assert_eq!(tries, 1);
    // Another PIN, by its number, is another matter; so is another token.
    let next = PinLatch { pin_generation: 2, ..latch(&store, "next", FLEET) };
    assert_eq!(block_on(next.take("serial", at(0))), Ok(Taken::Yes));
    assert_eq!(block_on(latch(&store, "x", FLEET).take("another", at(0))), Ok(Taken::Yes));
}

#[test]
fn a_proven_pin_that_was_changed_costs_one_try_and_a_killed_server_none() {
    let store = Arc::new(MemoryStore::default());
    let log_in = |name: &str, outcome: Option<Outcome>| {
        let latch = latch(&store, name, Others::Dead);
        let taken = block_on(latch.take("serial", at(0))).expect("it writes");
        if let (Taken::Yes, Some(outcome)) = (&taken, outcome) {
            block_on(latch.settle("serial", &outcome, at(0))).expect("it writes");
        }
        taken
    };
    assert_eq!(log_in("first", Some(Outcome::Succeeded)), Taken::Yes);
    for killed in 0..10 {
        assert_eq!(log_in(&format!("killed-{killed}"), None), Taken::Yes);
        assert_eq!(log_in(&format!("healed-{killed}"), Some(Outcome::Succeeded)), Taken::Yes);
    }
    assert_eq!(log_in("changed", Some(Outcome::Refused("wrong".to_owned()))), Taken::Yes);
    assert_eq!(log_in("again", Some(Outcome::Succeeded)), Taken::No("wrong".to_owned()));
}

#[test]
fn of_two_that_see_a_free_latch_at_once_one_takes_it() {
    let store = Arc::new(MemoryStore::default());
    let (one, two) = (latch(&store, "one", FLEET), latch(&store, "two", FLEET));
    // Both have read before either writes.
    store.interleave();
    let taken = block_on(async { futures::join!(one.take("serial", at(0)), two.take("serial", at(0))) });
    let (Ok(one), Ok(two)) = taken else { panic!("{taken:?}") };
    let busy = |taken: &Taken| matches!(taken, Taken::Busy(_));
    assert!(one == Taken::Yes && busy(&two) || two == Taken::Yes && busy(&one), "{one:?} {two:?}");
}

#[test]
fn an_answer_that_was_lost_is_looked_up_and_not_guessed() {
    let store = Arc::new(MemoryStore::default());
    let latch = latch(&store, "me", FLEET);
    store.lose_next_answer();
    assert_eq!(block_on(latch.take("serial", at(0))), Ok(Taken::Yes));
    store.lose_next_answer();
    let settled = block_on(latch.settle("serial", &Outcome::Succeeded, at(1)));
    assert_eq!(settled, Ok(None));
    let place = latch.place("serial");
    assert_eq!(block_on(store.pin_latch(&place)), Ok(State::PROVEN));
    store.fail_next(Fault::Unavailable("full".to_owned()));
    assert!(block_on(latch.take("serial", at(2))).is_err(), "not without a durable row");
}

#[test]
fn a_login_on_purpose_clears_the_latch_or_leaves_it_refused() {
    let store = Arc::new(MemoryStore::default());
    let operator = latch(&store, "operator", Others::Dead);
    let server = latch(&store, "server", Others::Dead);
    let wrong = || Outcome::Refused("wrong".to_owned());
    let on_purpose = |outcome: Option<Outcome>| {
        let before = block_on(operator.take_on_purpose("serial", at(0))).expect("it writes");
        if let Some(outcome) = outcome {
            block_on(operator.end_on_purpose("serial", before, outcome, at(0))).expect("it writes");
        }
        block_on(server.store.pin_latch(&server.place("serial"))).expect("it reads")
    };
    assert_eq!(on_purpose(Some(Outcome::NotTried)), State::UNTRIED);
    assert_eq!(on_purpose(Some(wrong())), refused("wrong"));
    assert_eq!(on_purpose(Some(Outcome::NotTried)), refused("wrong"));
    assert_eq!(on_purpose(Some(Outcome::Succeeded)), State::PROVEN);
    let cut_off = on_purpose(None);
    assert!(matches!(&cut_off, State::Refused { text, .. } if text.contains("cut off")), "{cut_off:?}");
    assert!(matches!(block_on(server.take("serial", at(1))), Ok(Taken::No(_))));
}

fn latch(store: &Arc<MemoryStore>, name: &str, others: Others) -> PinLatch<Arc<MemoryStore>> {
    PinLatch::new(Arc::clone(store), 1, Holder::new(name), others)
}
