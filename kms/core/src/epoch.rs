//! The epoch: a number that store and token both keep, so that a database older than the token has seen is noticed.
//!
//! It moves by one with every change that a restored backup must not undo unseen: a destruction, a revocation, a
//! version's change of state, a rotation. The change's own transaction moves the store's number; the token follows
//! with one data object, a [`Mark`]. A mark above the store's number means that the store is an older copy: the
//! service then goes into [`Recovery`] until an administrator accepts that (docs/decisions/0008-epoch.md).
//!
//! It is no proof against somebody who has the PIN and can remove or forge marks.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;

use crate::{
    Error,
    hsm::{Fault, hex},
};

/// The store's row: there is at most one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    /// Whose epoch it is: two installations may share a token.
    pub installation: Installation,
    /// How often it has moved, from 1.
    pub value: u64,
    /// Random, of the last move: copies of a store that move in step are told apart by it.
    pub nonce: [u8; 8],
    /// The highest that the token was known to hold; 0 before the first. Below `value` the token has yet to follow.
    pub in_token: u64,
}

/// 128 random bits, made once for each store. Copies of a database share it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Installation(pub [u8; 16]);

/// A data object in the token (PKCS#11 §4.6): this installation has reached this epoch. The highest counts, for a
/// data object cannot be changed in place on every token: the next is made before the last is destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// Whose.
    pub installation: Installation,
    /// Which.
    pub value: u64,
    /// Of the move to it.
    pub nonce: [u8; 8],
}

/// What may be done to the marks in a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Read,
    /// Make this one, unless it is there.
    Create(Mark),
    /// Destroy this one, if it is there.
    Destroy(Mark),
}

/// The store is older than what the token has seen, or, with equal epochs, another copy of it has gone on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// The store's epoch.
    pub store: u64,
    /// The token's.
    pub token: u64,
}

/// What an administrator confirms to end recovery mode: 64 random bits, drawn when it is entered. It stands in the
/// server's log and nowhere else, so that a credential which the restore has brought back cannot accept it alone.
pub(crate) struct AcceptanceCode(String);

/// How a store's epoch stands against the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The token holds exactly it.
    Level,
    /// The token has yet to follow.
    Ahead,
    /// As [`Standing::Ahead`], though the token did hold more: a mark was removed, or the token is an older copy.
    Lost,
    /// The token has seen a later one, or one of the same number that another copy of this store has reached.
    Behind(Recovery),
}

impl Epoch {
    /// The first of a new installation.
    pub(crate) fn first(installation: Installation, nonce: [u8; 8]) -> Self {
        Self { installation, value: 1, nonce, in_token: 0 }
    }

    /// The mark that the token should hold.
    pub(crate) fn mark(&self) -> Mark {
        Mark { installation: self.installation, value: self.value, nonce: self.nonce }
    }

    /// How it stands against the marks in the token, of whatever installation.
    pub(crate) fn against(&self, marks: &[Mark]) -> Standing {
        let ours = marks.iter().filter(|mark| mark.installation == self.installation);
        let forked = ours.clone().any(|mark| mark.value == self.value && mark.nonce != self.nonce);
        let token = ours.map(|mark| mark.value).max().unwrap_or(0);
        match token {
            _ if token > self.value || forked => Standing::Behind(Recovery { store: self.value, token }),
            _ if token < self.in_token => Standing::Lost,
            _ if token < self.value => Standing::Ahead,
            _ => Standing::Level,
        }
    }

    /// The highest of this installation in the token, of those that the store has reached.
    pub(crate) fn in_token_of(&self, marks: &[Mark]) -> u64 {
        let ours = marks.iter().filter(|mark| mark.installation == self.installation);
        ours.map(|mark| mark.value).filter(|value| *value <= self.value).max().unwrap_or(0)
    }

    /// Marks of this installation that a later one has replaced.
    pub(crate) fn replaced<'a>(&self, marks: &'a [Mark]) -> impl Iterator<Item = &'a Mark> {
        let Self { installation, value, .. } = *self;
        marks.iter().filter(move |mark| mark.installation == installation && mark.value < value)
    }
}

impl Mark {
    /// CKA_LABEL of the object.
    pub const LABEL: &'static str = "kms-epoch";
    /// CKA_APPLICATION of the object.
    pub const APPLICATION: &'static str = "kms";
    /// Longest CKA_VALUE, in bytes, that could be one.
    pub const LEN_MAX: usize = 64;
    /// Most marks that a token may hold: others share it, and replaced ones may be left behind.
    pub const COUNT_MAX: usize = 1_024;

    /// Highest epoch. No service lives to see it; a forged one far beyond would leave no number to go on with, for SQLite
    /// counts to 2⁶³ - 1.
    pub const VALUE_MAX: u64 = (1 << 62) - 1;

    const VERSION: u8 = 1;
    const HEAD_LEN: usize = 1 + 16;

    /// CKA_VALUE: a version byte, the installation, the epoch as 8 bytes, big-endian, and its nonce.
    pub fn to_bytes(self) -> Vec<u8> {
        [&[Self::VERSION][..], &self.installation.0, &self.value.to_be_bytes(), &self.nonce].concat()
    }

