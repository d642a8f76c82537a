//! What mutations share: the `request_id` that makes a retry harmless (AIP-155), the `etag` that makes a
//! lost update impossible (AIP-154), and the transaction that moves a key's revision.

use serde::{Deserialize, Serialize};

use crate::{
    AuditLog, Caller, Clock, Error, Hsm, Key, KeyId, KeyVersion, Kms, Store,
    algorithm::Hash,
    claim_rules::ClaimRules,
    error::Kind,
    key::Labels,
    replica::LeaseToken,
    store::{RememberedRequest, Transaction, Write},
    time::Timestamp,
};

/// How a mutation is guarded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the caller; a retry with the same id has no second effect. No part of a proposal, which is done once.
    #[serde(skip)]
    pub id: Option<String>,
    /// The key's revision that the caller has seen; refused when it is another by now.
    pub etag: Option<u64>,
}

/// A change to one version.
#[derive(Debug, Clone)]
pub struct ChangeVersion {
    /// The key.
    pub id: KeyId,
    /// The version.
    pub number: u32,
    /// The guards.
    pub request: Request,
}

/// What a transaction carries besides its writes.
#[derive(Debug, Default)]
pub(super) struct Terms {
    /// The request that asked for it.
    request: Option<RememberedRequest>,
    /// The lease under which it is done, if nobody asked for it.
    lease: Option<LeaseToken>,
}

impl Terms {
    fn over(self, transaction: Transaction) -> Transaction {
        Transaction { request: self.request, lease: self.lease, ..transaction }
    }
}

impl From<Option<RememberedRequest>> for Terms {
    fn from(request: Option<RememberedRequest>) -> Self {
        Self { request, lease: None }
    }
}

impl From<Option<LeaseToken>> for Terms {
    fn from(lease: Option<LeaseToken>) -> Self {
        Self { request: None, lease }
    }
}

/// Identifies what was asked, so that one `request_id` cannot stand for two requests.
pub(super) struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Over the method and every part of the request, each with its length.
    pub(super) fn of(method: &str, parts: &[&str]) -> Self {
        let mut text = Vec::new();
        for part in std::iter::once(&method).chain(parts) {
            text.extend_from_slice(&(part.len() as u64).to_be_bytes());
            text.extend_from_slice(part.as_bytes());
        }
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(Hash::Sha256.digest(&text).as_ref());
        Self(sha256)
    }
}

/// Claim rules as part of a fingerprint.
pub(super) fn rules_text(rules: &ClaimRules) -> String {
    format!("{rules:?}")
}

/// Labels as part of a fingerprint.
pub(super) fn label_text(labels: &Labels) -> String {
    format!("{labels:?}")
}

impl Request {
    /// Refuses when the caller has seen another revision.
    pub(super) fn check_etag(&self, key: &Key) -> Result<(), Error> {
        match self.etag {
            Some(seen) if seen != key.revision => Err(Error::new(
                Kind::Conflict,
                "ETAG_MISMATCH",
                format!("keys/{} was changed in the meantime; read it again and retry", key.id),
            )),
            _ => Ok(()),
        }
    }

    /// What the store should remember, if the caller gave an id.
    pub(super) fn remember(
        &self,
        caller: &Caller,
        fingerprint: &Fingerprint,
        key: &KeyId,
        version: Option<u32>,
        at: Timestamp,
    ) -> Option<RememberedRequest> {
        let id = self.scoped(caller)?;
        Some(RememberedRequest { id, fingerprint: fingerprint.0, key: key.clone(), version, at })
    }

    /// The id is the caller's own: two callers may choose the same.
    fn scoped(&self, caller: &Caller) -> Option<String> {
        self.id.as_ref().map(|id| format!("{}/{id}", caller.name()))
    }
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// What an earlier request of this id did. The same id for another request is an error.
    pub(super) async fn replayed(
        &self,
        caller: &Caller,
        request: &Request,
        fingerprint: &Fingerprint,
    ) -> Result<Option<RememberedRequest>, Error> {
        let Some(id) = request.scoped(caller) else { return Ok(None) };
        let Some(remembered) = self.store.request(&id).await? else { return Ok(None) };
        // It may have been asked of another replica a moment ago.
        self.refresh().await?;
        if remembered.fingerprint == fingerprint.0 {
            // Its commit may have been followed by a reload that failed: the answer must not be an old one.
            self.refresh().await?;
            return Ok(Some(remembered));
        }
        Err(Error::invalid("request_id", "this request_id was used for another request; choose a fresh UUID"))
    }

    /// Writes changed versions together with their key, whose revision moves by one.
    pub(super) async fn write_versions(
        &self,
        name: &'static str,
        key: &Key,
        versions: Vec<KeyVersion>,
        terms: impl Into<Terms> + Send,
    ) -> Result<(), Error> {
        self.commit(self.versions_written(name, key, versions, terms)).await
    }

    /// The same, for a change that moves the epoch.
    pub(super) async fn write_versions_moving(
        &self,
        name: &'static str,
        key: &Key,
        versions: Vec<KeyVersion>,
        terms: impl Into<Terms> + Send,
    ) -> Result<(), Error> {
        self.commit_moving(self.versions_written(name, key, versions, terms)).await
    }

    pub(super) fn versions_written(
        &self,
        name: &'static str,
        key: &Key,
        versions: Vec<KeyVersion>,
        terms: impl Into<Terms>,
    ) -> Transaction {
        let key = Key { revision: key.revision + 1, updated_at: self.clock.now(), ..key.clone() };
        let id = key.id.clone();
        let mut writes = vec![Write::UpdateKey(key)];
        writes.extend(versions.into_iter().map(|version| Write::UpdateVersion(id.clone(), version)));
        terms.into().over(Transaction::new(name, writes))
    }
}
