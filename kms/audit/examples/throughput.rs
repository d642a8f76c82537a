//! Prints how many durable records a second the log takes from 1, 16, 64 and 256 callers that each wait for
//! theirs: `cargo run -p kms-audit --example throughput --config profile.dev.opt-level=3 [-- DIR]`.
//! (A release build has no conformance suites, which the tests beside it need.)
#![expect(clippy::print_stdout, reason = "printing is its purpose")]

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use kms_audit::{FileLog, Options};
use kms_core::{
    Action, Caller, Gate, Unsettled,
    caller::{KeyScope, Role},
    time::Timestamp,
};

const RUN: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os()
        .nth(1)
        .map_or_else(|| std::env::temp_dir().join("kms-audit-throughput"), PathBuf::from);
    println!("{:>8} {:>12} {:>14} {:>10}", "waiting", "records/s", "records/sync", "sync/us");
    for callers in [1, 16, 64, 256] {
        let log = Arc::new(FileLog::open(&Options::new(&dir))?);
        let gate = Arc::new(Gate::new(Arc::clone(&log), 1));
        let began = Instant::now();
        let tasks: Vec<_> =
            (0..callers).map(|_| tokio::spawn(record_until(Arc::clone(&gate), began + RUN))).collect();
        for task in tasks {
            task.await??;
        }
        let (health, seconds) = (log.health(), began.elapsed().as_secs_f64());
        println!(
            "{callers:>8} {:>12.0} {:>14.1} {:>10.0}",
            health.records_written as f64 / seconds,
            health.records_written as f64 / health.syncs as f64,
            health.last_sync_seconds * 1e6,
        );
    }
    Ok(())
}

async fn record_until(gate: Arc<Gate<FileLog>>, end: Instant) -> Result<(), kms_core::Error> {
    let caller = Caller::new("access-token:throughput", Role::Administrator, KeyScope::All);
    while Instant::now() < end {
        let admission = gate.admit(&caller, Action::ListKeys, None, Timestamp::UNIX_EPOCH).await?;
        admission.settle(Ok(Unsettled::new(()))).await?;
    }
    Ok(())
}
