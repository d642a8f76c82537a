//! The HSM room against SoftHSM, Kryoptic, and p11-kit's server in front of them: real tokens, real worker processes, a
//! supervisor and a pool in the test's process.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests and what they share")]

mod admin;
mod conformance;
mod epoch;
mod failures;
mod far_side;
mod faults;
mod keys;
mod lanes;
mod latch;
mod listing;
mod overtaking;
mod probes;
mod profiles;
mod recovery;
mod reinitialised;
mod startup;
mod support;
mod tree;
mod wraps;
