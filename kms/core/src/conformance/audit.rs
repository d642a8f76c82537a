//! What every [`AuditLog`] must do, as far as it can be seen through the port.

use futures::future::join_all;

use crate::{
    Action,
    audit::{AuditLog, Event, OperationId, Outcome, Phase},
    time::Timestamp,
};

/// Records `writers` batches at once, of 1 to 4 events, and drops reservations in between. Returns every event
/// that the log acknowledged, in the order within each batch: the implementation's test reads them back.
pub async fn run<A: AuditLog>(log: &A, writers: u64) -> Vec<Event> {
    for _ in 0..100_000 {
        drop(log.reserve().expect("a reservation that is dropped gives its place back"));
    }
    let batches = (0..writers).map(|writer| async move {
        let events: Vec<_> = (0..1 + writer % 4).map(|place| event(writer * 4 + place)).collect();
        let records = events.iter().map(|event| (log.reserve().expect("a place"), event.clone())).collect();
        log.record(records).await.expect("recorded");
        events
    });
    let mut acknowledged: Vec<Event> = join_all(batches).await.into_iter().flatten().collect();
    let later = event(writers * 4);
    log.record_later(log.reserve().expect("a place"), later.clone());
    let last = event(writers * 4 + 1);
    log.record(vec![(log.reserve().expect("a place"), last.clone())]).await.expect("recorded");
    acknowledged.extend([later, last]);
    acknowledged
}

fn event(number: u64) -> Event {
    Event {
        at: Timestamp::UNIX_EPOCH,
        operation: OperationId::new(1, number),
        phase: Phase::Outcome,
        caller: "system:conformance".into(),
        action: Action::Sign,
        key: None,
        version: Some(1),
        target: Some("a-target".into()),
        outcome: Outcome::Succeeded,
        reason: None,
    }
}
