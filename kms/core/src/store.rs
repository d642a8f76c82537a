//! The store port: rows of keys, versions and access tokens, and named transactions over them.
//!
//! Core decides what is written; a store only writes it, all or nothing, when the rows are still as core saw
//! them. Implemented by `kms/store`; passes `conformance::store`.

use std::{collections::BTreeMap, future::Future, time::Duration};

use crate::{
    Error, Key, KeyId, KeyVersion,
    access::{PolicyDocument, RoleBinding},
    caller::OwnRole,
    class::KeyClass,
    epoch::Epoch,
    error::Kind,
    pin_latch,
    principal::Principal,
    proposal::Proposal,
    replica::{Beat, LeaseToken, Pulse, ReplicaId},
    time::{SignedDuration, Timestamp},
};

/// Durable rows. Every method may be called concurrently.
pub trait Store: Send + Sync + 'static {
    /// Every row that was written after the generation `since`, or all of them, as of one generation. A key comes
    /// with all its versions when it or any of them was written. Rows are never deleted.
    fn load(&self, since: Option<Generation>) -> impl Future<Output = Result<Snapshot, Fault>> + Send;

    /// Applies one transaction, durably and atomically, and returns the generation that it made.
    /// Nothing is written when any expectation fails.
    fn commit(&self, transaction: Transaction) -> impl Future<Output = Result<Generation, Fault>> + Send;

    /// The request remembered under `id`, if any.
    fn request(&self, id: &str) -> impl Future<Output = Result<Option<RememberedRequest>, Fault>> + Send;

    /// Forgets requests remembered before `before`; returns how many.
    fn forget_requests(&self, before: Timestamp) -> impl Future<Output = Result<u64, Fault>> + Send;

    /// What stands at `place`; [`pin_latch::State::UNTRIED`] where nothing was ever written. Read from the same
    /// copy that is written: a replica that lags behind will not do.
    fn pin_latch(
        &self,
        place: &pin_latch::Place,
    ) -> impl Future<Output = Result<pin_latch::State, Fault>> + Send;

    /// Writes `new` at `place` where `expected` stands, durably; else [`Fault::Changed`]. No part of any generation:
    /// the catalog knows nothing of it.
    fn set_pin_latch(
        &self,
        place: &pin_latch::Place,
        expected: pin_latch::State,
        new: pin_latch::State,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Proves that the store reads and writes now; returns its generation.
    fn check(&self) -> impl Future<Output = Result<Generation, Fault>> + Send;

    /// Leaves a beat and reads the pulse, in one step: of a commit and a beat at once, either the pulse has the
    /// commit's generation, or [`Store::propagated`] finds the beat. No part of any generation.
    fn pulse(&self, beat: Beat) -> impl Future<Output = Result<Pulse, Fault>> + Send;

    /// Resolves when the store may have gone past `known`, or after `at_most`. A hint: it may come without a reason,
    /// and it may be lost.
    fn changed(&self, known: Generation, at_most: Duration) -> impl Future<Output = ()> + Send;

    /// Resolves when every live replica that serves, `but` one, works with rows of `generation` or later: who does
    /// not after `at_most` is fenced. A fault of the store is waited out likewise.
    fn propagated(
        &self,
        generation: Generation,
        but: &ReplicaId,
        at_most: Duration,
    ) -> impl Future<Output = ()> + Send;
}

/// The reason of an error that the store does not answer.
pub(crate) const UNAVAILABLE: &str = "STORE_UNAVAILABLE";

/// The reason of an error that another change was faster: the same may be tried again on the rows as they are now.
pub(crate) const CHANGED_MEANWHILE: &str = "CHANGED_MEANWHILE";

/// Counts committed transactions. Equal generations mean equal rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

/// Rows at one generation: all of them, or those that were written after an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// The generation.
    pub generation: Generation,
    /// Keys, each with its versions in ascending order.
    pub keys: Vec<(Key, Vec<KeyVersion>)>,
    /// Classes of keys that were ever changed.
    pub classes: Vec<KeyClass>,
    /// Access tokens, revoked ones included.
    pub access_tokens: Vec<AccessToken>,
    /// Role bindings, revoked ones included.
    pub role_bindings: Vec<RoleBinding>,
    /// Versions of the policy document, in ascending order.
    pub policies: Vec<PolicyDocument>,
    /// Proposals, whatever became of them.
    pub proposals: Vec<Proposal>,
    /// The epoch; `None` before the first start of a service, or when it was not written since.
    pub epoch: Option<Epoch>,
    /// Objects in the token that are to be left alone, in the order of token and CKA_ID.
    pub quarantined: Vec<QuarantinedObject>,
    /// How much versions that wrap were used, in the order of key and number.
    pub uses: Vec<VersionUse>,
    /// What consumers said last, in the order of key and consumer.
    pub usage_reports: Vec<UsageReport>,
}

