//! Which server a request goes to. All replicas of the service are equal: any of them answers any call.
//!
//! Each has a connection of its own. A request goes to the one with the fewest requests in flight, in turn among
//! equals: a slow replica gets less, without anybody measuring it. A replica whose connection fails, which lets a request
//! wait in vain, or which says that it cannot serve now, rests for a moment; then one request at a time tries it until it
//! has answered. So does one that nobody has spoken to yet. When none is well, they are asked all the same, in turn: to
//! refuse a call is the server's business.

mod health;

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Request, Response};
use tonic::{Code, Status, body::Body, transport::Channel};
use tonic_types::StatusExt;
use tower::Service;

use self::health::Health;
use crate::unreached::Unreached;

/// As many replicas as an address may name.
pub(crate) const REPLICAS_MAX: usize = 64;
/// A request that is given up after it has waited so long for its answer says that the replica is away.
const SILENCE_MAX: Duration = Duration::from_millis(500);
/// The reasons of UNAVAILABLE by which a server speaks of itself. Any other is of the request: of a version that it
/// names, or of one key.
const OF_THE_SERVER: [&str; 4] = ["FENCED", "HSM_UNAVAILABLE", "STORE_UNAVAILABLE", "AUDIT_UNAVAILABLE"];

/// The connections to all replicas, as one. Cloning shares them.
#[derive(Clone)]
pub struct Replicas {
    all: Arc<[Replica]>,
    turn: Arc<AtomicUsize>,
}

struct Replica {
    addr: String,
    channel: Channel,
    in_flight: AtomicUsize,
    health: Mutex<Health>,
}

/// The replicas that one call, with its repetitions, has been to. Travels as an extension of the request.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    set: AtomicU64,
    last: AtomicUsize,
}

/// What the choice looks at. The least is chosen.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    rests: bool,
    tried: bool,
    in_flight: usize,
    turn: usize,
}

impl Replicas {
    /// `channels` are the replicas' addresses and connections, at least one and at most [`REPLICAS_MAX`]. Nothing is
    /// known yet of any but the one at `connected`.
    pub(crate) fn new(channels: Vec<(String, Channel)>, connected: usize) -> Self {
        debug_assert!((1..=REPLICAS_MAX).contains(&channels.len()));
        let all = channels.into_iter().enumerate().map(|(index, (addr, channel))| Replica {
            addr,
            channel,
            in_flight: AtomicUsize::new(0),
            health: Mutex::new(if index == connected { Health::default() } else { Health::unproven() }),
        });
        Self { all: all.collect(), turn: Arc::default() }
    }

    /// Whether a replica that `tried` does not name is believed to be well.
    pub(crate) fn another_is_well(&self, tried: &Tried) -> bool {
        let now = Instant::now();
        self.all.iter().enumerate().any(|(index, replica)| !tried.contains(index) && replica.is_well(now))
    }

    /// Whether a replica other than the one that was tried last is believed to be well.
    pub(crate) fn another_than_the_last_is_well(&self, tried: &Tried) -> bool {
        let (now, last) = (Instant::now(), tried.last());
        last.is_some()
            && self.all.iter().enumerate().any(|(index, replica)| Some(index) != last && replica.is_well(now))
    }

    /// The replica that was tried last has let the time of an attempt run out.
    pub(crate) fn ran_out(&self, tried: &Tried) {
        if let Some(replica) = tried.last().and_then(|last| self.all.get(last)) {
            replica.health().failed(Instant::now());
        }
    }

    fn choose(&self, tried: &Tried) -> usize {
        let now = Instant::now();
        let count = self.all.len();
        let turn = self.turn.fetch_add(1, Relaxed) % count;
        let rank = |index: &usize| Rank {
            rests: !self.all[*index].is_well(now),
            tried: tried.contains(*index),
            in_flight: self.all[*index].in_flight.load(Relaxed),
            turn: (index + count - turn) % count,
        };
        let index = (0..count).min_by_key(rank).unwrap_or_default();
        tried.insert(index);
        self.all[index].health().tried_again(now);
        index
    }
}

