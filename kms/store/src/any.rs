//! Either of the two stores, chosen by the configuration.

use std::time::Duration;

use kms_core::{
    Store,
    pin_latch::{Place, State},
    replica::{Beat, Pulse, ReplicaId},
    store::{Fault, Generation, RememberedRequest, Snapshot, Transaction},
    time::Timestamp,
};

use crate::{PostgresStore, SqliteStore};

/// A store on one of the databases.
#[derive(Debug, Clone)]
pub enum AnyStore {
    /// For one server.
    Sqlite(SqliteStore),
    /// For several.
    Postgres(PostgresStore),
}

impl AnyStore {
    /// Finishes what is under way and closes the connections.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(store) => store.close().await,
            Self::Postgres(store) => store.close().await,
        }
    }
}

/// The same call on whichever it is.
macro_rules! either {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Self::Sqlite($store) => $call.await,
            Self::Postgres($store) => $call.await,
        }
    };
}

impl Store for AnyStore {
    async fn load(&self, since: Option<Generation>) -> Result<Snapshot, Fault> {
        either!(self, store => store.load(since))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Generation, Fault> {
        either!(self, store => store.commit(transaction))
    }

    async fn request(&self, id: &str) -> Result<Option<RememberedRequest>, Fault> {
        either!(self, store => store.request(id))
    }

    async fn forget_requests(&self, before: Timestamp) -> Result<u64, Fault> {
        either!(self, store => store.forget_requests(before))
    }

    async fn pin_latch(&self, place: &Place) -> Result<State, Fault> {
        either!(self, store => store.pin_latch(place))
    }

    async fn set_pin_latch(&self, place: &Place, expected: State, new: State) -> Result<(), Fault> {
        either!(self, store => store.set_pin_latch(place, expected, new))
    }

    async fn check(&self) -> Result<Generation, Fault> {
        either!(self, store => store.check())
    }

    async fn pulse(&self, beat: Beat) -> Result<Pulse, Fault> {
        either!(self, store => store.pulse(beat))
    }

    async fn changed(&self, known: Generation, at_most: Duration) {
        either!(self, store => store.changed(known, at_most));
    }

    async fn propagated(&self, generation: Generation, but: &ReplicaId, at_most: Duration) {
        either!(self, store => store.propagated(generation, but, at_most));
    }
}
