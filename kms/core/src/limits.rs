//! Limits: how often a caller may call, a key may be used, and the keys of a class, in several windows at once.
//!
//! A window is the generic cell rate algorithm (ITU-T I.371), as `governor` has it: `max` in each `per`, evenly, and
//! `burst` at once. A call must fit into every window of its caller, its key and its key's class. One that does not
//! is refused, and takes nothing from any of them: who asks in vain does not wait longer for it. All of it is in memory,
//! of this replica alone; a limit for the whole service is the sum over its replicas.
//!
//! An incident must be handled: what [`Lane::Manage`] does counts for its caller alone. What a vault or a cluster
//! needs to start counts for its caller and its key, and not for the class, which others may have used up.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    fmt,
    hash::{Hash, Hasher},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use governor::{Quota, RateLimiter, middleware::NoOpMiddleware, nanos::Nanos, state::StateStore};

use crate::{Clock, Error, KeyId, class::ClassName, error::Kind, lane::Lane};

/// Callers that are remembered at once, and keys. One that has used nothing lately is forgotten, which changes nothing.
const FLOWS_MAX: usize = 65_536;
/// Of how many the one with the least to remember goes when there are more.
const FORGOTTEN_OF: usize = 16;
/// How often those are looked for that may be forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// A caller's refusals are on record this often at most: a record is a write to the disk.
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// The longest that a window may remember.
const MEMORY_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// Most windows of one limit.
pub const WINDOWS_MAX: usize = 8;

/// `max` calls in each `per`, and `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    max: NonZeroU32,
    per: Duration,
    quota: Quota,
}

/// What an operator has set. Nothing is limited unless it stands here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// For each caller.
    pub caller: Vec<Window>,
    /// For each key.
    pub key: Vec<Window>,
    /// For all keys of a class together.
    pub classes: BTreeMap<ClassName, Vec<Window>>,
}

/// What was used, and whether more may be.
pub struct Limits {
    caller: Vec<Limiter>,
    key: Vec<Limiter>,
    classes: BTreeMap<ClassName, Vec<Limiter>>,
    hand: Hand,
    book: Mutex<Book>,
    refused: [AtomicU64; Limit::ALL.len()],
    unrecorded: AtomicU64,
}

/// A call that asks whether it may be made.
#[derive(Debug, Clone, Copy)]
pub struct Use<'a> {
    /// Canonical name.
    pub caller: &'a str,
    /// The key, if it is about one.
    pub key: Option<&'a KeyId>,
    /// That key's class.
    pub class: Option<ClassName>,
    /// Where it will wait.
    pub lane: Lane,
}

/// Which limit it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The caller's.
    Caller,
    /// The key's.
    Key,
    /// That of the key's class.
    Class,
}

/// Why it may not be made now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The limit that makes it wait longest,
    pub limit: Limit,
    /// and its window.
    pub window: Window,
    /// When it may be tried again.
    pub retry_after: Duration,
    /// Whether it goes on record: the first of its caller's in a while.
    pub is_recorded: bool,
}

/// What was refused since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refusals {
    /// By [`Limit::ALL`].
    pub by_limit: [u64; Limit::ALL.len()],
    /// Those of them that are not on record.
    pub unrecorded: u64,
}

struct Limiter {
    window: Window,
    rate: RateLimiter<Account, InTheAccount, Hand, NoOpMiddleware<Duration>>,
}

#[derive(Default)]
struct Book {
    callers: HashMap<String, Flow>,
    keys: HashMap<KeyId, Flow>,
    classes: HashMap<ClassName, Flow>,
    /// When those that may be forgotten were last looked for, since the start.
    cleaned: Duration,
}

/// One caller, key or class.
#[derive(Default)]
struct Flow {
    /// One for each window.
    accounts: Vec<Account>,
    /// When a refusal of this caller was last on record, since the start.
    recorded: Option<Duration>,
}

/// Until when what was used is paid for, in nanoseconds since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Account(Cell<Option<u64>>);

/// `governor` keeps its state in the account that it is shown, and so nowhere.
struct InTheAccount;

