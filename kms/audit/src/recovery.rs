//! Opening: the lock, the header, the last number, and what a crash left behind.
//!
//! Groups are synced one after another, so only the last [`GROUP_LEN_MAX`] bytes can be without a sync, and
//! nobody was told that they are there. What a crash does to them: the last line lacks its end, or, when the
//! power fails, pages in the middle read as zero bytes, which JSON text never has. From the first such place on
//! the tail is moved to `<file>.torn-<offset>`. Anything else that does not read is damage, and is refused.
//!
//! A disk can lose a page of an earlier group too. Every record states the number of the first one of its group.
//! What a crash tore is of the last group, so no record behind it is of a group that began later; where one is,
//! the torn record had been durable, and acknowledged records may follow it: that is damage as well.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    OpenError,
    line::{self, HEADER_LEN_MAX, Header, LINE_LEN_MAX, Record},
    writer::GROUP_LEN_MAX,
};

/// The one segment so far. Later ones will count on.
const SEGMENT: &str = "audit-000001.jsonl";

/// The last bytes of a file that are read at opening: a whole group, and the start of a line before it.
const WINDOW_LEN: u64 = (GROUP_LEN_MAX + LINE_LEN_MAX) as u64;

/// An open segment whose every line is durable.
pub(crate) struct Segment {
    pub(crate) file: File,
    /// Its length in bytes.
    pub(crate) end: u64,
    pub(crate) next_seq: u64,
}

/// Makes the directory if need be, and holds the right to write in it as long as the result lives.
pub(crate) fn lock(dir: &Path) -> Result<File, OpenError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
    let lock = File::open(dir).map_err(io(dir))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse(dir.to_owned())),
        Err(errno) => Err(io(dir)(errno.into())),
    }
}

/// Opens the segment in `dir` for appending, or begins it.
pub(crate) fn open_segment(dir: &Path) -> Result<Segment, OpenError> {
    let path = dir.join(SEGMENT);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut tail = Tail { file: file.map_err(io(&path))?, path, dir };
    let len = tail.len()?;
    let Some(header_end) = tail.read_header(len)? else {
        return tail.begin(len);
    };
    let Scan { end, next_seq } = tail.scan(header_end, len)?;
    if end < len {
        tail.cut(end, len)?;
    }
    // Lines that were written and not yet synced when the process died are there now: keep them for good.
    tail.file.sync_all().map_err(io(&tail.path))?;
    Ok(Segment { file: tail.file, end, next_seq })
}

pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}

struct Tail<'a> {
    file: File,
    path: PathBuf,
    dir: &'a Path,
}

struct Scan {
    end: u64,
    next_seq: u64,
}