impl Service<Request<Body>> for Replicas {
    type Response = Response<Body>;
    type Error = Unreached;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // Which replica must be ready is known only once it is chosen.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let replicas = self.clone();
        Box::pin(async move {
            let tried = request.extensions().get::<Arc<Tried>>().cloned().unwrap_or_default();
            let replica = &replicas.all[replicas.choose(&tried)];
            let mut attempt = Attempt::begin(replica);
            let mut channel = replica.channel.clone();
            let answer = match poll_fn(|context| channel.poll_ready(context)).await {
                Ok(()) => channel.call(request).await,
                Err(error) => Err(error),
            };
            attempt.has_ended = true;
            let (mut health, now) = (replica.health(), Instant::now());
            match answer {
                Ok(response) => {
                    match Said::by(&response) {
                        Said::Answer => health.answered(),
                        Said::NotNow => health.refused(now),
                        Said::NotByTheServer => health.failed(now),
                    }
                    Ok(response)
                }
                Err(error) => {
                    health.failed(now);
                    Err(Unreached::new(replica.addr.clone(), error))
                }
            }
        })
    }
}

impl Replica {
    /// Whether a request may go there. To one that has not answered since it failed only when no other is on its way.
    fn is_well(&self, now: Instant) -> bool {
        let health = *self.health();
        !health.rests(now) && (health.is_proven() || self.in_flight.load(Relaxed) == 0)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // Two words, written in one step each: a panic leaves nothing half done.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tried {
    fn contains(&self, index: usize) -> bool {
        self.set.load(Relaxed) & (1 << index) != 0
    }

    fn insert(&self, index: usize) {
        self.set.fetch_or(1 << index, Relaxed);
        self.last.store(index, Relaxed);
    }

    fn last(&self) -> Option<usize> {
        (self.set.load(Relaxed) != 0).then(|| self.last.load(Relaxed))
    }
}

/// One request in flight, for as long as this lives.
struct Attempt<'a> {
    replica: &'a Replica,
    begun: Instant,
    has_ended: bool,
}

impl<'a> Attempt<'a> {
    fn begin(replica: &'a Replica) -> Self {
        replica.in_flight.fetch_add(1, Relaxed);
        Self { replica, begun: Instant::now(), has_ended: false }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.replica.in_flight.fetch_sub(1, Relaxed);
        // Whoever waited has given up, by a clock of their own perhaps: nobody else will say so.
        if !self.has_ended && self.begun.elapsed() > SILENCE_MAX {
            self.replica.health().failed(Instant::now());
        }
    }
}

/// What an answer says of who gave it.
enum Said {
    /// The server works, whatever it thinks of the request.
    Answer,
    /// The server says that it cannot serve now.
    NotNow,
    /// A proxy says that there is no server.
    NotByTheServer,
}

impl Said {
    fn by(response: &Response<Body>) -> Self {
        // A server that fails a call says so in the head of its answer.
        let Some(status) = Status::from_header_map(response.headers()) else {
            return if response.status().is_server_error() { Self::NotByTheServer } else { Self::Answer };
        };
        let is_its_own = || match status.get_error_details().error_info() {
            Some(info) => OF_THE_SERVER.contains(&info.reason.as_str()),
            None => true,
        };
        if status.code() == Code::Unavailable && is_its_own() { Self::NotNow } else { Self::Answer }
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|replica| &replica.addr)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn rank(rests: bool, tried: bool, in_flight: usize) -> Rank {
        Rank { rests, tried, in_flight, turn: 0 }
    }

    #[test]
    fn a_replica_that_rests_is_the_last_choice_and_a_busy_one_comes_after_an_idle_one() {
        assert!(
            rank(false, true, 9) < rank(true, false, 0),
            "one that rests was taken before one that works"
        );
        assert!(rank(false, false, 9) < rank(false, true, 0), "the same one was tried twice");
        assert!(rank(false, false, 0) < rank(false, false, 1), "the busy one was taken");
        assert!(rank(true, false, 0) < rank(true, false, 1), "all rest, and the busy one was taken");
    }

    fn makes_it_rest(status: Status) -> bool {
        matches!(Said::by(&status.into_http()), Said::NotNow | Said::NotByTheServer)
    }

    fn unavailable(reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, "kms", []);
        Status::with_error_details(Code::Unavailable, "not now", details)
    }

    #[test]
    fn a_server_rests_for_what_it_says_of_itself_and_not_for_what_it_says_of_a_request() {
        for reason in OF_THE_SERVER {
            assert!(makes_it_rest(unavailable(reason)), "{reason}");
        }
        assert!(makes_it_rest(Status::unavailable("no reason")));
        for reason in ["VERSION_NOT_KNOWN", "KEY_NOT_IN_HSM"] {
            assert!(!makes_it_rest(unavailable(reason)), "{reason}");
        }
        assert!(!makes_it_rest(Status::internal("a defect")));
    }

    #[test]
    fn a_proxy_without_a_server_behind_it_rests() {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = http::StatusCode::BAD_GATEWAY;
        assert!(matches!(Said::by(&answer), Said::NotByTheServer));
    }
}
