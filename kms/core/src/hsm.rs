//! The door to the HSM: what core asks of a token, in core's own terms.
//!
//! Implemented by `kms/pkcs11` for real tokens and by `fakes` for core's own tests; both pass
//! `conformance::hsm`. Every method takes a [`Grant`], which only the gate makes: there is no way to
//! reach the token around policy and audit.

mod listing;

use std::{fmt, future::Future, sync::Arc, time::Duration};

pub use listing::{
    CKA_ID_LEN_MAX, Cursor, Half, LABEL_LEN_MAX, Object, PAGE_OBJECTS_MAX, Page, SPKI_LEN_MAX, cut_text,
};

use crate::{
    Algorithm, Error, Grant, Unsettled,
    algorithm::{Hash, KeySpec},
    epoch::{Mark, Step},
    error::Kind,
    lane::Lane,
    time::Deadline,
};
use kms_envelope::SecretBytes;

/// A PKCS#11 token, as core sees it. Absent keys, lost links and refusals are told apart by [`Fault`].
pub trait Hsm: Send + Sync + 'static {
    /// Makes a key pair, or a secret key, as token objects under `new.id`. Returns when the token says that they
    /// exist. Must not be retried with the same id: after a failure the object may still appear later.
    fn generate(
        &self,
        grant: &Grant,
        new: &NewKey,
        deadline: Deadline,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Everything in the token under `id`, read back from the token and never from a cache.
    fn find(
        &self,
        grant: &Grant,
        id: CkaId,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Found, Fault>> + Send;

    /// The private, public and secret key objects of the token, ours or not, from `after` on: one page. Read from the
    /// token and never from a cache, but page by page, so what is missing may have come meanwhile: ask
    /// [`Hsm::find`] before anything is made of it.
    fn list(
        &self,
        grant: &Grant,
        after: Option<Cursor>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Page, Fault>> + Send;

    /// Signs. The signature is as JOSE writes it (`r ‖ s` for ECDSA), of exactly
    /// [`Algorithm::signature_len`] bytes, and not yet verified: core does that.
    fn sign(
        &self,
        grant: &Grant,
        key: &KeyRef,
        algorithm: Algorithm,
        input: SignInput,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Unsettled<Vec<u8>>, Fault>> + Send;

    /// Encrypts a key under a secret key, A256GCMKW with `aad`: IV (12 bytes, drawn anew for every try, or made by the
    /// HSM) ‖ ciphertext ‖ tag (16 bytes). Released only when the same handle has decrypted it back to what was given,
    /// and, unless this is a birth, has opened the known answer of `key` after that.
    fn wrap_key(
        &self,
        grant: &Grant,
        key: &SecretKeyRef,
        plaintext: SecretBytes,
        aad: Vec<u8>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Unsettled<Vec<u8>>, Fault>> + Send;

    /// Decrypts what [`Hsm::wrap_key`] gave, or what somebody encrypted to the public half of a pair (RSA-OAEP-256 with
    /// `aad` as the label). [`Fault::NotOpened`] whatever is wrong with `wrapped` or `aad`, and only when the key itself
    /// has just proved to be the one on record.
    fn unwrap_key(
        &self,
        grant: &Grant,
        key: &KekRef,
        wrapped: Vec<u8>,
        aad: Vec<u8>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Unsettled<SecretBytes>, Fault>> + Send;

    /// Destroys every object of the key. Succeeds when they are gone, also when they were gone before.
    fn destroy(
        &self,
        grant: &Grant,
        id: CkaId,
        deadline: Deadline,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Does `step` to the epoch's marks, and gives every mark that is there afterwards, of whatever installation,
    /// read back from the token.
    fn epoch(
        &self,
        grant: &Grant,
        step: Step,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Vec<Mark>, Fault>> + Send;

    /// The canary: one round trip to the token that touches no user's key.
    fn check(&self, grant: &Grant, deadline: Deadline) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Whether the token has the mechanisms of `algorithm`, as far as is known now.
    fn supports(&self, algorithm: Algorithm) -> bool;

    /// The serial number of the token behind this link, as CK_TOKEN_INFO gives it, trimmed.
    fn token_serial(&self) -> String;

    /// A cheap look at the link, without touching the token: for metrics and status.
    fn health(&self) -> Health;
}

/// CKA_ID: 128 random bits, drawn anew for every attempt at a birth.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CkaId([u8; 16]);

/// Where a key lives: token, CKA_ID, and the public key that must be found there. Never a session handle.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyRef {
    /// The pair's CKA_ID.
    pub id: CkaId,
    /// SHA-256 of the SubjectPublicKeyInfo. Compared when a handle is resolved, before its first use.
    pub spki_sha256: [u8; 32],
}

/// Where a secret key lives, and by what it is known again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretKeyRef {
    /// Its CKA_ID.
    pub id: CkaId,
    /// What it made of [`KnownAnswer::TEXT`] at its birth: opened when a handle is resolved, before its first use. `None`
    /// only in that birth: then whatever lies under the CKA_ID is used, if it is one object, and no handle is kept.
    pub known_answer: Option<KnownAnswer>,
}

/// A key that unwraps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KekRef {
    /// A secret key, by A256GCMKW.
    Secret(SecretKeyRef),
    /// A pair, by RSA-OAEP-256.
    Pair(KeyRef),
}

/// [`KnownAnswer::TEXT`] under a secret key: tells the key from every other, and nothing about it. Not a hash: there is
/// nothing public of a secret key that could be hashed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KnownAnswer(Arc<[u8]>);

/// What to generate.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// CKA_ID of every object of it.
    pub id: CkaId,
    /// CKA_LABEL of them: readable by stock tools, never used to find anything.
    pub label: String,
    /// Kind and size.
    pub spec: KeySpec,
    /// What it may do, and nothing else.
    pub usage: Usage,
}

/// What a key in the token may do: one thing, so that no two uses together give it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Usage {
    /// A private key that signs: CKA_SIGN.
    Sign,
    /// A private key that opens what was encrypted to its public half: CKA_DECRYPT. The public half has CKA_ENCRYPT.
    Decrypt,
    /// A secret key that wraps keys as data: CKA_ENCRYPT and CKA_DECRYPT, and never CKA_WRAP or CKA_UNWRAP, which
    /// together with CKA_DECRYPT would let whoever has the PIN read other keys.
    EncryptDecrypt,
}

/// What is to be signed.
#[derive(Clone)]
pub enum SignInput {
    /// A digest of exactly the algorithm's hash length. Never for EdDSA.
    Digest(Vec<u8>),
    /// The whole message. Only for EdDSA.
    Message(Vec<u8>),
}

/// What the token holds under one CKA_ID.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// One entry per private key object.
    pub private: Vec<KeyObject>,
    /// One SubjectPublicKeyInfo (DER) per public key object; empty where that is of no kind that is ours.
    pub public: Vec<Vec<u8>>,
    /// One entry per secret key object.
    pub secret: Vec<KeyObject>,
}

/// The attributes of a private or secret key object that decide whether we may trust it (docs/ARCHITECTURE.md, "Birth").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyObject {
    /// CKA_TOKEN: it outlives the session.
    pub token: bool,
    /// CKA_PRIVATE: invisible before login.
    pub private: bool,
    /// CKA_SENSITIVE: its value cannot be read.
    pub sensitive: bool,
    /// CKA_EXTRACTABLE: it could be wrapped out. Must be false.
    pub extractable: bool,
    /// CKA_ALWAYS_SENSITIVE: it was never anything else.
    pub always_sensitive: bool,
    /// CKA_NEVER_EXTRACTABLE: it could never be wrapped out.
    pub never_extractable: bool,
    /// CKA_LOCAL: it was born in this token.
    pub local: bool,
    /// CKA_MODIFIABLE. Must be false.
    pub modifiable: bool,
    /// CKA_COPYABLE. Must be false; `None` where the token does not know the attribute.
    pub copyable: Option<bool>,
    /// CKA_SIGN.
    pub sign: bool,
    /// CKA_ENCRYPT. Always false for a private key.
    pub encrypt: bool,
    /// CKA_DECRYPT.
    pub decrypt: bool,
    /// Any of CKA_WRAP, CKA_UNWRAP, CKA_DERIVE, CKA_SIGN_RECOVER, and for a secret key CKA_VERIFY. Must be false.
    pub other_use: bool,
}

