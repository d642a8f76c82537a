//! Envelopes: the bytes in which everything that does not live in the HSM is stored, and the software cryptography in
//! them. `docs/reference/envelope-format.md` has every byte, `docs/decisions/0013-one-envelope-suite.md` the reasons.
//!
//! A **data key** (32 bytes) encrypts a payload and is itself wrapped by a version of a key in the HSM. A [`WrappedKey`]
//! names that version; an [`Envelope`] carries one wrapped key per recipient and then the payload. Moving to another
//! version replaces the wrapped keys ([`rewrapped`]) and no byte of the payload.
//!
//! Nothing here knows the network, the HSM or the clock, and randomness is an argument. Start reading at [`seal()`] and
//! [`open()`]; [`Sealer`] and [`Opener`] do the same for streams of any length.
#![forbid(unsafe_code)]

#[cfg(all(feature = "fuzzing", not(debug_assertions)))]
compile_error!("what fuzzers call must not be built into a release");

mod context;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod header;
mod open;
mod payload;
mod seal;
mod secret;
mod stream;
mod wrapped_key;

pub use self::{
    context::{ContextError, EncryptionContext, EnvelopeContext},
    error::{Malformed, OpenError, RandomError, RecipientsError, SealError},
    header::Header,
    open::{Envelope, open},
    payload::CHUNK_LEN,
    seal::{RewrapError, SealHeader, rewrapped, seal},
    secret::{DataKey, DataKeyId, DataKeyLenError, SecretBytes},
    stream::{Opener, Sealer},
    wrapped_key::{Purpose, WrapAlgorithm, WrapHeader, WrappedKey},
};
