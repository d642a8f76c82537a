//! The connection to the controller: one question at a time, and scripts that come unasked.

use std::{
    ffi::OsStr,
    io::{self, Read as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags},
};

use crate::grammar::{
    line::{Answer, LINE_LEN_MAX, Question},
    script::{RULES_MAX, Script},
};

/// How long the controller may take to answer before it counts as gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes that may wait: several scripts of the greatest size.
const INBOX_LEN_MAX: usize = 4 * RULES_MAX * LINE_LEN_MAX;

pub(crate) struct Link {
    stream: UnixStream,
    inbox: Vec<u8>,
}

/// What the controller said.
pub(crate) enum Heard {
    Welcome { ordinal: u64 },
    Script { version: u64, script: Script },
    Answer(bool),
}

impl Link {
    pub(crate) fn connect(socket: &OsStr) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { stream, inbox: Vec::new() })
    }

    pub(crate) fn say(&mut self, question: &Question) -> io::Result<()> {
        let line = format!("{question}\n");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            // The process may not be ours: it must not die of SIGPIPE because a controller went.
            let sent =
                rustix::io::retry_on_intr(|| rustix::net::send(&self.stream, rest, SendFlags::NOSIGNAL))?;
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// The next thing that the controller said, waited for.
    pub(crate) fn wait(&mut self) -> io::Result<Heard> {
        loop {
            if let Some(heard) = self.take()? {
                return Ok(heard);
            }
            let mut bytes = [0; LINE_LEN_MAX];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.keep(&bytes[..len])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next thing that has arrived already.
    pub(crate) fn arrived(&mut self) -> io::Result<Option<Heard>> {
        loop {
            let mut bytes = [0; LINE_LEN_MAX];
            match rustix::net::recv(&self.stream, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, len)) => self.keep(bytes.get(..len).unwrap_or_default())?,
                Err(Errno::AGAIN) => return self.take(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inbox.extend_from_slice(bytes);
        if self.inbox.len() > INBOX_LEN_MAX {
            Err(io::Error::other("the controller says too much"))
        } else {
            Ok(())
        }
    }

    /// The first whole thing of what was read.
    fn take(&mut self) -> io::Result<Option<Heard>> {
        let mut lines = Lines { text: &self.inbox, taken: 0 };
        let Some(first) = lines.next() else { return Ok(None) };
        let heard = match text(first)?.parse().map_err(io::Error::other)? {
            Answer::Yes => Heard::Answer(true),
            Answer::No => Heard::Answer(false),
            Answer::Welcome { ordinal } => Heard::Welcome { ordinal },
            Answer::Script { version, rules } => {
                let mut script = String::new();
                for _ in 0..rules.min(RULES_MAX) {
                    let Some(rule) = lines.next() else { return Ok(None) };
                    script.push_str(text(rule)?);
                    script.push('\n');
                }
                Heard::Script { version, script: script.parse().map_err(io::Error::other)? }
            }
        };
        let taken = lines.taken;
        self.inbox.drain(..taken);
        Ok(Some(heard))
    }
}

/// Whole lines, without their ends.
struct Lines<'a> {
    text: &'a [u8],
    taken: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.text.get(self.taken..)?;
        let len = rest.iter().position(|&byte| byte == b'\n')?;
        self.taken += len + 1;
        rest.get(..len)
    }
}

fn text(line: &[u8]) -> io::Result<&str> {
    std::str::from_utf8(line).map_err(io::Error::other)
}
