//! The watch: one timer per worker instead of one per call.
//!
//! While calls are in flight it looks every [`TICK`]: callers whose deadline has passed are told so even if the
//! worker hangs, and a worker whose oldest call has waited too long is reported. An idle worker is not looked at.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    Shared,
    events::Event,
    link::{Link, Patience, Sight},
};

/// How late a caller may learn that its deadline has passed.
const TICK: Duration = Duration::from_millis(10);
/// Silence after which other workers are preferred.
const STALLED_AFTER: Duration = Duration::from_millis(250);
/// Looks at an idle worker before the watch sleeps: waking it again costs a caller a little.
const IDLE_TICKS_MAX: u32 = 100;

/// Watches one worker until it hangs or the director drops it.
pub(super) async fn watch(link: Arc<Link>, shared: Arc<Shared>, events: mpsc::Sender<Event>) {
    loop {
        link.active.notified().await;
        let mut idle_ticks = 0;
        while idle_ticks < IDLE_TICKS_MAX || !link.stop_watching() {
            tokio::time::sleep(TICK).await;
            match link.look(Instant::now(), STALLED_AFTER, &patience(&shared)) {
                Sight::Idle => idle_ticks += 1,
                Sight::Busy => idle_ticks = 0,
                Sight::Hung => {
                    // The director kills it, which ends this task too.
                    let _ = events.send(Event::Hung { number: link.number, pid: link.pid }).await;
                    return;
                }
            }
        }
    }
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
