//! What can go wrong, told apart only as far as that tells an attacker nothing.
//!
//! Before a key is touched a parser may say exactly what is wrong with the bytes: [`Malformed`]. After that there is
//! one answer for a wrong key, context, purpose, commitment or tag, and for a payload that was cut, extended or
//! reordered: [`OpenError::NotOpened`].

use std::io;

/// These bytes are no envelope, or no wrapped key, of a format that this program knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They do not begin as ours do.
    #[error("this is no {0}: it does not begin as one; check that this is the right file or column")]
    NotOurs(&'static str),
    /// They may well be ours, and newer than this program.
    #[error("{what} {found} is not known to this program; it may be too old for this envelope: update it")]
    Unknown {
        /// Which field it is.
        what: &'static str,
        /// What stands there.
        found: u8,
    },
    /// They end too early.
    #[error("the {0} is cut off; restore it from a copy")]
    Cut(&'static str),
    /// A field has a value that it cannot have.
    #[error("{0}; the bytes were changed after they were written: restore them from a copy")]
    Broken(&'static str),
}

/// Why an envelope gave no plaintext.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The one answer for everything that does not open.
    #[error(
        "the envelope does not open: its data key, encryption context or purpose is another one, or its bytes were \
         changed; open it with what it was sealed with, or restore it from a copy"
    )]
    NotOpened,
    /// Found before any key was touched.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The bytes could not be read.
    #[error("the envelope could not be read: {0}")]
    Io(#[from] io::Error),
}

/// Why something was not sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// No random bytes, no envelope.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The envelope would not open for them.
    #[error(transparent)]
    Recipients(#[from] RecipientsError),
    /// A chunk counter would start over.
    #[error(
        "an envelope holds at most 2^32 chunks of 65,536 bytes; divide the payload among several envelopes"
    )]
    TooLong,
    /// The cryptographic library refused, which it has no reason to.
    #[error("the cryptographic library refused to encrypt; this is a defect, please report it")]
    Library,
    /// The envelope could not be written.
    #[error("the envelope could not be written: {0}")]
    Io(#[from] io::Error),
}

/// The recipients do not fit their envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecipientsError {
    /// None, or too many.
    #[error("an envelope has 1 to 8 recipients")]
    Count,
    /// One wraps another data key.
    #[error("a wrapped key has another data-key id than the envelope; wrap the envelope's own data key")]
    DataKeyId,
    /// One is for another door.
    #[error("a wrapped key has another purpose than the envelope; wrap the data key for this purpose")]
    Purpose,
    /// One could not be unwrapped with the envelope's context.
    #[error("a wrapped key has another key context than the envelope; wrap the data key under this context")]
    Context,
}

/// The source of randomness gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no random bytes could be had; check the operating system's generator")]
pub struct RandomError;
