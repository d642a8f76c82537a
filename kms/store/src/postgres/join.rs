//! Joining the replicas, and leaving them in order.

use std::collections::{BTreeMap, BTreeSet};

use kms_core::{replica::ReplicaId, store::Fault};
use sqlx::PgConnection;

use super::{LOCK, PostgresStore, Work, beats, fault};
use crate::{cells::Cells, commit, session::Session as _, statement::Statement};

/// How long a row of a replica that is gone is kept: for whoever looks.
const KEPT_US: i64 = 24 * 60 * 60 * 1_000_000;

/// Why a replica may not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Another one that is at work has other settings. The text says which.
    #[error("{0}")]
    Differs(String),
    /// The database did not do it.
    #[error("the replicas that share the database cannot be looked at: {0}")]
    Store(Fault),
}

impl PostgresStore {
    /// Puts this replica on record, unless one that is at work has other `settings`, by their names in the
    /// configuration; those that `may_differ` names are not compared.
    pub async fn join(
        &self,
        replica: &ReplicaId,
        settings: &BTreeMap<String, String>,
        may_differ: &BTreeSet<String>,
    ) -> Result<(), JoinError> {
        let work =
            Join { replica: replica.clone(), settings: settings.clone(), may_differ: may_differ.clone() };
        match self.writing("join the replicas", work).await {
            Ok(None) => Ok(()),
            Ok(Some(differs)) => Err(JoinError::Differs(differs)),
            Err(fault) => Err(JoinError::Store(fault)),
        }
    }

    /// Takes this replica off the record and gives its lease back, so that nobody waits for it.
    pub async fn leave(&self, replica: &ReplicaId) -> Result<(), Fault> {
        self.writing("leave the replicas", Leave(replica.clone())).await
    }
}

struct Join {
    replica: ReplicaId,
    settings: BTreeMap<String, String>,
    may_differ: BTreeSet<String>,
}

impl Work<Option<String>> for Join {
    /// With what differs, when nothing was written.
    async fn run(self, open: &mut PgConnection) -> Result<Option<String>, Fault> {
        commit::generation(open, Statement::new(LOCK)).await?;
        let live = "SELECT id, settings FROM replicas WHERE settings IS NOT NULL AND id <> $1
            AND seen_at_us >= (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT - $2 ORDER BY id";
        let live = Statement::new(live).bind(self.replica.as_str()).bind(beats::live_us());
        for row in &open.fetch(live).await.map_err(fault::statement)? {
            let cells = Cells::of(row, "replica", "id")?;
            let theirs = cells.parse("settings", |text: String| serde_json::from_str(&text).ok())?;
            if let Some(differs) = self.difference(&cells.get::<String>("id")?, &theirs) {
                return Ok(Some(differs));
            }
        }
        let settings =
            serde_json::to_string(&self.settings).map_err(|error| Fault::Corrupt(error.to_string()))?;
        let join = "INSERT INTO replicas (id, seen_at_us, known, report, settings)
            VALUES ($1, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT, NULL, '{}', $2)
            ON CONFLICT (id) DO UPDATE SET settings = excluded.settings, seen_at_us = excluded.seen_at_us";
        open.execute(Statement::new(join).bind(self.replica.as_str()).bind(settings))
            .await
            .map_err(fault::statement)?;
        let forget = "DELETE FROM replicas
            WHERE seen_at_us < (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT - $1";
        open.execute(Statement::new(forget).bind(KEPT_US)).await.map_err(fault::statement)?;
        Ok(None)
    }
}

impl Join {
    fn difference(&self, other: &str, theirs: &BTreeMap<String, String>) -> Option<String> {
        let compared = |(name, value): &(&String, &String)| {
            // A setting that only one of two releases knows says nothing.
            !self.may_differ.contains(*name) && theirs.get(*name).is_some_and(|theirs| theirs != *value)
        };
        let differing: Vec<_> = self
            .settings
            .iter()
            .filter(compared)
            .map(|(name, ours)| format!("{name} is {ours} here and {} there", theirs[name]))
            .collect();
        (!differing.is_empty()).then(|| {
            format!(
                "replica {other} shares the database and has other settings: {}; make them equal, or, while you \
                 change a setting of [keys] on one replica after another, name it in store.may_differ",
                differing.join("; ")
            )
        })
    }
}

struct Leave(ReplicaId);

impl Work<()> for Leave {
    async fn run(self, open: &mut PgConnection) -> Result<(), Fault> {
        commit::generation(open, Statement::new(LOCK)).await?;
        for leave in [
            "DELETE FROM replicas WHERE id = $1",
            "UPDATE leases SET holder = NULL, expires_at_us = 0 WHERE holder = $1",
        ] {
            open.execute(Statement::new(leave).bind(self.0.as_str())).await.map_err(fault::statement)?;
        }
        Ok(())
    }
}
