//! Stories of several replicas over one store and one token: the fence, births, rotations at once and by schedule, the
//! lease, clocks, and verifiers that notice none of it.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test's verdict is a panic, and its seed is printed"
)]

mod births;
mod clocks;
mod fence;
mod fleet;
mod key_sets;
mod lease;
mod many_versions;
mod room;
mod rotations;
mod schedule;
mod status;
mod verification;
