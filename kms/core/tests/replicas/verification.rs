//! Promise 5: rotation never breaks verification. Three replicas sign tokens and rotate by schedule, in simulated time,
//! while their clocks are set, periods are changed and links are cut. Verifiers keep a key set for as long as its
//! max-age lets them, and reject what they find no key for.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::executor::block_on;
use kms_core::{
    Clock as _, Key,
    fakes::administrator,
    time::{SignedDuration, Timestamp},
    verbs::SignJwt,
};

use crate::fleet::{Fleet, Random, creation_with, id, seed, update_of};

const REPLICAS: usize = 3;

/// What verifiers may differ in from us, and we from each other.
const SKEW_MAX_MS: i64 = 5_000;

/// Longest max-age that we give, and so the oldest set that anybody uses.
const KEPT_MAX: SignedDuration = SignedDuration::from_secs(300);

/// Longer than a cycle of any periods that are drawn here may take: what does not rotate for so long is stuck.
const CYCLE_MAX: SignedDuration = SignedDuration::from_hours(3);

#[test]
fn no_token_is_rejected_by_a_verifier_that_keeps_key_sets_for_as_long_as_it_may() {
    let is_full = std::env::var_os("KMS_TORTURE").is_some_and(|value| value == "1");
    let (rotations, tokens) = if is_full { (200, 1_000_000) } else { (20, 20_000_usize) };
    let (began, seed) = (Instant::now(), seed());
    println!("repeat: KMS_SEED={seed} cargo test --package kms-core --test replicas verification");
    let mut run = Run::begin(seed);
    while run.rotations < rotations {
        run.step(1 + tokens.saturating_sub(run.signed) / (rotations - run.rotations) / Run::STEPS_MIN);
    }
    while run.signed < tokens {
        run.step(1);
    }
    // The newest may wait for its time still.
    let takeovers = run.signers.len() - 1;
    assert!(
        (run.rotations - 1..=run.rotations).contains(&takeovers),
        "seed {seed}: {:?} signed",
        run.signers
    );
    run.finish();
    // For the table that `make torture` prints.
    println!(
        "\nPROMISE | 5 | {} scheduled rotations of {REPLICAS} replicas in {} h of simulated time, clocks 10 s apart, \
         periods changed, links cut; {} tokens of random lives, verified with key sets kept up to their max-age | {} \
         verifications, {} of them with a set older than the last takeover, {} by a clock 5 min behind as the token \
         ends there: 0 failures | {seed} | {} s |",
        run.rotations,
        run.now().duration_since(run.epoch).as_hours(),
        run.signed,
        run.verified,
        run.with_older_sets,
        run.at_the_end,
        began.elapsed().as_secs()
    );
}

/// The fleet, the world around it, and what was counted.
struct Run {
    fleet: Fleet,
    random: Random,
    seed: u64,
    epoch: Timestamp,
    /// By how much each replica's clock is ahead of the store's.
    skews_ms: [i64; REPLICAS],
    /// Who is cut off, and until when.
    cut: Option<(usize, Timestamp)>,
    next_ticks: [Timestamp; REPLICAS],
    /// What verifiers hold that fetched it a while ago, oldest first.
    kept: VecDeque<Kept>,
    parsed: HashMap<Vec<u8>, Arc<KeySet>>,
    /// Tokens that will be verified once more.
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// When the newest version was published, and when it begins to sign.
    published_at: Timestamp,
    activates_at: Timestamp,
    rotations: usize,
    signed: usize,
    signers: BTreeSet<u32>,
    verified: usize,
    with_older_sets: usize,
    at_the_end: usize,
}

/// A key set in a cache.
struct Kept {
    fetched_at: Timestamp,
    /// The last moment at which max-age lets it be used.
    until: Timestamp,
    keys: Arc<KeySet>,
}

/// Uncompressed points by kid.
type KeySet = HashMap<String, Vec<u8>>;

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    at: Timestamp,
    token: String,
}

/// The longest that passes from one step to the next.
const STEP_MAX: SignedDuration = SignedDuration::from_secs(9);

impl Run {
    /// So many steps, roughly, from one rotation to the next at least.
    const STEPS_MIN: usize = 400;

    fn begin(seed: u64) -> Self {
        let fleet = Fleet::of(REPLICAS);
        let mut random = Random(seed | 1);
        let [lead, ttl, period] = periods(&mut random);
        let request = creation_with("k", |periods| {
            periods.publish_lead = Some(lead);
            periods.max_token_ttl = Some(ttl);
            periods.rotation_period = Some(period);
        });
        fleet
            .run(fleet.replicas[0].create_key(&administrator(), request, fleet.deadline(0)))
            .expect("created");
        let epoch = fleet.store.clock.now();
        let mut run = Self {
            fleet,
            random,
            seed,
            epoch,
            skews_ms: [0; REPLICAS],
            cut: None,
            next_ticks: [epoch; REPLICAS],
            kept: VecDeque::new(),
            parsed: HashMap::new(),
            waiting: BinaryHeap::new(),
            published_at: epoch,
            activates_at: epoch,
            rotations: 0,
            signed: 0,
            signers: BTreeSet::new(),
            verified: 0,
            with_older_sets: 0,
            at_the_end: 0,
        };
        run.fetch();
        run
    }

