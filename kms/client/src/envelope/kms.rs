//! What envelopes need of the service: five calls. [`Client`] makes them; a test can make its own.

use std::future::Future;

use kms_envelope::{EncryptionContext, SecretBytes};
use kms_proto::v1::{self, batch_rewrap_key_result::Outcome};
use tonic::{Code, Status};
use tonic_types::pb;

use crate::{Client, Error};

/// As many wrapped keys as one call moves.
pub const BATCH_ITEMS_MAX: usize = 128;

/// The calls under [`Envelopes`](super::Envelopes). `key` is `keys/{key}`.
pub trait Kms: Send + Sync + 'static {
    /// Makes a data key.
    fn generate(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> impl Future<Output = Result<Generated, Error>> + Send;

    /// Unwraps a data key.
    fn unwrap_key(
        &self,
        key: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> impl Future<Output = Result<SecretBytes, Error>> + Send;

    /// Moves up to [`BATCH_ITEMS_MAX`] wrapped keys to the version that wraps now. One result for each, in their order.
    fn rewrap_keys(
        &self,
        key: &str,
        wrapped: Vec<Vec<u8>>,
    ) -> impl Future<Output = Result<Vec<Result<Vec<u8>, Error>>, Error>> + Send;

    /// Says the key's uid, whether or not a version wraps now.
    fn key_uid(&self, key: &str) -> impl Future<Output = Result<[u8; 16], Error>> + Send;

    /// Says which version wraps now.
    fn primary(&self, key: &str) -> impl Future<Output = Result<Primary, Error>> + Send;
}

/// A new data key.
#[derive(Debug)]
pub struct Generated {
    /// Its 32 bytes.
    pub plaintext: SecretBytes,
    /// The same, wrapped.
    pub wrapped_key: Vec<u8>,
}

/// The version of a key that wraps now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Primary {
    /// The key's uid.
    pub key_uid: [u8; 16],
    /// The version's number.
    pub version: u32,
}

impl Kms for Client {
    async fn generate(&self, key: &str, context: &EncryptionContext) -> Result<Generated, Error> {
        let request = v1::GenerateDataKeyRequest {
            name: key.to_owned(),
            encryption_context: pairs(context),
            ..Default::default()
        };
        let answer = self.generate_data_key(request).await?;
        let plaintext = SecretBytes::new(answer.plaintext);
        check(answer.plaintext_crc32c, plaintext.expose_secret())?;
        check(answer.wrapped_key_crc32c, &answer.wrapped_key)?;
        Ok(Generated { plaintext, wrapped_key: answer.wrapped_key })
    }

    async fn unwrap_key(
        &self,
        key: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretBytes, Error> {
        let request = v1::UnwrapKeyRequest {
            name: key.to_owned(),
            wrapped_key: wrapped.to_vec(),
            encryption_context: pairs(context),
            wrapped_key_crc32c: Some(crc32c::crc32c(wrapped)),
        };
        let answer = Client::unwrap_key(self, request).await?;
        let plaintext = SecretBytes::new(answer.plaintext);
        check(answer.plaintext_crc32c, plaintext.expose_secret())?;
        Ok(plaintext)
    }

    async fn rewrap_keys(
        &self,
        key: &str,
        wrapped: Vec<Vec<u8>>,
    ) -> Result<Vec<Result<Vec<u8>, Error>>, Error> {
        let count = wrapped.len();
        let request = |wrapped: Vec<u8>| v1::RewrapKeyRequest {
            name: key.to_owned(),
            wrapped_key_crc32c: Some(crc32c::crc32c(&wrapped)),
            wrapped_key: wrapped,
        };
        let requests = wrapped.into_iter().map(request).collect();
        let answer = self.batch_rewrap_key(v1::BatchRewrapKeyRequest { requests }).await?;
        if answer.results.len() != count {
            return Err(Error::senseless("it has another number of results than it was asked for"));
        }
        Ok(answer.results.into_iter().map(|result| moved(result.outcome)).collect())
    }

    async fn key_uid(&self, key: &str) -> Result<[u8; 16], Error> {
        let key = self.get_key(v1::GetKeyRequest { name: key.to_owned() }).await?;
        uid(&key.uid).ok_or_else(|| Error::senseless("the key's uid is none"))
    }

    async fn primary(&self, key: &str) -> Result<Primary, Error> {
        let key = self.get_key(v1::GetKeyRequest { name: key.to_owned() }).await?;
        if key.primary.is_empty() {
            return Err(Error::refused(format!("{} has no version that wraps now; rotate it", key.name)));
        }
        let version = key.primary.rsplit('/').next().and_then(|number| number.parse().ok());
        match (uid(&key.uid), version) {
            (Some(key_uid), Some(version)) => Ok(Primary { key_uid, version }),
            _ => Err(Error::senseless("the key's uid or its primary version is none")),
        }
    }
}

fn moved(outcome: Option<Outcome>) -> Result<Vec<u8>, Error> {
    match outcome {
        Some(Outcome::Response(response)) => {
            check(response.wrapped_key_crc32c, &response.wrapped_key)?;
            Ok(response.wrapped_key)
        }
        Some(Outcome::Error(error)) => Err(Error::from(status(error))),
        None => Err(Error::senseless("a result of a batch is empty")),
    }
}

/// The status of one item, as that of a call of its own.
fn status(error: pb::Status) -> Status {
    let details = prost::Message::encode_to_vec(&error);
    Status::with_details(Code::from_i32(error.code), error.message, details.into())
}

fn pairs(context: &EncryptionContext) -> std::collections::BTreeMap<String, String> {
    context.pairs().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn check(crc32c: u32, bytes: &[u8]) -> Result<(), Error> {
    match crc32c::crc32c(bytes) == crc32c {
        true => Ok(()),
        false => Err(Error::senseless("a checksum differs: its bytes were damaged on the way; try again")),
    }
}

/// 32 hexadecimal digits.
fn uid(text: &str) -> Option<[u8; 16]> {
    let is_hexadecimal = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = is_hexadecimal.then(|| u128::from_str_radix(text, 16).ok())??;
    Some(number.to_be_bytes())
}
