//! The composition root: configuration, processes, listeners, authentication, metrics and the scheduler.
pub mod authn;
pub mod clock;
pub mod config;
pub mod hygiene;
pub mod listen;
mod metrics;
mod ops;
pub mod telemetry;
#[cfg(test)]
mod test_certificate;
pub mod tls;
