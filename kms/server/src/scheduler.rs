//! What nobody asks for: finishing births that were cut short, then whatever is due, then letting the token follow
//! the epoch where it could not at once; and the audit of attributes.
//!
//! The work and its rules are core's; here is only the clockwork. A failure is core's to log, comes up again at
//! the next tick, and ends nothing. Cutting the work off at any point is safe: it is all resumable.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kms_core::{replica::BEAT_INTERVAL, time::Deadline};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::{Service, report::Reporter};

/// From one look at what is due to the next; the first is at start.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long one round may wait for the HSM.
const ROUND_TIMEOUT: Duration = Duration::from_secs(60);

/// From one look at which keys were used to the next; what is newer than a minute is not written again.
const USES_INTERVAL: Duration = Duration::from_secs(10);

/// How long one attribute audit may take: it reads the whole token.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(600);
/// An audit that failed is tried again after this time.
const AUDIT_RETRY: Duration = Duration::from_secs(60);

/// Audits the attributes of all keys at once, and then after each `period`. Runs until it is dropped.
pub(crate) async fn audit_attributes(service: Arc<Service>, period: Duration) {
    loop {
        let audited = service.audit_attributes(Deadline::at(Instant::now() + AUDIT_TIMEOUT)).await;
        let pause = match audited {
            Ok(_) => period,
            Err(error) => {
                tracing::warn!(%error, "the attribute audit failed; it will be tried again");
                period.min(AUDIT_RETRY)
            }
        };
        sleep(pause).await;
    }
}

/// Writes now and then when keys were used last: what a server that dies has not written is a minute old at most. Runs
/// until it is dropped.
pub(crate) async fn write_uses(service: Arc<Service>) {
    loop {
        sleep(USES_INTERVAL).await;
        service.write_uses().await;
    }
}

/// Beats about once a second, and as soon as the store may have changed: without it the fence goes up. Runs until it is
/// dropped.
pub(crate) async fn beat(service: Arc<Service>, reporter: Reporter) {
    let beats = async {
        loop {
            if let Err(error) = service.beat(true, reporter.report(&service)).await {
                tracing::warn!(%error, "the database did not confirm what this server knows");
                sleep(BEAT_INTERVAL).await;
                continue;
            }
            service.changed(BEAT_INTERVAL).await;
        }
    };
    // A beat may wait long for the database, just when somebody asks how this server is.
    let reports = async {
        loop {
            sleep(BEAT_INTERVAL).await;
            service.set_report(reporter.report(&service));
        }
    };
    tokio::join!(beats, reports);
}

/// Runs until it is dropped.
pub(crate) async fn run(service: Arc<Service>) {
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let deadline = || Deadline::at(Instant::now() + ROUND_TIMEOUT);
        let births = service.resume_births(deadline()).await;
        let due = service.run_due(deadline()).await;
        if let Err(error) = service.follow_epoch(deadline()).await {
            tracing::warn!(pending = service.epoch_pending(), %error, "the HSM does not hold the epoch yet");
        }
        if births + due > 0 {
            tracing::info!(births, due, "scheduled work done");
        }
    }
}
