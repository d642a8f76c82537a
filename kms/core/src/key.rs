//! Keys, their versions, and the timeline that a version's row spells out.
//!
//! Time is data: a version's phase is a pure function of (row, now), so replicas agree without talking
//! (SP 800-57 part 1 §7 names the states).

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Algorithm, Error,
    claim_rules::ClaimRules,
    class::{ClassName, Inherited},
    hsm::{CkaId, KnownAnswer},
    jwk::Kid,
    replica::ReplicaId,
    time::{SignedDuration, Timestamp},
};

/// A key: a name, a purpose and rules, under which versions come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The name that callers use; unique for ever, not reused after destruction.
    pub id: KeyId,
    /// 128 random bits, for ties that must survive everything else.
    pub uid: KeyUid,
    /// What it signs or wraps with. Never changes.
    pub algorithm: Algorithm,
    /// What it is for. Never changes.
    pub purpose: Purpose,
    /// Which class gives it the periods that it does not have of its own.
    pub class: ClassName,
    /// Which of its periods are the class's.
    pub inherited: Inherited,
    /// Whom to ask about it. Free text, at most [`Key::OWNER_LEN_MAX`] bytes.
    pub owner: String,
    /// For filters and inventories; at most [`Key::LABELS_MAX`].
    pub labels: Labels,
    /// How often a new version is made ahead of time; `None` for by hand only.
    pub rotation_period: Option<SignedDuration>,
    /// How long a version is published before it signs.
    pub publish_lead: SignedDuration,
    /// The longest life of a token that `SignJwt` makes.
    pub max_token_ttl: SignedDuration,
    /// How much longer a version stays in the JWKS than its last token needs it.
    pub overlap: SignedDuration,
    /// From a version's withdrawal to its destruction; `None` for by hand only.
    pub destroy_after: Option<SignedDuration>,
    /// What it asks of the claims of its tokens.
    pub claim_rules: ClaimRules,
    /// Names that the encryption context of each of its wraps must have: at most [`Key::REQUIRED_CONTEXT_MAX`], sorted.
    pub required_context: Vec<String>,
    /// When the last token has expired that was signed under a longer `max_token_ttl` than today's; `None`
    /// when it never was longer.
    pub tokens_until: Option<Timestamp>,
    /// When the last key set bundle has expired that was made under a longer `publish_lead` than today's; `None` when
    /// it never was longer.
    pub bundles_until: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it, or any of its versions, last changed.
    pub updated_at: Timestamp,
    /// Counts changes; compare-and-set runs on it and `etag` shows it.
    pub revision: u64,
}

/// What a key is for: one thing only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Purpose {
    /// JSON Web Tokens, whose header and end are ours. Bytes of a caller's own choice are a right of their own: they
    /// could be a token without an end.
    #[default]
    Jwt,
    /// Bytes of the caller's own choice, and no tokens.
    Signature,
    /// Key sets, for caches that answer while we do not. Whoever took its public half for a key of tokens would take a
    /// key set for one: so it stands in no set.
    JwksBundle,
    /// Keys of others, which it wraps and unwraps.
    Wrap,
}

/// Labels of a key, sorted.
pub type Labels = BTreeMap<String, String>;

/// One version of a key: one pair of objects in the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyVersion {
    /// Counts from 1 within the key; never reused.
    pub number: u32,
    /// The pair's CKA_ID in this attempt, or the attempt that succeeded.
    pub cka_id: CkaId,
    /// CKA_IDs of attempts that were given up: an object that appears under one of them is an orphan.
    pub earlier_attempts: Vec<CkaId>,
    /// Serial number of the token that holds it.
    pub token_serial: String,
    /// When its birth began.
    pub created_at: Timestamp,
    /// What is known once it is born; `None` while it is CREATING.
    pub born: Option<Born>,
    /// The replica that is at work on its birth, or was when it died; `None` once it is born.
    pub maker: Option<ReplicaId>,
    /// When it was to take over from the version before it. What came of that stands in its timeline.
    pub takes_over: TakeOver,
    /// The statement of the version that signed when this one was born, that this one succeeds it: a compact JWS, for
    /// keys of key set bundles alone. `None` when nobody could be asked, or nobody should.
    pub cross_signature: Option<Arc<str>>,
    /// Set by "disable", cleared by "enable".
    pub suspended: bool,
    /// Set by "revoke". Never cleared.
    pub compromise: Option<Compromise>,
    /// When its objects were destroyed. Never cleared.
    pub destroyed_at: Option<Timestamp>,
}

