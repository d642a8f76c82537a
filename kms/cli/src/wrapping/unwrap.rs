//! `kms unwrap`: a wrapped key, unwrapped in the HSM.

use clap::Args;
use kms_client::{
    envelope::{SecretBytes, WrappedKey},
    v1,
};

use super::{Answer, Field, Input};
use crate::{
    connection::Connection,
    context::{self, KeyContext},
    destination::{Content, Destination},
    failure::Failure,
    name::KeyName,
    output::Format,
};

/// Unwrap a wrapped key; exit code 7 when it does not open
#[derive(Debug, Args)]
pub(crate) struct Unwrap {
    /// Name of the key that wrapped it
    key: KeyName,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    context: KeyContext,
    #[command(flatten)]
    destination: Destination,
    #[command(flatten)]
    connection: Connection,
}

impl Unwrap {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        self.destination.check(format, Content::Secret)?;
        let request = v1::UnwrapKeyRequest {
            name: self.key.to_string(),
            encryption_context: context::to_wire(&self.context.parse()?),
            wrapped_key: self.input.read_sealed(WrappedKey::LEN_MAX, b"KMSW")?,
            ..Default::default()
        };
        let made = self.connection.client().await?.unwrap_key(request).await?;
        let plaintext = SecretBytes::new(made.plaintext);
        let answer = Answer { name: made.name, primary: Some(made.primary), ..Default::default() };
        answer.deliver(Field::Plaintext, plaintext.expose_secret(), &self.destination, format)
    }
}