    /// Reads a CKA_VALUE. One of another version is an error, for it may hold a later epoch; `None` is something
    /// else altogether, which somebody else has put there.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, UnknownVersion> {
        let Some((head, rest)) = bytes.split_first_chunk::<{ Self::HEAD_LEN }>() else { return Ok(None) };
        let [version, installation @ ..] = *head;
        let installation = Installation(installation);
        match (version, <[u8; 16]>::try_from(rest)) {
            (Self::VERSION, Ok([v0, v1, v2, v3, v4, v5, v6, v7, nonce @ ..])) => {
                let value = u64::from_be_bytes([v0, v1, v2, v3, v4, v5, v6, v7]);
                Ok((value <= Self::VALUE_MAX).then_some(Self { installation, value, nonce }))
            }
            (Self::VERSION | 0, _) => Ok(None),
            (version, _) => Err(UnknownVersion { version }),
        }
    }
}

/// A mark of a later release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownVersion {
    /// Its version byte.
    pub version: u8,
}

impl From<UnknownVersion> for Fault {
    fn from(UnknownVersion { version }: UnknownVersion) -> Self {
        Self::Failed(format!(
            "the token holds a data object {:?} of version {version}, which a later release of kms has made; \
             upgrade this one, or remove the object if it is not of kms",
            Mark::LABEL
        ))
    }
}

impl AcceptanceCode {
    pub(crate) fn new(random: [u8; 8]) -> Self {
        Self(hex(&random))
    }

    /// Whether `text` is it; in constant time.
    pub(crate) fn is(&self, text: &str) -> bool {
        verify_slices_are_equal(self.0.as_bytes(), text.as_bytes()).is_ok()
    }

    /// For the server's log only.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Recovery {
    /// What callers get whose action must wait.
    pub(crate) fn refusal(&self) -> Error {
        Error::precondition("RECOVERY_MODE", self.to_string())
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, token } = self;
        write!(
            f,
            "recovery mode: the database is older (epoch {store}) than what the HSM has seen (epoch {token}), or \
             another copy of it has gone on, so nothing is signed, made, rotated or destroyed; put the newer database \
             back, or have an administrator see what is missing and accept this one with `kms hsm accept-older-store`; \
             the server's log has the code"
        )
    }
}

impl fmt::Display for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Installation({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Installation = Installation([1; 16]);
    const THEIRS: Installation = Installation([2; 16]);

    fn mark(installation: Installation, value: u64) -> Mark {
        Mark { installation, value, nonce: [5; 8] }
    }

    #[test]
    fn what_is_no_mark_is_ignored_and_a_later_version_is_an_error() {
        let whole = mark(OURS, 7).to_bytes();
        let huge = [Mark::VALUE_MAX + 1, u64::MAX].map(|value| mark(OURS, value).to_bytes());
        let long = [&whole[..], &[0]].concat();
        for other in [&[][..], &[1], &whole[..24], &long, &[0; 25], b"some text", &huge[0], &huge[1]] {
            assert_eq!(Mark::parse(other), Ok(None), "{other:?}");
        }
        for later in [&[&[2], &whole[1..]].concat()[..], &[9; 64]] {
            assert!(Mark::parse(later).is_err(), "{later:?}");
        }
    }

    #[test]
    fn a_mark_reads_back_as_it_was_written() {
        for value in [0, 1, 0x0102_0304_0506_0708, Mark::VALUE_MAX] {
            let bytes = mark(THEIRS, value).to_bytes();
            assert!(bytes.len() <= Mark::LEN_MAX);
            assert_eq!(Mark::parse(&bytes), Ok(Some(mark(THEIRS, value))));
        }
    }

    #[test]
    fn only_a_higher_mark_of_ours_or_anothers_of_the_same_number_means_an_older_store() {
        let epoch = Epoch { installation: OURS, value: 5, nonce: [5; 8], in_token: 4 };
        let fork = Mark { nonce: [6; 8], ..mark(OURS, 5) };
        for (marks, standing) in [
            (vec![], Standing::Lost),
            (vec![mark(THEIRS, 9)], Standing::Lost),
            (vec![mark(OURS, 3), mark(THEIRS, 9)], Standing::Lost),
            (vec![mark(OURS, 4)], Standing::Ahead),
            (vec![mark(OURS, 5), mark(OURS, 4), mark(THEIRS, 9)], Standing::Level),
            (vec![Mark { nonce: [6; 8], ..mark(OURS, 4) }], Standing::Ahead),
            (vec![fork], Standing::Behind(Recovery { store: 5, token: 5 })),
            (vec![mark(OURS, 5), fork], Standing::Behind(Recovery { store: 5, token: 5 })),
            (vec![mark(OURS, 4), mark(OURS, 6)], Standing::Behind(Recovery { store: 5, token: 6 })),
        ] {
            assert_eq!(epoch.against(&marks), standing, "{marks:?}");
        }
    }
}
