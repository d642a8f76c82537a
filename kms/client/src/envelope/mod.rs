//! Envelopes: data of any size, encrypted here under data keys that are wrapped in the HSM.
//!
//! The service sees data keys and never data. What it sees of the context, and can require, is
//! [`EnvelopeContext::key`]; [`EnvelopeContext::local`] stays here. Both must be the same again to open what was sealed.
//! A data key serves many messages within the bounds of a [`Policy`], so most seals and opens are local.
//!
//! ```no_run
//! # async fn example(client: kms_client::Client) -> Result<(), kms_client::envelope::Error> {
//! use kms_client::envelope::{EncryptionContext, EnvelopeContext, Envelopes, Policy};
//!
//! let envelopes = Envelopes::new(client, "keys/orders", Policy::default());
//! let context = EnvelopeContext {
//!     key: EncryptionContext::new([("tenant".into(), "acme".into())])?,
//!     local: EncryptionContext::new([("path".into(), "invoices/7.pdf".into())])?,
//! };
//! let sealed = envelopes.seal(&context, b"...").await?;
//! let plaintext = envelopes.open(&context, &sealed).await?;
//! assert_eq!(plaintext.expose_secret(), b"...");
//!
//! // After a rotation: the same payload, its data key under the new version. `None`: it was there already.
//! if let Some(moved) = envelopes.rewrap(&sealed).await? {
//!     assert_eq!(envelopes.open(&context, &moved).await?.expose_secret(), b"...");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Rows of a database: [`Envelopes::seal_field`]. Files and other streams: [`Envelopes::seal_stream`]. The format is
//! documented byte by byte in `docs/reference/envelope-format.md`.

mod cache;
mod column;
mod error;
mod inspect;
mod kms;
mod open;
mod policy;
mod rewrap;
mod seal;
mod stream;

use std::{fmt, sync::Arc, time::Instant};

use kms_envelope::{DataKey, RandomError};
use rustls::crypto::SecureRandom;
use tokio::sync::OnceCell;

use self::{cache::Cache, seal::SealingKey};
use crate::Client;

pub use self::{
    column::Column,
    error::Error,
    inspect::{inspect, key_version},
    kms::{BATCH_ITEMS_MAX, Generated, Kms, Primary},
    policy::Policy,
};
pub use kms_envelope::{
    CHUNK_LEN, ContextError, EncryptionContext, EnvelopeContext, Header, Malformed, Purpose, SealError,
    SecretBytes, WrapAlgorithm, WrapHeader, WrappedKey,
};

/// Seals and opens with one key of the service. Cloning is cheap and shares the data keys in memory.
pub struct Envelopes<K = Client>(Arc<Inner<K>>);

struct Inner<K> {
    kms: K,
    key: String,
    policy: Policy,
    random: &'static dyn SecureRandom,
    sealing: Cache<SealingKey>,
    opening: Cache<DataKey>,
    /// The key's uid, asked for when it is needed first.
    key_uid: OnceCell<[u8; 16]>,
}

impl<K: Kms> Envelopes<K> {
    /// `key` is `keys/{key}`, of purpose "wrap". Nothing is asked of the service yet.
    pub fn new(kms: K, key: impl Into<String>, policy: Policy) -> Self {
        Self::with_clock(kms, key, policy, Instant::now)
    }

    /// The same with a clock of the caller's own, by which data keys grow old.
    pub fn with_clock(
        kms: K,
        key: impl Into<String>,
        policy: Policy,
        clock: impl Fn() -> Instant + Send + Sync + 'static,
    ) -> Self {
        let clock: cache::Clock = Arc::new(clock);
        Self(Arc::new(Inner {
            kms,
            key: key.into(),
            random: rustls::crypto::aws_lc_rs::default_provider().secure_random,
            sealing: Cache::new(policy.sealing_keys_max, policy.age_max, Arc::clone(&clock)),
            opening: Cache::new(policy.opening_keys_max, policy.age_max, clock),
            policy,
            key_uid: OnceCell::new(),
        }))
    }

    /// The key's name.
    pub fn key(&self) -> &str {
        &self.0.key
    }
}

impl<K> Inner<K> {
    /// The salt of an envelope.
    fn random(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        self.random.fill(bytes).map_err(|_| RandomError)
    }
}

impl<K> Clone for Envelopes<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> fmt::Debug for Envelopes<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelopes")
            .field("key", &self.0.key)
            .field("policy", &self.0.policy)
            .finish_non_exhaustive()
    }
}
