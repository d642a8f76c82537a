//! What is to be written: frames, some of which hold a secret.

use zeroize::{Zeroize, Zeroizing};

use super::frame::frame;

/// Frames that wait for a write. Once one of them held a secret nothing of them stays behind in memory that is given
/// back, or kept for reuse.
#[derive(Default)]
pub struct Outbox {
    buffer: Vec<u8>,
    secret: bool,
}

impl Outbox {
    /// Appends one frame; `body` writes the body. `secret_len_max` is the most bytes of a body that holds a secret, and
    /// `None` for one that holds none.
    pub fn push(&mut self, secret_len_max: Option<usize>, body: impl FnOnce(&mut Vec<u8>)) {
        let Some(len_max) = secret_len_max else {
            if self.secret {
                let mut one = Vec::new();
                frame(&mut one, body);
                return self.append(&one);
            }
            return frame(&mut self.buffer, body);
        };
        self.secret = true;
        // As long as it will be: a vector that grows leaves its old bytes behind.
        let mut one = Zeroizing::new(Vec::with_capacity(len_max + 4));
        let capacity = one.capacity();
        frame(&mut one, body);
        debug_assert_eq!(one.capacity(), capacity, "a secret was left behind");
        self.append(&one);
    }

    /// Appends a frame that is whole already.
    pub fn push_whole(&mut self, frame: &[u8]) {
        self.append(frame);
    }

    /// What is to be written.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Forgets what was written, and keeps at most `kept_max` bytes of room for the next.
    pub fn clear(&mut self, kept_max: usize) {
        self.wipe();
        self.buffer.clear();
        self.buffer.shrink_to(kept_max);
        self.secret = false;
    }

    fn append(&mut self, bytes: &[u8]) {
        let len = self.buffer.len() + bytes.len();
        if self.secret && len > self.buffer.capacity() {
            let mut larger = Vec::with_capacity(len.max(2 * self.buffer.capacity()));
            larger.extend_from_slice(&self.buffer);
            self.wipe();
            self.buffer = larger;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The bytes in use alone: no others were written since the last time.
    fn wipe(&mut self) {
        if self.secret {
            self.buffer.as_mut_slice().zeroize();
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_whether_or_not_they_are_secret() {
        let (mut outbox, mut expected) = (Outbox::default(), Vec::new());
        for round in 0..3 {
            for n in 0..300_usize {
                let body = vec![7; n];
                let secret = (n % 3 == round).then_some(n);
                outbox.push(secret, |out| out.extend_from_slice(&body));
                frame(&mut expected, |out| out.extend_from_slice(&body));
            }
            outbox.push_whole(&[0; 4]);
            expected.extend([0; 4]);
            assert_eq!(outbox.bytes(), expected, "round {round}");
            outbox.clear(100);
            assert!(outbox.is_empty() && outbox.buffer.capacity() <= 100);
            expected.clear();
        }
    }

    #[test]
    fn a_secret_that_was_written_is_wiped_and_so_is_what_stood_beside_it() {
        let mut outbox = Outbox::default();
        outbox.push(None, |out| out.extend_from_slice(b"open"));
        outbox.push(Some(6), |out| out.extend_from_slice(b"secret"));
        outbox.wipe();
        assert!(outbox.bytes().iter().all(|byte| *byte == 0));
        assert_eq!(outbox.bytes().len(), 4 + 4 + 4 + 6);
    }
}
