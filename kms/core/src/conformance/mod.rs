//! Conformance suites: one per port, run on every implementation. An implementation's test opens it and calls
//! `run`; a suite panics with a sentence that says what does not hold.

#![expect(clippy::panic, reason = "a suite's verdict is a panic, as a test's is")]
#![expect(clippy::expect_used, reason = "as above")]

pub mod audit;
pub mod hsm;
pub mod store;
