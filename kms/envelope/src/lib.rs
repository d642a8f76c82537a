//! Envelopes: payloads under data keys, and data keys under keys that never leave an HSM.
//!
//! A payload of any size is encrypted under a key of its own, derived from a data key; the data key travels in the
//! envelope's header, wrapped. Whoever rotates the wrapping key replaces that header and touches no payload. The format is
//! documented byte by byte in `docs/reference/envelope-format.md`.
//!
//! A leaf: formats and software cryptography, no network, no clock, and no randomness but what the caller gives. Core seals and
//! opens small payloads with it, the SDK those of any size.

mod context;
mod header;
mod open;
mod payload;
mod seal;
mod secret;
mod stream;
mod wrapped_key;

pub use context::{ContextError, EncryptionContext, EnvelopeContext};
pub use header::{Header, HeaderError, Purpose};
pub use open::{Envelope, OpenError};
pub use payload::CHUNK_LEN;
pub use seal::{SealError, SealHeader, seal};
pub use secret::{DataKey, SecretBytes, WrongLength};
pub use stream::{Opener, Sealer};
pub use wrapped_key::{DataKeyId, WrapAlgorithm, WrapHeader, WrappedKey};
