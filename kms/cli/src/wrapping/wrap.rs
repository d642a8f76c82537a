//! `kms wrap`: a key of others, wrapped in the HSM.

use clap::Args;
use kms_client::{envelope::WrappedKey, v1};

use super::{Answer, Field, Input};
use crate::{
    connection::Connection,
    context::{self, KeyContext},
    destination::{Content, Destination},
    failure::Failure,
    name::KeyName,
    output::Format,
};

/// Wrap a key: 16 to 1,024 bytes, which come out as a wrapped key
#[derive(Debug, Args)]
pub(crate) struct Wrap {
    /// Name of the key that wraps
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

impl Wrap {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        self.destination.check(format, Content::Sealed)?;
        let request = v1::WrapKeyRequest {
            name: self.key.to_string(),
            encryption_context: context::to_wire(&self.context.parse()?),
            plaintext: self.input.read(WrappedKey::KEY_LEN_MAX)?,
            ..Default::default()
        };
        let made = self.connection.client().await?.wrap_key(request).await?;
        let answer = Answer { name: made.name, ..Default::default() };
        answer.deliver(Field::WrappedKey, &made.wrapped_key, &self.destination, format)
    }
}
