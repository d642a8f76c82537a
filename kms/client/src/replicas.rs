//! Which server a request goes to. All replicas of the service are equal: any of them answers any call.
//!
//! Each has a connection of its own. A request goes to the one with the fewest requests in flight, in turn among
//! equals: a slow replica gets less, without anybody measuring it. A replica whose connection fails, or which says
//! UNAVAILABLE, rests for a moment, which doubles as long as it fails; then one request tries it again. When all of
//! them rest, the one that has rested most is asked all the same: to refuse a call is the server's business.

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
use tonic::{Code, body::Body, transport::Channel};
use tower::Service;

use crate::unreached::Unreached;

/// As many replicas as an address may name.
pub(crate) const REPLICAS_MAX: usize = 64;
/// How long a replica rests after its first failure.
const FIRST_REST: Duration = Duration::from_millis(100);
/// How long it rests at most.
const REST_MAX: Duration = Duration::from_secs(5);

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

/// How often a replica has failed since it last answered, and until when it rests for that.
#[derive(Debug, Clone, Copy, Default)]
struct Health {
    failures: u32,
    rests_until: Option<Instant>,
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
    rest: Duration,
    in_flight: usize,
    turn: usize,
}

impl Replicas {
    /// `channels` are the replicas' addresses and connections, at least one and at most [`REPLICAS_MAX`].
    pub(crate) fn new(channels: Vec<(String, Channel)>) -> Self {
        debug_assert!((1..=REPLICAS_MAX).contains(&channels.len()));
        let all = channels.into_iter().map(|(addr, channel)| Replica {
            addr,
            channel,
            in_flight: AtomicUsize::new(0),
            health: Mutex::default(),
        });
        Self { all: all.collect(), turn: Arc::default() }
    }

    /// Whether a replica that `tried` does not name is believed to be well.
    pub(crate) fn another_is_well(&self, tried: &Tried) -> bool {
        let now = Instant::now();
        self.all
            .iter()
            .enumerate()
            .any(|(index, replica)| !tried.contains(index) && replica.health().rest(now).is_zero())
    }

    /// The replica that was tried last has let a call's time run out.
    pub(crate) fn ran_out(&self, tried: &Tried) {
        if let Some(replica) = self.all.get(tried.last.load(Relaxed))
            && tried.set.load(Relaxed) != 0
        {
            replica.failed(Instant::now());
        }
    }

    fn choose(&self, tried: &Tried) -> usize {
        let now = Instant::now();
        let count = self.all.len();
        let turn = self.turn.fetch_add(1, Relaxed) % count;
        let rank = |index: &usize| {
            let rest = self.all[*index].health().rest(now);
            Rank {
                rests: !rest.is_zero(),
                tried: tried.contains(*index),
                rest,
                in_flight: self.all[*index].in_flight.load(Relaxed),
                turn: (index + count - turn) % count,
            }
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
            let _in_flight = InFlight::begin(&replica.in_flight);
            let mut channel = replica.channel.clone();
            let answer = match poll_fn(|context| channel.poll_ready(context)).await {
                Ok(()) => channel.call(request).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(response) => {
                    if is_unavailable(&response) {
                        replica.failed(Instant::now());
                    } else {
                        replica.health().answered();
                    }
                    Ok(response)
                }
                Err(error) => {
                    replica.failed(Instant::now());
                    Err(Unreached::new(replica.addr.clone(), error))
                }
            }
        })
    }
}

impl Replica {
    fn health(&self) -> MutexGuard<'_, Health> {
        // Three words, written in one step each: a panic leaves nothing half done.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, now: Instant) {
        self.health().failed(now);
    }
}

impl Health {
    fn rest(&self, now: Instant) -> Duration {
        self.rests_until.map(|until| until.saturating_duration_since(now)).unwrap_or_default()
    }

    fn answered(&mut self) {
        *self = Self::default();
    }

    fn failed(&mut self, now: Instant) {
        // Many requests fail together when a connection is cut: that is one failure.
        if self.rest(now).is_zero() {
            self.failures += 1;
        }
        self.rests_until = Some(now + self.pause());
    }

    /// One request goes to a replica that has rested; the others wait for what becomes of it.
    fn tried_again(&mut self, now: Instant) {
        if self.failures > 0 && self.rest(now).is_zero() {
            self.rests_until = Some(now + self.pause());
            self.failures += 1;
        }
    }

    fn pause(&self) -> Duration {
        let doubled = 1 << self.failures.saturating_sub(1).min(16);
        REST_MAX.min(FIRST_REST * doubled)
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
}

/// One request in flight, for as long as this lives.
struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Whether a server, or a proxy before it, says that it cannot serve now.
fn is_unavailable(response: &Response<Body>) -> bool {
    let status = response.headers().get("grpc-status");
    response.status().is_server_error()
        || status.is_some_and(|status| Code::from_bytes(status.as_bytes()) == Code::Unavailable)
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|replica| &replica.addr)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(rests: bool, tried: bool, in_flight: usize) -> Rank {
        Rank { rests, tried, rest: Duration::from_secs(u64::from(rests)), in_flight, turn: 0 }
    }

    #[test]
    fn a_replica_that_rests_is_the_last_choice_and_a_busy_one_comes_after_an_idle_one() {
        assert!(
            rank(false, true, 9) < rank(true, false, 0),
            "one that rests was taken before one that works"
        );
        assert!(rank(false, false, 9) < rank(false, true, 0), "the same one was tried twice");
        assert!(rank(false, false, 0) < rank(false, false, 1), "the busy one was taken");
    }

    #[test]
    fn a_replica_rests_twice_as_long_with_each_failure_up_to_a_bound_and_not_once_it_answers() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        let mut rests = Vec::new();
        for _ in 0..20 {
            health.tried_again(now);
            health.failed(now);
            rests.push(health.rest(now));
            now += health.rest(now);
        }
        assert_eq!(rests[..3], [FIRST_REST, FIRST_REST * 2, FIRST_REST * 4]);
        assert_eq!(rests[19], REST_MAX);
        health.answered();
        assert!(health.rest(now).is_zero());
    }

    #[test]
    fn requests_that_fail_together_are_one_failure() {
        let (mut health, now) = (Health::default(), Instant::now());
        for _ in 0..100 {
            health.failed(now);
        }
        assert_eq!(health.rest(now), FIRST_REST);
    }

    #[test]
    fn a_replica_that_has_rested_gets_one_request_until_that_is_answered() {
        let (mut health, now) = (Health::default(), Instant::now());
        health.failed(now);
        let later = now + FIRST_REST;
        assert!(health.rest(later).is_zero());
        health.tried_again(later);
        assert!(!health.rest(later).is_zero(), "the second request would go there too");
    }
}
