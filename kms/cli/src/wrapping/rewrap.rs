//! `kms rewrap`: a wrapped key moves to the version that wraps now.

use clap::Args;
use kms_client::{envelope::WrappedKey, v1};

use super::{Answer, Field, Input};
use crate::{
    connection::Connection,
    destination::{Content, Destination},
    failure::Failure,
    name::KeyName,
    output::Format,
};

/// Move a wrapped key to the version that wraps now; its context is not needed, and the key is not shown
#[derive(Debug, Args)]
pub(crate) struct Rewrap {
    /// Name of the key that wrapped it
    key: KeyName,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    destination: Destination,
    #[command(flatten)]
    connection: Connection,
}

impl Rewrap {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        self.destination.check(format, Content::Sealed)?;
        let request = v1::RewrapKeyRequest {
            name: self.key.to_string(),
            wrapped_key: self.input.read_sealed(WrappedKey::LEN_MAX, b"KMSW")?,
            ..Default::default()
        };
        let made = self.connection.client().await?.rewrap_key(request).await?;
        let answer = Answer { name: made.name, source_name: Some(made.source_name), ..Default::default() };
        answer.deliver(Field::WrappedKey, &made.wrapped_key, &self.destination, format)
    }
}
