//! What the store on PostgreSQL promises beyond the suite: databases that are not as they should be, a network that
//! loses answers, a peer that is paused, news that get lost, and replicas that are not heard of any more.
#![expect(clippy::expect_used, clippy::panic, reason = "a test's own steps must succeed")]

mod news;
mod opening;
mod outages;
mod replicas;
mod wire;

use std::{net::SocketAddr, time::Duration};

use kms_core::{
    fakes::a_key,
    replica::{Beat, ReplicaId},
    store::{Generation, Transaction, Write},
};
use kms_store::{PostgresOptions, PostgresStore};
use kms_test_postgres::{Cluster, Database};

/// How long anything may take on a busy machine before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// A database of one test, and its server.
struct World {
    cluster: Cluster,
    database: Database,
}

impl World {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(settings: &[(&str, &str)]) -> Self {
        let cluster = Cluster::start_with(settings).expect("PostgreSQL starts");
        let database = cluster.create_database().expect("a database");
        Self { cluster, database }
    }

    fn options(&self) -> PostgresOptions {
        self.options_at(self.cluster.addr())
    }

    /// To go through what listens at `addr`.
    fn options_at(&self, addr: SocketAddr) -> PostgresOptions {
        let mut options = PostgresOptions::new(self.database.url_at(addr));
        options.password = Some(self.database.password().to_owned());
        options
    }

    async fn open(&self) -> PostgresStore {
        PostgresStore::open(&self.options()).await.expect("it opens")
    }

    /// Does something behind the stores' backs.
    fn sql(&self, text: &str) -> String {
        self.cluster.sql(&self.database.name, text).expect("it is done")
    }

    /// Waits until the query answers with `expected`.
    async fn until(&self, query: &str, expected: &str) {
        let looking = async {
            let mut tick = tokio::time::interval(GLANCE);
            while self.sql(query) != expected {
                tick.tick().await;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, looking).await;
        seen.unwrap_or_else(|_| panic!("waited in vain until {query} gives {expected}"));
    }
}

fn insert(name: &str) -> Transaction {
    Transaction::new("a story", vec![Write::InsertKey(a_key(name))])
}

fn beat(name: &str, known: Generation) -> Beat {
    Beat { replica: ReplicaId::new(name), generation: Some(known), leads: true, report: "{}".to_owned() }
}
