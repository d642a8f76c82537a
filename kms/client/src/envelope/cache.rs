//! Data keys in memory: each for a time, only so many, and each fetched once however many ask for it at the same time.
//!
//! What leaves the cache is dropped, and a data key that is dropped is zeroized; whoever still seals or opens with it has
//! it until then. A key that has become too old is looked for when another comes, and by a task that lives only while
//! there are keys, so that an idle process keeps none beyond its time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, FutureExt as _, Shared, WeakShared};

use crate::{Error, Kind};

/// What names an entry: a SHA-256.
pub(super) type Id = [u8; 32];
/// What time it is.
pub(super) type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;
/// The value on its way.
pub(super) type Fetch<T> = BoxFuture<'static, Result<Arc<T>, Error>>;

/// The shortest time between two looks at what has become too old.
const SWEEP_PAUSE_MIN: Duration = Duration::from_millis(10);

pub(super) struct Cache<T> {
    entries: Arc<Mutex<Entries<T>>>,
    clock: Clock,
}

struct Entries<T> {
    slots: HashMap<Id, Slot<T>>,
    /// The same, by the use longest ago. Uses are counted.
    by_use: BTreeMap<u64, Id>,
    uses: u64,
    count_max: usize,
    age_max: Duration,
    is_swept: bool,
}

struct Slot<T> {
    used: u64,
    /// When the fetch began.
    born: Instant,
    state: State<T>,
}

enum State<T> {
    /// Those who wait hold it: when all of them have given up, nobody is to inherit their deadline.
    Awaited(WeakShared<Fetch<T>>),
    Here(Arc<T>),
}

impl<T: Send + Sync + 'static> Cache<T> {
    pub(super) fn new(count_max: usize, age_max: Duration, clock: Clock) -> Self {
        let entries = Entries {
            slots: HashMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
            count_max,
            age_max,
            is_swept: false,
        };
        Self { entries: Arc::new(Mutex::new(entries)), clock }
    }

    /// The value of `id` if it is here, young and `accept`ed; else what `fetch` gives. Of all who ask meanwhile only one
    /// fetches, and what it is refused is refused to all. That it ran out of time or found nobody is its own: who came
    /// later fetches once more.
    pub(super) async fn get(
        &self,
        id: Id,
        accept: impl Fn(&T) -> bool,
        fetch: impl Fn() -> Fetch<T>,
    ) -> Result<Arc<T>, Error> {
        let mut has_retried = false;
        loop {
            let (coming, is_anothers) = {
                let now = (self.clock)();
                let mut entries = lock(&self.entries);
                match entries.find(id, now, &accept) {
                    Some(Found::Here(value)) => return Ok(value),
                    Some(Found::Awaited(coming)) => (coming, true),
                    None => (entries.await_it(id, now, fetch().shared()), false),
                }
            };
            let value = coming.clone().await;
            self.keep(id, &coming, &value);
            match value {
                Ok(value) if accept(&value) => return Ok(value),
                Ok(_) => {}
                Err(error) if is_anothers && !has_retried && is_of_one_call(&error) => has_retried = true,
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts what came into its place, if that is still its own.
    fn keep(&self, id: Id, coming: &Shared<Fetch<T>>, value: &Result<Arc<T>, Error>) {
        let runtime = tokio::runtime::Handle::try_current().ok();
        let must_be_swept = {
            let mut entries = lock(&self.entries);
            entries.came(id, coming, value);
            let must_be_swept = runtime.is_some() && !entries.is_swept && !entries.slots.is_empty();
            entries.is_swept |= must_be_swept;
            must_be_swept
        };
        // Without the lock: a runtime that is ending drops the sweeper at once.
        if must_be_swept && let Some(runtime) = runtime {
            let sweeper = Sweeper { entries: Arc::downgrade(&self.entries), has_ended: false };
            runtime.spawn(sweep(sweeper, Arc::clone(&self.clock)));
        }
    }
}

/// Whether a failure says something of one call, and nothing of what was asked.
fn is_of_one_call(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded)
}

/// The one who looks for what has become too old. When it ends with its runtime, another can begin on the next.
struct Sweeper<T> {
    entries: Weak<Mutex<Entries<T>>>,
    has_ended: bool,
}

impl<T> Drop for Sweeper<T> {
    fn drop(&mut self) {
        if !self.has_ended
            && let Some(entries) = self.entries.upgrade()
        {
            lock(&entries).is_swept = false;
        }
    }
}

/// Drops what becomes too old, until nothing is left.
async fn sweep<T>(mut sweeper: Sweeper<T>, clock: Clock) {
    loop {
        let pause = {
            let Some(entries) = sweeper.entries.upgrade() else { return };
            let mut entries = lock(&entries);
            let now = clock();
            entries.drop_old(now);
            let Some(oldest) = entries.slots.values().map(|slot| slot.born).min() else {
                // Under the lock: whoever comes next begins another.
                entries.is_swept = false;
                sweeper.has_ended = true;
                return;
            };
            entries.age_max.saturating_sub(now.saturating_duration_since(oldest))
        };
        tokio::time::sleep(pause.max(SWEEP_PAUSE_MIN)).await;
    }
}

enum Found<T> {
    Here(Arc<T>),
    Awaited(Shared<Fetch<T>>),
}

impl<T> Slot<T> {
    fn is_old(&self, now: Instant, age_max: Duration) -> bool {
        now.saturating_duration_since(self.born) >= age_max
    }
}

impl<T> Entries<T> {
    fn find(&mut self, id: Id, now: Instant, accept: impl Fn(&T) -> bool) -> Option<Found<T>> {
        let slot = self.slots.get_mut(&id)?;
        let found = match &slot.state {
            State::Here(value) if !slot.is_old(now, self.age_max) && accept(value) => {
                Found::Here(Arc::clone(value))
            }
            State::Here(_) => return None,
            State::Awaited(coming) => Found::Awaited(coming.upgrade()?),
        };
        self.by_use.remove(&slot.used);
        self.uses += 1;
        slot.used = self.uses;
        self.by_use.insert(self.uses, id);
        Some(found)
    }

    /// From now on whoever asks for `id` waits for `coming`.
    fn await_it(&mut self, id: Id, now: Instant, coming: Shared<Fetch<T>>) -> Shared<Fetch<T>> {
        self.drop_old(now);
        self.remove(&id);
        // At a bound of 0 nothing is kept, and still only one of those who wait fetches.
        while self.slots.len() >= self.count_max.max(1)
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.slots.remove(&oldest);
        }
        if let Some(awaited) = coming.downgrade() {
            self.uses += 1;
            self.by_use.insert(self.uses, id);
            self.slots.insert(id, Slot { used: self.uses, born: now, state: State::Awaited(awaited) });
        }
        coming
    }

    fn came(&mut self, id: Id, coming: &Shared<Fetch<T>>, value: &Result<Arc<T>, Error>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        match &slot.state {
            State::Awaited(awaited) if awaited.upgrade().is_some_and(|own| own.ptr_eq(coming)) => {}
            State::Awaited(_) | State::Here(_) => return,
        }
        match value {
            Ok(value) if self.count_max > 0 => slot.state = State::Here(Arc::clone(value)),
            Ok(_) | Err(_) => self.remove(&id),
        }
    }

    fn drop_old(&mut self, now: Instant) {
        let old = |slot: &Slot<T>| match &slot.state {
            State::Here(_) => slot.is_old(now, self.age_max),
            State::Awaited(awaited) => awaited.upgrade().is_none(),
        };
        let old: Vec<Id> = self.slots.iter().filter(|(_, slot)| old(slot)).map(|(id, _)| *id).collect();
        old.iter().for_each(|id| self.remove(id));
    }

    fn remove(&mut self, id: &Id) {
        if let Some(slot) = self.slots.remove(id) {
            self.by_use.remove(&slot.used);
        }
    }
}