/// A named set of writes that happen together or not at all.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// What it is for, e.g. `"begin birth"`: for logs and metrics.
    pub name: &'static str,
    /// The writes, in order.
    pub writes: Vec<Write>,
    /// The request that asked for it, remembered in the same transaction.
    pub request: Option<RememberedRequest>,
    /// The lease under which it is done. Fails with [`Fault::Changed`] when another replica has taken it since.
    pub lease: Option<LeaseToken>,
}

impl Transaction {
    /// A transaction that nobody asked for by an id, and that needs no lease.
    pub fn new(name: &'static str, writes: Vec<Write>) -> Self {
        Self { name, writes, request: None, lease: None }
    }
}

/// One row to be written.
#[derive(Debug, Clone)]
pub enum Write {
    /// A new key. Fails with [`Fault::Exists`] when the name is taken.
    InsertKey(Key),
    /// A changed key, whose stored revision must be `key.revision - 1`; else [`Fault::Changed`].
    UpdateKey(Key),
    /// A new version of `key`. Fails with [`Fault::Exists`] when the number is taken, or when the key has
    /// another version whose birth is not over.
    InsertVersion(KeyId, KeyVersion),
    /// A changed version, which must exist. Versions change only together with their key's revision.
    UpdateVersion(KeyId, KeyVersion),
    /// A changed class, whose stored revision must be `revision - 1`, 0 for one that was never changed; else
    /// [`Fault::Changed`] or [`Fault::Exists`].
    PutClass(KeyClass),
    /// A new access token. Fails with [`Fault::Exists`] when its name is taken, or, for one of
    /// [`AccessToken::bootstrap`], when there has ever been one.
    InsertAccessToken(AccessToken),
    /// Marks an access token revoked. Fails with [`Fault::Changed`] when there is none to revoke.
    RevokeAccessToken {
        /// Its name.
        name: String,
        /// When.
        at: Timestamp,
    },
    /// Moves the end of an access token that is not revoked. Fails with [`Fault::Changed`] when there is none, or when its
    /// end is not `from`.
    RenewAccessToken {
        /// Its name.
        name: String,
        /// Its end as it was.
        from: Timestamp,
        /// Its end from now on.
        to: Timestamp,
    },
    /// A new role binding. Fails with [`Fault::Exists`] when its name is taken, by a revoked one too.
    InsertRoleBinding(RoleBinding),
    /// Marks a role binding revoked. Fails with [`Fault::Changed`] when there is none to revoke.
    RevokeRoleBinding {
        /// Its name.
        name: KeyId,
        /// When.
        at: Timestamp,
    },
    /// The next version of the policy document. Fails with [`Fault::Changed`] unless its number is one more than the last,
    /// 1 for the first.
    InsertPolicy(PolicyDocument),
    /// A new proposal. Fails with [`Fault::Exists`] when its name is taken.
    InsertProposal(Proposal),
    /// Votes, state, `state_at`, reason and revision of a proposal, whose stored revision must be one less; else
    /// [`Fault::Changed`]. The rest never changes.
    UpdateProposal(Proposal),
    /// The first epoch. Fails with [`Fault::Exists`] when there is one.
    InsertEpoch(Epoch),
    /// Moves the epoch by one, to a value above `past`. Whatever its value was: of two changes at once both count.
    /// Fails with [`Fault::Changed`] when there is none.
    MoveEpoch {
        /// 0 for a mere move.
        past: u64,
        /// Of this move, random.
        nonce: [u8; 8],
    },
    /// The token holds this epoch. Fails with [`Fault::Changed`] when the store has not reached it.
    ConfirmEpoch {
        /// What the token holds.
        value: u64,
    },
    /// Takes wraps of a version out of its budget: `reserved` becomes `to`, whose stored value must be `from`, 0 for a
    /// version that was never used; else [`Fault::Changed`].
    ReserveWraps {
        /// The key.
        key: KeyId,
        /// The version.
        version: u32,
        /// What was reserved before.
        from: u64,
        /// What is reserved from now on.
        to: u64,
    },
    /// That a version was used: each of the times that is later than the stored one is kept, and the others are left.
    NoteUse {
        /// The key.
        key: KeyId,
        /// The version.
        version: u32,
        /// When it wrapped last; `None` for not at all.
        wrapped_at: Option<Timestamp>,
        /// When it unwrapped last; `None` for not at all.
        unwrapped_at: Option<Timestamp>,
    },
    /// What a consumer says now, in the place of what it said before.
    PutUsageReport(UsageReport),
    /// Puts an object in the token on record. Fails with [`Fault::Exists`] when it is already.
    Quarantine(QuarantinedObject),
}

