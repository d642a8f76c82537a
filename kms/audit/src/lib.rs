//! The audit log on disk: an append-only file of JSON Lines, with group commit.
//!
//! [`FileLog`] keeps the promise of [`kms_core::AuditLog`]: a record is on stable storage before its result
//! leaves the process. One thread owns the file. It takes whatever is queued, writes it with one `write`, syncs
//! with one `fdatasync`, and only then wakes those who wait: the more callers, the fewer syncs per record.
//!
//! It fails closed. After a failed write or sync nothing more is written and every record is refused until the
//! log is opened again: what the page cache says after a failed `fsync` proves nothing about the disk.
//!
//! The file: a header line `{"format":"kms-audit","version":1,"segment":1}`, then one record per line,
//! `{"v":1,"seq":N,"group":G,...}` with the fields of [`kms_core::audit::Event`]; `seq` counts from 1 without a gap,
//! and `group` is the number of the first record that was synced together with this one.

mod file_log;
mod ledger;
mod line;
mod queue;
mod recovery;
mod writer;

#[cfg(test)]
mod faults;

use std::path::PathBuf;

pub use file_log::{FileLog, Options};
pub use queue::{Health, Slot};

/// Why the log could not be opened. No record was touched.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another [`FileLog`] of this one, writes to the same directory.
    #[error(
        "the audit log in {0} is in use by another process; stop it, or give this one a directory of its own"
    )]
    InUse(PathBuf),
    /// The file was written by a later release.
    #[error("{file} has format version {version}, which is newer than this program; upgrade the program")]
    Newer {
        /// The file.
        file: PathBuf,
        /// The version that it states.
        version: u64,
    },
    /// The file is not as this program leaves it, not even when it is killed or the power fails.
    #[error(
        "{file} is damaged at byte {offset}: {why}; keep it as evidence, move it away, and start a new one"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// What is wrong there.
        why: &'static str,
    },
    /// The file system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