    /// Lets some time pass, and everybody do something.
    fn step(&mut self, tokens: usize) {
        // Denser around what happens, and never so long that a fence goes up.
        let lively = self.now() < later(self.activates_at, 330) && self.now() > later(self.activates_at, -30)
            || self.now() < later(self.published_at, 30);
        let longest = STEP_MAX.as_millis() as usize - 1_000;
        let span_ms = if lively { self.random.below(1_500) } else { 1_000 + self.random.below(longest) };
        self.fleet.turn_clocks(Duration::from_millis(span_ms as u64));
        self.fleet.beat();
        self.disturb();
        self.schedule();
        self.fetch();
        for _ in 0..tokens {
            self.sign();
        }
        while self.waiting.peek().is_some_and(|Reverse(waiting)| waiting.at <= self.now()) {
            let Reverse(waiting) = self.waiting.pop().expect("it was there");
            self.verify(&waiting.token);
        }
        let stuck = self.now().duration_since(self.activates_at) > CYCLE_MAX;
        assert!(!stuck, "seed {}: no rotation since {}", self.seed, self.activates_at);
    }

    /// Verifies what waits, each token at its time.
    fn finish(&mut self) {
        while !self.waiting.is_empty() {
            self.step(0);
        }
    }

    /// Clocks are set, a link is cut or mended, periods are changed.
    fn disturb(&mut self) {
        if self.random.below(100) == 0 {
            let replica = self.random.below(REPLICAS);
            let skews = [-SKEW_MAX_MS, SKEW_MAX_MS, self.random.below(10_001) as i64 - SKEW_MAX_MS];
            let skew_ms = skews[self.random.below(skews.len())];
            let by = SignedDuration::from_millis(skew_ms - self.skews_ms[replica]);
            self.fleet.worlds[replica].clock.advance(by);
            self.skews_ms[replica] = skew_ms;
        }
        match self.cut {
            Some((replica, until)) if until <= self.now() => {
                self.fleet.set_cut(replica, false);
                self.cut = None;
                self.fleet.beat();
            }
            None if self.random.below(150) == 0 => {
                let replica = self.random.below(REPLICAS);
                self.fleet.set_cut(replica, true);
                self.cut = Some((replica, later(self.now(), 1 + self.random.below(400) as i64)));
            }
            _ => {}
        }
        if self.random.below(400) == 0 && self.cut.is_none() {
            let [lead, ttl, period] = periods(&mut self.random);
            let update = update_of(|periods| {
                periods.rotation_period = Some(Some(period));
                periods.publish_lead = Some(Some(lead));
                periods.max_token_ttl = Some(Some(ttl));
            });
            let replica = self.random.below(REPLICAS);
            let admin = administrator();
            let updated = self.fleet.replicas[replica].update_key(&admin, update);
            self.fleet.run(updated).expect("updates");
            // What is due by the new periods is due at once, while caches and tokens are still those of the old ones.
            if self.random.below(2) == 0 {
                self.next_ticks = [self.now(); REPLICAS];
            }
        }
    }

    /// Each replica's scheduler, a while after its last round.
    fn schedule(&mut self) {
        for replica in 0..REPLICAS {
            if self.next_ticks[replica] > self.now() {
                continue;
            }
            self.next_ticks[replica] = later(self.now(), 1 + self.random.below(60) as i64);
            if self.fleet.tick(replica) > 0 {
                self.rotations += 1;
                let rows = self.fleet.rows();
                assert_eq!(rows.len(), self.rotations + 1, "seed {}: a version for each rotation", self.seed);
                let last = rows.last().expect("a version").born.as_ref().expect("born").timeline;
                (self.published_at, self.activates_at) = (self.now(), last.activates_at);
                self.fleet.beat();
            }
        }
    }

    /// Some verifier fetches the keys of a random replica.
    fn fetch(&mut self) {
        let now = self.now();
        while self.kept.front().is_some_and(|kept| now.duration_since(kept.fetched_at) > KEPT_MAX) {
            self.kept.pop_front();
        }
        let replica = self.random.below(REPLICAS);
        // One that was cut off for too long has none, and says so.
        let Ok(set) = self.fleet.replicas[replica].published_keys(Some(&id("k"))) else { return };
        let set = set.expect("a set");
        let until = later(now, i64::from(set.max_age_seconds));
        assert!(until.duration_since(now) <= KEPT_MAX, "seed {}: max-age {}", self.seed, set.max_age_seconds);
        let keys = self.parsed.entry(set.body.to_vec()).or_insert_with(|| Arc::new(parse(&set.body)));
        self.kept.push_back(Kept { fetched_at: now, until, keys: Arc::clone(keys) });
    }

