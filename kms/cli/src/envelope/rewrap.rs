//! `kms envelope rewrap`: the campaign as a command.

use clap::Args;
use kms_client::{Client, v1};

use super::{
    Key,
    campaign::{Campaign, Counts},
    files::Files,
    tally::counted,
};
use crate::{
    connection::Connection,
    failure::{Code, Failure},
    input::Source,
    output::{self, Format},
};

/// Move files to the version that wraps now: their headers are replaced, and not a byte of a payload is decrypted or
/// changed
///
/// Each file is there whole at any moment, keeps owner, mode and times, and is skipped if it is on that version already:
/// cut off, the same command does the rest. In folders, what is no envelope or another key's is left alone. A compromised
/// version needs a credential of the role recoverer.
#[derive(Debug, Args)]
pub(super) struct Rewrap {
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    files: Files,
    /// At most so many files per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Report at the end how many of these files are under each version, under this name of a store. The report replaces
    /// its last one, so name all that it holds
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
}

impl Rewrap {
    pub(super) async fn run(self, connection: &Connection, format: Format) -> Result<(), Failure> {
        self.files.check()?;
        if let Some(Source::StandardInput) = self.files.only() {
            return Err(Failure::usage("rewrap replaces files, and standard input is none")
                .hint("kms re-encrypt moves a small envelope from a pipe"));
        }
        let client = connection.client().await?;
        let mut campaign = Campaign::new(client.clone(), self.key.name(), self.rate).await?;
        let total = if output::watched() { self.files.found().count() as u64 } else { 0 };
        let mut stopped = None;
        for found in self.files.found() {
            if let Err(failure) = campaign.take(found, total).await {
                stopped = Some(failure);
                break;
            }
        }
        if stopped.is_none() {
            stopped = campaign.flush(total).await.err();
        }
        let of_one = self.files.only().is_some();
        let (counts, failures) = campaign.end();
        if !of_one || (failures.count() == 0 && stopped.is_none()) {
            let summary = counts.summary(&failures);
            format.print_text_or(&summary.text(), &summary)?;
        }
        if let Some(failure) = stopped {
            // What failed before is named too; the service's own failure says more about what to do.
            let _ = failures.end(false);
            return Err(match failure.code() {
                Code::Unavailable => failure.hint("run the same command again: what was moved is skipped"),
                _ => failure,
            });
        }
        if let Some(consumer) = self.consumer {
            report(&client, self.key.name(), consumer, &counts).await?;
        }
        failures.end(of_one)
    }
}

/// Says how many files are under each version. Not where some could not be read: a version that nothing seems to be under
/// may be destroyed.
async fn report(client: &Client, key: String, consumer: String, counts: &Counts) -> Result<(), Failure> {
    if counts.unknown > 0 {
        output::note(&format!(
            "Usage is not reported: of {} it is not known under which version they are.",
            counted(counts.unknown, "file")
        ));
        return Ok(());
    }
    let envelopes = counts.by_version.clone();
    client.report_usage(v1::ReportUsageRequest { name: key, consumer: consumer.clone(), envelopes }).await?;
    output::note(&format!("Reported as {consumer}."));
    Ok(())
}
