//! `kms wrap`, `unwrap`, `rewrap`, `datakey`, `encrypt`, `decrypt`, `re-encrypt`: keys of others and small payloads, one
//! call each. Payloads of any size are [`crate::envelope`]'s.

mod datakey;
mod decrypt;
mod encrypt;
mod re_encrypt;
mod rewrap;
mod unwrap;
mod wrap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::Args;
use serde::Serialize;

pub(crate) use self::{
    datakey::Datakey, decrypt::Decrypt, encrypt::Encrypt, re_encrypt::ReEncrypt, rewrap::Rewrap,
    unwrap::Unwrap, wrap::Wrap,
};
use crate::{
    destination::{Content, Destination},
    failure::Failure,
    input::Source,
    output::Format,
};

/// The service's own limit on payloads.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// What is to be wrapped, encrypted, or the reverse.
#[derive(Debug, Args)]
struct Input {
    /// What comes in; - for standard input. Wrapped keys and envelopes may be base64
    #[arg(long = "in", value_name = "FILE", default_value = "-")]
    source: Source,
}

impl Input {
    fn read(&self, bytes_max: usize) -> Result<Vec<u8>, Failure> {
        self.source.read(bytes_max)
    }

    /// Reads a wrapped key or an envelope, which begins with `magic`, as it is or as base64.
    fn read_sealed(&self, bytes_max: usize, magic: &[u8]) -> Result<Vec<u8>, Failure> {
        let bytes = self.source.read(bytes_max.div_ceil(3) * 4 + 2)?;
        let decoded = decoded(&bytes, magic).unwrap_or(bytes);
        if decoded.len() > bytes_max {
            return Err(Failure::usage(format!("the input is larger than {bytes_max} bytes")));
        }
        Ok(decoded)
    }
}

/// What base64 stands for, if these bytes are such, and it is what begins with `magic`.
fn decoded(bytes: &[u8], magic: &[u8]) -> Option<Vec<u8>> {
    let decoded = BASE64_STANDARD.decode(bytes.trim_ascii()).ok()?;
    (!bytes.starts_with(magic) && decoded.starts_with(magic)).then_some(decoded)
}

/// What a call answered, for programs. Bytes that went to a file are not repeated.
#[derive(Debug, Default, Serialize)]
struct Answer {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    primary: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapped_key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_base64: Option<String>,
}

/// Which field of an [`Answer`] the bytes are.
#[derive(Debug, Clone, Copy)]
enum Field {
    Plaintext,
    WrappedKey,
    Ciphertext,
}

impl Answer {
    /// Writes `bytes` to where they are wanted, and the rest for programs.
    fn deliver(
        mut self,
        field: Field,
        bytes: &[u8],
        to: &Destination,
        format: Format,
    ) -> Result<(), Failure> {
        match to.prints_fields(format) {
            true => self.set(field, bytes),
            false => to.write(bytes, field.content())?,
        }
        if format == Format::Table { Ok(()) } else { format.print_one(&self) }
    }

    fn set(&mut self, field: Field, bytes: &[u8]) {
        let place = match field {
            Field::Plaintext => &mut self.plaintext_base64,
            Field::WrappedKey => &mut self.wrapped_key_base64,
            Field::Ciphertext => &mut self.ciphertext_base64,
        };
        *place = Some(BASE64_STANDARD.encode(bytes));
    }
}

impl Field {
    fn content(self) -> Content {
        match self {
            Self::Plaintext => Content::Secret,
            Self::WrappedKey | Self::Ciphertext => Content::Sealed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_taken_only_for_what_it_must_be() {
        let text = BASE64_STANDARD.encode(b"KMSW and more");
        assert_eq!(decoded(format!(" {text}\n").as_bytes(), b"KMSW"), Some(b"KMSW and more".to_vec()));
        assert_eq!(decoded(text.as_bytes(), b"KMSE"), None);
        assert_eq!(decoded(b"KMSW", b"KMSW"), None);
        assert_eq!(decoded(b"no base64!", b"KMSW"), None);
    }
}
