//! The audit log as an auditor reads it: lines of JSON.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde_json::Value;

/// One line.
pub type Record = Value;

/// All records in the `*.jsonl` files of `dir` and below, in order; headers are left out. A last line without
/// its end is one that is being written.
pub fn records(dir: &Path) -> anyhow::Result<Vec<Record>> {
    let mut all = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            all.extend(records(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "jsonl") {
            let text = fs::read_to_string(&path)?;
            for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                let record: Value =
                    serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?;
                if record.get("seq").is_some() {
                    all.push(record);
                }
            }
        }
    }
    Ok(all)
}
