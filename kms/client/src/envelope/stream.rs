//! Sealing and opening streams of any length in constant memory.
//!
//! The work is done on tokio's blocking threads, so `Read` and `Write` may be files, pipes or sockets that block. An
//! `AsyncRead` is one through `tokio_util::io::SyncIoBridge`. A future that is dropped does not stop the thread at once:
//! it ends with its stream.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use kms_envelope::{DataKey, EnvelopeContext, Header, Opener, Purpose, Sealer};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::{Envelopes, Error, Kms, seal::SealingKey};

/// How much is read at once, in bytes: four chunks.
const SEAL_BUFFER_LEN: usize = 4 * kms_envelope::CHUNK_LEN;
/// How much is opened at once, in bytes: a chunk.
const OPEN_BUFFER_LEN: usize = kms_envelope::CHUNK_LEN;

impl<K: Kms> Envelopes<K> {
    /// Seals what `reader` gives into `writer`, and gives that back, flushed. Only success says that the envelope is whole
    /// and where it belongs: what a failure leaves does not open, or is whole and was perhaps not flushed.
    pub async fn seal_stream<R, W>(&self, context: &EnvelopeContext, reader: R, writer: W) -> Result<W, Error>
    where
        R: Read + Send + 'static,
        W: Write + Send + 'static,
    {
        let key = self.sealing_key(&context.key, 0).await?;
        let (envelopes, context) = (self.clone(), context.clone());
        blocking(move || envelopes.seal_blocking(&key, &context, reader, writer)).await
    }

    /// Opens the envelope that `reader` gives into `writer`, and gives that back, flushed. Every byte that is written is
    /// authentic, but only success says that they are all there: write to a temporary name, and rename it then.
    pub async fn open_stream<R, W>(&self, context: &EnvelopeContext, reader: R, writer: W) -> Result<W, Error>
    where
        R: Read + Send + 'static,
        W: Write + Send + 'static,
    {
        let (header, reader) = blocking(move || {
            let mut reader = reader;
            Ok((Header::read(&mut reader)?, reader))
        })
        .await?;
        let key = self.opening_key(&header, &context.key).await?;
        let context = context.clone();
        blocking(move || open_blocking(&header, &key, &context, reader, writer)).await
    }

    fn seal_blocking<R: Read, W: Write>(
        &self,
        key: &Arc<SealingKey>,
        context: &EnvelopeContext,
        reader: R,
        writer: W,
    ) -> Result<W, Error> {
        let random = |salt: &mut [u8]| self.0.random(salt);
        let mut sealer = Sealer::new(writer, &key.data_key, key.header(), context, random)?;
        // Counted as they go: a stream that fails has been sealed as far as it came.
        copy(reader, &mut sealer, SEAL_BUFFER_LEN, |len| key.add_bytes(len))?;
        Ok(sealer.finish()?)
    }
}

fn open_blocking<R: Read, W: Write>(
    header: &Header,
    key: &DataKey,
    context: &EnvelopeContext,
    reader: R,
    mut writer: W,
) -> Result<W, Error> {
    let opener = Opener::new(reader, header, key, Purpose::Native, context)?;
    copy(opener, &mut writer, OPEN_BUFFER_LEN, |_| {})?;
    writer.flush()?;
    Ok(writer)
}

/// As [`io::copy`], through a buffer of our own, which is zeroized. `count` hears how many bytes are written, before
/// they are.
fn copy(
    mut reader: impl Read,
    writer: &mut impl Write,
    buffer_len: usize,
    count: impl Fn(u64),
) -> Result<(), Error> {
    let mut buffer = Zeroizing::new(vec![0; buffer_len]);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                count(len as u64);
                writer.write_all(&buffer[..len])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::Io(io::Error::other(error))),
    }
}
