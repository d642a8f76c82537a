//! The way of every request: who asks, until when, then the verb, then the answer or its status.
//!
//! Reads and signatures run inside the call: when the client goes away they are dropped, and the gate records
//! them as abandoned. Changes of state run detached, so that a disconnect cannot cut them in the middle; the
//! caller then waits for an outcome that comes either way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kms_core::{Caller, Error, time::Deadline};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::status::{status, unauthenticated};

/// The HSM room answers at the deadline itself, with an error that is on record. Only when even that does not
/// come is the call given up here, this much later.
const DEADLINE_GRACE: Duration = Duration::from_millis(50);

/// Core, shared by all calls.
pub(crate) type Kms<H, S, A, C> = Arc<kms_core::Kms<H, S, A, C>>;

/// The door to core, as every service holds it.
pub(crate) struct Door<H, S, A, C> {
    kms: Kms<H, S, A, C>,
    deadline_max: Duration,
}

/// What a request carries beside its message.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) caller: Caller,
    pub(crate) deadline: Deadline,
}

impl<H, S, A, C> Door<H, S, A, C> {
    pub(crate) fn new(kms: Kms<H, S, A, C>, deadline_max: Duration) -> Self {
        Self { kms, deadline_max }
    }

    /// Runs `verb` inside the call.
    pub(crate) async fn run<Req, Res, Work>(
        &self,
        request: Request<Req>,
        verb: impl FnOnce(Kms<H, S, A, C>, Call, Req) -> Work,
    ) -> Result<Response<Res>, Status>
    where
        Work: Future<Output = Result<Res, Error>>,
    {
        let (call, message) = self.enter(request)?;
        let give_up = call.deadline.instant() + DEADLINE_GRACE;
        let work = verb(Arc::clone(&self.kms), call, message);
        match tokio::time::timeout_at(give_up.into(), work).await {
            Ok(result) => result.map(Response::new).map_err(|error| status(&error)),
            Err(_) => Err(status(&Error::deadline())),
        }
    }

    /// Runs `verb` to its end, whatever becomes of the call.
    pub(crate) async fn run_detached<Req, Res, Work>(
        &self,
        request: Request<Req>,
        verb: impl FnOnce(Kms<H, S, A, C>, Call, Req) -> Work,
    ) -> Result<Response<Res>, Status>
    where
        Work: Future<Output = Result<Res, Error>> + Send + 'static,
        Res: Send + 'static,
    {
        self.run(request, |kms, call, message| {
            let task = tokio::spawn(verb(kms, call, message));
            async { task.await.unwrap_or_else(|_| Err(Error::internal("the operation's task panicked"))) }
        })
        .await
    }

    fn enter<Req>(&self, request: Request<Req>) -> Result<(Call, Req), Status> {
        let (metadata, mut extensions, message) = request.into_parts();
        let caller = extensions.remove::<Caller>().ok_or_else(unauthenticated)?;
        let asked = timeout(&metadata).map_err(|error| status(&error))?;
        let timeout = asked.map_or(self.deadline_max, |asked| asked.min(self.deadline_max));
        Ok((Call { caller, deadline: Deadline::at(Instant::now() + timeout) }, message))
    }
}

/// The caller's own bound: `grpc-timeout`, up to eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn timeout(metadata: &MetadataMap) -> Result<Option<Duration>, Error> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(None) };
    let wrong = || Error::invalid("grpc-timeout", "a timeout is 1 to 8 digits and one of H, M, S, m, u, n");
    let text = value.to_str().map_err(|_| wrong())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(wrong());
    }
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return Err(wrong()),
    }))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use kms_core::{
        fakes::{World, administrator},
        kms::Settings,
    };
    use tonic::Code;

    use super::*;

    /// Runs `verb` detached, as an administrator, with `timeout` as the most that the server allows.
    async fn detached<Work>(timeout: Duration, verb: impl FnOnce() -> Work) -> Result<Response<()>, Status>
    where
        Work: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let kms = World::default().open(Settings::default()).await.expect("an empty world opens");
        let mut request = Request::new(());
        request.extensions_mut().insert(administrator());
        Door::new(Arc::new(kms), timeout).run_detached(request, |_, _, ()| verb()).await
    }

    #[tokio::test]
    async fn work_that_never_ends_is_given_up_at_the_servers_own_bound() {
        let status = detached(Duration::from_millis(1), pending).await.expect_err("it never ends");
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_of_one_call() {
        let status = detached(Duration::from_secs(60), || async { panic!("canary") }).await;
        let status = status.expect_err("it panicked");
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("canary"), "{status:?}");
    }

    fn parse(text: &str) -> Result<Option<Duration>, Error> {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", text.parse().expect("a header value"));
        timeout(&metadata)
    }

    #[test]
    fn a_malformed_timeout_is_refused() {
        for bad in ["", "S", "1", "123456789S", "-1S", "+1S", "1.5S", "1s", "1 S", "S1", "1SS"] {
            assert_eq!(parse(bad).expect_err(bad).field(), Some("grpc-timeout"));
        }
    }

    #[test]
    fn every_unit_is_read() {
        for (text, expected) in [
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(parse(text), Ok(Some(expected)), "{text}");
        }
        assert_eq!(timeout(&MetadataMap::new()), Ok(None));
    }
}
