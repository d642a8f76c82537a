//! The one door into core: [`Kms`] holds the ports, the gate and the catalog; its verbs live in `verbs/`.
//!
//! A verb is entered once and left once: *gate in → catalog → HSM → gate out*. Verbs that change state must be
//! run to their end: callers that can be cut off (a gRPC handler whose client goes away) run them detached.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use crate::{
    Algorithm, AuditLog, Caller, Clock, Error, Gate, Hsm, Key, KeyId, KeyState, KeyVersion, Store,
    beat::Beats,
    catalog::{Catalog, Entry, Version},
    epoch::AcceptanceCode,
    fence::Fence,
    gate::SystemWork,
    limits::{self, Limits},
    policy,
    principal::Principal,
    replica::ReplicaId,
    store::{self, Generation},
    time::{Deadline, SignedDuration, Timestamp},
    timeline,
    uses::{Uses, WrapLimits},
    verbs::{AttributeAudits, Births, MAX_AGE_MAX, RotationFailures},
};

/// How often the first beat is tried.
const FIRST_BEATS_MAX: usize = 5;

/// The service, over its four ports.
pub struct Kms<H, S, A, C> {
    pub(crate) hsm: H,
    pub(crate) store: S,
    pub(crate) clock: Arc<C>,
    pub(crate) replica: ReplicaId,
    pub(crate) fence: Arc<Fence>,
    pub(crate) beats: Beats,
    pub(crate) gate: Gate<A>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) settings: Settings,
    pub(crate) entropy: Entropy,
    pub(crate) opened: Opened,
    /// Births under way.
    pub(crate) births: Mutex<Births>,
    /// Held by whoever lets the token follow the epoch: one at a time.
    pub(crate) following: futures::lock::Mutex<()>,
    /// What ends recovery mode, while the service is in it.
    pub(crate) acceptance: Mutex<Option<AcceptanceCode>>,
    /// What attribute audits found.
    pub(crate) audits: Mutex<AttributeAudits>,
    /// How often versions wrapped, and when they were used.
    pub(crate) uses: Uses,
    /// Rotations that were due and failed.
    pub(crate) rotation_failures: Mutex<RotationFailures>,
}

/// How it was when this process began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened {
    pub(crate) at: Instant,
    /// Whether there was a key already.
    pub(crate) with_keys: bool,
}

/// The outside, plugged in once by `kms/server`.
pub struct Ports<H, S, A, C> {
    /// The token.
    pub hsm: H,
    /// The rows.
    pub store: S,
    /// The book.
    pub audit: Arc<A>,
    /// The time.
    pub clock: C,
    /// This run of this server.
    pub replica: ReplicaId,
    /// The operating system's generator.
    pub entropy: Entropy,
}

/// Fills a buffer with random bytes, or says that it cannot.
pub type Entropy = fn(&mut [u8]) -> Result<(), Error>;

/// What an operator sets for the whole service.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Verify every signature with the stored public key before it is released. Default: on.
    pub verify_before_release: bool,
    /// Whether versions may be scheduled for destruction at all. Default: no.
    pub allow_destroy: bool,
    /// From the request to the destruction. Default: 30 days.
    pub destroy_delay: SignedDuration,
    /// The longest that a verifier may keep a key set. At most 300 s, which is the default; all replicas must agree on it.
    pub jwks_max_age: SignedDuration,
    /// The issuer identifier that tokens bear, and bundles of key sets.
    pub issuer: String,
    /// The longest that a bundle of key sets lives: how long a revocation may take to reach whoever verifies with one.
    /// Default: 1 hour.
    pub bundle_ttl_max: SignedDuration,
    /// How long a version that wraps must not have unwrapped before it may be destroyed. Default: 30 days.
    pub unwrap_quiet_period: SignedDuration,
    /// How many wraps one version may make. The same at all replicas: an operator does not set it.
    pub wrap_limits: WrapLimits,
    /// How much longer than its caller a birth may wait for the HSM. Default: 60 s (RSA-4096 is slow).
    pub birth_grace: std::time::Duration,
    /// How often callers may call, and keys be used. Default: without limit.
    pub limits: limits::Rules,
}

