//! Framing: length, body; and the buffer that turns reads into frames.

use zeroize::Zeroize;

use super::codec::Malformed;

/// Longest body in bytes. Far above any request of ours, far below what could hurt.
pub const FRAME_LEN_MAX: usize = 256 * 1024;

/// Free room offered to each read in bytes: several hundred signatures.
const READ_LEN: usize = 64 * 1024;
const HEAD_LEN: usize = 4;

/// Appends one frame to `out`; `body` writes the body.
pub fn frame(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; HEAD_LEN]);
    body(out);
    let len = out.len() - at - HEAD_LEN;
    debug_assert!(len <= FRAME_LEN_MAX, "a frame of {len} bytes");
    // A longer body is told as u32::MAX, which the other end refuses.
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    out[at..at + HEAD_LEN].copy_from_slice(&len.to_le_bytes());
}

/// What was read and not yet taken. One read may fill it with many frames.
#[derive(Default)]
pub struct Inbox {
    buffer: Vec<u8>,
    taken: usize,
    filled: usize,
    /// Where the frame that was taken last begins.
    last: usize,
}

impl Inbox {
    /// Where the next read may write. Never empty.
    pub fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.taken..self.filled, 0);
        let filled = self.filled - self.taken;
        // A frame that has come in part may hold a secret, and has just been copied.
        if self.taken > 0 {
            self.buffer[self.taken.max(filled)..self.filled].zeroize();
        }
        (self.taken, self.last, self.filled) = (0, 0, filled);
        if self.buffer.len() < filled + READ_LEN {
            let mut larger = vec![0; filled + READ_LEN];
            larger[..filled].copy_from_slice(&self.buffer[..filled]);
            self.buffer[..filled].zeroize();
            self.buffer = larger;
        }
        &mut self.buffer[self.filled..]
    }

    /// Says that a read wrote `len` bytes into [`Inbox::room`].
    pub fn filled(&mut self, len: usize) {
        self.filled = (self.filled + len).min(self.buffer.len());
    }

    /// Whether [`Inbox::take`] would give a frame, or an error.
    pub fn has_frame(&self) -> bool {
        self.body().is_none_or(|body| body.is_some())
    }

    /// The next whole frame's body, or `None` until more is read.
    pub fn take(&mut self) -> Result<Option<&[u8]>, Malformed> {
        let Some(body) = self.body().ok_or(Malformed)? else { return Ok(None) };
        (self.last, self.taken) = (self.taken, body.end);
        Ok(Some(&self.buffer[body]))
    }

    /// Wipes the frame that was taken last: it held a secret.
    pub fn wipe_taken(&mut self) {
        self.buffer[self.last..self.taken].zeroize();
    }

    /// `None` when the frame is too long, `Some(None)` when it is not complete.
    fn body(&self) -> Option<Option<std::ops::Range<usize>>> {
        let Some(head) = self.buffer[self.taken..self.filled].first_chunk::<HEAD_LEN>() else {
            return Some(None);
        };
        let len = usize::try_from(u32::from_le_bytes(*head)).ok().filter(|len| *len <= FRAME_LEN_MAX)?;
        let start = self.taken + HEAD_LEN;
        Some((start + len <= self.filled).then_some(start..start + len))
    }
}

/// What was read last may hold a secret, or the beginning of one.
impl Drop for Inbox {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox(bytes: &[u8]) -> Inbox {
        let mut inbox = Inbox::default();
        for chunk in bytes.chunks(READ_LEN) {
            inbox.room()[..chunk.len()].copy_from_slice(chunk);
            inbox.filled(chunk.len());
        }
        inbox
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_buffered() {
        let len = u32::try_from(FRAME_LEN_MAX).unwrap() + 1;
        let mut inbox = inbox(&len.to_le_bytes());
        assert!(inbox.has_frame());
        assert!(inbox.take().is_err());
    }

    #[test]
    fn a_truncated_frame_waits_for_its_rest() {
        let mut bytes = Vec::new();
        frame(&mut bytes, |out| out.extend_from_slice(b"hello"));
        for cut in 0..bytes.len() {
            let mut inbox = inbox(&bytes[..cut]);
            assert!(!inbox.has_frame());
            assert_eq!(inbox.take(), Ok(None));
            let rest = &bytes[cut..];
            inbox.room()[..rest.len()].copy_from_slice(rest);
            inbox.filled(rest.len());
            assert_eq!(inbox.take(), Ok(Some(&b"hello"[..])));
        }
    }

    #[test]
    fn a_frame_that_is_wiped_is_gone_and_the_next_one_is_whole() {
        let mut bytes = Vec::new();
        for body in [b"secret", b"public"] {
            frame(&mut bytes, |out| out.extend_from_slice(body));
        }
        // The second frame has come in part, and is moved to the front by the next read.
        let mut inbox = inbox(&bytes[..15]);
        assert_eq!(inbox.take(), Ok(Some(&b"secret"[..])));
        inbox.wipe_taken();
        assert!(inbox.buffer[..10].iter().all(|byte| *byte == 0));
        inbox.room()[..5].copy_from_slice(&bytes[15..]);
        assert!(inbox.buffer[10..].iter().all(|byte| *byte == 0), "the old place of the second");
        inbox.filled(5);
        assert_eq!(inbox.take(), Ok(Some(&b"public"[..])));
    }

    #[test]
    fn many_frames_of_one_read_come_out_one_by_one() {
        let mut bytes = Vec::new();
        let bodies: Vec<Vec<u8>> = (0..2000_usize).map(|n| vec![7; n % 300]).collect();
        bodies.iter().for_each(|body| frame(&mut bytes, |out| out.extend_from_slice(body)));
        frame(&mut bytes, |out| out.resize(out.len() + FRAME_LEN_MAX, 1));
        let mut inbox = inbox(&bytes);
        for body in bodies {
            assert_eq!(inbox.take(), Ok(Some(&body[..])));
        }
        assert_eq!(inbox.take().unwrap().map(<[u8]>::len), Some(FRAME_LEN_MAX));
        assert_eq!(inbox.take(), Ok(None));
    }
}
