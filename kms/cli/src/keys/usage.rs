//! `kms keys usage`, `report-usage`, `consumers`: what still lives on which version of a key that wraps.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use kms_client::{Client, v1};
use serde::Serialize;

use crate::{
    failure::Failure,
    name::KeyName,
    output::{self, Format},
    view::{lower, time_text},
};

/// Show what still lives on which version of a key that wraps, and what keeps each from being destroyed
#[derive(Debug, Args)]
pub(super) struct Usage {
    /// Name of the key
    name: KeyName,
}

/// Say how many envelopes a store holds under each version; its first report registers it
#[derive(Debug, Args)]
pub(super) struct ReportUsage {
    /// Name of the key
    name: KeyName,
    /// Name of the store, e.g. orders-db
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// Envelopes by version, e.g. 1=5,2=7. The report is a whole: a version that is not named has none
    #[arg(long, value_name = "N=COUNT", value_delimiter = ',', required = true, value_parser = parse_count)]
    envelopes: Vec<(u32, u64)>,
}

/// The stores that report envelopes of a key
#[derive(Debug, Args)]
pub(super) struct Consumers {
    #[command(subcommand)]
    verb: ConsumersVerb,
}

#[derive(Debug, Subcommand)]
enum ConsumersVerb {
    Remove(Remove),
}

/// Say that a store is no more, so that nothing waits for its reports
#[derive(Debug, Args)]
struct Remove {
    /// Name of the key
    name: KeyName,
    /// Name of the store
    consumer: String,
}

/// What lives on which version, as it is printed.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    versions: Vec<Version>,
    consumers: Vec<Consumer>,
}

#[derive(Debug, Serialize)]
struct Version {
    name: String,
    number: u32,
    state: String,
    primary: bool,
    envelopes: u64,
    wraps_reserved: u64,
    wraps_max: u64,
    last_wrap_time: Option<String>,
    last_unwrap_time: Option<String>,
    destruction_blockers: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Consumer {
    consumer: String,
    envelopes: BTreeMap<u32, u64>,
    report_time: Option<String>,
    reporter: String,
}

impl Usage {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let request = v1::GetKeyUsageRequest { name: self.name.to_string() };
        print(client.get_key_usage(request).await?, format)
    }
}

impl ReportUsage {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let request = v1::ReportUsageRequest {
            name: self.name.to_string(),
            consumer: self.consumer,
            envelopes: each_once(self.envelopes)?,
        };
        print(client.report_usage(request).await?, format)
    }
}

impl Consumers {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let ConsumersVerb::Remove(Remove { name, consumer }) = self.verb;
        let request = v1::RemoveConsumerRequest { name: name.to_string(), consumer };
        print(client.remove_consumer(request).await?, format)
    }
}

fn print(usage: v1::KeyUsage, format: Format) -> Result<(), Failure> {
    let shown = Shown::from(usage);
    if format != Format::Table {
        return output::print_text(&format.all(&shown)?);
    }
    let columns = [
        "number",
        "state",
        "primary",
        "envelopes",
        "wraps_reserved",
        "wraps_max",
        "last_wrap_time",
        "last_unwrap_time",
    ];
    let versions = format.list(&shown.versions, &columns)?;
    let consumers = format.list(&shown.consumers, &["consumer", "envelopes", "report_time", "reporter"])?;
    let blockers = shown.versions.iter().flat_map(|version| {
        let line = |blocker| {
            format!("version {} cannot be destroyed: {}", version.number, output::one_line(blocker))
        };
        version.destruction_blockers.iter().map(move |blocker| line(blocker))
    });
    let blockers: Vec<String> = blockers.collect();
    output::print_text(&format!("{versions}\n\n{consumers}\n\n{}", blockers.join("\n")))
}

/// Reads `N=COUNT`.
fn parse_count(text: &str) -> Result<(u32, u64), &'static str> {
    let wrong = "write it N=COUNT: the number of a version, and its envelopes";
    let (number, count) = text.split_once('=').ok_or(wrong)?;
    match (number.parse(), count.parse()) {
        (Ok(number @ 1..), Ok(count)) => Ok((number, count)),
        _ => Err(wrong),
    }
}

fn each_once(counts: Vec<(u32, u64)>) -> Result<BTreeMap<u32, u64>, Failure> {
    let mut envelopes = BTreeMap::new();
    for (number, count) in counts {
        if envelopes.insert(number, count).is_some() {
            return Err(Failure::usage(format!("--envelopes names version {number} twice")));
        }
    }
    Ok(envelopes)
}

impl From<v1::KeyUsage> for Shown {
    fn from(usage: v1::KeyUsage) -> Self {
        Self {
            name: usage.name,
            versions: usage.versions.into_iter().map(Version::from).collect(),
            consumers: usage.consumers.into_iter().map(Consumer::from).collect(),
        }
    }
}

impl From<v1::VersionUsage> for Version {
    fn from(version: v1::VersionUsage) -> Self {
        Self {
            state: lower(version.state().as_str_name()),
            name: version.name,
            number: version.number,
            primary: version.primary,
            envelopes: version.envelopes,
            wraps_reserved: version.wraps_reserved,
            wraps_max: version.wraps_max,
            last_wrap_time: version.last_wrap_time.and_then(time_text),
            last_unwrap_time: version.last_unwrap_time.and_then(time_text),
            destruction_blockers: version.destruction_blockers,
        }
    }
}

impl From<v1::Consumer> for Consumer {
    fn from(consumer: v1::Consumer) -> Self {
        Self {
            consumer: consumer.consumer,
            envelopes: consumer.envelopes.into_iter().collect(),
            report_time: consumer.report_time.and_then(time_text),
            reporter: consumer.reporter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_names_a_version_that_there_can_be() {
        for bad in ["", "1", "=5", "1=", "0=5", "-1=5", "1=-5", "a=5", "4294967296=1"] {
            assert!(parse_count(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(parse_count("2=7"), Ok((2, 7)));
    }

    #[test]
    fn a_version_has_one_count() {
        assert!(each_once(vec![(1, 5), (1, 5)]).is_err());
        assert_eq!(each_once(vec![(1, 5), (2, 0)]).expect("two versions").len(), 2);
    }
}
