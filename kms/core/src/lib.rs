//! What the key management service *means*: keys and their life, the gate, births, signatures, JWKs.
//!
//! No network, no database, no PKCS#11, no timers and no tasks live here. The outside comes in through four
//! ports: [`Hsm`], [`Store`], [`AuditLog`] and [`Clock`]; `kms/server` plugs the real ones into [`Kms`], the
//! one door. Start reading at [`gate`], then follow one verb, for instance `verbs/sign.rs`.

#[cfg(all(feature = "conformance", not(debug_assertions)))]
compile_error!("the fakes and conformance suites of kms-core must not be built into a release");

#[cfg(all(feature = "failpoints", not(debug_assertions)))]
compile_error!("the failpoints of kms-core must not be built into a release");

pub mod access;
pub mod algorithm;
pub mod audit;
pub mod caller;
pub mod claim_rules;
pub mod class;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod epoch;
pub mod error;
pub mod failpoint;
#[cfg(any(test, feature = "conformance"))]
pub mod fakes;
pub mod fence;
pub mod gate;
pub mod hsm;
pub mod inventory;
pub mod jwk;
pub mod key;
pub mod key_wrap;
pub mod kms;
pub mod lane;
pub mod limits;
pub mod pin_latch;
pub mod policy;
pub mod principal;
pub mod proposal;
pub mod replica;
pub mod report;
pub mod signature;
pub mod store;
pub mod time;

pub mod verbs;

mod action;
mod beat;
mod catalog;
mod key_set;
mod timeline;
mod uses;

pub use action::Action;
pub use algorithm::Algorithm;
pub use audit::AuditLog;
pub use caller::Caller;
pub use error::Error;
pub use failpoint::Failpoint;
pub use gate::{Admission, Gate, Grant, Unsettled};
pub use hsm::Hsm;
pub use jwk::Kid;
pub use key::{Key, KeyId, KeyState, KeyUid, KeyVersion};
pub use kms::Kms;
pub use pin_latch::PinLatch;
pub use store::Store;
pub use time::Clock;
pub use uses::WrapLimits;
