//! `kms status`: every replica, and what is wrong with it, as the one that is asked knows it.

mod problems;
mod view;

use clap::Args;
use kms_client::v1;

use crate::{
    connection::Connection,
    failure::Failure,
    output::{self, Format},
};

/// Show every server that shares the database, and what is wrong with each. Asks the running server
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    connection: Connection,
}

impl Status {
    /// Fails only when there is no answer: what is wrong is the answer.
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let client = self.connection.client().await?;
        let status = client.get_status(v1::GetStatusRequest {}).await?;
        let wrong = problems::of(&status);
        let status = view::Status::from(status);
        let text = match format {
            Format::Table => {
                let rows = format.list(&status.rows(), &view::COLUMNS)?;
                format!("{}\n\n{rows}", format.one(&status.header())?)
            }
            Format::Json | Format::Yaml => format.all(&status)?,
        };
        output::print_text(&text)?;
        wrong.iter().for_each(|problem| output::note(&output::one_line(problem)));
        Ok(())
    }
}