fn lock<T>(entries: &Mutex<Entries<T>>) -> MutexGuard<'_, Entries<T>> {
    // After a panic in here the worst is a slot that nobody finds, and which goes when it is old.
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(count_max: usize, age_max: Duration) -> Cache<u8> {
        Cache::new(count_max, age_max, Arc::new(Instant::now))
    }

    /// Fetches the value of `id`, and says whether it still lives when nobody but the cache has it.
    async fn fetched(cache: &Cache<u8>, id: u8) -> Weak<u8> {
        let fetch = || async move { Ok(Arc::new(id)) }.boxed();
        Arc::downgrade(&cache.get([id; 32], |_| true, fetch).await.expect("it comes"))
    }

    #[tokio::test]
    async fn what_is_kept_lives_and_what_gives_way_is_dropped_at_once() {
        let cache = cache(2, Duration::from_secs(60));
        let (first, second) = (fetched(&cache, 1).await, fetched(&cache, 2).await);
        assert!(first.upgrade().is_some() && second.upgrade().is_some());
        let third = fetched(&cache, 3).await;
        assert!(first.upgrade().is_none(), "it is still in memory");
        assert!(second.upgrade().is_some() && third.upgrade().is_some());
        drop(cache);
        assert!(second.upgrade().is_none() && third.upgrade().is_none(), "they outlived the cache");
    }

    #[tokio::test]
    async fn what_is_too_old_is_dropped_without_anybody_asking_for_it() {
        let cache = cache(2, Duration::from_millis(20));
        let value = fetched(&cache, 1).await;
        let dropped = async {
            while value.upgrade().is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), dropped).await.expect("it is dropped");
    }

    #[test]
    fn what_a_runtime_has_left_is_dropped_on_the_next() {
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_time().build().expect("one thread");
        let cache = cache(2, Duration::from_millis(20));
        let first = runtime();
        let _left = first.block_on(fetched(&cache, 1));
        drop(first);
        runtime().block_on(async {
            let value = fetched(&cache, 2).await;
            let dropped = async {
                while value.upgrade().is_some() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), dropped).await.expect("it is dropped");
        });
    }

    #[tokio::test]
    async fn a_cache_of_none_keeps_none_and_one_without_a_bound_on_age_keeps_all() {
        let none = cache(0, Duration::from_secs(60));
        let value = fetched(&none, 1).await;
        assert!(value.upgrade().is_none(), "it is still in memory");
        let eternal = cache(1, Duration::MAX);
        let value = fetched(&eternal, 1).await;
        tokio::task::yield_now().await;
        fetched(&eternal, 1).await;
        assert!(value.upgrade().is_some(), "it was too old");
    }

    #[tokio::test]
    async fn the_uses_and_the_slots_are_the_same_entries() {
        let cache = cache(3, Duration::from_secs(60));
        for id in [1, 2, 1, 3, 4, 4, 2, 1, 5] {
            fetched(&cache, id).await;
            let entries = lock(&cache.entries);
            assert_eq!(entries.by_use.len(), entries.slots.len());
            assert!(entries.by_use.iter().all(|(used, id)| entries.slots[id].used == *used));
            assert!(entries.slots.len() <= 3);
        }
    }
}
