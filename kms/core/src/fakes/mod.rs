//! Fakes of the ports, for core's own tests: real cryptography and real rules, but all in memory, with a clock
//! that is turned by hand and faults that are set by hand. They pass the same conformance suites as the real
//! implementations, and refuse to compile into a release.

mod audit;
mod contents;
mod hsm;
mod server_log;
mod store;

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

pub use audit::MemoryLog;
pub use hsm::{HsmFault, SoftHsm};
pub use server_log::ServerLog;
pub use store::MemoryStore;

use crate::{
    Algorithm, Caller, Clock, Error, Key, KeyUid, Kms,
    caller::{KeyScope, Role},
    kms::{Ports, Settings},
    time::{Deadline, SignedDuration, Timestamp},
};

/// A service over fakes.
pub type FakeKms = Kms<Arc<SoftHsm>, Arc<MemoryStore>, MemoryLog, Arc<ManualClock>>;

/// The fakes behind a [`FakeKms`], which outlive it: opening it again over them is a restart.
#[derive(Clone, Default)]
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
pub struct ManualClock(AtomicI64);

impl World {
    /// Opens the service over this world.
    pub async fn open(&self, settings: Settings) -> Result<FakeKms, Error> {
        let ports = Ports {
            hsm: Arc::clone(&self.hsm),
            store: Arc::clone(&self.store),
            audit: Arc::clone(&self.log),
            clock: Arc::clone(&self.clock),
            entropy,
        };
        Kms::open(ports, settings).await
    }
}

impl ManualClock {
    /// Turns it on by `by`.
    pub fn advance(&self, by: SignedDuration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self(AtomicI64::new(1_800_000_000))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.0.load(Ordering::SeqCst)).unwrap_or(Timestamp::MAX)
    }

    fn within(&self, span: std::time::Duration) -> Deadline {
        Deadline::at(std::time::Instant::now() + span)
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

/// An ES256 key of that name, with defaults.
#[expect(clippy::expect_used, reason = "a fake: the name is a test's own")]
pub fn a_key(name: &str) -> Key {
    let at = Timestamp::from_second(1_700_000_000).expect("a time");
    Key {
        id: name.parse().expect("a key's name"),
        uid: KeyUid([7; 16]),
        algorithm: Algorithm::Es256,
        owner: "tests".to_owned(),
        labels: [("team".to_owned(), "auth".to_owned())].into(),
        rotation_period: Some(SignedDuration::from_hours(24)),
        publish_lead: SignedDuration::from_hours(1),
        max_token_ttl: SignedDuration::from_hours(1),
        tokens_until: None,
        created_at: at,
        updated_at: at,
        revision: 1,
    }
}
