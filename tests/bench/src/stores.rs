//! `--stores`: what the store and the number of servers cost. All deployments run at once, each with a token of its
//! own, and are measured in turns, in another order each time; [`FEW`] is what the others are compared with. The
//! additional keys are rows whose objects no token has: who signs does not ask for them, and what is away is an alarm
//! and no reason to suspend. That is checked at the end.

use std::time::{Duration, Instant};

use anyhow::ensure;
use hdrhistogram::Histogram;
use kms_client::v1;

use crate::{
    call, cpu,
    deployment::{Deployment, KEYS, key_id},
    load::{self, Outcome},
    report::{Report, Row},
};

/// What rows are compared with.
pub(crate) const SHARE_OF: &str = "one server on PostgreSQL with 10 keys";

/// Rows that are added to the keys of the token.
const ROWS: usize = 10_000;
/// Workers of all servers of a deployment together.
const WORKERS: usize = 2;
/// Keys that sign and are disabled and enabled. The others are rotated.
const AT_WORK: usize = KEYS / 2;
/// How often a key can be rotated: eight versions may be in the JWKS.
const ROTATIONS_MAX: usize = 7;
/// How often each deployment is started.
const STARTS: usize = 5;
/// Until every worker has the handle of every key at work.
const WARM_UP: Duration = Duration::from_secs(2);

/// Where the deployments stand in the list.
const FEW: usize = 0;
const PAIR: usize = 3;
const PAIR_WITH_ROWS: usize = 4;

#[derive(Debug, Clone, Copy)]
enum Kind {
    SignJwt,
    Sign,
    Flip,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::SignJwt => "SignJwt",
            Self::Sign => "Sign",
            Self::Flip => "disable and enable",
        }
    }

    /// What one call counts for.
    fn items(self) -> usize {
        match self {
            Self::SignJwt | Self::Sign => 1,
            Self::Flip => 2,
        }
    }
}

pub(crate) async fn run(rounds: usize, span: Duration) -> anyhow::Result<Report> {
    let mut all = vec![
        Deployment::on_postgres("10 keys", 1, WORKERS).await?,
        Deployment::on_postgres("10,010 keys", 1, WORKERS).await?,
        Deployment::on_sqlite("10 keys in SQLite", WORKERS).await?,
        Deployment::on_postgres("two servers, 10 keys", 2, WORKERS / 2).await?,
        Deployment::on_postgres("two servers, 10,010 keys", 2, WORKERS / 2).await?,
    ];
    for (at, deployment) in all.iter().enumerate() {
        if matches!(at, 1 | PAIR_WITH_ROWS) {
            deployment.add_rows(ROWS).await?;
        }
    }
    let mut report = Report::default();
    for turn in 0..STARTS {
        println!("start {} of {STARTS}", turn + 1);
        let mut rows = vec![Row::default(); PAIR];
        for at in order(PAIR, turn) {
            let took = all[at].restart().await?.as_secs_f64();
            rows[at] =
                Row { per_second: 1.0 / took, p50_us: took * 1e6, p99_us: took * 1e6, ..Row::default() };
        }
        add(&mut report, "start", &all, &rows);
    }
    for deployment in &all {
        measure(deployment, Kind::SignJwt, AT_WORK, WARM_UP).await?;
    }
    for round in 0..rounds {
        println!("round {} of {rounds}", round + 1);
        for kind in [Kind::SignJwt, Kind::Sign] {
            for in_flight in [1, 32] {
                let what = format!("{}, {in_flight} in flight", kind.name());
                let mut rows = vec![Row::default(); PAIR_WITH_ROWS];
                for at in order(rows.len(), round) {
                    rows[at] = measure(&all[at], kind, in_flight, span).await?;
                }
                add(&mut report, &what, &all, &rows);
            }
        }
        for in_flight in [1, AT_WORK] {
            let what = format!("{}, {in_flight} in flight", Kind::Flip.name());
            let mut rows = vec![Row::default(); all.len()];
            let mut others = vec![Row::default(); all.len()];
            for at in order(all.len(), round) {
                let bystander = if at >= PAIR { all[at].pids_of(1)? } else { Vec::new() };
                let before = cpu::used(&bystander);
                rows[at] = measure(&all[at], Kind::Flip, in_flight, span).await?;
                let used = (cpu::used(&bystander) - before).mul_f64(10.0 / 11.0);
                let changes = rows[at].per_second * span.as_secs_f64();
                others[at] = Row { cpu_us: used.as_secs_f64() * 1e6 / changes, ..rows[at] };
            }
            add(&mut report, &what, &all, &rows);
            if in_flight == 1 {
                for at in [PAIR, PAIR_WITH_ROWS] {
                    report.add(
                        &format!("the same, CPU of the other server only: {}", all[at].name),
                        others[at],
                    );
                }
            }
        }
        if round < ROTATIONS_MAX {
            let mut rows = vec![Row::default(); all.len()];
            for at in order(all.len(), round) {
                rows[at] = rotate(&all[at]).await?;
            }
            add(&mut report, "rotate, 1 in flight", &all, &rows);
        }
    }
    for deployment in all.iter().filter(|deployment| deployment.sql("SELECT 1").is_ok()) {
        let suspended = deployment.sql("SELECT count(*) FROM key_versions WHERE suspended")?;
        ensure!(suspended == "0", "{}: {suspended} versions were taken out of service", deployment.name);
    }
    Ok(report)
}

