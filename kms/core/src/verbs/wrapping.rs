//! What every verb of keys that wrap shares: which version wraps, which one unwraps, and the two steps in the HSM.

use std::num::NonZeroU32;

use kms_envelope::{
    DataKeyId, EncryptionContext, Purpose as Door, SecretBytes, WrapAlgorithm, WrapHeader, WrappedKey,
};

use crate::{
    Action, Algorithm, AuditLog, Clock, Error, Grant, Hsm, Key, KeyId, KeyState, Kms, Store, Unsettled,
    algorithm::Scheme,
    catalog::{Entry, Version},
    hsm::{Fault, KekRef},
    key::Purpose,
    key_wrap,
    time::{Deadline, Timestamp},
};

/// Shortest and longest key in bytes that is wrapped.
pub const WRAPPED_LEN_MIN: usize = WrappedKey::KEY_LEN_MIN;
/// See [`WRAPPED_LEN_MIN`].
pub const WRAPPED_LEN_MAX: usize = WrappedKey::KEY_LEN_MAX;

/// The reason of a refusal because of a version's state.
const NOT_IN_USE: &str = "VERSION_NOT_IN_USE";

/// How long to wait for a version that this replica has not heard of yet.
const NOT_KNOWN_RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// A key that was wrapped, and what wrapped it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// The key.
    pub key: KeyId,
    /// The version that wrapped.
    pub version: u32,
    /// Header and wrapped bytes.
    pub wrapped: WrappedKey,
}

/// What is to be wrapped, apart from the bytes.
pub(super) struct Terms {
    pub(super) data_key_id: DataKeyId,
    pub(super) door: Door,
    pub(super) context_digest: [u8; 32],
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// What unwrapping this is: of a compromised version, an action of its own. Whether there is such a key is the gate's
    /// business.
    pub(super) fn unwrap_action(&self, id: &KeyId, header: &WrapHeader, action: Action) -> Action {
        let entry = self.catalog.entry(id);
        let row = entry.as_ref().ok().and_then(|entry| entry.version(header.key_version.get()).ok());
        match row {
            Some(version) if version.row.compromise.is_some() => Action::Recover,
            _ => action,
        }
    }

    /// Wraps under the version that wraps now.
    pub(super) async fn wrap_with(
        &self,
        grant: &Grant,
        entry: &Entry,
        version: &Version,
        terms: &Terms,
        plaintext: SecretBytes,
        deadline: Deadline,
    ) -> Result<Unsettled<Wrapped>, Error> {
        let (id, number) = (&entry.key.id, version.row.number);
        let header = WrapHeader {
            algorithm: wrap_algorithm(&entry.key)?,
            purpose: terms.door,
            key_uid: entry.key.uid.0,
            key_version: NonZeroU32::new(number)
                .ok_or_else(|| Error::internal("a version has the number 0"))?,
            data_key_id: terms.data_key_id,
            context_digest: terms.context_digest,
        };
        let made = |wrapped| {
            let wrapped = WrappedKey::new(header, wrapped);
            let wrapped = wrapped.map_err(|_| Error::internal("the HSM wrapped a key to an odd length"))?;
            Ok(Wrapped { key: id.clone(), version: number, wrapped })
        };
        let wrapped = match version.kek()? {
            // Whoever has the public half can do it, and nothing of the token can be wrong.
            KekRef::Pair(_) => {
                let spki = version.public()?.spki();
                Unsettled::new(key_wrap::oaep_encrypt(spki, plaintext.expose_secret(), &header.aad())?)
            }
            KekRef::Secret(key) => {
                self.take_wrap(id, number).await?;
                let wrapped = self.hsm.wrap_key(grant, &key, plaintext, header.aad(), deadline).await;
                wrapped.inspect_err(|fault| log_fault(fault, entry, version, "wrapping"))?
            }
        };
        self.uses.note_wrap(id, number, self.clock.now());
        wrapped.try_map(made)
    }

