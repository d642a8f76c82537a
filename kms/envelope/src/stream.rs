//! Sealing and opening payloads of any size, in constant memory.
//!
//! What an [`Opener`] gives is authentic, and is the beginning of the payload until it says that this is the end: whoever
//! writes it somewhere gives that its name only then. A cut, prolonged or reordered envelope fails before its end is said.

use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use crate::{
    context::EnvelopeContext,
    header::{Header, Purpose},
    open::OpenError,
    payload::{CHUNK_LEN, Chunks, TAG_LEN},
    seal::{SealError, SealHeader, begin},
    secret::DataKey,
};

/// Seals what is written to it. Without [`Sealer::finish`] the envelope has no end, and does not open.
pub struct Sealer<W: Write> {
    out: W,
    chunks: Chunks,
    /// The next chunk: it is sealed when there is more, or at the end.
    chunk: Zeroizing<Vec<u8>>,
}

/// Gives the payload of an envelope that it reads.
pub struct Opener<R: Read> {
    source: R,
    chunks: Chunks,
    /// The chunk that is given out, from `at` on.
    opened: Zeroizing<Vec<u8>>,
    at: usize,
    /// What was read of the next chunk: one byte more than a chunk has tells that it is not the last.
    ahead: Vec<u8>,
    begun: bool,
    ended: bool,
    /// Nothing behind a chunk that does not open is given out: it could be opened by its number alone.
    failed: bool,
}

impl<W: Write> Sealer<W> {
    /// Writes the header to `out`. `random` fills a buffer with bytes that never come again.
    pub fn new<E>(
        data_key: &DataKey,
        header: SealHeader,
        context: &EnvelopeContext,
        random: impl FnOnce(&mut [u8]) -> Result<(), E>,
        mut out: W,
    ) -> io::Result<Self> {
        let (header, chunks) = begin(data_key, header, context, random).map_err(sealing)?;
        out.write_all(&header.to_bytes())?;
        Ok(Self { out, chunks, chunk: Zeroizing::new(Vec::with_capacity(CHUNK_LEN + TAG_LEN)) })
    }

    /// Seals the last chunk, and gives back what it wrote to.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal_chunk(true)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn seal_chunk(&mut self, is_last: bool) -> io::Result<()> {
        self.chunks.seal(&mut self.chunk, is_last).map_err(|failed| sealing(failed.into()))?;
        self.out.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whether a full chunk is the last is known only when there is more.
        if self.chunk.len() == CHUNK_LEN && !bytes.is_empty() {
            self.seal_chunk(false)?;
        }
        let len = bytes.len().min(CHUNK_LEN - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    /// What is sealed already is passed on; a chunk is sealed when it is full.
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<R: Read> Opener<R> {
    /// For an envelope whose header was read from `source` (see [`Header::read`]). `purpose` is the door at which it is
    /// opened.
    pub fn new(
        header: &Header,
        data_key: &DataKey,
        purpose: Purpose,
        context: &EnvelopeContext,
        source: R,
    ) -> Result<Self, OpenError> {
        if header.purpose != purpose {
            return Err(OpenError::NotOpened);
        }
        let chunks = Chunks::of(header, data_key, context)?;
        let opened = Zeroizing::new(Vec::with_capacity(CHUNK_LEN + TAG_LEN));
        let ahead = Vec::with_capacity(CHUNK_LEN + TAG_LEN + 1);
        Ok(Self { source, chunks, opened, at: 0, ahead, begun: false, ended: false, failed: false })
    }

    fn open_chunk(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.failed, true) {
            return Err(not_opened());
        }
        let wanted = (CHUNK_LEN + TAG_LEN + 1).saturating_sub(self.ahead.len());
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        (&mut self.source).take(wanted).read_to_end(&mut self.ahead)?;
        let is_last = self.ahead.len() <= CHUNK_LEN + TAG_LEN;
        let len = self.ahead.len().min(CHUNK_LEN + TAG_LEN);
        self.opened.clear();
        self.opened.extend_from_slice(&self.ahead[..len]);
        let opened = self.chunks.open(&mut self.opened, is_last).map(|opened| opened.len());
        let Ok(opened) = opened else {
            self.opened.clear();
            return Err(not_opened());
        };
        self.opened.truncate(opened);
        if is_last && self.begun && opened == 0 {
            return Err(not_opened());
        }
        self.ahead.drain(..len);
        (self.at, self.begun, self.ended, self.failed) = (0, true, is_last, false);
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    /// After a failure there is nothing more to be had: what was given before it is no payload.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.opened.len() && !self.ended && !buffer.is_empty() {
            self.open_chunk()?;
        }
        let len = buffer.len().min(self.opened.len() - self.at);
        buffer[..len].copy_from_slice(&self.opened[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

fn sealing(error: SealError) -> io::Error {
    io::Error::other(error)
}

fn not_opened() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, OpenError::NotOpened)
}
