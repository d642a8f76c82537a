//! Why a token was refused: a word for the log. Strangers can have as many tokens refused as they like, so a word
//! stands there at most once in [`TELL_INTERVAL`] for each issuer, with how often it was true meanwhile.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kms_core::{Clock, KeyId};

/// From one line of an issuer and a reason to the next.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// Why a token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    /// Longer than a token may be.
    TooLong,
    /// No JWT, or with a name twice, or with a member of the wrong kind.
    Malformed,
    /// It asks for an extension that we do not know.
    CriticalHeader,
    /// A JWT for something else.
    Type,
    /// Of none of the configured issuers.
    UnknownIssuer,
    /// Not one of the issuer's algorithms.
    Algorithm,
    /// For others.
    Audience,
    /// Not any more, or without an end.
    Expired,
    /// Not yet.
    NotYetValid,
    /// It lives longer than the issuer's tokens may.
    Lifetime,
    /// A claim that the configuration asks for is another, or missing.
    RequiredClaim,
    /// No subject, or one that has no canonical spelling.
    Subject,
    /// The issuer has no key of this id for this algorithm.
    NoSuchKey,
    /// Several keys fit: the token names none, or the set has one id twice.
    AmbiguousKey,
    /// The key does not verify it.
    Signature,
    /// There is no key set of the issuer yet.
    NoKeySet,
    /// The key set did not come in time.
    IssuerSlow,
    /// Too many wait for it already.
    IssuerBusy,
}

/// What has been told.
pub(super) struct Refusals {
    clock: Arc<dyn Clock>,
    told: Mutex<BTreeMap<(Option<KeyId>, Refusal), Told>>,
}

struct Told {
    at: Instant,
    /// How many have not been told since.
    silent: u64,
}

impl Refusal {
    /// The word for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::TooLong => "too-long",
            Self::Malformed => "malformed",
            Self::CriticalHeader => "critical-header",
            Self::Type => "type",
            Self::UnknownIssuer => "unknown-issuer",
            Self::Algorithm => "algorithm",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::Lifetime => "lifetime",
            Self::RequiredClaim => "required-claim",
            Self::Subject => "subject",
            Self::NoSuchKey => "no-such-key",
            Self::AmbiguousKey => "ambiguous-key",
            Self::Signature => "signature",
            Self::NoKeySet => "no-key-set",
            Self::IssuerSlow => "issuer-slow",
            Self::IssuerBusy => "issuer-busy",
        }
    }
}

impl Refusals {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, told: Mutex::default() }
    }

    /// Writes it to the log, unless the same has just been written.
    pub(super) fn tell(&self, issuer: Option<&KeyId>, refusal: Refusal) {
        if let Some(silent) = self.count(issuer, refusal) {
            let issuer = issuer.map_or("-", KeyId::as_str);
            tracing::info!(issuer, reason = refusal.word(), since_last = silent, "JWT refused");
        }
    }

    /// How many there were since the last line, if it is time for one.
    pub(super) fn count(&self, issuer: Option<&KeyId>, refusal: Refusal) -> Option<u64> {
        let now = self.clock.instant();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told.get_mut(&(issuer.cloned(), refusal)) {
            Some(last) if now.saturating_duration_since(last.at) < TELL_INTERVAL => {
                last.silent += 1;
                None
            }
            Some(last) => Some(std::mem::replace(last, Told { at: now, silent: 0 }).silent),
            None => {
                told.insert((issuer.cloned(), refusal), Told { at: now, silent: 0 });
                Some(0)
            }
        }
    }
}
