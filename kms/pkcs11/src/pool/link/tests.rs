//! Calls and their worker's end, without any process.

use kms_core::hsm::{CkaId, NewKey, Usage};
use tokio::sync::oneshot;

use super::{
    super::{
        call::NewCall,
        queue::{Queue, tests::entered},
    },
    *,
};
use crate::wire::Operation;

fn call(queue: &Queue, operation: Operation) -> NewCall {
    let place = entered(queue, &operation);
    NewCall::new(place, operation, Instant::now() + Duration::from_secs(600))
}

fn sent(link: &Link, call: NewCall) -> oneshot::Receiver<Reply> {
    let (reply, answer) = oneshot::channel();
    assert!(link.submit(call.awaited(Some(reply))).is_none(), "it is open");
    answer
}

#[test]
fn a_change_of_the_token_is_never_made_twice() {
    let (link, queue) = (Link::new(1, 1, 1), Queue::new(9));
    let spec = kms_core::Algorithm::Es256.key_spec();
    let new = NewKey { id: CkaId::from_bytes([0; 16]), label: String::new(), spec, usage: Usage::Sign };
    for operation in [Operation::Generate(new), Operation::Destroy(CkaId::from_bytes([0; 16]))] {
        let link = Link::new(1, 1, 1);
        let answer = sent(&link, call(&queue, operation));
        link.close("dead");
        let reply = answer.blocking_recv();
        assert!(matches!(reply, Ok(Reply::Answered(Err(Fault::Unavailable(_))))));
    }
    link.retire();
    let refused = link.submit(call(&queue, Operation::Check).awaited(None));
    assert!(refused.is_some(), "a retired worker takes nothing");
}

#[test]
fn a_call_that_two_workers_may_have_died_of_fails_and_those_behind_it_go_on() {
    let queue = Queue::new(1000);
    let mut calls: Vec<_> = (0..40).map(|_| call(&queue, Operation::Check)).collect();
    for ending in 1..=3_usize {
        let link = Link::new(1, 1, 1);
        let answers: Vec<_> = calls.drain(..).map(|call| sent(&link, call)).collect();
        link.close("dead");
        let mut failed = 0;
        for answer in answers {
            match answer.blocking_recv() {
                Ok(Reply::Again(call)) => calls.push(call),
                Ok(Reply::Answered(Err(_))) => failed += 1,
                _ => panic!("nobody answered"),
            }
        }
        assert_eq!(failed, if ending == 2 { SUSPECTS_MAX } else { 0 }, "at ending {ending}");
    }
    assert_eq!(calls.len(), 40 - SUSPECTS_MAX);
    assert_eq!(queue.len(), 24, "those that failed gave their places back");
}

#[test]
fn changes_that_end_all_the_time_do_not_hide_a_hung_worker() {
    let (link, queue, began) = (Link::new(1, 1, 1), Queue::new(9), Instant::now());
    let _answer = sent(&link, call(&queue, Operation::Check));
    let look = |after: Duration| {
        let patience = Patience {
            timeout: Duration::from_secs(5),
            since: began + after,
            longest: Duration::from_secs(65),
            many_sessions: false,
        };
        link.look(began + after, Duration::from_secs(1), &patience)
    };
    assert_eq!(look(Duration::from_secs(60)), Sight::Busy, "it waits for others' changes");
    assert_eq!(look(Duration::from_secs(70)), Sight::Hung);
}