/// Each time another one begins, and every other time the other way round.
fn order(count: usize, turn: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).map(|at| (at + turn / 2) % count).collect();
    if turn % 2 == 1 {
        order.reverse();
    }
    order
}

fn add(report: &mut Report, what: &str, all: &[Deployment], rows: &[Row]) {
    for (at, (deployment, row)) in all.iter().zip(rows).enumerate() {
        let row = if at == FEW { *row } else { row.beside(&rows[FEW]) };
        report.add(&format!("{what}: {}", deployment.name), row);
    }
}

async fn measure(
    deployment: &Deployment,
    kind: Kind,
    in_flight: usize,
    span: Duration,
) -> anyhow::Result<Row> {
    let pids = deployment.pids()?;
    let before = cpu::used(&pids);
    let outcome = load::run(in_flight, span, |turn| caller(deployment, kind, turn)).await?;
    // The warm-up is a tenth of the span: its CPU time is taken off in proportion.
    let used = (cpu::used(&pids) - before).mul_f64(10.0 / 11.0);
    Ok(Row::new(&outcome, kind.items(), used))
}

fn caller(deployment: &Deployment, kind: Kind, turn: usize) -> impl FnMut() -> call::Call + Send + 'static {
    let client = deployment.client(turn);
    let key = |number: usize| format!("keys/{}", key_id(number));
    let mut calls: Vec<Box<dyn FnMut() -> call::Call + Send>> = match kind {
        Kind::SignJwt => (0..AT_WORK).map(|at| Box::new(call::sign_jwt(client, key(at))) as _).collect(),
        Kind::Sign => (0..AT_WORK).map(|at| Box::new(call::sign(client, key(at))) as _).collect(),
        // Each caller has a key of its own.
        Kind::Flip => vec![Box::new(call::flip(client, format!("{}/versions/1", key(turn)))) as _],
    };
    let mut next = turn;
    move || {
        next = (next + 1) % calls.len();
        calls[next]()
    }
}

/// Rotates each key that is there for it once.
async fn rotate(deployment: &Deployment) -> anyhow::Result<Row> {
    let mut latencies_us = Histogram::<u64>::new(3)?;
    let pids = deployment.pids()?;
    let (before, began) = (cpu::used(&pids), Instant::now());
    for number in AT_WORK..KEYS {
        let request = v1::RotateKeyRequest { name: format!("keys/{}", key_id(number)), ..Default::default() };
        let called = Instant::now();
        deployment.client(0).keys().rotate_key(request).await?;
        latencies_us.record(u64::try_from(called.elapsed().as_micros())?)?;
    }
    let outcome = Outcome { calls: latencies_us.len(), elapsed: began.elapsed(), latencies_us };
    Ok(Row::new(&outcome, 1, cpu::used(&pids) - before))
}
