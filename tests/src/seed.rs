//! Chance that can be repeated.

use std::hash::{BuildHasher as _, RandomState};

use anyhow::Context as _;

/// A generator (SplitMix64) whose seed is printed and may be given as `KMS_SEED`.
#[derive(Debug)]
pub struct Seed {
    initial: u64,
    state: u64,
}

impl Seed {
    /// Takes `KMS_SEED`, or draws a seed; prints it with the command that repeats the test.
    #[expect(clippy::print_stderr, reason = "the test harness shows it when the test fails")]
    pub fn announced(test_file: &str) -> anyhow::Result<Self> {
        let seed = match std::env::var("KMS_SEED") {
            Ok(text) => text.parse().context("KMS_SEED is a number")?,
            // The standard library's keys come from the operating system.
            Err(_) => RandomState::new().hash_one(test_file),
        };
        eprintln!("seed {seed}; repeat: KMS_SEED={seed} cargo test --package kms-tests --test {test_file}");
        Ok(Self { initial: seed, state: seed })
    }

    /// What repeats the test.
    pub fn initial(&self) -> u64 {
        self.initial
    }

    /// A generator of its own for another task, which repeats with this one.
    pub fn fork(&mut self) -> Self {
        let seed = self.below(usize::MAX) as u64;
        Self { initial: self.initial, state: seed }
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap_or(0)
    }

    /// One of `items`, if there is one.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        if items.is_empty() { None } else { items.get(self.below(items.len())).copied() }
    }
}
