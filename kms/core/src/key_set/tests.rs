use std::collections::BTreeSet;

use super::*;
use crate::{
    Algorithm, Key, KeyVersion,
    catalog::Catalog,
    fakes::{a_key, entropy},
    hsm::CkaId,
    jwk::Jwk,
    key::{Born, Compromise, Material, TakeOver, Timeline},
    store::{Generation, Snapshot},
};

/// All times lie in so many seconds, so that many of them meet.
const SPAN_SECONDS: usize = 40;

/// xorshift64 (Marsaglia 2003), which `KMS_SEED` repeats.
struct Random(u64);

impl Random {
    fn announced() -> Self {
        let given = std::env::var("KMS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let mut bytes = [0; 8];
            entropy(&mut bytes).expect("entropy");
            u64::from_be_bytes(bytes)
        });
        println!("KMS_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).expect("48 bits") % bound
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    /// A whole second: when something is said to happen.
    fn time(&mut self) -> Timestamp {
        at(self.below(SPAN_SECONDS))
    }

    /// When somebody asks: also just before it happens, and just after.
    fn now(&mut self) -> Timestamp {
        let by = SignedDuration::from_nanos([-1, 0, 0, 1][self.below(4)]);
        self.time().checked_add(by).expect("a time")
    }

    fn maybe(&mut self) -> Option<Timestamp> {
        (!self.one_in(3)).then(|| self.time())
    }

    fn key(&mut self, name: &str) -> (Key, Vec<KeyVersion>) {
        let publish_lead = SignedDuration::from_secs(10 + i64::try_from(self.below(900)).expect("small"));
        // Two names of one algorithm, so that one kind of public key does for both.
        let algorithm = if name < "k3" { Algorithm::Ed25519 } else { Algorithm::EdDsa };
        let key = Key { algorithm, publish_lead, ..a_key(name) };
        let count = u32::try_from(self.below(5)).expect("small");
        (key, (1..=count).map(|number| self.version(name, number)).collect())
    }

    /// Of times in any order: the set must be right for rows that should not be, too.
    fn version(&mut self, name: &str, number: u32) -> KeyVersion {
        let timeline = Timeline {
            published_at: self.time(),
            activates_at: self.time(),
            retires_at: self.maybe(),
            withdrawn_at: self.maybe(),
            destroys_at: if self.one_in(8) { Some(self.time()) } else { None },
        };
        let public = Hash::Sha256.digest(format!("{name}/{number}").as_bytes());
        let spki = [&ED25519_SPKI_HEAD[..], public.as_ref()].concat();
        let kid = Jwk::from_spki(Algorithm::Ed25519, &spki).expect("a key").kid();
        let material = Material::Pair { spki: spki.into(), kid };
        KeyVersion {
            number,
            cka_id: CkaId::from_bytes([u8::try_from(number).expect("small"); 16]),
            earlier_attempts: Vec::new(),
            token_serial: "token".to_owned(),
            created_at: at(0),
            born: (!self.one_in(8)).then_some(Born { material, timeline }),
            maker: None,
            suspended: self.one_in(8),
            compromise: self.one_in(8).then(|| Compromise { at: self.time(), reason: String::new() }),
            takes_over: TakeOver::AfterLead,
            cross_signature: None,
            destroyed_at: self.one_in(8).then(|| self.time()),
        }
    }
}

/// RFC 8410 §4: a SubjectPublicKeyInfo up to the 32 bytes of the key.
const ED25519_SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

fn at(seconds: usize) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + i64::try_from(seconds).expect("small")).expect("a time")
}

fn snapshot(generation: u64, keys: Vec<(Key, Vec<KeyVersion>)>) -> Snapshot {
    let generation = Generation(generation);
    Snapshot { generation, keys, ..Snapshot::default() }
}

/// What stands in the rows at `now`, said in the plainest way: the text, its algorithms, and how long it may be kept.
fn plainly<'a>(
    entries: impl Iterator<Item = &'a Arc<Entry>>,
    now: Timestamp,
) -> (String, BTreeSet<&'static str>, SignedDuration) {
    let (mut jwks, mut algorithms, mut max_age) = (Vec::new(), BTreeSet::new(), MAX_AGE_MAX);
    for entry in entries {
        max_age = max_age.min(entry.key.publish_lead / 2);
        for version in entry.versions.iter().filter(|version| version.row.is_published(now)) {
            algorithms.insert(entry.key.algorithm.jose_name());
            jwks.push(version.public.as_ref().expect("it is born").jwk().to_json().expect("JSON"));
        }
    }
    (format!(r#"{{"keys":[{}]}}"#, jwks.join(",")), algorithms, max_age)
}

fn check<'a>(set: &KeySet, entries: impl Iterator<Item = &'a Arc<Entry>>, now: Timestamp) {
    let (text, algorithms, max_age) = plainly(entries, now);
    assert_eq!((&*set.body, set.max_age), (text.as_bytes(), max_age), "at {now}: {text}");
    let digest = Hash::Sha256.digest(text.as_bytes());
    assert_eq!(set.etag, format!("\"{}\"", base64url(&digest.as_ref()[..16])), "at {now}");
    assert!(set.algorithms.iter().eq(&algorithms), "at {now}: {:?}", set.algorithms);
}

#[test]
fn what_is_kept_is_what_would_be_written_whatever_the_timelines_and_however_the_time_jumps() {
    let mut random = Random::announced();
    for _ in 0..30 {
        let names: Vec<String> = (0..random.below(6)).map(|number| format!("k{number}")).collect();
        let keys = names.iter().map(|name| random.key(name)).collect();
        let catalog = Catalog::new(snapshot(1, keys)).expect("a catalog");
        for generation in 2..12 {
            for _ in 0..40 {
                let (picture, now) = (catalog.now(), random.now());
                let all = catalog.key_set(None, now).expect("a set");
                check(&all, picture.keys.values(), now);
                for (id, entry) in &picture.keys {
                    let of_one = catalog.key_set(Some(id), now).expect("a set");
                    check(&of_one, std::iter::once(entry), now);
                }
            }
            let Some(name) = names.get(random.below(6)) else { continue };
            let (base, since) = (catalog.now(), catalog.now().generation);
            let change = snapshot(generation, vec![random.key(name)]);
            assert_eq!(catalog.apply(&base, Some(since), change), Ok(true));
        }
    }
}

#[test]
fn a_commit_keeps_the_sets_of_the_keys_that_it_does_not_change_and_of_no_other() {
    let mut random = Random::announced();
    let keys: Vec<_> = ["a", "b"].iter().map(|name| random.key(name)).collect();
    let catalog = Catalog::new(snapshot(1, keys)).expect("a catalog");
    let now = at(0);
    let sets = || {
        let of = |name: &str| catalog.key_set(Some(&name.parse().expect("a name")), now).expect("a set");
        [of("a"), of("b"), catalog.key_set(None, now).expect("a set")]
    };
    let before = sets();
    assert!(before.iter().zip(sets()).all(|(before, again)| Arc::ptr_eq(before, &again)), "kept");
    let (mut key, versions) = random.key("b");
    key.owner = "somebody else".to_owned();
    let base = catalog.now();
    assert_eq!(catalog.apply(&base, Some(Generation(1)), snapshot(2, vec![(key, versions)])), Ok(true));
    let kept =
        before.iter().zip(&sets()).map(|(before, after)| Arc::ptr_eq(before, after)).collect::<Vec<_>>();
    assert_eq!(kept, [true, false, false]);
}
