//! A PostgreSQL server for one test: made in a temporary directory, killed and removed with the test.
//!
//! Nothing here is async, and nothing is faked: passwords are asked for (SCRAM-SHA-256), TLS is on, and what is
//! committed is on disk (`fsync`, `synchronous_commit`), so that a test may kill the server and start it again.

mod certificate;
mod cluster;
mod database;
mod postmaster;
mod programs;
mod secret;

pub use cluster::Cluster;
pub use database::Database;
