//! The log passes core's suite, and everything that it acknowledged can be read back in order.

use std::collections::HashMap;

use kms_audit::{FileLog, Options};
use kms_core::conformance;
use serde_json::Value;

#[tokio::test]
async fn the_file_log_does_what_every_audit_log_must_do() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = FileLog::open(&Options { free_bytes_min: 0, ..Options::new(dir.path()) }).expect("it opens");
    let acknowledged = conformance::audit::run(&log, 500).await;

    let text = std::fs::read_to_string(dir.path().join("audit-000001.jsonl")).expect("it is there");
    let records = text.lines().skip(1).map(|line| serde_json::from_str(line).expect("each line is JSON"));
    let seqs: HashMap<String, u64> = records
        .map(|record: Value| {
            let operation = record["operation"].as_str().expect("an id").to_owned();
            (operation, record["seq"].as_u64().expect("a number"))
        })
        .collect();
    assert_eq!(seqs.len(), acknowledged.len());
    assert_eq!(text.lines().count(), acknowledged.len() + 1, "one line each");
    let mut last_of_batch = None;
    for event in &acknowledged {
        let seq = seqs[&event.operation.to_string()];
        let id = u128::from_str_radix(&event.operation.to_string(), 16).expect("hexadecimal");
        // The suite counts its events in fours: the events of one batch differ in the last two bits.
        if let Some((batch, before)) =
            last_of_batch.replace((id >> 2, seq)).filter(|(batch, _)| *batch == id >> 2)
        {
            assert!(before < seq, "batch {batch:x} is out of order");
        }
    }
}