/// The link at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Workers that are logged in and answering.
    pub workers_ready: u32,
    /// Workers that there should be.
    pub workers_wanted: u32,
    /// Requests queued or in flight.
    pub in_flight: u32,
    /// Workers that had to be replaced since start.
    pub respawns: u64,
    /// Workers that are logged in and wait to take over from another.
    pub spares_ready: u32,
    /// Such workers that there should be.
    pub spares_wanted: u32,
    /// Workers that were replaced for their age or memory, among the respawns.
    pub recycled: u64,
    /// Requests that were given to another worker because theirs had ended.
    pub repeated: u64,
    /// Each lane, in the order of [`Lane::ALL`].
    pub lanes: [LaneHealth; Lane::ALL.len()],
}

/// A lane at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LaneHealth {
    /// Requests that wait for their turn and are with no worker yet.
    pub waiting: u32,
    /// Requests that were refused since start: no place, or their deadline would have passed before their turn.
    pub refused: u64,
    /// Requests that went to a worker since start,
    pub sent: u64,
    /// and how long all of these together had waited for it.
    pub waited: Duration,
}

/// Why the HSM room could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The queue is full; nothing was sent to the token.
    #[error("the HSM queue is full")]
    Busy {
        /// When a place is likely to be free.
        retry_after: Duration,
    },
    /// The deadline passed. A generate or destroy may still happen; a signature is thrown away.
    #[error("the deadline passed before the HSM answered")]
    DeadlineExceeded,
    /// The link is down, or the worker died with the request in flight. The text is for operators.
    #[error("the HSM cannot be reached: {0}")]
    Unavailable(String),
    /// The token has no such key.
    #[error("the HSM has no such key")]
    KeyNotFound,
    /// The token has a key under that id, but not the one that we know: nothing was signed.
    #[error("the key in the HSM is not the one on record: {0}")]
    KeyMismatch(String),
    /// What was to be unwrapped does not open under this key with this AAD. The one reason for every such failure.
    #[error("it does not open")]
    NotOpened,
    /// The token lacks the mechanism.
    #[error("the HSM does not support this: {0}")]
    Unsupported(String),
    /// The token has no room for this: sessions, memory or objects. Function and code, for operators.
    #[error("the HSM has no room: {0}")]
    Full(String),
    /// The token refused or failed; function and code, for operators.
    #[error("the HSM failed: {0}")]
    Failed(String),
}

