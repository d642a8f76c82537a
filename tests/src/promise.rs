//! A promise to operators (docs/reference/promises.md) under test: a sample of it in `make test`, the full figure in
//! `make torture`, which sets `KMS_TORTURE=1` and gathers the lines that begin with `PROMISE`.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::Seed;

/// One promise while its test runs.
#[derive(Debug)]
pub struct Promise {
    number: u8,
    /// Where chance comes from.
    pub seed: Seed,
    began: Instant,
}

impl Promise {
    /// Begins the test of promise `number` in the file `test_file`. Announces the seed.
    pub fn begin(number: u8, test_file: &str) -> anyhow::Result<Self> {
        Ok(Self { number, seed: Seed::announced(test_file)?, began: Instant::now() })
    }

    /// Whether the full figure is asked for, on a machine that has nothing else to do.
    pub fn is_full() -> bool {
        std::env::var_os("KMS_TORTURE").is_some_and(|value| value == "1")
    }

    /// How often: `sample` in `make test`, `full` in `make torture`.
    pub fn count(sample: usize, full: usize) -> usize {
        if Self::is_full() { full } else { sample }
    }

    /// Says now and then how far a long run is.
    #[expect(clippy::print_stderr, reason = "an hour without a word looks like a hang")]
    pub fn progress(what: &str, done: usize, of: usize) {
        if Self::is_full() && done.is_multiple_of((of / 20).max(1)) {
            eprintln!("{what}: {done} of {of}");
        }
    }

    /// Holds `took` against the promise where the full figure is asked for. `make test` runs on busy machines, and
    /// only fails what is out of all proportion.
    pub fn within(what: &str, took: Duration, promised: Duration) -> anyhow::Result<()> {
        let bound = if Self::is_full() { promised } else { promised * 15 };
        ensure!(took <= bound, "{what} took {took:?}; the promise is {promised:?}");
        Ok(())
    }

    /// It was kept: prints the line for the table of figures.
    #[expect(clippy::print_stdout, reason = "make torture gathers these lines")]
    pub fn kept(self, what: impl Display, figure: impl Display) {
        let Self { number, seed, began } = self;
        let seconds = began.elapsed().as_secs();
        println!("\nPROMISE | {number} | {what} | {figure} | {} | {seconds} s |", seed.initial());
    }
}
