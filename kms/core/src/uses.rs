//! How often versions wrap, and when they were used last.
//!
//! AES-GCM with random IVs may wrap so often under one key and no more (SP 800-38D §8.3). All replicas together count:
//! each takes blocks of wraps out of the version's budget, durably, before it makes them. What it does not use of a
//! block is lost with the process, never used twice. When a version was used last is noted in memory, and written now
//! and then: it decides about destructions, where minutes do not matter.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    AuditLog, Clock, Error, Hsm, KeyId, Kms, Store,
    error::Kind,
    hsm::Usage,
    store::{Transaction, Write},
    time::{SignedDuration, Timestamp},
};

/// How often a reservation is tried again when another replica is faster.
const RESERVE_ATTEMPTS_MAX: usize = 32;
/// How far the stored time of a last use may lie behind.
const NOTED_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// How many wraps one version may make. A wrap that is tried again, because the HSM failed meanwhile, takes a few IVs more
/// than it is counted for: the limits leave room for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrapLimits {
    /// How many a replica takes at once.
    pub block: u64,
    /// From here on the key rotates early.
    pub soft: u64,
    /// No more than these, ever.
    pub hard: u64,
}

/// What this process knows of the use of versions.
#[derive(Default)]
pub(crate) struct Uses {
    /// What is left of the block of each version.
    left: Mutex<HashMap<(KeyId, u32), u64>>,
    /// Held by whoever reserves a block: one at a time.
    reserving: futures::lock::Mutex<()>,
    /// Last uses that may not be written yet.
    noted: Mutex<HashMap<(KeyId, u32), LastUse>>,
}

/// When a version wrapped and unwrapped last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct LastUse {
    wrapped_at: Option<Timestamp>,
    unwrapped_at: Option<Timestamp>,
}

