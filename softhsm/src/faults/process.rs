//! One process that has loaded the shim: its questions, until it hangs up or dies.

use std::{
    io::{self, BufRead as _, BufReader, Read as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use super::{
    line::{LINE_LEN_MAX, Question},
    record::Record,
};

/// How long a process may take to make room for a line before it counts as hung.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one connection. Whoever says what the shim would not is hung up on.
pub(super) fn serve(stream: UnixStream, record: &Record) {
    let Ok(ours) = stream.try_clone() else { return };
    if ours.set_write_timeout(Some(WRITE_TIMEOUT)).is_err() {
        return;
    }
    let mut lines = BufReader::new(stream);
    let Ok(Some(Question::Hello { pid })) = next(&mut lines) else { return };
    let Some(ordinal) = record.enter(pid, ours) else { return };
    while let Ok(Some(question)) = next(&mut lines) {
        record.answer(ordinal, question);
    }
    record.leave(ordinal);
}

fn next(lines: &mut BufReader<UnixStream>) -> io::Result<Option<Question>> {
    let mut line = String::new();
    let read = lines.take(LINE_LEN_MAX as u64).read_line(&mut line)?;
    if read == 0 {
        return Ok(None);
    }
    let line = line.strip_suffix('\n').ok_or_else(|| io::Error::other("a torn line"))?;
    line.parse().map(Some).map_err(io::Error::other)
}