impl KeyObject {
    /// What differs from the template that every key of that use must show, or `None` when all is as it must be.
    pub fn deviation(&self, usage: Usage) -> Option<&'static str> {
        let (sign, encrypt, decrypt) = match usage {
            Usage::Sign => (true, false, false),
            Usage::Decrypt => (false, false, true),
            Usage::EncryptDecrypt => (false, true, true),
        };
        [
            (self.token, "CKA_TOKEN is false"),
            (self.private, "CKA_PRIVATE is false"),
            (self.sensitive, "CKA_SENSITIVE is false"),
            (!self.extractable, "CKA_EXTRACTABLE is true"),
            (self.always_sensitive, "CKA_ALWAYS_SENSITIVE is false"),
            (self.never_extractable, "CKA_NEVER_EXTRACTABLE is false"),
            (self.local, "CKA_LOCAL is false"),
            (!self.modifiable, "CKA_MODIFIABLE is true"),
            (self.copyable != Some(true), "CKA_COPYABLE is true"),
            (self.sign || !sign, "CKA_SIGN is false"),
            (self.encrypt || !encrypt, "CKA_ENCRYPT is false"),
            (self.decrypt || !decrypt, "CKA_DECRYPT is false"),
            (
                !self.other_use && (self.sign, self.encrypt, self.decrypt) == (sign, encrypt, decrypt),
                "a use other than its own is allowed",
            ),
        ]
        .into_iter()
        .find_map(|(holds, text)| (!holds).then_some(text))
    }
}

