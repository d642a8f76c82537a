//! `kms decrypt`: an envelope with a small payload, opened by the service.

use clap::Args;
use kms_client::{
    envelope::{Header, SecretBytes},
    v1,
};

use super::{Answer, Field, Input, PAYLOAD_BYTES_MAX};
use crate::{
    connection::Connection,
    context::{self, Contexts},
    destination::{Content, Destination},
    failure::{Code, Failure},
    name::KeyName,
    output::Format,
};

/// Longest envelope of the longest payload: one chunk and its tag, after the header.
pub(super) const ENVELOPE_BYTES_MAX: usize = Header::LEN_MAX + PAYLOAD_BYTES_MAX + 16;

/// Open an envelope with at most 64 KiB, by the service; exit code 7 when it does not open
#[derive(Debug, Args)]
pub(crate) struct Decrypt {
    /// Name of the key that wrapped the data key
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

impl Decrypt {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        self.destination.check(format, Content::Secret)?;
        let contexts = self.contexts.parse()?;
        let request = v1::DecryptRequest {
            name: self.key.to_string(),
            ciphertext: read_envelope(&self.input)?,
            encryption_context: context::to_wire(&contexts.key),
            payload_context: context::to_wire(&contexts.local),
            ..Default::default()
        };
        let made = self.connection.client().await?.decrypt(request).await?;
        let plaintext = SecretBytes::new(made.plaintext);
        let answer = Answer { name: made.name, primary: Some(made.primary), ..Default::default() };
        answer.deliver(Field::Plaintext, plaintext.expose_secret(), &self.destination, format)
    }
}

pub(super) fn read_envelope(input: &Input) -> Result<Vec<u8>, Failure> {
    input.read_sealed(ENVELOPE_BYTES_MAX, b"KMSE").map_err(|failure| match failure.code() {
        Code::Usage => failure.hint("kms envelope open and kms envelope rewrap take any size"),
        _ => failure,
    })
}
