//! `kms envelope inspect`: what stands in the header. No key, no service, and nothing of it is proven.

use std::{
    io::{self, Read},
    path::Path,
};

use clap::Args;
use kms_client::envelope::{self, CHUNK_LEN, Header, Purpose, WrapAlgorithm, WrappedKey};
use serde::Serialize;

use super::{
    files::{Files, Found, open_regular},
    tally::Failures,
};
use crate::{failure::Failure, output::Format};

/// Bytes of a chunk's tag.
const TAG_LEN: u64 = 16;
/// A whole chunk with its tag.
const SEALED_CHUNK_LEN: u64 = CHUNK_LEN as u64 + TAG_LEN;

/// Show the headers of envelopes, e.g. under which version they are: without any key, and without the service
#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    files: Files,
}

/// What one says of itself, as it is printed.
#[derive(Debug, Serialize)]
struct Shown {
    file: String,
    purpose: &'static str,
    data_key_id: String,
    /// The digest of the encryption context.
    context_digest: String,
    /// By the length of the file; absent of a pipe, and of what was cut off.
    plaintext_bytes: Option<u64>,
    /// The first of the recipients, for the table.
    key_uid: String,
    key_version: u32,
    recipients: Vec<Recipient>,
}

#[derive(Debug, Serialize)]
struct Recipient {
    key_uid: String,
    key_version: u32,
    algorithm: &'static str,
}

impl Inspect {
    pub(super) fn run(self, format: Format) -> Result<(), Failure> {
        self.files.check()?;
        let (mut all, mut failures) = (Vec::new(), Failures::default());
        for found in self.files.found() {
            let (path, shown) = match found {
                Found::StandardInput => ("-".into(), of_stdin().map(Some)),
                Found::Named(path) => {
                    let shown = of_file(&path).map(Some);
                    (path, shown)
                }
                Found::Walked(path) => {
                    let shown = of_walked(&path);
                    (path, shown)
                }
                Found::Link(_) => continue,
                Found::Failed(path, failure) => (path, Err(failure)),
            };
            match shown {
                Ok(shown) => all.extend(shown),
                Err(failure) => failures.add(&path, failure),
            }
        }
        if !all.is_empty() || failures.count() == 0 {
            let columns = ["file", "key_uid", "key_version", "purpose", "data_key_id", "plaintext_bytes"];
            format.print_list(&all, &columns)?;
        }
        failures.end(self.files.only().is_some())
    }
}

fn of_stdin() -> Result<Shown, Failure> {
    Ok(Shown::of("-".to_owned(), &read_header(io::stdin().lock())?, None))
}

fn of_file(path: &Path) -> Result<Shown, Failure> {
    let file = open_regular(path)?;
    let len = file.metadata().map_err(Failure::about(path.display()))?.len();
    Ok(Shown::of(path.display().to_string(), &read_header(&file)?, Some(len)))
}

/// `None` of what is no envelope, and does not look as if it should be one.
fn of_walked(path: &Path) -> Result<Option<Shown>, Failure> {
    match super::campaign::is_stranger(path, &open_regular(path)?)? {
        true => Ok(None),
        false => of_file(path).map(Some),
    }
}

/// Reads the header alone.
pub(super) fn read_header(from: impl Read) -> Result<Header, Failure> {
    // Fields are small, and a pipe must not be read further than this anyway.
    Ok(Header::read(from).map_err(envelope::Error::from)?)
}

impl Shown {
    fn of(file: String, header: &Header, file_len: Option<u64>) -> Self {
        let recipients: Vec<_> = header.recipients().iter().map(Recipient::of).collect();
        let payload_len = file_len.and_then(|len| len.checked_sub(header.to_bytes().len() as u64));
        Self {
            file,
            purpose: match header.purpose() {
                Purpose::Native => "native",
                Purpose::Vault => "vault",
                Purpose::Kubernetes => "kubernetes",
            },
            data_key_id: hex(&header.data_key_id().0),
            context_digest: hex(header.context_digest()),
            plaintext_bytes: payload_len.and_then(plaintext_len),
            key_uid: recipients.first().map(|first| first.key_uid.clone()).unwrap_or_default(),
            key_version: recipients.first().map(|first| first.key_version).unwrap_or_default(),
            recipients,
        }
    }
}

impl Recipient {
    fn of(wrapped: &WrappedKey) -> Self {
        let header = wrapped.header();
        Self {
            key_uid: hex(&header.key_uid),
            key_version: header.key_version.get(),
            algorithm: match header.algorithm {
                WrapAlgorithm::A256GcmKw => "A256GCMKW",
                WrapAlgorithm::RsaOaep256 => "RSA-OAEP-256",
            },
        }
    }
}

/// What is left of a payload without its tags; `None` if no payload has this length.
fn plaintext_len(payload_len: u64) -> Option<u64> {
    let chunks = payload_len.div_ceil(SEALED_CHUNK_LEN);
    let plain = payload_len.checked_sub(chunks * TAG_LEN)?;
    // At least one chunk; only the only one may be empty; a last one has its tag.
    let last = payload_len - (chunks.checked_sub(1)?) * SEALED_CHUNK_LEN;
    (last > TAG_LEN || (last == TAG_LEN && chunks == 1)).then_some(plain)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plaintexts_length_is_told_of_lengths_that_a_payload_can_have() {
        let chunk = CHUNK_LEN as u64;
        for (payload, plain) in [(16, 0), (17, 1), (chunk + 16, chunk), (chunk + 33, chunk + 1)] {
            assert_eq!(plaintext_len(payload), Some(plain), "{payload}");
        }
        for cut in [0, 15, chunk + 17, chunk + 16 + 16] {
            assert_eq!(plaintext_len(cut), None, "{cut}");
        }
    }
}