/// When a new version begins to sign. Part of its row before it is born, so that whoever resumes its birth knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TakeOver {
    /// As soon as it has stood in the JWKS for the key's lead.
    #[default]
    AfterLead,
    /// Then, and not before the lead is over.
    At(Timestamp),
    /// At once, without the lead: an emergency. Verifiers that have not fetched it yet refuse its tokens.
    AtOnce,
}

/// That a version is known or feared to be in other hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compromise {
    /// When it was declared.
    pub at: Timestamp,
    /// Why, for whoever reads it later: at most [`Compromise::REASON_LEN_MAX`] bytes.
    pub reason: String,
}

/// A version whose key exists and has proved itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Born {
    /// By what the key is known again.
    pub material: Material,
    /// Its times.
    pub timeline: Timeline,
}

/// What is on record of a version's key. No secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Material {
    /// A pair: its public half.
    Pair {
        /// SubjectPublicKeyInfo, DER (RFC 5280 §4.1.2.7).
        spki: Arc<[u8]>,
        /// RFC 7638 thumbprint.
        kid: Kid,
    },
    /// A secret key.
    Secret {
        /// What it made of a text that everybody knows.
        known_answer: KnownAnswer,
    },
}

/// Absolute times of a version: `published ≤ activates ≤ retires ≤ withdrawn ≤ destroys`. One that wraps keys is never
/// withdrawn, and destroyed only when somebody asks for that: it unwraps for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeline {
    /// From here on it stands in the JWKS, if it signs; every replica knows it.
    pub published_at: Timestamp,
    /// From here on it signs, or wraps.
    pub activates_at: Timestamp,
    /// From here on it does so no longer. `None` until a successor is live: nothing retires without one.
    pub retires_at: Option<Timestamp>,
    /// From here on it no longer stands in the JWKS.
    pub withdrawn_at: Option<Timestamp>,
    /// When it is to be destroyed, if somebody asked for that.
    pub destroys_at: Option<Timestamp>,
}

/// State of a key version (SP 800-57 part 1 §7). "Destroyed Compromised" is told as `Destroyed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyState {
    /// Made, perhaps published, and not yet signing.
    PreActivation,
    /// Signing.
    Active,
    /// Out of use until enabled again, or waiting for its destruction.
    Suspended,
    /// No longer signing; still verifies.
    Deactivated,
    /// Known or feared to be in other hands.
    Compromised,
    /// Gone from the token.
    Destroyed,
}

/// The name of a key: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct KeyId(Arc<str>);

/// 128 random bits that name a key for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyUid(pub [u8; 16]);

impl Key {
    /// Refuses a label that no key can have.
    pub fn check_label(name: &str, value: &str) -> Result<(), Error> {
        let plain = |text: &str| {
            text.len() <= Self::LABEL_LEN_MAX
                && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_./".contains(&c))
        };
        if plain(name) && plain(value) && name.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Ok(());
        }
        Err(Error::invalid(
            "labels",
            "names and values of labels are up to 63 of a-z, 0-9, '-', '_', '.', '/', and a name begins with a letter",
        ))
    }

    /// Longest owner text in bytes.
    pub const OWNER_LEN_MAX: usize = 256;
    /// Most labels on one key.
    pub const LABELS_MAX: usize = 64;
    /// Longest name, and longest value, of a label in bytes.
    pub const LABEL_LEN_MAX: usize = 63;
    /// Most names that an encryption context must have.
    pub const REQUIRED_CONTEXT_MAX: usize = 16;
    /// How far clocks of issuer and verifier may lie apart; part of every withdrawal.
    pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);
    /// A change of phase lies at least this long after its commit: the fence between replicas.
    pub const FENCE: SignedDuration = SignedDuration::from_secs(10);
    /// [`crate::replica::CLOCKS_APART_MAX`].
    pub const CLOCKS_APART: SignedDuration = SignedDuration::from_secs(10);

    /// When a version that stops signing at `retires_at` may leave the JWKS: after every token that it
    /// could have signed has expired, and every cache has had its time.
    pub fn withdrawal_after(&self, retires_at: Timestamp) -> Timestamp {
        let last_token = later(retires_at, self.max_token_ttl).max(self.tokens_until.unwrap_or(retires_at));
        later(later(later(last_token, Self::CLOCK_SKEW), self.publish_lead), self.overlap)
    }
}

impl Material {
    /// The thumbprint of a pair.
    pub fn kid(&self) -> Option<&Kid> {
        match self {
            Self::Pair { kid, .. } => Some(kid),
            Self::Secret { .. } => None,
        }
    }
}

impl Compromise {
    /// Longest reason in bytes.
    pub const REASON_LEN_MAX: usize = 1_024;
}