impl KeyRef {
    /// The pair under `id` whose SubjectPublicKeyInfo (DER) is `spki`.
    pub fn new(id: CkaId, spki: &[u8]) -> Self {
        let mut spki_sha256 = [0; 32];
        spki_sha256.copy_from_slice(Hash::Sha256.digest(spki).as_ref());
        Self { id, spki_sha256 }
    }
}

impl SecretKeyRef {
    /// The key under `id` that gave `known_answer` at its birth.
    pub fn new(id: CkaId, known_answer: KnownAnswer) -> Self {
        Self { id, known_answer: Some(known_answer) }
    }
}

impl KekRef {
    /// Its CKA_ID.
    pub fn id(&self) -> CkaId {
        match self {
            Self::Secret(key) => key.id,
            Self::Pair(key) => key.id,
        }
    }
}

impl KnownAnswer {
    /// What is encrypted. Begins with a NUL, so that no caller's key looks like it.
    pub const TEXT: &[u8; 32] = b"\0kms known answer for secret key";
    /// Length in bytes: IV, text and tag.
    pub const LEN: usize = 12 + Self::TEXT.len() + 16;

    /// The AAD under which [`KnownAnswer::TEXT`] is encrypted: no wrap of a caller's key has one that begins so.
    pub fn aad(id: CkaId) -> Vec<u8> {
        [&b"\0kms known answer\0"[..], id.as_bytes()].concat()
    }

    /// What [`Hsm::wrap_key`] gave for the text; `None` when it has another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == Self::LEN).then(|| Self(bytes.into()))
    }

    /// IV ‖ ciphertext ‖ tag.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KnownAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnownAnswer(..)")
    }
}

impl CkaId {
    /// From its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for CkaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// A CKA_ID of any length, as it is shown: in lower-case hexadecimal.
pub fn hex(cka_id: &[u8]) -> String {
    cka_id.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Debug for CkaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CkaId({self})")
    }
}

impl fmt::Debug for SignInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(bytes) => write!(f, "Digest([{} bytes])", bytes.len()),
            Self::Message(bytes) => write!(f, "Message([{} bytes])", bytes.len()),
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Busy { retry_after } => Self::new(
                Kind::ResourceExhausted,
                "HSM_BUSY",
                "the HSM's queue is full; retry with backoff, or send less at once",
            )
            .retry_after(retry_after),
            Fault::DeadlineExceeded => Self::deadline(),
            Fault::Unavailable(_) => {
                Self::unavailable("HSM_UNAVAILABLE", "the HSM cannot be reached at the moment; retry")
                    .retry_after(Duration::from_millis(500))
            }
            Fault::KeyNotFound => Self::unavailable(
                "KEY_NOT_IN_HSM",
                "the HSM does not hold this key version; an operator must run `kms hsm inventory`",
            ),
            Fault::KeyMismatch(_) => Self::internal(
                "the HSM holds another key than the one on record; nothing was released; \
                 an operator must run `kms hsm inventory`",
            ),
            Fault::NotOpened => Self::not_opened(),
            Fault::Unsupported(_) => Self::precondition(
                "UNSUPPORTED_BY_HSM",
                "the HSM does not support this algorithm; `kms doctor` lists what it has",
            ),
            Fault::Full(_) => Self::new(
                Kind::ResourceExhausted,
                "HSM_FULL",
                "the HSM has no room for this; retry with backoff, and if it stays so an operator must make room",
            )
            .retry_after(Duration::from_secs(1)),
            Fault::Failed(_) => Self::internal("the HSM failed; the server's log has its code"),
        }
    }
}
