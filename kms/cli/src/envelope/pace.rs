//! How fast a campaign sends files, so that callers who wait for the HSM do not notice it.

use std::time::Duration;

use kms_client::envelope::BATCH_ITEMS_MAX;
use tokio::time::{Instant, sleep_until};

/// How fast files are sent.
pub(super) struct Pace {
    /// Per second.
    rate: Option<u32>,
    started: Instant,
    sent: u64,
}

impl Pace {
    pub(super) fn of(rate: Option<u32>) -> Self {
        Self { rate, started: Instant::now(), sent: 0 }
    }

    /// How many go at once: never more than in a second.
    pub(super) fn batch_len(&self) -> usize {
        self.rate.map_or(BATCH_ITEMS_MAX, |rate| BATCH_ITEMS_MAX.min(rate as usize))
    }

    /// Waits until `count` more may go.
    pub(super) async fn wait(&mut self, count: usize) {
        sleep_until(self.started + self.due()).await;
        self.sent += count as u64;
    }

    /// When the next ones may go, from the start.
    fn due(&self) -> Duration {
        self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(self.sent as f64 / f64::from(rate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_go_at_once_than_in_a_second() {
        let lens = [None, Some(1), Some(50), Some(1_000)].map(|rate| Pace::of(rate).batch_len());
        assert_eq!(lens, [128, 1, 50, 128]);
    }

    #[test]
    fn the_rate_is_kept_over_all_batches() {
        let due = |rate, sent| Pace { sent, ..Pace::of(rate) }.due();
        assert_eq!(due(None, 1_000), Duration::ZERO);
        assert_eq!((due(Some(10), 0), due(Some(10), 45)), (Duration::ZERO, Duration::from_millis(4_500)));
    }
}
