//! What a call costs: how long a worker is busy with one of its kind, learned from every answer.
//!
//! The estimate rules how many calls a worker holds at once, which lane is next, and which calls are refused because
//! they would be late. It is of throughput: a worker of four sessions is four times as quick. Answers that come
//! together share the time since those before them by what each was expected to take.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use kms_core::{Algorithm, algorithm::Modulus, hsm::KekRef};

use crate::wire::Operation;

/// How much one observation counts: an eighth.
const LEARNED_SHIFT: u32 = 3;
/// One observation is taken for this many times the estimate at most, and for this part of it at least: a worker that
/// was stopped for a minute says nothing about the next call.
const SURPRISE_MAX: u64 = 4;
/// Least and most that a call is taken to cost, in nanoseconds.
const COST_NS_MIN: u64 = 1_000;
const COST_NS_MAX: u64 = 10_000_000_000;

/// Kinds of calls that cost alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(usize);

/// What each kind costs.
pub(super) struct Costs([AtomicU64; GUESSES_NS.len()]);

/// Before anything was measured, in nanoseconds, by [`Kind`].
const GUESSES_NS: [u64; 14] = [
    100_000,    // ES256
    300_000,    // ES384, ES512
    200_000,    // Ed25519
    1_000_000,  // RSA 2048
    2_000_000,  // RSA 3072
    5_000_000,  // RSA 4096
    50_000,     // wrap
    50_000,     // unwrap under a secret key
    2_000_000,  // unwrap under a pair
    200_000,    // find
    20_000_000, // a page of the token
    10_000_000, // generate, destroy
    1_000_000,  // epoch
    50_000,     // check
];

impl Kind {
    pub(super) fn of(operation: &Operation) -> Self {
        Self(match operation {
            Operation::Sign { algorithm, .. } => match algorithm {
                Algorithm::Es256 => 0,
                Algorithm::Es384 | Algorithm::Es512 => 1,
                Algorithm::Ed25519 | Algorithm::EdDsa => 2,
                Algorithm::Rs256(modulus)
                | Algorithm::Rs384(modulus)
                | Algorithm::Rs512(modulus)
                | Algorithm::Ps256(modulus)
                | Algorithm::Ps384(modulus)
                | Algorithm::Ps512(modulus)
                | Algorithm::RsaOaep256(modulus) => match modulus {
                    Modulus::Bits2048 => 3,
                    Modulus::Bits3072 => 4,
                    Modulus::Bits4096 => 5,
                },
                Algorithm::A256GcmKw => 6,
            },
            Operation::WrapKey { .. } => 6,
            Operation::UnwrapKey { key: KekRef::Secret(_), .. } => 7,
            Operation::UnwrapKey { key: KekRef::Pair(_), .. } => 8,
            Operation::Find(_) => 9,
            Operation::List(_) => 10,
            Operation::Generate(_) | Operation::Destroy(_) => 11,
            Operation::Epoch(_) => 12,
            Operation::Check => 13,
        })
    }
}

impl Default for Costs {
    fn default() -> Self {
        Self(GUESSES_NS.map(AtomicU64::new))
    }
}

impl Costs {
    /// What one of this kind is expected to cost, in nanoseconds.
    pub(super) fn of(&self, kind: Kind) -> u64 {
        self.0[kind.0].load(Ordering::Relaxed)
    }

    /// Learns that a worker was busy for `took` with these.
    pub(super) fn learn(&self, kinds: &[Kind], took: Duration) {
        let expected: u64 = kinds.iter().map(|kind| self.of(*kind)).sum();
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let took = took.clamp(expected / SURPRISE_MAX, expected.saturating_mul(SURPRISE_MAX));
        for (at, kind) in kinds.iter().enumerate() {
            // One step for all of a kind that came together.
            if expected == 0 || kinds[..at].contains(kind) {
                continue;
            }
            let old = self.of(*kind);
            let seen = u128::from(old) * u128::from(took) / u128::from(expected);
            let seen = u64::try_from(seen).unwrap_or(COST_NS_MAX);
            let new = old - (old >> LEARNED_SHIFT) + (seen >> LEARNED_SHIFT);
            self.0[kind.0].store(new.clamp(COST_NS_MIN, COST_NS_MAX), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_follow_what_is_measured_and_one_surprise_moves_them_little() {
        let (costs, check, find) = (Costs::default(), Kind(13), Kind(9));
        for _ in 0..100 {
            costs.learn(&[check; 8], Duration::from_millis(4));
            costs.learn(&[find], Duration::from_micros(20));
        }
        let learned = costs.of(check);
        assert!((450_000..=550_000).contains(&learned), "{learned}");
        assert!((18_000..=22_000).contains(&costs.of(find)), "{}", costs.of(find));
        costs.learn(&[check], Duration::from_secs(60));
        assert!(costs.of(check) < 2 * learned, "{}", costs.of(check));
    }
}
