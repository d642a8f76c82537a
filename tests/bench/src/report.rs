//! The table: medians over the rounds.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::load::Outcome;

/// One measurement.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Row {
    /// Signatures (or calls) per second.
    pub(crate) per_second: f64,
    /// Median latency of a call in microseconds.
    pub(crate) p50_us: f64,
    /// 99th percentile in microseconds.
    pub(crate) p99_us: f64,
    /// CPU time per signature (or wrap) in microseconds, of the service or of a process with the bare token.
    pub(crate) cpu_us: f64,
    /// Rate as a share of the rate of what it is compared with, e.g. the bare token's right before; 0 where there is
    /// none beside it.
    pub(crate) share: f64,
    /// Median latency beyond that one's in microseconds.
    pub(crate) added_us: f64,
}

/// Rows by name, in the order in which they first came.
#[derive(Default)]
pub(crate) struct Report {
    order: Vec<String>,
    rows: BTreeMap<String, Vec<Row>>,
}

impl Row {
    /// Of calls with `items` signatures each, for which somebody used so much CPU time.
    pub(crate) fn new(outcome: &Outcome, items: usize, used_cpu: std::time::Duration) -> Self {
        let signatures = outcome.calls as f64 * items as f64;
        Self {
            per_second: signatures / outcome.elapsed.as_secs_f64(),
            p50_us: outcome.latencies_us.value_at_quantile(0.5) as f64,
            p99_us: outcome.latencies_us.value_at_quantile(0.99) as f64,
            cpu_us: used_cpu.as_secs_f64() * 1e6 / signatures.max(1.0),
            share: 0.0,
            added_us: 0.0,
        }
    }

    /// The same, compared with another.
    pub(crate) fn beside(self, other: &Self) -> Self {
        Self { share: self.per_second / other.per_second, added_us: self.p50_us - other.p50_us, ..self }
    }
}

impl Report {
    pub(crate) fn add(&mut self, name: &str, row: Row) {
        if !self.rows.contains_key(name) {
            self.order.push(name.to_owned());
        }
        self.rows.entry(name.to_owned()).or_default().push(row);
    }

    /// Markdown. `share_of` says what the rows are compared with.
    pub(crate) fn table(&self, share_of: &str) -> String {
        let mut text = format!(
            "| what | per second | share of {share_of} | p50 us | added us | p99 us | CPU us |\n\
             |---|---:|---:|---:|---:|---:|---:|\n",
        );
        for name in &self.order {
            let Row { per_second, p50_us, p99_us, cpu_us, share, added_us } = self.median(name);
            let compared = if share > 0.0 {
                format!("{share:.2} | {p50_us:.0} | {added_us:.0}")
            } else {
                format!(" | {p50_us:.0} | ")
            };
            text.push_str(&format!(
                "| {name} | {per_second:.0} | {compared} | {p99_us:.0} | {cpu_us:.0} |\n"
            ));
        }
        text
    }

    /// Every round's rows.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(&self.rows)?)
    }

    fn median(&self, name: &str) -> Row {
        let of = |field: fn(&Row) -> f64| {
            let mut values: Vec<f64> = self.rows.get(name).into_iter().flatten().map(field).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        };
        Row {
            per_second: of(|row| row.per_second),
            p50_us: of(|row| row.p50_us),
            p99_us: of(|row| row.p99_us),
            cpu_us: of(|row| row.cpu_us),
            share: of(|row| row.share),
            added_us: of(|row| row.added_us),
        }
    }
}
