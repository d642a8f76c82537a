//! One call, repeated within its deadline where that is safe.
//!
//! Only two failures are worth a repetition: UNAVAILABLE, and RESOURCE_EXHAUSTED when the server says when. A request
//! that no server has seen may be repeated whatever it asks for. The next attempt goes to another replica where there
//! is one, and at once if the last was UNAVAILABLE and another replica, not tried yet, is believed to be well. Otherwise
//! the pause doubles from one repetition to the next, is drawn at random below that (so that callers who failed together
//! do not come back together), and is never shorter than the server asked.
//!
//! A replica that does not answer at all must not use up the whole deadline while another works: an attempt has half of
//! what is left, and is given up then if it may be made twice.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use rustls::crypto::SecureRandom;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Response, Status};

use crate::{Client, Error, Kind, replicas::Tried};

const FIRST_PAUSE_MAX: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The shortest share of the deadline that is worth an attempt.
const SHARE_MIN: Duration = Duration::from_millis(50);
/// No deadline is further away than this: the wire's form of one has eight digits, of milliseconds here.
const TIMEOUT_MAX: Duration = Duration::from_millis(99_999_999);
/// How often the service is asked again for a version that it does not know: its number may be the invention of whoever
/// wrote the envelope.
const NOT_KNOWN_REPEATS_MAX: u32 = 2;

/// Whether doing it twice is the same as doing it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It is: a read, a signature, or a change with a request id.
    Safe,
    /// It is not.
    Never,
}

impl Client {
    /// Sends `message` by `send` until it succeeds, fails for good, or the deadline comes.
    pub(crate) async fn call<Req, Res, Sent>(
        &self,
        repeat: Repeat,
        message: Req,
        send: impl Fn(Request<Req>) -> Sent,
    ) -> Result<Res, Error>
    where
        Req: Clone,
        Sent: Future<Output = Result<Response<Res>, Status>>,
    {
        let deadline = Instant::now() + self.timeout.min(TIMEOUT_MAX);
        let tried = Arc::new(Tried::default());
        let mut pause_max = FIRST_PAUSE_MAX;
        let mut not_known = 0;
        loop {
            let mut request = Request::new(message.clone());
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            request.extensions_mut().insert(Arc::clone(&tried));
            let error = match self.attempt(repeat, &tried, deadline, send(request)).await {
                Some(Ok(response)) => return Ok(response.into_inner()),
                Some(Err(status)) => Error::from(status),
                None if Instant::now() < deadline => continue,
                None => return Err(Error::deadline()),
            };
            if repeat == Repeat::Never && !error.never_sent() {
                return Err(error);
            }
            if error.reason() == Some("VERSION_NOT_KNOWN") {
                not_known += 1;
                if not_known > NOT_KNOWN_REPEATS_MAX {
                    return Err(error);
                }
            }
            if error.is_of_one_replica() && self.replicas.another_is_well(&tried) {
                continue;
            }
            match pause_before_next(&error, pause_max, self.provider.secure_random) {
                Some(pause) if pause < deadline.saturating_duration_since(Instant::now()) => {
                    sleep(pause).await
                }
                _ => return Err(error),
            }
            pause_max = PAUSE_MAX.min(pause_max * 2);
        }
    }

    /// What became of one attempt; `None` if it was given up without an answer, for the deadline or for another replica.
    async fn attempt<Res>(
        &self,
        repeat: Repeat,
        tried: &Tried,
        deadline: Instant,
        sent: impl Future<Output = Result<Response<Res>, Status>>,
    ) -> Option<Result<Response<Res>, Status>> {
        let begun = Instant::now();
        let mut sent = pin!(sent);
        loop {
            let until = match repeat {
                Repeat::Safe => end_of_share(Instant::now(), deadline),
                Repeat::Never => deadline,
            };
            if let Ok(answer) = timeout_at(until, &mut sent).await {
                return Some(answer);
            }
            if until >= deadline || self.replicas.another_than_the_last_is_well(tried) {
                // One that had hardly begun when the deadline came is not to blame.
                if begun.elapsed() >= self.timeout / 4 {
                    self.replicas.ran_out(tried);
                }
                return None;
            }
        }
    }

    /// A fresh `request_id`: 122 random bits as a UUID of version 4 (RFC 9562 §5.4).
    pub(crate) fn request_id(&self) -> Result<String, Error> {
        let mut bytes = [0; 16];
        self.provider
            .secure_random
            .fill(&mut bytes)
            .map_err(|_| Error::invalid("the operating system gives no random numbers"))?;
        Ok(uuid_v4(bytes))
    }
}

fn pause_before_next(error: &Error, pause_max: Duration, random: &dyn SecureRandom) -> Option<Duration> {
    let asked = match (error.kind(), error.retry_delay()) {
        (Kind::Unavailable, asked) => asked.unwrap_or_default(),
        (Kind::ResourceExhausted, Some(asked)) => asked,
        _ => return None,
    };
    let mut dice = [0; 4];
    // Without randomness the pause is the longest: still a pause.
    let share = match random.fill(&mut dice) {
        Ok(()) => f64::from(u32::from_be_bytes(dice)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    };
    Some(asked.saturating_add(pause_max.mul_f64(share)))
}

/// When an attempt that is under way at `now` has had its share of what is left.
fn end_of_share(now: Instant, deadline: Instant) -> Instant {
    let left = deadline.saturating_duration_since(now);
    now + left.min(SHARE_MIN.max(left / 2))
}

fn uuid_v4(mut bytes: [u8; 16]) -> String {
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let bits = u128::from_be_bytes(bytes);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        bits >> 96,
        (bits >> 80) & 0xffff,
        (bits >> 64) & 0xffff,
        (bits >> 48) & 0xffff,
        bits & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(status: Status) -> Option<Duration> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        pause_before_next(&Error::from(status), FIRST_PAUSE_MAX, provider.secure_random)
    }

    #[test]
    fn failures_that_a_repetition_cannot_cure_are_final() {
        for status in [
            Status::invalid_argument(""),
            Status::permission_denied(""),
            Status::aborted(""),
            Status::failed_precondition(""),
            Status::deadline_exceeded(""),
            Status::internal(""),
            Status::resource_exhausted("no word of when"),
        ] {
            assert_eq!(pause(status.clone()), None, "{status:?}");
        }
    }

    #[test]
    fn an_absent_service_is_tried_again_after_a_pause() {
        assert!(pause(Status::unavailable("")).is_some_and(|pause| pause <= FIRST_PAUSE_MAX));
    }

    #[test]
    fn a_request_id_is_a_uuid_of_version_4() {
        assert_eq!(uuid_v4([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid_v4([0; 16]), "00000000-0000-4000-8000-000000000000");
    }
}
