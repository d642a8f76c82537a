//! `kms keys`: making, reading, rotating and ending keys.

mod class;
mod key;
mod periods;
mod timeline;
mod usage;
mod version;

use clap::{Args, Subcommand};

use crate::{connection::Connection, failure::Failure, output::Format};

/// Make, read, rotate and end keys
#[derive(Debug, Args)]
pub(crate) struct Keys {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(Box<key::Create>),
    List(key::List),
    Get(key::Get),
    Update(Box<key::Update>),
    Rotate(version::Rotate),
    Versions(version::Versions),
    Timeline(timeline::Timeline),
    Revoke(version::Revoke),
    Disable(version::Disable),
    Enable(version::Enable),
    Destroy(version::Destroy),
    Restore(version::Restore),
    Public(version::Public),
    Classes(class::Classes),
    ClassUpdate(class::ClassUpdate),
    Usage(usage::Usage),
    ReportUsage(usage::ReportUsage),
    Consumers(usage::Consumers),
}

impl Keys {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let client = self.connection.client().await?;
        match self.verb {
            Verb::Create(verb) => verb.run(client, format).await,
            Verb::List(verb) => verb.run(client, format).await,
            Verb::Get(verb) => verb.run(client, format).await,
            Verb::Update(verb) => verb.run(client, format).await,
            Verb::Rotate(verb) => verb.run(client, format).await,
            Verb::Versions(verb) => verb.run(client, format).await,
            Verb::Timeline(verb) => verb.run(client, format).await,
            Verb::Revoke(verb) => verb.run(client, format).await,
            Verb::Disable(verb) => verb.run(client, format).await,
            Verb::Enable(verb) => verb.run(client, format).await,
            Verb::Destroy(verb) => verb.run(client, format).await,
            Verb::Restore(verb) => verb.run(client, format).await,
            Verb::Public(verb) => verb.run(client, format).await,
            Verb::Classes(verb) => verb.run(client, format).await,
            Verb::ClassUpdate(verb) => verb.run(client, format).await,
            Verb::Usage(verb) => verb.run(client, format).await,
            Verb::ReportUsage(verb) => verb.run(client, format).await,
            Verb::Consumers(verb) => verb.run(client, format).await,
        }
    }
}
