//! `kms re-encrypt`: an envelope with a small payload moves to the version that wraps now.

use clap::Args;
use kms_client::v1;

use super::{Answer, Field, Input, decrypt::read_envelope};
use crate::{
    connection::Connection,
    destination::{Content, Destination},
    failure::Failure,
    name::KeyName,
    output::Format,
};

/// Move an envelope with at most 64 KiB to the version that wraps now; not a byte of its payload changes
#[derive(Debug, Args)]
pub(crate) struct ReEncrypt {
    /// Name of the key that wrapped the data key
    key: KeyName,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    destination: Destination,
    #[command(flatten)]
    connection: Connection,
}

impl ReEncrypt {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        self.destination.check(format, Content::Sealed)?;
        let request = v1::ReEncryptRequest {
            name: self.key.to_string(),
            ciphertext: read_envelope(&self.input)?,
            ..Default::default()
        };
        let made = self.connection.client().await?.re_encrypt(request).await?;
        let answer = Answer { name: made.name, source_name: Some(made.source_name), ..Default::default() };
        answer.deliver(Field::Ciphertext, &made.ciphertext, &self.destination, format)
    }
}
