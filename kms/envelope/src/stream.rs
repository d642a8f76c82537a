//! Sealing and opening streams of any length in constant memory: two buffers of one chunk each.

use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use crate::{
    DataKey, EnvelopeContext, Purpose,
    error::{OpenError, RandomError, SealError},
    header::Header,
    payload::{CHUNK_LEN, Chunks, SEALED_CHUNK_LEN, TAG_LEN, unlock},
    seal::{SealHeader, begin},
};

/// Writes an envelope. [`Sealer::finish`] writes its end; without that, what was written does not open.
pub struct Sealer<W> {
    inner: W,
    chunks: Chunks,
    /// What waits, because the last chunk is marked: more must be known to follow before it may go.
    held: Zeroizing<Vec<u8>>,
    sealed: Vec<u8>,
    /// A chunk was written in part, or not at all: nothing that follows could be opened.
    broken: bool,
}

impl<W: Write> Sealer<W> {
    /// Writes the header. `random` gives the 32 bytes of the salt: they must be fresh for every envelope.
    pub fn new(
        mut inner: W,
        data_key: &DataKey,
        seal_header: SealHeader,
        context: &EnvelopeContext,
        random: impl FnOnce(&mut [u8]) -> Result<(), RandomError>,
    ) -> Result<Self, SealError> {
        let (header, chunks) = begin(data_key, seal_header, context, random)?;
        header.write(&mut inner)?;
        let held = Zeroizing::new(Vec::with_capacity(CHUNK_LEN));
        Ok(Self { inner, chunks, held, sealed: vec![0; SEALED_CHUNK_LEN], broken: false })
    }

    /// Writes the last chunk and flushes. If only the flush fails, the envelope is whole for all that is known here.
    pub fn finish(mut self) -> Result<W, SealError> {
        self.usable()?;
        let held = std::mem::take(&mut self.held);
        self.write_chunk(&held, true)?;
        self.inner.flush()?;
        Ok(self.inner)
    }

    fn write_chunk(&mut self, plain: &[u8], last: bool) -> Result<(), SealError> {
        self.broken = true;
        let sealed = &mut self.sealed[..plain.len() + TAG_LEN];
        self.chunks.seal(plain, sealed, last)?;
        self.inner.write_all(sealed)?;
        self.broken = false;
        Ok(())
    }

    fn usable(&self) -> io::Result<()> {
        match self.broken {
            false => Ok(()),
            true => {
                Err(io::Error::other("an earlier write failed, so this envelope has no end; seal it anew"))
            }
        }
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.usable()?;
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.held.len() == CHUNK_LEN {
            let mut held = std::mem::take(&mut self.held);
            self.write_chunk(&held, false).map_err(into_io)?;
            // Its memory is used again; what stands in it is overwritten or zeroized at the end.
            held.clear();
            self.held = held;
        }
        if self.held.is_empty() && bytes.len() > CHUNK_LEN {
            self.write_chunk(&bytes[..CHUNK_LEN], false).map_err(into_io)?;
            return Ok(CHUNK_LEN);
        }
        let taken = bytes.len().min(CHUNK_LEN - self.held.len());
        self.held.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    /// Flushes what is below. A chunk that is not full stays here: chunks have one length.
    fn flush(&mut self) -> io::Result<()> {
        self.usable()?;
        self.inner.flush()
    }
}

fn into_io(error: SealError) -> io::Error {
    match error {
        SealError::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// Reads an envelope's payload. Every byte that it gives is authentic and in its place; but only its end (`Ok(0)`) says
/// that this was everything. Until then what came may be the beginning of an envelope that was cut off: put it where
/// nobody takes it for the whole, and throw it away when an error comes.
pub struct Opener<R> {
    inner: R,
    chunks: Chunks,
    /// One byte more than a chunk: whether that byte comes says whether the chunk is the last.
    sealed: Vec<u8>,
    sealed_len: usize,
    plain: Zeroizing<Vec<u8>>,
    /// What of `plain` was not given out yet.
    ready: std::ops::Range<usize>,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Open,
    Ended,
    Failed,
}

impl<R: Read> Opener<R> {
    /// Opens what follows `header` in `inner`, if it was sealed under `data_key` for the door `expected` with this
    /// `context`. No chunk has been looked at yet.
    pub fn new(
        inner: R,
        header: &Header,
        data_key: &DataKey,
        expected: Purpose,
        context: &EnvelopeContext,
    ) -> Result<Self, OpenError> {
        Ok(Self {
            inner,
            chunks: unlock(header, data_key, expected, context)?,
            sealed: vec![0; SEALED_CHUNK_LEN + 1],
            sealed_len: 0,
            plain: Zeroizing::new(vec![0; CHUNK_LEN]),
            ready: 0..0,
            state: State::Open,
        })
    }

    /// Opens the next chunk into `plain`, or into our own buffer. An error from below may be tried again; one of ours
    /// is final.
    fn next_chunk(&mut self, direct: Option<&mut [u8]>) -> io::Result<usize> {
        let last = self.fill()?;
        self.state = State::Failed;
        let sealed = &self.sealed[..self.sealed_len.min(SEALED_CHUNK_LEN)];
        let len = sealed.len().checked_sub(TAG_LEN).ok_or_else(not_opened)?;
        let plain = direct.unwrap_or(&mut self.plain);
        self.chunks.open(sealed, &mut plain[..len], last).map_err(|_| not_opened())?;
        if last {
            self.state = State::Ended;
        } else {
            self.sealed[0] = self.sealed[SEALED_CHUNK_LEN];
            self.sealed_len = 1;
            self.state = State::Open;
        }
        Ok(len)
    }

    /// Reads a chunk and a byte; true if the end came first.
    fn fill(&mut self) -> io::Result<bool> {
        while self.sealed_len < self.sealed.len() {
            match self.inner.read(&mut self.sealed[self.sealed_len..]) {
                Ok(0) => return Ok(true),
                Ok(len) => self.sealed_len += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.ready.is_empty() {
            match self.state {
                State::Ended => return Ok(0),
                State::Failed => return Err(not_opened()),
                // Without a copy where it fits. Only the last chunk can be empty, and then the end is what is reported.
                State::Open if bytes.len() >= CHUNK_LEN => return self.next_chunk(Some(bytes)),
                State::Open => self.ready = 0..self.next_chunk(None)?,
            }
        }
        let len = bytes.len().min(self.ready.len());
        bytes[..len].copy_from_slice(&self.plain[self.ready.start..self.ready.start + len]);
        self.ready.start += len;
        Ok(len)
    }
}

/// [`OpenError::NotOpened`], as `Read` wants it.
fn not_opened() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, OpenError::NotOpened)
}