impl Default for WrapLimits {
    /// A collision among 2^31 random IVs of 96 bits has a probability of less than 2^-34.
    fn default() -> Self {
        Self { block: 1 << 16, soft: 1 << 30, hard: 1 << 31 }
    }
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Takes one wrap out of the version's budget, and the next block when the last one is used up.
    pub(crate) async fn take_wrap(&self, key: &KeyId, version: u32) -> Result<(), Error> {
        if self.uses.take(key, version) {
            return Ok(());
        }
        let _reserving = self.uses.reserving.lock().await;
        let mut attempts = 1;
        while !self.uses.take(key, version) {
            match self.reserve_block(key, version).await {
                Err(error) if error.kind() == Kind::Conflict && attempts < RESERVE_ATTEMPTS_MAX => {
                    attempts += 1
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    async fn reserve_block(&self, key: &KeyId, version: u32) -> Result<(), Error> {
        let WrapLimits { block, hard, .. } = self.settings.wrap_limits;
        let from = self.catalog.now().use_of(key, version).map_or(0, |used| used.reserved);
        let to = hard.min(from.saturating_add(block));
        if to <= from {
            let text = format!(
                "keys/{key}/versions/{version} has wrapped as often as it may; the next version is made by itself: retry in a \
                 minute, or rotate the key"
            );
            return Err(Error::precondition("WRAPS_USED_UP", text));
        }
        let write = Write::ReserveWraps { key: key.clone(), version, from, to };
        self.commit(Transaction::new("reserve wraps", vec![write])).await?;
        self.uses.add(key, version, to - from);
        Ok(())
    }

    /// Uses up the budget of every version that wraps: how often it has wrapped since the store was this old, nobody knows.
    /// Their keys rotate by themselves.
    ///
    /// Likewise nobody knows who has unwrapped since: it counts as if somebody had just now.
    pub(crate) fn budgets_voided(&self, now: Timestamp) -> Vec<Write> {
        let (picture, hard) = (self.catalog.now(), self.settings.wrap_limits.hard);
        let wraps =
            picture.keys.values().filter(|entry| entry.key.algorithm.usage() == Usage::EncryptDecrypt);
        let versions =
            wraps.flat_map(|entry| entry.versions.iter().map(|version| (&entry.key.id, &version.row)));
        let left = versions.filter(|(_, row)| row.destroyed_at.is_none());
        let voided = left.flat_map(|(key, row)| {
            let (key, version) = (key.clone(), row.number);
            let from = picture.use_of(&key, version).map_or(0, |used| used.reserved);
            [
                Write::NoteUse { key: key.clone(), version, wrapped_at: None, unwrapped_at: Some(now) },
                Write::ReserveWraps { key, version, from, to: hard.max(from) },
            ]
        });
        voided.collect()
    }

    /// Whether the version has so few wraps left that the next one should be made.
    pub(crate) fn is_short_of_wraps(&self, key: &KeyId, version: u32) -> bool {
        let picture = self.catalog.now();
        picture.use_of(key, version).is_some_and(|used| used.reserved >= self.settings.wrap_limits.soft)
    }

    /// Whether the version has none left.
    pub(crate) fn is_out_of_wraps(&self, key: &KeyId, version: u32) -> bool {
        let picture = self.catalog.now();
        picture.use_of(key, version).is_some_and(|used| used.reserved >= self.settings.wrap_limits.hard)
    }

    /// Writes when versions were used last, where what is stored is a minute old. The server calls this now and then, and
    /// when it ends. What is not written because the store is away is written the next time.
    pub async fn write_uses(&self) {
        let picture = self.catalog.now();
        let noted = self.uses.noted().clone();
        let is_news = |noted: Option<Timestamp>, stored: Option<Timestamp>| {
            noted.filter(|at| stored.is_none_or(|stored| at.duration_since(stored) >= NOTED_EVERY))
        };
        let mut writes = Vec::new();
        for ((key, version), last) in &noted {
            // What a failover has taken back is no version any more.
            if picture.entry(key).and_then(|entry| entry.version(*version)).is_err() {
                continue;
            }
            let stored = picture.use_of(key, *version);
            let wrapped_at = is_news(last.wrapped_at, stored.and_then(|used| used.wrapped_at));
            let unwrapped_at = is_news(last.unwrapped_at, stored.and_then(|used| used.unwrapped_at));
            if wrapped_at.is_some() || unwrapped_at.is_some() {
                writes.push(Write::NoteUse { key: key.clone(), version: *version, wrapped_at, unwrapped_at });
            }
        }
        if !writes.is_empty()
            && let Err(error) = self.commit(Transaction::new("note uses", writes)).await
        {
            tracing::warn!(%error, "when keys were used last could not be written; it will be tried again");
            return;
        }
        self.uses.forget_noted(&noted);
    }
}

impl Uses {
    pub(crate) fn note_wrap(&self, key: &KeyId, version: u32, at: Timestamp) {
        self.note(key, version, LastUse { wrapped_at: Some(at), unwrapped_at: None });
    }

    pub(crate) fn note_unwrap(&self, key: &KeyId, version: u32, at: Timestamp) {
        self.note(key, version, LastUse { wrapped_at: None, unwrapped_at: Some(at) });
    }

    /// When a version unwrapped last, as far as it is not written yet.
    pub(crate) fn unwrapped_at(&self, key: &KeyId, version: u32) -> Option<Timestamp> {
        self.noted().get(&(key.clone(), version))?.unwrapped_at
    }

    fn note(&self, key: &KeyId, version: u32, last: LastUse) {
        self.noted().entry((key.clone(), version)).or_default().join(last);
    }

    /// Those that have not changed since.
    fn forget_noted(&self, written: &HashMap<(KeyId, u32), LastUse>) {
        self.noted().retain(|version, last| written.get(version) != Some(last));
    }

    fn take(&self, key: &KeyId, version: u32) -> bool {
        let mut left = self.left();
        let Some(left) = left.get_mut(&(key.clone(), version)).filter(|left| **left > 0) else {
            return false;
        };
        *left -= 1;
        true
    }

    fn add(&self, key: &KeyId, version: u32, wraps: u64) {
        *self.left().entry((key.clone(), version)).or_default() += wraps;
    }

    /// Gives up what is left of every block: what was reserved is void.
    pub(crate) fn forget_blocks(&self) {
        self.left().clear();
    }

    fn left(&self) -> MutexGuard<'_, HashMap<(KeyId, u32), u64>> {
        // Plain numbers, whole even if their holder panicked.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn noted(&self) -> MutexGuard<'_, HashMap<(KeyId, u32), LastUse>> {
        // The same.
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LastUse {
    fn join(&mut self, other: Self) {
        self.wrapped_at = self.wrapped_at.max(other.wrapped_at);
        self.unwrapped_at = self.unwrapped_at.max(other.unwrapped_at);
    }
}
