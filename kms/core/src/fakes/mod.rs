//! Fakes of the ports, for core's own tests: real cryptography and real rules, but all in memory, with a clock
//! that is turned by hand and faults that are set by hand. They pass the same conformance suites as the real
//! implementations, and refuse to compile into a release.

mod aes;
mod audit;
mod contents;
mod hsm;
mod rows;
mod server_log;
mod store;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

pub use audit::MemoryLog;
pub use hsm::{HsmFault, SoftHsm};
pub use server_log::ServerLog;
pub use store::MemoryStore;

use crate::{
    Algorithm, Caller, Clock, Error, Key, KeyUid, Kms,
    caller::{KeyScope, OwnRole, Role},
    claim_rules::ClaimRules,
    class::{ClassName, Inherited},
    key::Purpose,
    kms::{Ports, Settings},
    proposal,
    replica::ReplicaId,
    store::{AccessToken, Store as _, Transaction, Write},
    time::{Deadline, SignedDuration, Timestamp},
    verbs::CastVote,
};

/// A service over fakes.
pub type FakeKms = Kms<Arc<SoftHsm>, Arc<MemoryStore>, MemoryLog, Arc<ManualClock>>;

/// The fakes behind a [`FakeKms`], which outlive it: opening it again over them is a restart.
#[derive(Clone)]
pub struct World {
    /// The token.
    pub hsm: Arc<SoftHsm>,
    /// The rows.
    pub store: Arc<MemoryStore>,
    /// The book.
    pub log: Arc<MemoryLog>,
    /// The time.
    pub clock: Arc<ManualClock>,
}

/// A clock that stands still until it is turned.
pub struct ManualClock {
    /// Milliseconds since 1970.
    now_ms: AtomicI64,
    start: Instant,
    elapsed_ms: AtomicU64,
}

impl World {
    /// Opens the service over this world as its only server: whoever ran before is known to be gone.
    pub async fn open(&self, settings: Settings) -> Result<FakeKms, Error> {
        self.store.forget_replicas();
        let kms = self.join(settings).await?;
        kms.beat(true, String::new()).await?;
        Ok(kms)
    }

    /// Opens the service beside those that run on the same rows.
    pub async fn join(&self, settings: Settings) -> Result<FakeKms, Error> {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let ports = Ports {
            hsm: Arc::clone(&self.hsm),
            store: Arc::clone(&self.store),
            audit: Arc::clone(&self.log),
            clock: Arc::clone(&self.clock),
            replica: ReplicaId::new(format!("replica-{run}")),
            entropy,
        };
        Kms::open(ports, settings).await
    }

    /// Another server's world: the same token and rows, with a link to them, a book and a clock of its own. Both
    /// clocks show the same.
    pub fn beside(&self) -> Self {
        let clock = ManualClock::at(self.clock.now());
        let (store, log) = (Arc::new(self.store.linked()), Arc::default());
        Self { hsm: Arc::clone(&self.hsm), store, log, clock: Arc::new(clock) }
    }
}

/// The store's clock is the world's.
impl Default for World {
    fn default() -> Self {
        let clock = Arc::<ManualClock>::default();
        let store = Arc::new(MemoryStore::on(Arc::clone(&clock)));
        Self { hsm: Arc::default(), store, log: Arc::default(), clock }
    }
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn at(now: Timestamp) -> Self {
        let elapsed_ms = AtomicU64::new(0);
        Self { now_ms: AtomicI64::new(now.as_millisecond()), start: Instant::now(), elapsed_ms }
    }

