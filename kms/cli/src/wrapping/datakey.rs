//! `kms datakey`: a new key for somebody else's encryption, bare and wrapped.

use std::path::{Path, PathBuf};

use clap::Args;
use kms_client::{envelope::SecretBytes, v1};

use super::{Answer, Field};
use crate::{
    connection::Connection,
    context::{self, KeyContext},
    destination,
    failure::Failure,
    name::KeyName,
    output::{self, Format},
};

/// Make a data key: what is to be kept in memory only, and the same wrapped, to be stored. Both are printed as base64
#[derive(Debug, Args)]
pub(crate) struct Datakey {
    /// Name of the key that wraps
    key: KeyName,
    /// Do not give the data key itself: it can be had later, by whoever may unwrap
    #[arg(long)]
    without_plaintext: bool,
    /// Length in bytes, 16 to 64
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(16..=64))]
    length: u32,
    #[command(flatten)]
    context: KeyContext,
    /// Write the data key itself, raw, to this new file (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE", conflicts_with = "without_plaintext")]
    out: Option<PathBuf>,
    /// Write the wrapped key, raw, to this file instead of showing it
    #[arg(long, value_name = "FILE")]
    wrapped_out: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

impl Datakey {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        if let Some(path) = self.out.as_deref().filter(|path| path.exists()) {
            return Err(destination::taken(path));
        }
        let request = v1::GenerateDataKeyRequest {
            name: self.key.to_string(),
            length: self.length,
            encryption_context: context::to_wire(&self.context.parse()?),
        };
        let client = self.connection.client().await?;
        let (name, wrapped_key, plaintext) = match self.without_plaintext {
            true => {
                let made = client.generate_data_key_without_plaintext(request).await?;
                (made.name, made.wrapped_key, None)
            }
            false => {
                let made = client.generate_data_key(request).await?;
                (made.name, made.wrapped_key, Some(SecretBytes::new(made.plaintext)))
            }
        };
        let mut answer = Answer { name, ..Default::default() };
        // The wrapped key first: a data key that is not stored wrapped is of no use.
        place(&mut answer, Field::WrappedKey, &wrapped_key, self.wrapped_out.as_deref())?;
        if let Some(plaintext) = &plaintext {
            place(&mut answer, Field::Plaintext, plaintext.expose_secret(), self.out.as_deref())?;
        }
        output::print_credential(&format.one(&answer)?, "nobody has it: make another")
    }
}

fn place(answer: &mut Answer, field: Field, bytes: &[u8], file: Option<&Path>) -> Result<(), Failure> {
    if let Some(path) = file {
        return destination::write_file(path, bytes, field.content());
    }
    answer.set(field, bytes);
    Ok(())
}
