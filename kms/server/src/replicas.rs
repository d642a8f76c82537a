//! Joining the replicas that share the database, and leaving them in order. With SQLite there are none.

use std::collections::BTreeMap;

use anyhow::Context as _;
use kms_core::replica::ReplicaId;
use kms_store::AnyStore;

use crate::config::{Config, NEVER_DIFFER, Store};

/// Puts this server on record, unless another that is at work has other settings.
pub(crate) async fn join(
    config: &Config,
    store: &AnyStore,
    replica: &ReplicaId,
    token_serial: String,
) -> anyhow::Result<()> {
    let (AnyStore::Postgres(store), Store::Postgres(postgres)) = (store, &config.store) else {
        return Ok(());
    };
    let [issuer, token] = NEVER_DIFFER;
    let settings = BTreeMap::from([
        (issuer, config.http.issuer.as_str().to_owned()),
        (token, token_serial),
        ("keys.verify_before_release", config.keys.verify_before_release.to_string()),
        ("keys.allow_destroy", config.keys.allow_destroy.to_string()),
        ("keys.jwks_max_age", format!("{}s", config.keys.jwks_max_age.as_secs())),
        ("keys.destroy_delay", format!("{}s", config.keys.destroy_delay.as_secs())),
        ("keys.unwrap_quiet_period", format!("{}s", config.keys.unwrap_quiet_period.as_secs())),
        ("keys.bundle_ttl_max", format!("{}s", config.keys.bundle_ttl_max.as_secs())),
    ]);
    let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    store.join(replica, &settings, &postgres.may_differ).await.context("this server cannot join the others")
}

/// Takes it off the record, so that nobody waits for it.
pub(crate) async fn leave(store: &AnyStore, replica: &ReplicaId) {
    if let AnyStore::Postgres(store) = store
        && let Err(fault) = store.leave(replica).await
    {
        tracing::warn!(%fault, "the others will wait for this server for some seconds");
    }
}
