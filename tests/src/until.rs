//! Waiting for a condition.

use std::time::{Duration, Instant};

use anyhow::bail;

/// How often the condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Asks `condition` again and again until it answers with `Some`, and fails, naming `what`, when it has not
/// within `patience`.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    mut condition: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tick.tick().await;
        if let Some(answer) = condition().await? {
            return Ok(answer);
        }
        if start.elapsed() > patience {
            bail!("waited {patience:?} in vain until {what}");
        }
    }
}
