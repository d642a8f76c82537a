//! Several replicas over one store and one token, and an executor that lets them have their turns in a random order.

use std::{
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::executor::block_on;
use kms_core::{
    Algorithm, Clock as _, Error, KeyId, KeyVersion, Store as _,
    class::{AskedPeriods, PeriodChanges},
    fakes::{FakeKms, World, administrator, entropy, with_consent},
    kms::{KeyView, Settings, VersionView},
    time::{Deadline, SignedDuration},
    verbs::{ChangeVersion, CreateKey, Encoding, Request, RotateKey, Sign, Signed, ToSign, UpdateKey},
};

/// How much time passes from one turn of all to the next.
pub(crate) const PASS: Duration = Duration::from_millis(20);

pub(crate) type Task<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Replicas, each with a link, a book and a clock of its own; the store's clock is yet another.
pub(crate) struct Fleet {
    pub(crate) store: World,
    pub(crate) worlds: Vec<World>,
    pub(crate) replicas: Vec<FakeKms>,
    /// Who does not run at the moment.
    asleep: Vec<AtomicBool>,
}

impl Fleet {
    /// A fleet of so many, of which the first holds the lease.
    pub(crate) fn of(count: usize) -> Self {
        Self::over(World::default(), count)
    }

    /// As many anew, after all of these have ended.
    pub(crate) fn restarted(self) -> Self {
        self.store.store.forget_replicas();
        Self::over(self.store, self.replicas.len())
    }

    fn over(store: World, count: usize) -> Self {
        let worlds: Vec<_> = (0..count).map(|_| store.beside()).collect();
        let replicas = worlds.iter().map(|world| block_on(world.join(settings())).expect("opens")).collect();
        let asleep = worlds.iter().map(|_| AtomicBool::new(false)).collect();
        let fleet = Self { store, worlds, replicas, asleep };
        fleet.beat();
        fleet
    }

    /// The same with the key `k`, known to all.
    pub(crate) fn with_key(count: usize) -> Self {
        let fleet = Self::of(count);
        fleet.run(fleet.create(0, "k", None)).expect("created");
        fleet
    }

    /// From now on everybody has a turn at each step.
    pub(crate) fn interleave(&self) {
        self.store.store.interleave();
        self.store.hsm.interleave();
    }

    pub(crate) fn set_asleep(&self, replica: usize, asleep: bool) {
        self.asleep[replica].store(asleep, Ordering::SeqCst);
    }

    pub(crate) fn set_cut(&self, replica: usize, cut: bool) {
        self.worlds[replica].store.set_cut(cut);
    }

    /// Lets time pass for everybody, with beats in between.
    pub(crate) fn elapse(&self, span: Duration) {
        let (beat, mut left) = (Duration::from_secs(1), span);
        while !left.is_zero() {
            let step = left.min(beat);
            self.turn_clocks(step);
            self.beat();
            left -= step;
        }
    }

    pub(crate) fn turn_clocks(&self, span: Duration) {
        self.store.clock.elapse(span);
        self.worlds.iter().for_each(|world| world.clock.elapse(span));
    }

    /// Sets every clock on; no time passes.
    pub(crate) fn advance(&self, by: SignedDuration) {
        self.store.clock.advance(by);
        self.worlds.iter().for_each(|world| world.clock.advance(by));
        self.beat();
    }

    /// One beat of everybody who is awake.
    pub(crate) fn beat(&self) {
        for (replica, asleep) in self.replicas.iter().zip(&self.asleep) {
            if !asleep.load(Ordering::SeqCst) {
                let _ = block_on(replica.beat(true, String::new()));
            }
        }
    }

    /// Runs one task while everybody beats and time passes.
    pub(crate) fn run<F: Future>(&self, task: F) -> F::Output {
        self.run_all(1, [task], || ()).pop().expect("its result")
    }

    /// Runs tasks at once while everybody beats and time passes: in each pass everybody has a turn, in an order drawn
    /// from `seed`, and `check` looks at what there is.
    pub(crate) fn run_all<F: Future>(
        &self,
        seed: u64,
        tasks: impl IntoIterator<Item = F>,
        check: impl Fn(),
    ) -> Vec<F::Output> {
        let mut random = Random(seed | 1);
        let mut stalled = 0;
        let mut tasks: Vec<_> = tasks.into_iter().map(|task| Some(Box::pin(task))).collect();
        let mut results: Vec<_> = tasks.iter().map(|_| None).collect();
        let mut beats: Vec<_> = self.replicas.iter().map(|kms| Box::pin(beat_on(kms))).collect();
        let mut context = Context::from_waker(Waker::noop());
        for pass in 0..100_000 {
            for turn in random.order(tasks.len() + beats.len()) {
                // All begin at once, then some are slow: nobody may count on how many turns another one takes.
                if random.below(64) == 0 {
                    stalled = random.below(tasks.len() + beats.len());
                }
                if turn == stalled && pass > 0 {
                    continue;
                }
                if let Some(beat) = turn.checked_sub(tasks.len()) {
                    if !self.asleep[beat].load(Ordering::SeqCst) {
                        let _: Poll<()> = beats[beat].as_mut().poll(&mut context);
                    }
                } else if let Some(task) = &mut tasks[turn]
                    && let Poll::Ready(result) = task.as_mut().poll(&mut context)
                {
                    (results[turn], tasks[turn]) = (Some(result), None);
                }
            }
            check();
            if results.iter().all(Option::is_some) {
                return results.into_iter().flatten().collect();
            }
            self.turn_clocks(PASS);
        }
        panic!("seed {seed}: it does not come to an end");
    }

    pub(crate) fn deadline(&self, replica: usize) -> Deadline {
        self.worlds[replica].clock.within(Duration::from_secs(60))
    }

    pub(crate) async fn create(
        &self,
        replica: usize,
        name: &str,
        request_id: Option<&str>,
    ) -> Result<KeyView, Error> {
        let request = CreateKey { request: request(request_id), ..creation(name) };
        self.replicas[replica].create_key(&administrator(), request, self.deadline(replica)).await
    }

    pub(crate) async fn rotate(
        &self,
        replica: usize,
        request_id: Option<&str>,
    ) -> Result<VersionView, Error> {
        let rotate = RotateKey { request: request(request_id), ..RotateKey::new(id("k")) };
        self.replicas[replica].rotate_key(&administrator(), rotate, self.deadline(replica)).await
    }

    /// One round of the scheduler of a replica. Returns how many steps succeeded.
    pub(crate) fn tick(&self, replica: usize) -> usize {
        let (kms, deadline) = (&self.replicas[replica], self.deadline(replica));
        block_on(async { kms.resume_births(deadline).await + kms.run_due(deadline).await })
    }

    pub(crate) async fn disable(&self, replica: usize) -> Result<VersionView, Error> {
        let change = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
        self.replicas[replica].disable_key_version(&administrator(), change).await
    }

    /// Schedules the destruction of a version, with the consent that it needs.
    pub(crate) fn destroy(&self, replica: usize, number: u32) {
        let change = ChangeVersion { id: id("k"), number, request: Request::default() };
        let (kms, admin, name) =
            (&self.replicas[replica], administrator(), format!("keys/k/versions/{number}"));
        let destroying =
            async { with_consent(kms, kms.destroy_key_version(&admin, change, name.as_str()).await).await };
        self.run(destroying).expect("scheduled");
    }

    pub(crate) fn sign(&self, replica: usize) -> Result<Signed, Error> {
        block_on(self.signing(replica))
    }

    pub(crate) async fn signing(&self, replica: usize) -> Result<Signed, Error> {
        let deadline = self.deadline(replica);
        self.replicas[replica].sign(&administrator(), to_sign(), deadline).await
    }

    /// The versions of `k` as the store has them.
    pub(crate) fn rows(&self) -> Vec<KeyVersion> {
        let snapshot = block_on(self.store.store.load(None)).expect("rows");
        snapshot.keys.into_iter().find(|(key, _)| key.id == id("k")).expect("the key").1
    }

    /// The versions of `k` in the store, once everybody knows them.
    pub(crate) fn versions(&self) -> Vec<KeyVersion> {
        self.beat();
        let versions = block_on(self.replicas[0].list_key_versions(&administrator(), &id("k")));
        versions.expect("versions").into_iter().map(|view| view.row).collect()
    }
}

async fn beat_on(kms: &FakeKms) {
    loop {
        let _ = kms.beat(true, String::new()).await;
        kms.changed(Duration::from_secs(1)).await;
    }
}

/// A key that rotates by hand only.
pub(crate) fn creation(name: &str) -> CreateKey {
    let periods = AskedPeriods { rotation_period: Some(SignedDuration::ZERO), ..AskedPeriods::default() };
    CreateKey { periods, ..CreateKey::new(id(name), Algorithm::Es256) }
}

/// A key with periods of its own.
pub(crate) fn creation_with(name: &str, change: impl FnOnce(&mut AskedPeriods)) -> CreateKey {
    let mut creation = creation(name);
    change(&mut creation.periods);
    creation
}

/// Other periods for `k`.
pub(crate) fn update_of(change: impl FnOnce(&mut PeriodChanges)) -> UpdateKey {
    let mut update = UpdateKey::new(id("k"));
    change(&mut update.periods);
    update
}

pub(crate) fn to_sign() -> Sign {
    Sign { id: id("k"), version: None, input: ToSign::Message(b"hello".to_vec()), encoding: Encoding::Jose }
}

pub(crate) fn settings() -> Settings {
    Settings { allow_destroy: true, ..Settings::default() }
}

pub(crate) fn id(name: &str) -> KeyId {
    name.parse().expect("a key's name")
}

pub(crate) fn request(id: Option<&str>) -> Request {
    Request { id: id.map(str::to_owned), etag: None }
}

pub(crate) fn reason<T>(outcome: Result<T, Error>) -> Result<(), &'static str> {
    outcome.map(drop).map_err(|error| error.reason())
}

/// Polls a task once, which must not come to its end by that.
pub(crate) fn poll_once<T>(task: &mut Task<'_, T>) {
    let polled = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "it came to its end too early");
}

/// A seed, from the environment to repeat a run.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("KMS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let mut bytes = [0; 8];
        entropy(&mut bytes).expect("entropy");
        u64::from_be_bytes(bytes)
    });
    println!("KMS_SEED={seed}");
    seed
}

/// xorshift64 (Marsaglia 2003): enough to shuffle.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).expect("48 bits") % bound
    }

    fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<_> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}