impl Tail<'_> {
    fn len(&self) -> Result<u64, OpenError> {
        self.file.metadata().map(|meta| meta.len()).map_err(io(&self.path))
    }

    /// Where the header ends, or `None` when it was never finished: no record can follow it then.
    fn read_header(&mut self, len: u64) -> Result<Option<u64>, OpenError> {
        let head = self.read(0, len.min(HEADER_LEN_MAX as u64))?;
        let Some(newline) = head.iter().position(|&byte| byte == b'\n') else {
            return if head.len() < HEADER_LEN_MAX {
                Ok(None)
            } else {
                Err(self.damaged(0, "it has no header"))
            };
        };
        match serde_json::from_slice(&head[..newline]) {
            Ok(Header { format, version: line::VERSION }) if format == line::FORMAT => {
                Ok(Some(newline as u64 + 1))
            }
            Ok(Header { format, version }) if format == line::FORMAT => Err(self.newer(version)),
            _ => Err(self.damaged(0, "its first line is not the header of an audit log")),
        }
    }

    /// Writes the header, durably, in place of the `len` bytes of an unfinished one.
    fn begin(mut self, len: u64) -> Result<Segment, OpenError> {
        if len > 0 {
            self.cut(0, len)?;
        }
        let header = line::header();
        let write = || {
            self.file.write_all_at(header.as_bytes(), 0)?;
            self.file.sync_all()
        };
        write().map_err(io(&self.path))?;
        self.sync_dir()?;
        Ok(Segment { file: self.file, end: header.len() as u64, next_seq: 1 })
    }

    /// Reads the last lines and finds where the whole ones end.
    fn scan(&mut self, header_end: u64, len: u64) -> Result<Scan, OpenError> {
        let window_start = header_end.max(len.saturating_sub(WINDOW_LEN));
        let window = self.read(window_start, len - window_start)?;
        let mut offset = window_start;
        let mut next_seq = (window_start == header_end).then_some(1);
        let mut lines = window.split_inclusive(|&byte| byte == b'\n');
        if next_seq.is_none() {
            // The window begins somewhere in a line.
            offset += lines.next().map_or(0, |partial| partial.len() as u64);
        }
        while let Some(line) = lines.next() {
            match serde_json::from_slice(line) {
                Ok(Record { v: line::VERSION, seq, .. }) if line.ends_with(b"\n") => {
                    if next_seq.is_some_and(|expected| expected != seq) {
                        return Err(self.damaged(offset, "its sequence numbers have a gap"));
                    }
                    next_seq = Some(seq + 1);
                }
                Ok(Record { v, .. }) if v > line::VERSION => return Err(self.newer(v)),
                _ if torn(line) && len - offset <= GROUP_LEN_MAX as u64 => {
                    if next_seq.is_some_and(|torn_seq| lines.any(|line| is_of_later_group(line, torn_seq))) {
                        return Err(
                            self.damaged(offset, "a record does not read, and later ones were acknowledged")
                        );
                    }
                    break;
                }
                _ => return Err(self.damaged(offset, "a line is not a record")),
            }
            offset += line.len() as u64;
        }
        let next_seq = next_seq.ok_or_else(|| self.damaged(offset, "its tail has no whole record"))?;
        Ok(Scan { end: offset, next_seq })
    }

    /// Moves what lies behind `end` to a file beside, then cuts it off.
    fn cut(&mut self, end: u64, len: u64) -> Result<(), OpenError> {
        let torn = self.read(end, len - end)?;
        let aside = self.path.with_added_extension(format!("torn-{end}"));
        let write = || {
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&aside)?;
            file.write_all(&torn)?;
            file.sync_all()
        };
        write().map_err(io(&aside))?;
        self.sync_dir()?;
        let cut = || {
            self.file.set_len(end)?;
            self.file.sync_all()
        };
        cut().map_err(io(&self.path))?;
        tracing::warn!(
            file = %self.path.display(), offset = end, bytes = len - end, aside = %aside.display(),
            "the audit log ended in a record that was cut short by a crash and never acknowledged; it was moved aside",
        );
        Ok(())
    }

    fn read(&mut self, from: u64, len: u64) -> Result<Vec<u8>, OpenError> {
        let mut bytes = Vec::new();
        let mut read = || {
            self.file.seek(SeekFrom::Start(from))?;
            (&mut self.file).take(len).read_to_end(&mut bytes)
        };
        read().map_err(io(&self.path))?;
        Ok(bytes)
    }

    fn sync_dir(&self) -> Result<(), OpenError> {
        File::open(self.dir).and_then(|dir| dir.sync_all()).map_err(io(self.dir))
    }

    fn damaged(&self, offset: u64, why: &'static str) -> OpenError {
        OpenError::Damaged { file: self.path.clone(), offset, why }
    }

    fn newer(&self, version: u64) -> OpenError {
        OpenError::Newer { file: self.path.clone(), version }
    }
}

/// Whether a crash can have made such a line.
fn torn(line: &[u8]) -> bool {
    !line.ends_with(b"\n") || line.contains(&0)
}

/// Whether the line is a whole record of a group that was written after record `torn_seq` was durable.
fn is_of_later_group(line: &[u8], torn_seq: u64) -> bool {
    line.ends_with(b"\n") && serde_json::from_slice(line).is_ok_and(|Record { group, .. }| group > torn_seq)
}