/// Our clock, as `governor` reads it: the time since the start.
#[derive(Clone)]
struct Hand {
    clock: Arc<dyn Clock>,
    start: Instant,
}

impl Window {
    /// `max` in each `per`, and `burst` at once: `max`, if it is not given.
    pub fn new(max: NonZeroU32, per: Duration, burst: Option<NonZeroU32>) -> Result<Self, Error> {
        let burst = burst.unwrap_or(max);
        let quota = Quota::with_period(per / max.get()).map(|quota| quota.allow_burst(burst));
        match quota.filter(|_| per.saturating_mul((burst.get() / max.get()).saturating_add(1)) <= MEMORY_MAX)
        {
            Some(quota) => Ok(Self { max, per, quota }),
            None => Err(Error::invalid(
                "limits",
                "a window has room for at most one call in a nanosecond, and its burst is made good within a year: \
                 choose a shorter `per`, or a smaller `burst`",
            )),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {:?}, {} at once", self.max, self.per, self.quota.burst_size())
    }
}

impl Limits {
    /// Nothing has been used yet.
    pub fn new(rules: &Rules, clock: Arc<dyn Clock>) -> Self {
        let hand = Hand { start: clock.instant(), clock };
        let limiters = |windows: &[Window]| {
            let limiter = |window: &Window| {
                let rate = RateLimiter::new(window.quota, InTheAccount, hand.clone());
                Limiter { window: *window, rate }
            };
            windows.iter().map(limiter).collect()
        };
        Self {
            caller: limiters(&rules.caller),
            key: limiters(&rules.key),
            classes: rules.classes.iter().map(|(name, windows)| (*name, limiters(windows))).collect(),
            book: Mutex::default(),
            refused: Limit::ALL.map(|_| AtomicU64::new(0)),
            unrecorded: AtomicU64::new(0),
            hand,
        }
    }

    /// Uses one call of each of its windows; or of none, when one of them has none left.
    pub fn check(&self, call: &Use<'_>) -> Result<(), Refused> {
        let key = call.key.filter(|_| call.lane != Lane::Manage && !self.key.is_empty());
        let class = call.class.filter(|_| !matches!(call.lane, Lane::Manage | Lane::Unseal));
        let class = class.and_then(|class| Some((class, self.classes.get(&class)?)));
        if self.caller.is_empty() && key.is_none() && class.is_none() {
            return Ok(());
        }
        let now = self.hand.elapsed();
        let mut book = self.book();
        book.clean(now);
        let Book { callers, keys, classes, .. } = &mut *book;
        let mut flows = Vec::with_capacity(Limit::ALL.len());
        if !self.caller.is_empty() {
            flows.push((Limit::Caller, &self.caller, &*flow(callers, call.caller, self.caller.len(), now)));
        }
        if let Some(key) = key {
            flows.push((Limit::Key, &self.key, flow(keys, key, self.key.len(), now)));
        }
        if let Some((class, limiters)) = class {
            flows.push((Limit::Class, limiters, flow(classes, &class, limiters.len(), now)));
        }
        let Some((limit, window, retry_after)) = use_all(&flows, now) else { return Ok(()) };
        let is_recorded = flow(callers, call.caller, self.caller.len(), now).records(now);
        drop(book);
        self.refused[limit as usize].fetch_add(1, Ordering::Relaxed);
        self.unrecorded.fetch_add((!is_recorded).into(), Ordering::Relaxed);
        Err(Refused { limit, window, retry_after, is_recorded })
    }

