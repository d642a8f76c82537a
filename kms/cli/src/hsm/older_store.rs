//! `kms hsm accept-older-store`: the end of recovery mode, by an administrator who has looked at what is missing.

use clap::Args;
use kms_client::v1;

use crate::{
    connection::Connection,
    failure::Failure,
    output::{self, Format},
};

/// Accept a database that is older than the HSM has seen, which ends recovery mode; look first at what is missing
#[derive(Debug, Args)]
pub(crate) struct AcceptOlderStore {
    /// The code that the server's log gave when it entered recovery mode
    #[arg(long, value_name = "CODE")]
    confirm: String,
    #[command(flatten)]
    connection: Connection,
}

impl AcceptOlderStore {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let client = self.connection.client().await?;
        let request = v1::AcceptOlderStoreRequest { confirm: self.confirm };
        let v1::AcceptOlderStoreResponse { epoch } = client.accept_older_store(request).await?;
        output::note(
            "The database is accepted. What was revoked, disabled, rotated or destroyed since its backup is not in it: \
             do that again.",
        );
        format.print_one(&serde_json::json!({ "epoch": epoch }))
    }
}