    /// Sets the wall clock on by `by`, as somebody who sets the time: no time passes.
    pub fn advance(&self, by: SignedDuration) {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Lets time pass, on both its hands: the wall clock and the monotonic one.
    pub fn elapse(&self, span: Duration) {
        let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.elapsed_ms.fetch_add(ms, Ordering::SeqCst);
        self.now_ms.fetch_add(i64::try_from(ms).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms.load(Ordering::SeqCst))
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::at(Timestamp::from_second(1_800_000_000).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.now_ms.load(Ordering::SeqCst)).unwrap_or(Timestamp::MAX)
    }

    /// The token in memory looks at the real clock too: what lies ahead of either lies ahead.
    fn within(&self, span: Duration) -> Deadline {
        Deadline::at(Instant::now() + self.elapsed() + span)
    }

    fn instant(&self) -> Instant {
        self.start + self.elapsed()
    }
}

/// The operating system's generator.
#[expect(clippy::disallowed_methods, reason = "the place where tests take their entropy from")]
pub fn entropy(bytes: &mut [u8]) -> Result<(), Error> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| Error::internal("no entropy"))
}

/// A deadline far away.
pub fn soon() -> Deadline {
    Deadline::at(std::time::Instant::now() + std::time::Duration::from_secs(60))
}

/// An administrator.
pub fn administrator() -> Caller {
    Caller::new("access-token:admin", Role::Administrator, KeyScope::All)
}

/// What `outcome` asked for, done with the consent of a second administrator, where that is what it lacked.
pub async fn with_consent<T>(kms: &FakeKms, outcome: Result<T, Error>) -> Result<(), Error> {
    let error = match outcome {
        Err(error) if error.reason() == "APPROVAL_REQUIRED" => error,
        outcome => return outcome.map(drop),
    };
    let second = a_token("second", Role::Administrator);
    let transaction = Transaction::new("a second administrator", vec![Write::InsertAccessToken(second)]);
    // It may be there already.
    let _ = kms.store.commit(transaction).await;
    kms.refresh().await?;
    let proposal = error.resource().and_then(|name| name.strip_prefix("proposals/")).unwrap_or_default();
    let id = proposal::Id::try_from(proposal.to_owned())?;
    let sha256 = kms.proposal(&administrator(), &id).await?.proposal.sha256;
    let second = Caller::new("access-token:second", Role::Administrator, KeyScope::All);
    kms.vote(&second, CastVote { id: id.clone(), approves: Some(sha256), note: String::new() }).await?;
    kms.execute_proposal(&administrator(), &id, soon()).await.map(drop)
}

/// An access token of that name, whose role is its own and extends to every key.
pub fn a_token(name: &str, role: Role) -> AccessToken {
    AccessToken {
        name: name.to_owned(),
        sha256: std::array::from_fn(|place| name.as_bytes()[place % name.len()]),
        own: Some(OwnRole { role, keys: KeyScope::All }),
        bootstrap: false,
        created_at: Timestamp::from_second(1_700_000_000).unwrap_or(Timestamp::UNIX_EPOCH),
        expires_at: None,
        period: None,
        renewable_until: None,
        bound_to: None,
        revoked_at: None,
    }
}

/// An ES256 key of that name, with defaults.
#[expect(clippy::expect_used, reason = "a fake: the name is a test's own")]
pub fn a_key(name: &str) -> Key {
    let at = Timestamp::from_second(1_700_000_000).expect("a time");
    Key {
        id: name.parse().expect("a key's name"),
        uid: KeyUid([7; 16]),
        algorithm: Algorithm::Es256,
        purpose: Purpose::Jwt,
        class: ClassName::JwtSigning,
        inherited: Inherited { max_token_ttl: true, ..Inherited::default() },
        owner: "tests".to_owned(),
        labels: [("team".to_owned(), "auth".to_owned())].into(),
        rotation_period: Some(SignedDuration::from_hours(24)),
        publish_lead: SignedDuration::from_hours(1),
        max_token_ttl: SignedDuration::from_hours(1),
        overlap: SignedDuration::ZERO,
        destroy_after: None,
        claim_rules: ClaimRules::default(),
        required_context: Vec::new(),
        tokens_until: None,
        bundles_until: None,
        created_at: at,
        updated_at: at,
        revision: 1,
    }
}