/// A key as callers see it, at one moment.
#[derive(Debug, Clone)]
pub struct KeyView {
    /// The row.
    pub key: Key,
    /// The version that signs now.
    pub primary: Option<u32>,
    /// When the next one takes over; in the past when it is overdue.
    pub next_rotation: Option<Timestamp>,
}

/// A version as callers see it, at one moment.
#[derive(Debug, Clone)]
pub struct VersionView {
    /// Its key's name.
    pub key: KeyId,
    /// Its key's algorithm.
    pub algorithm: Algorithm,
    /// Its key's revision: versions change only together with their key.
    pub revision: u64,
    /// The row.
    pub row: KeyVersion,
    /// Its state at that moment; `None` while it is still being made.
    pub state: Option<KeyState>,
    /// Whether it is the one that signs.
    pub primary: bool,
}

/// What works at this moment; the texts are for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// The HSM link.
    pub hsm: Result<(), String>,
    /// The store.
    pub store: Result<(), String>,
    /// Whether the store is as new as the token has seen: not in recovery mode.
    pub epoch: Result<(), String>,
    /// Whether what this replica knows is confirmed by the store: not fenced.
    pub fence: Result<(), String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            verify_before_release: true,
            allow_destroy: false,
            destroy_delay: SignedDuration::from_hours(30 * 24),
            jwks_max_age: MAX_AGE_MAX,
            issuer: "https://localhost".to_owned(),
            bundle_ttl_max: SignedDuration::from_hours(1),
            unwrap_quiet_period: SignedDuration::from_hours(30 * 24),
            wrap_limits: WrapLimits::default(),
            birth_grace: std::time::Duration::from_secs(60),
            limits: limits::Rules::default(),
        }
    }
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Loads the catalog, compares its epoch with the token's, and opens the door: for everything, or in recovery
    /// mode. The token must be reachable, and the catalog is confirmed once: from then on [`Kms::beat`] must be called,
    /// or the fence goes up.
    pub async fn open(ports: Ports<H, S, A, C>, settings: Settings) -> Result<Self, Error> {
        let Ports { hsm, store, audit, clock, replica, entropy } = ports;
        let clock = Arc::new(clock);
        let fence = Arc::new(Fence::new(Arc::clone(&clock) as Arc<dyn Clock>));
        let limits = Arc::new(Limits::new(&settings.limits, Arc::clone(&clock) as Arc<dyn Clock>));
        let mut prefix = [0; 8];
        entropy(&mut prefix)?;
        let catalog = Arc::new(Catalog::new(store.load(None).await?)?);
        let opened = Opened { at: clock.instant(), with_keys: !catalog.now().keys.is_empty() };
        let kms = Self {
            hsm,
            store,
            clock,
            replica,
            gate: Gate::new(audit, u64::from_be_bytes(prefix))
                .behind(Arc::clone(&fence))
                .ruled_by(Arc::clone(&catalog))
                .limited_by(Arc::clone(&limits)),
            limits,
            fence,
            beats: Beats::default(),
            catalog,
            opened,
            settings,
            entropy,
            births: Mutex::default(),
            audits: Mutex::default(),
            uses: Uses::default(),
            rotation_failures: Mutex::default(),
            following: futures::lock::Mutex::default(),
            acceptance: Mutex::default(),
        };
        kms.compare_epochs().await?;
        kms.first_beat().await?;
        Ok(kms)
    }

    /// A database that is slow for a moment is no reason not to start.
    async fn first_beat(&self) -> Result<(), Error> {
        for _ in 1..FIRST_BEATS_MAX {
            match self.beat(false, "{}".to_owned()).await {
                Err(error) if error.reason() == store::UNAVAILABLE => {
                    tracing::warn!(%error, "the database did not answer in time; trying again");
                }
                outcome => return outcome.map(drop),
            }
        }
        self.beat(false, "{}".to_owned()).await.map(drop)
    }

    /// What was refused because it came too often, since start.
    pub fn refusals(&self) -> limits::Refusals {
        self.limits.refusals()
    }

    /// The link to the token, for status and metrics.
    pub fn hsm(&self) -> &H {
        &self.hsm
    }

    /// Whether the store writes now, a canary comes back from the HSM before `deadline`, and all may be done: for
    /// readiness.
    pub async fn check(&self, deadline: Deadline) -> Readiness {
        let grant = self.gate.system(SystemWork::Canary, None, self.clock.now());
        let (hsm, store) = futures::join!(self.hsm.check(&grant, deadline), self.store.check());
        Readiness {
            hsm: hsm.map_err(|fault| fault.to_string()),
            store: store.map(drop).map_err(|fault| fault.to_string()),
            epoch: self.recovery().map_or(Ok(()), |recovery| Err(recovery.to_string())),
            fence: self.fence.check().map_err(|fenced| fenced.to_string()),
        }
    }

    /// The generation of the catalog in memory.
    pub fn generation(&self) -> Generation {
        self.catalog.now().generation
    }

    /// Who presents the access token with this SHA-256, on a connection whose client certificate names `certificate`, if
    /// anybody may with it now.
    pub fn authenticate(&self, sha256: &[u8; 32], certificate: Option<&Principal>) -> Option<Caller> {
        let picture = self.catalog.now();
        let token = picture.access_token(sha256, self.clock.now())?;
        // A stolen token alone is worth nothing where it is bound.
        let comes_with_its_own = token.bound_to.is_none() || token.bound_to.as_ref() == certificate;
        comes_with_its_own.then(|| Caller::with(format!("access-token:{}", token.name), token.own.clone()))
    }

    /// Whether an administrator exists: without one, `kms bootstrap` has not been run.
    pub fn has_administrator(&self) -> bool {
        let picture = self.catalog.now();
        policy::givers(&picture).any(|giver| giver.administers(self.clock.now()))
    }

    /// Commits, then brings the catalog up to date. An unknown outcome is resolved by reading, never by
    /// guessing: the catalog is loaded again and the error is passed on.
    pub(crate) async fn commit(&self, transaction: store::Transaction) -> Result<(), Error> {
        let name = transaction.name;
        let outcome = self.store.commit(transaction).await;
        match &outcome {
            Ok(generation) => tracing::debug!(name, generation = generation.0, "committed"),
            Err(fault) => {
                tracing::warn!(name, %fault, "transaction failed");
                self.doubt_after(fault);
            }
        }
        self.refresh().await?;
        outcome.map(|_| ()).map_err(Error::from)
    }

    /// Loads the catalog anew when the store is ahead of it: after a commit whose reload failed.
    pub(crate) async fn catch_up(&self) -> Result<(), Error> {
        if self.store.check().await? > self.generation() { self.refresh().await } else { Ok(()) }
    }

    pub(crate) fn random<const N: usize>(&self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        (self.entropy)(&mut bytes)?;
        Ok(bytes)
    }
}

impl KeyView {
    pub(crate) fn of(entry: &Entry, now: Timestamp) -> Self {
        Self {
            key: entry.key.clone(),
            primary: entry.find_primary(now).map(|version| version.row.number),
            next_rotation: timeline::next_rotation(entry, now),
        }
    }
}

impl VersionView {
    pub(crate) fn of(entry: &Entry, version: &Version, now: Timestamp) -> Self {
        let row = version.row.clone();
        let primary = entry.find_primary(now).is_some_and(|primary| primary.row.number == row.number);
        let state = row.born.as_ref().map(|_| row.state(now));
        let Key { id, algorithm, revision, .. } = &entry.key;
        Self { key: id.clone(), algorithm: *algorithm, revision: *revision, state, row, primary }
    }
}
