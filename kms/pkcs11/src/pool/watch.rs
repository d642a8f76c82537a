//! The watch: one timer per worker instead of one per call.
//!
//! While calls are in flight it looks every [`TICK`]: callers whose deadline has passed are told so even if the
//! worker hangs, those that wait in the queue too (something is in flight while anything waits), and a worker whose oldest call has waited too long is reported. An idle worker is sent a canary now
//! and then, for a link that dies while nobody uses it should not be found by a caller.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use kms_core::lane::Lane;
use tokio::{sync::mpsc, time::timeout};

use super::{
    Shared,
    call::{Call, NewCall},
    events::Event,
    link::{Link, Patience, Sight},
    queue::Entry,
};
use crate::wire::Operation;

/// How late a caller may learn that its deadline has passed.
const TICK: Duration = Duration::from_millis(10);
/// Silence after which other workers are preferred.
const STALLED_AFTER: Duration = Duration::from_millis(250);
/// Who sends canaries, to the queue.
const KEEP_ALIVE: &str = "system:keep-alive";
/// Looks at an idle worker before the watch sleeps: waking it again costs a caller a little.
const IDLE_TICKS_MAX: u32 = 100;

/// Watches one worker until it hangs, has lost its HSM link, has finished its last call, or the director drops it.
pub(super) async fn watch(link: Arc<Link>, shared: Arc<Shared>, events: mpsc::Sender<Event>) {
    let (number, pid) = (link.number, link.pid);
    loop {
        if timeout(shared.config.keep_alive, link.active.notified()).await.is_err() {
            keep_alive(&link, &shared);
            continue;
        }
        let (mut idle_ticks, mut stalled) = (0, false);
        while idle_ticks < IDLE_TICKS_MAX || !link.stop_watching() {
            shared.queue.take_late(Instant::now()).into_iter().for_each(Call::end_late);
            let sight = link.look(Instant::now(), STALLED_AFTER, &patience(&shared));
            if link.is_lost() {
                let _ = events.send(Event::Lost { number, pid }).await;
                return;
            }
            if link.is_drained() {
                let _ = events.send(Event::Drained { number, pid }).await;
                return;
            }
            match sight {
                Sight::Idle => idle_ticks += 1,
                Sight::Busy => idle_ticks = 0,
                Sight::Hung => {
                    // The director kills it, which ends this task too.
                    let _ = events.send(Event::Hung { number, pid }).await;
                    return;
                }
            }
            if mem::replace(&mut stalled, link.is_stalled()) != stalled {
                let _ = events.send(Event::Stalled).await;
            }
            tokio::time::sleep(TICK).await;
        }
    }
}

/// Nobody waits for the answer: a worker that cannot give one ends, or is found hanging.
fn keep_alive(link: &Link, shared: &Shared) {
    let (operation, caller) = (Operation::Check, KEEP_ALIVE.into());
    let deadline = Instant::now() + shared.config.call_timeout;
    let entry = Entry { lane: Lane::Manage, caller: &caller, operation: &operation, deadline };
    // A full queue is traffic enough.
    let Ok(place) = shared.queue.enter(&entry, 1) else { return };
    let _ = link.submit(NewCall::new(place, operation, deadline).awaited(None));
}

/// A worker may wait for the lock that a change of the token holds, in whichever worker that runs.
fn patience(shared: &Shared) -> Patience {
    let config = &shared.config;
    let timeout = if shared.queue.is_changing() { config.change_timeout } else { config.call_timeout };
    Patience {
        timeout,
        since: shared.queue.last_change(),
        longest: config.change_timeout + config.call_timeout,
        many_sessions: config.sessions_per_worker > 1,
    }
}
