//! Every table of rows, as data: to copy a database cell by cell, and to compare two. The generation is not among them,
//! nor what only replicas need.

use aws_lc_rs::digest;
use kms_core::store::{Fault, Generation};
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use self::Kind::{Bool, Bytes, Int, Text};
use crate::{session::Row, statement::Value};

/// A table of both databases.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [(&'static str, Kind)],
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Int,
    Text,
    Bytes,
    Bool,
}

/// In an order in which they can be filled: a version needs its key, and its use needs the version.
pub(crate) const TABLES: [Table; 13] = [
    Table {
        name: "keys",
        columns: &[
            ("id", Text),
            ("uid", Bytes),
            ("algorithm", Text),
            ("owner", Text),
            ("labels", Text),
            ("rotation_period_us", Int),
            ("publish_lead_us", Int),
            ("max_token_ttl_us", Int),
            ("tokens_until_us", Int),
            ("created_at_us", Int),
            ("updated_at_us", Int),
            ("revision", Int),
            ("generation", Int),
            ("purpose", Text),
            ("class", Text),
            ("inherited", Text),
            ("overlap_us", Int),
            ("destroy_after_us", Int),
            ("claim_rules", Text),
            ("bundles_until_us", Int),
            ("required_context", Text),
        ],
    },
    Table {
        name: "key_versions",
        columns: &[
            ("key_id", Text),
            ("number", Int),
            ("cka_id", Bytes),
            ("earlier_attempts", Bytes),
            ("token_serial", Text),
            ("created_at_us", Int),
            ("maker", Text),
            ("spki", Bytes),
            ("kid", Text),
            ("published_at_us", Int),
            ("activates_at_us", Int),
            ("retires_at_us", Int),
            ("withdrawn_at_us", Int),
            ("destroys_at_us", Int),
            ("suspended", Bool),
            ("compromised_at_us", Int),
            ("destroyed_at_us", Int),
            ("compromise_reason", Text),
            ("at_once", Bool),
            ("asked_for_us", Int),
            ("cross_signature", Text),
            ("known_answer", Bytes),
        ],
    },
    Table {
        name: "version_uses",
        columns: &[
            ("key_id", Text),
            ("version", Int),
            ("reserved", Int),
            ("wrapped_at_us", Int),
            ("unwrapped_at_us", Int),
            ("generation", Int),
        ],
    },
    Table {
        name: "usage_reports",
        columns: &[
            ("key_id", Text),
            ("consumer", Text),
            ("envelopes", Text),
            ("by", Text),
            ("at_us", Int),
            ("removed_at_us", Int),
            ("generation", Int),
        ],
    },
    Table {
        name: "key_classes",
        columns: &[
            ("name", Text),
            ("rotation_period_us", Int),
            ("publish_lead_us", Int),
            ("max_token_ttl_us", Int),
            ("overlap_us", Int),
            ("destroy_after_us", Int),
            ("revision", Int),
            ("updated_at_us", Int),
            ("approvals", Int),
            ("generation", Int),
        ],
    },
    Table {
        name: "access_tokens",
        columns: &[
            ("name", Text),
            ("sha256", Bytes),
            ("role", Text),
            ("keys", Text),
            ("bootstrap", Bool),
            ("created_at_us", Int),
            ("expires_at_us", Int),
            ("revoked_at_us", Int),
            ("period_us", Int),
            ("renewable_until_us", Int),
            ("bound_to", Text),
            ("generation", Int),
        ],
    },
    Table {
        name: "role_bindings",
        columns: &[
            ("name", Text),
            ("principal", Text),
            ("role", Text),
            ("only", Text),
            ("on", Text),
            ("required_context", Text),
            ("not_before_us", Int),
            ("expires_at_us", Int),
            ("created_by", Text),
            ("created_at_us", Int),
            ("revoked_at_us", Int),
            ("generation", Int),
        ],
    },
    Table {
        name: "policies",
        columns: &[
            ("version", Int),
            ("text", Text),
            ("note", Text),
            ("by", Text),
            ("at_us", Int),
            ("generation", Int),
        ],
    },
    Table {
        name: "proposals",
        columns: &[
            ("id", Text),
            ("change", Text),
            ("sha256", Bytes),
            ("proposed_by", Text),
            ("proposed_at_us", Int),
            ("expires_at_us", Int),
            ("required", Int),
            ("votes", Text),
            ("state", Text),
            ("state_at_us", Int),
            ("reason", Text),
            ("revision", Int),
            ("generation", Int),
        ],
    },
    Table {
        name: "requests",
        columns: &[("id", Text), ("fingerprint", Bytes), ("key_id", Text), ("version", Int), ("at_us", Int)],
    },
    Table {
        name: "quarantined_objects",
        columns: &[
            ("token_serial", Text),
            ("cka_id", Bytes),
            ("note", Text),
            ("by", Text),
            ("at_us", Int),
            ("generation", Int),
        ],
    },
    Table {
        name: "epoch",
        columns: &[
            ("one", Int),
            ("installation", Bytes),
            ("value", Int),
            ("nonce", Bytes),
            ("in_token", Int),
            ("generation", Int),
        ],
    },
    Table {
        name: "pin_latches",
        columns: &[
            ("token_serial", Text),
            ("pin_generation", Int),
            ("state", Text),
            ("trying_by", Text),
            ("trying_since_us", Int),
            ("deaths", Int),
            ("refused_text", Text),
            ("refused_at_us", Int),
        ],
    },
];

impl Table {
    /// All rows.
    pub(crate) fn select(&self) -> SqlStr {
        AssertSqlSafe(format!("SELECT {} FROM {}", self.column_list(), self.name)).into_sql_str()
    }