impl Timeline {
    /// Its times: between two of them, neither the state nor [`KeyVersion::is_published`] changes.
    pub(crate) fn times(&self) -> impl Iterator<Item = Timestamp> + use<> {
        let Self { published_at, activates_at, retires_at, withdrawn_at, destroys_at } = *self;
        [Some(published_at), Some(activates_at), retires_at, withdrawn_at, destroys_at].into_iter().flatten()
    }
}

impl KeyVersion {
    /// The state at `now`.
    pub fn state(&self, now: Timestamp) -> KeyState {
        if self.destroyed_at.is_some() {
            return KeyState::Destroyed;
        }
        if self.compromise.is_some() {
            return KeyState::Compromised;
        }
        let Some(born) = &self.born else { return KeyState::PreActivation };
        if self.suspended || born.timeline.destroys_at.is_some() {
            return KeyState::Suspended;
        }
        let passed = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        if born.timeline.activates_at > now {
            KeyState::PreActivation
        } else if passed(born.timeline.retires_at) {
            KeyState::Deactivated
        } else {
            KeyState::Active
        }
    }

    /// When its objects are to be destroyed, if they are and have not been.
    pub(crate) fn destruction_due(&self) -> Option<Timestamp> {
        self.born.as_ref()?.timeline.destroys_at.filter(|_| self.destroyed_at.is_none())
    }

    /// Whether verifiers should find it in the JWKS at `now`. From its birth on, also where the clock is behind its
    /// maker's.
    pub fn is_published(&self, now: Timestamp) -> bool {
        let trusted =
            matches!(self.state(now), KeyState::PreActivation | KeyState::Active | KeyState::Deactivated);
        self.born.as_ref().is_some_and(|born| trusted && born.timeline.withdrawn_at.is_none_or(|at| now < at))
    }
}

impl KeyVersion {
    /// Whether it signs at some time, or would if its time had not passed: born, and nobody has put it out of use.
    pub(crate) fn may_ever_sign(&self) -> bool {
        let out_of_use = self.suspended || self.compromise.is_some() || self.destroyed_at.is_some();
        !out_of_use && self.born.as_ref().is_some_and(|born| born.timeline.destroys_at.is_none())
    }

    /// Whether it signs now or will by itself.
    pub(crate) fn signs_from_now(&self, now: Timestamp) -> bool {
        let retires_at = self.born.as_ref().and_then(|born| born.timeline.retires_at);
        self.may_ever_sign() && retires_at.is_none_or(|at| now < at)
    }
}

impl KeyState {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::PreActivation,
        Self::Active,
        Self::Suspended,
        Self::Deactivated,
        Self::Compromised,
        Self::Destroyed,
    ];

    /// Whether a version in this state may sign.
    pub fn may_protect(self) -> bool {
        self == Self::Active
    }

    /// Whether a version in this state may verify what it signed earlier.
    pub fn may_process(self) -> bool {
        matches!(self, Self::Active | Self::Deactivated)
    }
}

/// `at` plus `span`, or the end of time.
pub(crate) fn later(at: Timestamp, span: SignedDuration) -> Timestamp {
    at.saturating_add(span).unwrap_or(Timestamp::MAX)
}

impl Purpose {
    /// What a key of that algorithm is for, if nobody says more.
    pub fn of(algorithm: Algorithm) -> Self {
        if algorithm.is_key_wrap() { Self::Wrap } else { Self::Jwt }
    }

    /// All of them.
    pub const ALL: [Self; 4] = [Self::Jwt, Self::Signature, Self::JwksBundle, Self::Wrap];

    /// Whether the public halves of such a key stand in the key sets.
    pub fn is_published(self) -> bool {
        !matches!(self, Self::JwksBundle | Self::Wrap)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::Signature => "signature",
            Self::JwksBundle => "jwks-bundle",
            Self::Wrap => "wrap",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Purpose {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let purpose = Self::ALL.into_iter().find(|purpose| purpose.as_str() == text);
        purpose.ok_or_else(|| Error::invalid("purpose", "a purpose is jwt, signature, jwks-bundle or wrap"))
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PreActivation => "pre-active",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Deactivated => "deactivated",
            Self::Compromised => "compromised",
            Self::Destroyed => "destroyed",
        })
    }
}

impl KeyId {
    /// Longest name in bytes.
    pub const LEN_MAX: usize = 63;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let head = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let tail = |c: u8| head(c) || matches!(c, b'.' | b'_' | b'-');
        let bytes = text.as_bytes();
        let well_formed = bytes.len() <= Self::LEN_MAX
            && bytes.first().copied().is_some_and(head)
            && bytes.iter().copied().all(tail);
        if well_formed {
            Ok(Self(text.into()))
        } else {
            Err(Error::invalid(
                "key_id",
                "a name is 1 to 63 of a-z, 0-9, '.', '_' and '-', and begins with a letter or digit",
            ))
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for KeyUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
