//! Closed-loop load: so many callers, each with one call in flight.

use std::{
    fmt,
    future::Future,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

/// How the service is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One signature (or wrap) a call, so many calls at once.
    Unary(usize),
    /// So many of them a call, so many calls at once.
    Batch {
        /// Signatures a call.
        items: usize,
        /// Calls at once.
        in_flight: usize,
    },
}

/// What came of it.
pub(crate) struct Outcome {
    /// Calls that were answered.
    pub(crate) calls: u64,
    /// From the first call to the last answer.
    pub(crate) elapsed: Duration,
    /// Latencies of the calls in microseconds.
    pub(crate) latencies_us: Histogram<u64>,
}

impl Shape {
    pub(crate) const ALL: [Self; 4] =
        [Self::Unary(1), Self::Unary(16), Self::Unary(64), Self::Batch { items: 16, in_flight: 4 }];

    /// Signatures a call.
    pub(crate) fn items(self) -> usize {
        match self {
            Self::Unary(_) => 1,
            Self::Batch { items, .. } => items,
        }
    }

    /// Calls at once.
    pub(crate) fn in_flight(self) -> usize {
        match self {
            Self::Unary(in_flight) | Self::Batch { in_flight, .. } => in_flight,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unary(in_flight) => write!(f, "unary, {in_flight} in flight"),
            Self::Batch { items, in_flight } => write!(f, "batches of {items}, {in_flight} in flight"),
        }
    }
}

/// Runs `in_flight` callers for `span`, after a tenth of it to warm up. `caller` makes one caller's call.
pub(crate) async fn run<C, F>(
    in_flight: usize,
    span: Duration,
    caller: impl Fn(usize) -> C,
) -> anyhow::Result<Outcome>
where
    C: FnMut() -> F + Send + 'static,
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let started = Instant::now();
    let counted_from = started + span / 10;
    let until = counted_from + span;
    let mut callers = JoinSet::new();
    for number in 0..in_flight {
        let mut call = caller(number);
        callers.spawn(async move {
            let mut latencies_us = Histogram::<u64>::new(3)?;
            loop {
                let called = Instant::now();
                if called >= until {
                    return anyhow::Ok(latencies_us);
                }
                call().await?;
                if called >= counted_from {
                    latencies_us.record(u64::try_from(called.elapsed().as_micros())?)?;
                }
            }
        });
    }
    let mut latencies_us = Histogram::<u64>::new(3)?;
    while let Some(caller) = callers.join_next().await {
        latencies_us.add(caller??)?;
    }
    Ok(Outcome { calls: latencies_us.len(), elapsed: counted_from.elapsed(), latencies_us })
}