    /// Up to the values.
    pub(crate) fn insert_into(&self) -> String {
        format!("INSERT INTO {} ({}) ", self.name, self.column_list())
    }

    pub(crate) fn delete(&self) -> SqlStr {
        AssertSqlSafe(format!("DELETE FROM {}", self.name)).into_sql_str()
    }

    fn column_list(&self) -> String {
        let quoted: Vec<_> = self.columns.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        quoted.join(", ")
    }

    /// The cells of a row, in the order of the columns.
    pub(crate) fn cells(&self, row: &dyn Row) -> Result<Vec<Value>, Fault> {
        let cell = |(column, kind): &(&str, Kind)| {
            let cell = match kind {
                Int => row.int(column).map(Value::Int),
                Text => row.text(column).map(Value::Text),
                Bytes => row.bytes(column).map(Value::Bytes),
                Bool => row.bool(column).and_then(|cell| {
                    cell.map(Value::Bool).ok_or_else(|| sqlx::Error::Decode("it is null".into()))
                }),
            };
            cell.map_err(|error| Fault::Corrupt(format!("table {}, column {column}: {error}", self.name)))
        };
        self.columns.iter().map(cell).collect()
    }
}

/// What a table holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The table.
    pub table: &'static str,
    /// How many rows.
    pub rows: u64,
    /// SHA-256 over all cells of all rows, whatever their order.
    pub sha256: [u8; 32],
}

/// Takes a table's rows in any order.
#[derive(Debug, Default)]
pub(crate) struct Tally(Vec<[u8; 32]>);

impl Tally {
    pub(crate) fn add(&mut self, cells: &[Value]) {
        let mut context = digest::Context::new(&digest::SHA256);
        // Kind and length first: no two rows give the same bytes.
        let mut take = |kind: u8, bytes: &[u8]| {
            context.update(&[kind]);
            context.update(&bytes.len().to_le_bytes());
            context.update(bytes);
        };
        for cell in cells {
            match cell {
                Value::Int(None) | Value::Text(None) | Value::Bytes(None) => take(0, &[]),
                Value::Int(Some(int)) => take(1, &int.to_le_bytes()),
                Value::Text(Some(text)) => take(2, text.as_bytes()),
                Value::Bytes(Some(bytes)) => take(3, bytes),
                Value::Bool(bool) => take(4, &[u8::from(*bool)]),
            }
        }
        self.0.push(sha256(context));
    }

    pub(crate) fn contents(mut self, table: &Table) -> Contents {
        self.0.sort_unstable();
        let mut context = digest::Context::new(&digest::SHA256);
        self.0.iter().for_each(|row| context.update(row));
        Contents { table: table.name, rows: self.0.len() as u64, sha256: sha256(context) }
    }
}

/// One digest over all tables, and over the generation that they are of.
pub(crate) fn digest_of(generation: Generation, tables: &[Contents]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&generation.0.to_le_bytes());
    for Contents { table, rows, sha256 } in tables {
        context.update(table.as_bytes());
        context.update(&rows.to_le_bytes());
        context.update(sha256);
    }
    sha256(context)
}

fn sha256(context: digest::Context) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use kms_test_postgres::Cluster;
    use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

    use super::*;
    use crate::{PostgresOptions, PostgresStore, SqliteStore};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_column_of_either_database_is_listed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kms.db");
        SqliteStore::open(&path).await.expect("it opens").close().await;
        let mut sqlite = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&path))
            .await
            .expect("it connects");
        let columns = "SELECT m.name || '.' || c.name FROM sqlite_master m, pragma_table_info(m.name) c
            WHERE m.type = 'table' AND m.name NOT IN ('generation', '_sqlx_migrations') ORDER BY 1";
        let sqlite: Vec<String> =
            sqlx::query_scalar(columns).fetch_all(&mut sqlite).await.expect("it has columns");

        let cluster = Cluster::start().expect("PostgreSQL starts");
        let database = cluster.create_database().expect("a database");
        let mut options = PostgresOptions::new(database.tls_url(&cluster));
        options.password = Some(database.password().to_owned());
        PostgresStore::open(&options).await.expect("it opens").close().await;
        let columns = "SELECT table_name || '.' || column_name FROM information_schema.columns
            WHERE table_schema = 'public' AND table_name NOT IN
                ('generation', '_sqlx_migrations', 'schema_compatibility', 'replicas', 'leases', 'migrated_from')
            ORDER BY (table_name || '.' || column_name) COLLATE \"C\"";
        let postgres = cluster.sql(&database.name, columns).expect("it has columns");

        let mut listed: Vec<String> = TABLES
            .iter()
            .flat_map(|table| table.columns.iter().map(|(name, _)| format!("{}.{name}", table.name)))
            .collect();
        listed.sort_unstable();
        assert_eq!(sqlite, listed);
        assert_eq!(postgres.lines().collect::<Vec<_>>(), listed);
    }

    #[test]
    fn equal_contents_have_equal_digests_and_others_have_not() {
        let [table, ..] = &TABLES;
        let digest = |rows: &[&[Value]]| {
            let mut tally = Tally::default();
            rows.iter().for_each(|row| tally.add(row));
            tally.contents(table).sha256
        };
        let text = |text: &str| Value::from(text);
        let none = || Value::Text(None);
        let (a, b) = ([text("a"), text("bc")], [none(), text("")]);
        assert_eq!(digest(&[&a, &b]), digest(&[&b, &a]));
        for other in [
            &[&a[..]][..],
            &[&a, &a],
            &[&[text("ab"), text("c")], &b],
            &[&a, &[text(""), none()]],
            &[&a, &[none(), none()]],
            &[&a, &[none(), Value::from(&b""[..])]],
        ] {
            assert_ne!(digest(&[&a, &b]), digest(other));
        }
    }
}