    /// What was refused since start.
    pub fn refusals(&self) -> Refusals {
        let by_limit = Limit::ALL.map(|limit| self.refused[limit as usize].load(Ordering::Relaxed));
        Refusals { by_limit, unrecorded: self.unrecorded.load(Ordering::Relaxed) }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Uses one call of each window, or of none: then the one that makes it wait longest, and how long.
fn use_all(flows: &[(Limit, &Vec<Limiter>, &Flow)], now: Duration) -> Option<(Limit, Window, Duration)> {
    let mut used = Vec::new();
    let mut refused: Option<(Limit, Window, Duration)> = None;
    for (limit, limiters, flow) in flows {
        for (limiter, account) in limiters.iter().zip(&flow.accounts) {
            let before = account.0.get();
            match limiter.rate.check_key(account) {
                Ok(()) => used.push((account, before)),
                Err(until) => {
                    let wait = until.wait_time_from(now);
                    if refused.as_ref().is_none_or(|(.., longest)| wait > *longest) {
                        refused = Some((*limit, limiter.window, wait));
                    }
                }
            }
        }
    }
    if refused.is_some() {
        used.into_iter().for_each(|(account, before)| account.0.set(before));
    }
    refused
}

/// What `key` has used.
fn flow<'a, Q>(flows: &'a mut HashMap<Q::Owned, Flow>, key: &Q, windows: usize, now: Duration) -> &'a mut Flow
where
    Q: ToOwned<Owned: Hash + Eq> + Hash + Eq + ?Sized,
{
    if flows.len() >= FLOWS_MAX && !flows.contains_key(key) {
        make_room(flows, now);
    }
    let flow = flows.entry(key.to_owned()).or_default();
    flow.accounts.resize_with(windows, Account::default);
    flow
}

/// Forgets who has used nothing lately, or else one of those that have used little.
fn make_room<K: Hash + Eq>(flows: &mut HashMap<K, Flow>, now: Duration) {
    flows.retain(|_, flow| !flow.is_idle(now));
    if flows.len() >= FLOWS_MAX {
        let least = flows.values().take(FORGOTTEN_OF).map(Flow::paid_ns).min();
        let mut is_found = false;
        flows.retain(|_, flow| {
            let is_it = !is_found && Some(flow.paid_ns()) == least;
            is_found |= is_it;
            !is_it
        });
    }
}

impl Book {
    fn clean(&mut self, now: Duration) {
        if now.saturating_sub(self.cleaned) >= FORGET_EVERY {
            self.cleaned = now;
            self.callers.retain(|_, flow| !flow.is_idle(now));
            self.keys.retain(|_, flow| !flow.is_idle(now));
        }
    }
}

impl Flow {
    /// Whether a refusal now goes on record. If so, the next one does not.
    fn records(&mut self, now: Duration) -> bool {
        let is_due = self.recorded.is_none_or(|last| now.saturating_sub(last) >= RECORD_EVERY);
        if is_due {
            self.recorded = Some(now);
        }
        is_due
    }

    /// Until when everything is paid for.
    fn paid_ns(&self) -> u64 {
        self.accounts.iter().filter_map(|account| account.0.get()).max().unwrap_or(0)
    }

    /// Whether it is as good as new.
    fn is_idle(&self, now: Duration) -> bool {
        Duration::from_nanos(self.paid_ns()) <= now
            && self.recorded.is_none_or(|last| now.saturating_sub(last) >= RECORD_EVERY)
    }
}

impl Hash for Account {
    /// It is never looked up; `governor` asks that it could be.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.get().hash(state);
    }
}

impl StateStore for InTheAccount {
    type Key = Account;

    fn measure_and_replace<T, F, E>(&self, account: &Account, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (outcome, paid) = f(account.0.get().map(Nanos::from))?;
        account.0.set(Some(paid.as_u64()));
        Ok(outcome)
    }
}

impl Hand {
    fn elapsed(&self) -> Duration {
        self.clock.instant().saturating_duration_since(self.start)
    }
}

impl governor::clock::Clock for Hand {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.elapsed()
    }
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Caller, Self::Key, Self::Class];

    /// Its name in metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Key => "key",
            Self::Class => "class",
        }
    }
}

impl Refused {
    /// The reason in answers and in the audit log.
    pub const REASON: &str = "RATE_LIMITED";
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let Refused { limit, window, retry_after, .. } = refused;
        let message = format!(
            "the limit for each {} is reached ({window}); wait as long as the retry delay says, or ask an operator \
             to raise `limits.{}`",
            limit.as_str(),
            match limit {
                Limit::Caller | Limit::Key => limit.as_str(),
                Limit::Class => "class.NAME",
            },
        );
        Self::new(Kind::ResourceExhausted, Refused::REASON, message).retry_after(retry_after)
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits").field("refusals", &self.refusals()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