    /// Unwraps under the version that the header names, if it is one of this key and may still unwrap.
    pub(super) async fn unwrap_with(
        &self,
        grant: &Grant,
        entry: &Entry,
        wrapped: &WrappedKey,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Unsettled<SecretBytes>, Error> {
        let header = wrapped.header();
        let version = unwrapping_version(entry, header, grant.action(), now).inspect_err(|error| {
            // Whoever asks in vain still holds what it wrapped.
            if error.reason() == NOT_IN_USE {
                self.uses.note_unwrap(&entry.key.id, header.key_version.get(), now);
            }
        })?;
        let key = version.kek()?;
        let opened =
            self.hsm.unwrap_key(grant, &key, wrapped.wrapped().to_vec(), header.aad(), deadline).await;
        let opened = opened.inspect_err(|fault| log_fault(fault, entry, version, "unwrapping"))?;
        self.uses.note_unwrap(&entry.key.id, header.key_version.get(), now);
        Ok(opened)
    }
}

/// The version that wraps now, for a context that has all that the key requires.
pub(super) fn wrapping_version<'a>(
    entry: &'a Entry,
    context: &EncryptionContext,
    now: Timestamp,
) -> Result<&'a Version, Error> {
    check_purpose(&entry.key)?;
    if let Some(missing) = entry.key.required_context.iter().find(|name| context.value(name).is_none()) {
        let text = format!("keys/{} requires {missing:?} in the encryption context", entry.key.id);
        return Err(Error::invalid("encryption_context", text));
    }
    entry.primary(now)
}

/// The version that a header names. Whatever does not fit has one reason.
fn unwrapping_version<'a>(
    entry: &'a Entry,
    header: &WrapHeader,
    action: Action,
    now: Timestamp,
) -> Result<&'a Version, Error> {
    let (key, number) = (&entry.key, header.key_version.get());
    if header.key_uid != key.uid.0 || header.algorithm != wrap_algorithm(key)? {
        return Err(Error::not_opened());
    }
    let last = entry.versions.iter().rev().find(|version| version.row.born.is_some());
    // Another server may have ended its birth a moment ago, and wrap with it already.
    if last.is_none_or(|last| number > last.row.number) {
        let text = format!(
            "keys/{}/versions/{number} is not known here yet; retry, and if it stays so the database is older than what was \
             wrapped",
            key.id
        );
        return Err(Error::unavailable("VERSION_NOT_KNOWN", text).retry_after(NOT_KNOWN_RETRY));
    }
    let version = entry.version(number)?;
    match version.row.state(now) {
        // One whose time has not come here may be at work elsewhere: clocks differ.
        KeyState::PreActivation | KeyState::Active | KeyState::Deactivated => Ok(version),
        KeyState::Compromised if action == Action::Recover => Ok(version),
        // It was revoked since it was decided what this is.
        KeyState::Compromised => Err(Error::denied()),
        state @ (KeyState::Suspended | KeyState::Destroyed) => {
            let text = match state {
                KeyState::Destroyed => "is destroyed: what it wrapped cannot be opened any more",
                _ => "is disabled, or waits for its destruction; enable or restore it to unwrap",
            };
            Err(Error::precondition(NOT_IN_USE, format!("keys/{}/versions/{number} {text}", key.id)))
        }
    }
}

pub(super) fn check_purpose(key: &Key) -> Result<(), Error> {
    if key.purpose == Purpose::Wrap {
        return Ok(());
    }
    let text = format!("keys/{} signs and wraps no keys; use a key whose purpose is wrap", key.id);
    Err(Error::precondition("WRONG_PURPOSE", text))
}

/// The header must be one of this door and of this context: digests are no secret, and a rewrap has no context.
pub(super) fn check_header(
    header: &WrapHeader,
    door: Door,
    context: Option<&EncryptionContext>,
) -> Result<(), Error> {
    let fits = context.is_none_or(|context| context.digest() == header.context_digest);
    if header.purpose == door && fits { Ok(()) } else { Err(Error::not_opened()) }
}

pub(super) fn check_len(field: &'static str, len: usize) -> Result<(), Error> {
    if (WRAPPED_LEN_MIN..=WRAPPED_LEN_MAX).contains(&len) {
        return Ok(());
    }
    let text = format!(
        "a key of {WRAPPED_LEN_MIN} to {WRAPPED_LEN_MAX} bytes is wrapped; more goes into an envelope"
    );
    Err(Error::invalid(field, text))
}

fn wrap_algorithm(key: &Key) -> Result<WrapAlgorithm, Error> {
    check_purpose(key)?;
    match Algorithm::scheme(key.algorithm) {
        Scheme::AesGcmKeyWrap => Ok(WrapAlgorithm::A256GcmKw),
        Scheme::RsaOaep(_) => Ok(WrapAlgorithm::RsaOaep256),
        Scheme::Ecdsa(_) | Scheme::Pkcs1(_) | Scheme::Pss(_) | Scheme::EdDsa => {
            Err(Error::internal("a key that wraps has an algorithm of signatures"))
        }
    }
}

fn log_fault(fault: &Fault, entry: &Entry, version: &Version, what: &str) {
    use Fault::{Busy, DeadlineExceeded, NotOpened};
    if !matches!(fault, Busy { .. } | DeadlineExceeded | NotOpened) {
        tracing::warn!(key = %entry.key.id, version = version.row.number, %fault, "{what} failed in the HSM");
    }
}