    /// A token of a random life is signed by a random replica, and verified at once and once more.
    fn sign(&mut self) {
        let (now, ttl) = (self.now(), self.token_life());
        let first = self.random.below(REPLICAS);
        let signed = (0..REPLICAS).find_map(|others| {
            let replica = (first + others) % REPLICAS;
            let request = SignJwt { id: id("k"), claims: b"{}".to_vec(), ttl: Some(ttl), typ: None };
            let (kms, deadline) = (&self.fleet.replicas[replica], self.fleet.deadline(replica));
            match block_on(kms.sign_jwt(&administrator(), request, deadline)) {
                Ok(signed) => Some(signed),
                Err(error) if error.reason() == "FENCED" => None,
                Err(error) => panic!("seed {}: replica {replica} does not sign: {error}", self.seed),
            }
        });
        let signed = signed.expect("one of them signs");
        self.signed += 1;
        self.signers.insert(signed.version);
        self.verify(&signed.token);
        // The harshest verifier's clock is behind ours: to it the token is still valid.
        let at = if self.random.below(2) == 0 {
            self.at_the_end += 1;
            // A step may go past it, and a moment later not even that verifier would take it.
            signed.expires_at.saturating_add(Key::CLOCK_SKEW - STEP_MAX).expect("a time")
        } else {
            later(now, self.random.below(usize::try_from(ttl.as_secs()).expect("positive") + 1) as i64)
        };
        self.waiting.push(Reverse(Waiting { at, token: signed.token }));
    }

    /// From a second to the longest that is allowed, which everybody knows.
    fn token_life(&mut self) -> SignedDuration {
        let key = block_on(self.fleet.replicas[0].get_key(&administrator(), &id("k")));
        // A replica that is fenced shows nothing; then the shortest life does.
        let longest = key.map_or(1, |view| view.key.max_token_ttl.as_secs());
        let drawn = 1 + self.random.below(usize::try_from(longest).expect("positive")) as i64;
        SignedDuration::from_secs(if self.random.below(4) == 0 { longest } else { drawn })
    }

    /// By a verifier that holds a set of some age, often the oldest that it may use. It does not look for a newer one.
    fn verify(&mut self, token: &str) {
        let now = self.now();
        let usable: Vec<_> = self.kept.iter().filter(|kept| now <= kept.until).collect();
        // Whoever has none fetches one: from whom it does is drawn at the next step.
        let Some(last) = usable.len().checked_sub(1) else { return self.verify_afresh(token) };
        let place = if self.random.below(4) == 0 { 0 } else { self.random.below(last + 1) };
        let kept = usable[place];
        let outcome = check(token, &kept.keys);
        let (seed, fetched_at) = (self.seed, kept.fetched_at);
        assert_eq!(outcome, Ok(()), "seed {seed}: at {now}, with the key set of {fetched_at}: {token}");
        self.verified += 1;
        let took_over_since = fetched_at < self.activates_at && self.activates_at <= now;
        self.with_older_sets += usize::from(took_over_since);
    }

    fn verify_afresh(&mut self, token: &str) {
        while self.kept.back().is_none_or(|kept| kept.fetched_at < self.now()) {
            self.fetch();
        }
        let kept = self.kept.back().expect("fetched");
        assert_eq!(check(token, &kept.keys), Ok(()), "seed {}: with a fresh key set: {token}", self.seed);
        self.verified += 1;
    }

    fn now(&self) -> Timestamp {
        self.fleet.store.clock.now()
    }
}

/// A lead, a token life and a rotation period that go together; as short as they may be, now and then.
fn periods(random: &mut Random) -> [SignedDuration; 3] {
    let leads = [10, 60, 320, 600, 900];
    let lead = leads[random.below(leads.len())];
    let ttl = [10, 10 + random.below(1_800) as i64, 1_800][random.below(3)];
    let spare = random.below(2) as i64 * random.below(1_200) as i64;
    [lead, ttl, lead + ttl + spare].map(SignedDuration::from_secs)
}

fn later(at: Timestamp, seconds: i64) -> Timestamp {
    at.saturating_add(SignedDuration::from_secs(seconds)).expect("a time")
}

fn parse(body: &[u8]) -> KeySet {
    let json: serde_json::Value = serde_json::from_slice(body).expect("JSON");
    let keys = json["keys"].as_array().expect("keys");
    assert!(keys.len() <= 8, "verifiers limit what they fetch");
    keys.iter()
        .map(|jwk| {
            let coordinate = |name: &str| decode(jwk[name].as_str().expect("a coordinate"));
            let point = [vec![4], coordinate("x"), coordinate("y")].concat();
            (jwk["kid"].as_str().expect("a kid").to_owned(), point)
        })
        .collect()
}

fn check(token: &str, keys: &KeySet) -> Result<(), &'static str> {
    let (input, signature) = token.rsplit_once('.').ok_or("no signature")?;
    let header = input.split('.').next().ok_or("no header")?;
    let header: serde_json::Value = serde_json::from_slice(&decode(header)).map_err(|_| "no JSON header")?;
    let point = header["kid"].as_str().and_then(|kid| keys.get(kid)).ok_or("an unknown kid")?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    key.verify(input.as_bytes(), &decode(signature)).map_err(|_| "a wrong signature")
}

fn decode(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).expect("base64url")
}
