//! `--scale`: 1,000 keys in the token against 10. Signing must not notice; a start may take up to three seconds.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use crate::{
    call,
    load::{self, Outcome},
    service::Bench,
};

/// Callers at once.
const IN_FLIGHT: usize = 4;

pub(crate) async fn run(span: Duration) -> anyhow::Result<()> {
    println!("| keys | per second | p50 us | p99 us | start s |\n|---:|---:|---:|---:|---:|");
    let mut bench = Bench::start(&[]).await?;
    let mut made = 0;
    for keys in [10, 1000] {
        bench = create(bench, made..keys).await?;
        made = keys;
        let (restarted, took) = bench.restart().await?;
        bench = restarted;
        // Once around, so that every worker has resolved every handle: that is paid once, not per signature.
        sign_with_all(&bench, keys, span).await?;
        let outcome = sign_with_all(&bench, keys, span).await?;
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

async fn sign_with_all(bench: &Bench, keys: usize, span: Duration) -> anyhow::Result<Outcome> {
    let span = span.max(Duration::from_secs(1)) * if keys > 100 { 5 } else { 1 };
    load::run(IN_FLIGHT, span, |turn| {
        let mut calls: Vec<_> = (0..keys)
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
