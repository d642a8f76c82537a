//! The composition root: it knows every room, and nobody knows it but the binary.
//!
//! `kms serve` is two programs in one executable: [`parent::run`] starts the other, [`front::run`], and the HSM
//! workers. Start reading at `front`; what an operator can set stands in [`config`].

pub mod addresses;
pub mod authn;
pub mod clock;
pub mod config;
mod connection;
pub mod front;
mod grpc;
mod guarded;
pub mod hygiene;
pub mod jwt;
pub mod listen;
mod metrics;
mod notify;
mod ops;
pub mod parent;
mod peers;
mod pin_latch;
mod replicas;
mod report;
mod running;
mod runtime_dir;
mod scheduler;
pub mod socket;
mod storage;
pub mod telemetry;
#[cfg(test)]
mod test_certificate;
pub mod tls;

use kms_audit::FileLog;
use kms_core::Kms;
use kms_pkcs11::Pool;
use kms_store::AnyStore;

pub use pin_latch::others as latch_others;
pub use storage::{bootstrap, look_at_store, open_store};

/// The service over its real ports, named once.
pub type Service = Kms<Pool, AnyStore, FileLog, clock::SystemClock>;
