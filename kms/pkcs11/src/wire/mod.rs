//! The private wire between supervisor, pool and worker: frames over unix stream sockets.
//!
//! A frame is its body's length (u32, little-endian) and the body. Both ends come from one build, which the hello
//! proves, so nothing here is versioned field by field. Many frames travel in one read and in one write: wake-ups
//! are what an operation costs, not bytes. No Debug shows a payload. A frame with a secret is wiped when it was written, and
//! when it was read.

mod answer;
mod codec;
mod control;
mod frame;
mod listing;
mod objects;
mod outbox;
mod request;

pub use answer::{Answer, FromWorker, Hello, Outcome, Ready, Refusal, RefusalKind};
pub use codec::Malformed;
pub use control::{Exit, FromSupervisor, Order, Secret, ToSupervisor};
pub use frame::{FRAME_LEN_MAX, Inbox, frame};
pub(crate) use objects::FOUND_OBJECTS_MAX;
pub use outbox::Outbox;
pub use request::{Opaque, Operation, Request};

/// Proves that both ends come from one build.
pub const BUILD_ID: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"), " wire 5");

/// The pool's answer to [`FromWorker::LoggingIn`], an empty frame: it knows, so C_Login may be called.
pub const LOG_IN: [u8; 4] = [0; 4];
/// Its other answer, a frame of one byte that never comes: leave without calling C_Login.
pub const STAY_OUT: [u8; 4] = [1, 0, 0, 0];
