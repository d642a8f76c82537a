//! A connection's stream with a clock: who connects must begin to speak soon, and must take what we write.
//!
//! hyper waits for the client preface of HTTP/2 (RFC 9113 §3.4) and for any write as long as the peer likes, so
//! that a stranger could hold a connection for nothing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// A stream that fails when its first bytes do not come, or when its peer reads nothing of what is written.
pub(crate) struct Guarded<IO> {
    io: IO,
    /// What must come first; `None` from then on.
    opening: Option<Opening>,
    stall_max: Duration,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

struct Opening {
    bytes_missing: usize,
    too_late: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<IO> Guarded<IO> {
    /// The first `opening_bytes` must be there before `too_late` resolves; a write may make no progress for
    /// `stall_max`.
    pub(crate) fn new(
        io: IO,
        opening_bytes: usize,
        too_late: impl Future<Output = ()> + Send + 'static,
        stall_max: Duration,
    ) -> Self {
        let opening = Some(Opening { bytes_missing: opening_bytes, too_late: Box::pin(too_late) });
        Self { io, opening, stall_max, stalled: None }
    }

    /// Passes on how a write went; times those that wait.
    fn timed<T>(&mut self, context: &mut Context<'_>, went: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if went.is_ready() {
            self.stalled = None;
            return went;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.stall_max)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let filled_before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(context, buffer);
        let Some(opening) = &mut this.opening else { return read };
        if read.is_pending() {
            ready!(opening.too_late.as_mut().poll(context));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not speak")));
        }
        opening.bytes_missing = opening.bytes_missing.saturating_sub(buffer.filled().len() - filled_before);
        if opening.bytes_missing == 0 {
            this.opening = None;
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let went = Pin::new(&mut self.io).poll_write(context, bytes);
        self.timed(context, went)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let went = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.timed(context, went)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let went = Pin::new(&mut self.io).poll_flush(context);
        self.timed(context, went)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let went = Pin::new(&mut self.io).poll_shutdown(context);
        self.timed(context, went)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn who_sends_too_little_until_it_is_too_late_is_cut_off() {
        let (mut peer, ours) = duplex(64);
        let mut ours = Guarded::new(ours, 3, ready(()), LONG);
        peer.write_all(b"ab").await.expect("sent");
        let mut buffer = [0; 8];
        assert_eq!(ours.read(&mut buffer).await.expect("what is there is read"), 2);
        assert_eq!(ours.read(&mut buffer).await.expect_err("cut off").kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_has_spoken_may_pause() {
        let (mut peer, ours) = duplex(64);
        let mut ours = Guarded::new(ours, 2, ready(()), LONG);
        peer.write_all(b"ab").await.expect("sent");
        let mut buffer = [0; 8];
        assert_eq!(ours.read(&mut buffer).await.expect("read"), 2);
        let (read, ()) = tokio::join!(ours.read(&mut buffer), async {
            tokio::task::yield_now().await;
            peer.write_all(b"c").await.expect("sent");
        });
        assert_eq!(read.expect("read"), 1);
    }

    #[tokio::test]
    async fn who_takes_nothing_of_what_is_written_is_cut_off() {
        let (_peer, ours) = duplex(4);
        let mut ours = Guarded::new(ours, 1, pending(), Duration::from_millis(10));
        let error = ours.write_all(b"more than fits").await.expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
