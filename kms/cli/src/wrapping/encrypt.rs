//! `kms encrypt`: a small payload into an envelope, by the service.

use clap::Args;
use kms_client::v1;

use super::{Answer, Field, Input, PAYLOAD_BYTES_MAX};
use crate::{
    connection::Connection,
    context::{self, Contexts},
    destination::{Content, Destination},
    failure::{Code, Failure},
    name::KeyName,
    output::Format,
};

/// Encrypt at most 64 KiB into an envelope, by the service; `kms envelope seal` does it here, for any size
#[derive(Debug, Args)]
pub(crate) struct Encrypt {
    /// Name of the key that wraps the data key
    key: KeyName,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    contexts: Contexts,
    #[command(flatten)]
    destination: Destination,
    #[command(flatten)]
    connection: Connection,
}

impl Encrypt {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        self.destination.check(format, Content::Sealed)?;
        let contexts = self.contexts.parse()?;
        let plaintext = self.input.read(PAYLOAD_BYTES_MAX).map_err(|failure| match failure.code() {
            Code::Usage => failure.hint("kms envelope seal takes any size"),
            _ => failure,
        })?;
        let request = v1::EncryptRequest {
            name: self.key.to_string(),
            plaintext,
            encryption_context: context::to_wire(&contexts.key),
            payload_context: context::to_wire(&contexts.local),
            ..Default::default()
        };
        let made = self.connection.client().await?.encrypt(request).await?;
        let answer = Answer { name: made.name, ..Default::default() };
        answer.deliver(Field::Ciphertext, &made.ciphertext, &self.destination, format)
    }
}