/// A mutation that was asked for with a `request_id`, so that a retry finds it (AIP-155).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberedRequest {
    /// The caller's name and the id that it chose, as one string.
    pub id: String,
    /// SHA-256 over method and request: the same id for another request is an error.
    pub fingerprint: [u8; 32],
    /// The key that it made or changed.
    pub key: KeyId,
    /// The version that it made, if it made one.
    pub version: Option<u32>,
    /// When it was first seen.
    pub at: Timestamp,
}

/// A bearer credential of our own. Only its hash is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken {
    /// Unique name; the caller is `access-token:<name>`.
    pub name: String,
    /// SHA-256 of the credential, which has 256 bits of its own.
    pub sha256: [u8; 32],
    /// What it may do by itself; `None` for what role bindings give to its name only.
    pub own: Option<OwnRole>,
    /// Whether `kms bootstrap` made it: at most one, ever.
    pub bootstrap: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops to work by itself; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// How far its end moves when it is renewed; `None` for one that cannot be.
    pub period: Option<SignedDuration>,
    /// Beyond this no renewal moves its end; `None` for no such bound.
    pub renewable_until: Option<Timestamp>,
    /// Whose client certificate must come with it; `None` for nobody's.
    pub bound_to: Option<Principal>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl AccessToken {
    /// Whether it works at `now`.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// An object in the token that no row needs, put on record by an administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantinedObject {
    /// Serial number of the token that holds it.
    pub token_serial: String,
    /// CKA_ID, of 1 to [`crate::hsm::CKA_ID_LEN_MAX`] bytes.
    pub cka_id: Vec<u8>,
    /// Why.
    pub note: String,
    /// Canonical name of the caller that did it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// How much a version that wraps keys was used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionUse {
    /// The key.
    pub key: KeyId,
    /// The version.
    pub version: u32,
    /// Wraps that were taken out of its budget, by all replicas together: at least as many as it made.
    pub reserved: u64,
    /// When it wrapped last, give or take a minute.
    pub wrapped_at: Option<Timestamp>,
    /// When it unwrapped last, give or take a minute.
    pub unwrapped_at: Option<Timestamp>,
}

/// What a consumer of a key, a store that holds envelopes, said last about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageReport {
    /// The key.
    pub key: KeyId,
    /// The consumer, by the name that it gave itself: as [`KeyId`]s are.
    pub consumer: KeyId,
    /// How many envelopes it holds under each version. A version that is not named has none.
    pub envelopes: BTreeMap<u32, u64>,
    /// Canonical name of the caller that said so.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// When somebody said that there is no such consumer any more: then nothing waits for it.
    pub removed_at: Option<Timestamp>,
}

/// Why the store did not do it. Nothing was written, except after [`Fault::Unknown`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A row of that name is there already.
    #[error("{0} exists already")]
    Exists(String),
    /// The row is not as the caller saw it.
    #[error("{0} was changed in the meantime")]
    Changed(String),
    /// The store cannot be written: read-only, full, locked or gone. The text says which, for operators.
    #[error("the store cannot be used: {0}")]
    Unavailable(String),
    /// The outcome of the commit is not known: load again before trusting the cache.
    #[error("the outcome of the transaction is unknown: {0}")]
    Unknown(String),
    /// A row that does not parse: a defect, or somebody edited the database.
    #[error("the store holds a row that makes no sense: {0}")]
    Corrupt(String),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Exists(what) => {
                Self::new(Kind::Conflict, "ALREADY_EXISTS", format!("{what} exists already"))
            }
            Fault::Changed(what) => Self::new(
                Kind::Conflict,
                CHANGED_MEANWHILE,
                format!("{what} was changed in the meantime; read it again and retry"),
            ),
            Fault::Unavailable(_) | Fault::Unknown(_) => Self::unavailable(
                UNAVAILABLE,
                "the store cannot be written at the moment; retry with the same request_id",
            ),
            Fault::Corrupt(_) => {
                Self::internal("the store holds a row that makes no sense; see the server's log")
            }
        }
    }
}
