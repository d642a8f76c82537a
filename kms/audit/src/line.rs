//! The format of one line, written and read.

use kms_core::audit::{Event, Refused};
use serde::Deserialize;

pub(crate) const FORMAT: &str = "kms-audit";
pub(crate) const VERSION: u64 = 1;
/// The first line of a segment is shorter than this, in bytes.
pub(crate) const HEADER_LEN_MAX: usize = 256;
/// No record is longer than this on disk, in bytes.
pub(crate) const LINE_LEN_MAX: usize = 16 << 10;
/// `{"v":1,"seq":18446744073709551615,"group":18446744073709551615,` with room to spare.
pub(crate) const PREFIX_LEN_MAX: usize = 80;

/// The header line of segment 1.
pub(crate) fn header() -> String {
    format!("{{\"format\":\"{FORMAT}\",\"version\":{VERSION},\"segment\":1}}\n")
}

/// Appends `event` as one line without its sequence number: done by callers, in parallel.
pub(crate) fn push_event(lines: &mut Vec<u8>, event: &Event) -> Result<(), Refused> {
    let start = lines.len();
    serde_json::to_writer(&mut *lines, event)
        .map_err(|error| Refused(format!("an event does not serialise: {error}")))?;
    lines.push(b'\n');
    if lines.len() - start > LINE_LEN_MAX - PREFIX_LEN_MAX {
        return Err(Refused(format!("an event is longer than {LINE_LEN_MAX} bytes")));
    }
    Ok(())
}

/// Appends the lines of [`push_event`] to `out`, numbered from `seq`, as part of the group whose first record has
/// number `group`; returns the number after the last.
pub(crate) fn number(lines: &[u8], mut seq: u64, group: u64, out: &mut Vec<u8>) -> u64 {
    // JSON text has no raw newline inside, so each newline ends a line; and each line begins with '{'.
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        out.extend_from_slice(b"{\"v\":1,\"seq\":");
        out.extend_from_slice(seq.to_string().as_bytes());
        out.extend_from_slice(b",\"group\":");
        out.extend_from_slice(group.to_string().as_bytes());
        out.push(b',');
        out.extend_from_slice(&line[1..]);
        seq += 1;
    }
    seq
}

/// What every version of the header has.
#[derive(Deserialize)]
pub(crate) struct Header {
    pub(crate) format: String,
    pub(crate) version: u64,
}

/// What every version of a record has; the rest is the reader's business.
#[derive(Deserialize)]
pub(crate) struct Record {
    pub(crate) v: u64,
    pub(crate) seq: u64,
    /// Number of the first record that was synced with this one: whatever has a smaller number was durable before
    /// this record was written.
    #[serde(default)]
    pub(crate) group: u64,
}
