//! One call, repeated within its deadline where that is safe.
//!
//! Only two failures are worth a repetition: UNAVAILABLE, and RESOURCE_EXHAUSTED when the server says when. A request
//! that no server has seen may be repeated whatever it asks for. The next attempt goes to another replica where there
//! is one, and at once if the last was UNAVAILABLE and another replica is believed to be well. Otherwise the pause doubles from one repetition to the next, is drawn at random below that (so that callers who failed
//! together do not come back together), and is never shorter than the server asked.

use std::{future::Future, sync::Arc, time::Duration};

use rustls::crypto::SecureRandom;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Response, Status};

use crate::{Client, Error, Kind, replicas::Tried};

const FIRST_PAUSE_MAX: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

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
        let deadline = Instant::now() + self.timeout;
        let tried = Arc::new(Tried::default());
        let mut pause_max = FIRST_PAUSE_MAX;
        loop {
            let mut request = Request::new(message.clone());
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            request.extensions_mut().insert(Arc::clone(&tried));
            let error = match timeout_at(deadline, send(request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => Error::from(status),
                Err(_) => {
                    self.replicas.ran_out(&tried);
                    return Err(Error::deadline());
                }
            };
            if repeat == Repeat::Never && !error.never_sent() {
                return Err(error);
            }
            if error.is_of_one_replica() && self.replicas.another_is_well(&tried) {
                continue;
            }
            match pause_before_next(&error, pause_max, self.provider.secure_random) {
                Some(pause) if Instant::now() + pause < deadline => sleep(pause).await,
                _ => return Err(error),
            }
            pause_max = PAUSE_MAX.min(pause_max * 2);
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
    Some(asked + pause_max.mul_f64(share))
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
