//! `--scale`: 1,000 keys in the token against 10, and the same ten of them at work. Signing must not notice; a start
//! may take up to three seconds. What each worker pays once for each key after its start, the search for its
//! handle, is linear in the number of objects on SoftHSM, and is paid before the measurement.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use crate::{
    call,
    load::{self, Outcome},
    service::Bench,
};

/// Callers at once.
const IN_FLIGHT: usize = 4;
/// Until every worker has the handle of every key at work.
const WARM_UP: Duration = Duration::from_secs(5);
/// Keys that sign.
const AT_WORK: usize = 10;

pub(crate) async fn run(span: Duration) -> anyhow::Result<()> {
    println!("| keys | per second | p50 us | p99 us | start s |\n|---:|---:|---:|---:|---:|");
    let mut bench = Bench::start(&[]).await?;
    let mut made = 0;
    for keys in [10, 1000] {
        bench = create(bench, made..keys).await?;
        made = keys;
        let (restarted, took) = bench.restart().await?;
        bench = restarted;
        sign(&bench, WARM_UP).await?;
        let outcome = sign(&bench, span).await?;
        println!(
            "| {keys} | {:.0} | {} | {} | {:.2} |",
            outcome.calls as f64 / outcome.elapsed.as_secs_f64(),
            outcome.latencies_us.value_at_quantile(0.5),
            outcome.latencies_us.value_at_quantile(0.99),
            took.as_secs_f64()
        );
    }
    Ok(())
}

async fn create(bench: Bench, numbers: std::ops::Range<usize>) -> anyhow::Result<Bench> {
    let bench = Arc::new(bench);
    let mut tasks = JoinSet::new();
    for number in numbers {
        if tasks.len() >= IN_FLIGHT {
            tasks.join_next().await.transpose()?.transpose()?;
        }
        let bench = Arc::clone(&bench);
        tasks.spawn(async move { bench.create_key(&name(number), "ES256").await });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Arc::into_inner(bench).ok_or_else(|| anyhow::anyhow!("a task holds on"))
}

async fn sign(bench: &Bench, span: Duration) -> anyhow::Result<Outcome> {
    load::run(IN_FLIGHT, span, |turn| {
        let mut calls: Vec<_> = (0..AT_WORK)
            .map(|number| call::sign(bench.client(turn), format!("keys/{}", name(number))))
            .collect();
        let mut next = turn;
        move || {
            next = (next + 1) % calls.len();
            calls[next]()
        }
    })
    .await
}

fn name(number: usize) -> String {
    format!("scale-{number}")
}
