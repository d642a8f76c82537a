//! The HSM room: everything between core's [`Hsm`](kms_core::Hsm) and a vendor's PKCS#11 module (v2.40, v3.x).
//!
//! A vendor module can hang, crash, leak, or lose its link for good, and none of that can be undone inside the
//! process that loaded it. So the module lives in worker processes that may be killed once they are READY:
//!
//! ```text
//! supervisor ── spawns, reaps, kills ──► worker ── C ABI ──► module
//!     ▲  control socket                     ▲ unix socket, one message per operation
//!     └───────────────── pool (the front) ──┘
//! ```
//!
//! The front holds neither the PIN nor the module; the supervisor says which token a worker serves. Start reading at
//! [`pool`], follow a request over [`wire`] into [`worker`], and look at [`supervisor`] last. What differs from token
//! to token stands in [`profile`], what differs from algorithm to algorithm in [`mechanism`].

pub mod mechanism;
pub mod pool;
pub mod profile;
pub mod supervisor;
pub mod token;
pub mod uri;
pub mod wire;
pub mod worker;

mod clock;
mod module;
mod pin;
mod public_key;
mod signals;
#[cfg(test)]
mod wycheproof;

pub use module::TokenError;
pub use pool::Pool;
pub use uri::Uri;
