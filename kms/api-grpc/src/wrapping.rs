//! Wrapped keys and envelopes: from messages to core's requests, and back. Checksums are checked and made here: core
//! knows none.

use std::collections::BTreeMap;

use kms_core::{
    Error,
    verbs::{
        DataKeyMade, Decrypt, Encrypt, Encrypted, GenerateDataKey, Opened, ReEncrypt, RewrapKey, Rewrapped,
        UnwrapKey, WrapKey, Wrapped,
    },
};
use kms_envelope::{DataKeyId, EncryptionContext, EnvelopeContext, SecretBytes, WrappedKey};
use kms_proto::v1;

use crate::name;

/// Length of a data key in bytes where nobody says more.
const DATA_KEY_LEN: usize = 32;

pub(crate) fn parse_wrap(request: v1::WrapKeyRequest) -> Result<WrapKey, Error> {
    check_crc("plaintext_crc32c", request.plaintext_crc32c, &request.plaintext)?;
    let data_key_id = match request.data_key_id.as_slice() {
        [] => None,
        id => Some(DataKeyId(
            id.try_into().map_err(|_| Error::invalid("data_key_id", "a data key's id has 16 bytes"))?,
        )),
    };
    Ok(WrapKey {
        id: name::key("name", &request.name)?,
        plaintext: SecretBytes::new(request.plaintext),
        context: context("encryption_context", request.encryption_context)?,
        data_key_id,
    })
}

pub(crate) fn parse_unwrap(request: v1::UnwrapKeyRequest) -> Result<UnwrapKey, Error> {
    Ok(UnwrapKey {
        id: name::key("name", &request.name)?,
        wrapped: wrapped_key(&request.wrapped_key, request.wrapped_key_crc32c)?,
        context: context("encryption_context", request.encryption_context)?,
    })
}

pub(crate) fn parse_rewrap(request: v1::RewrapKeyRequest) -> Result<RewrapKey, Error> {
    let id = name::key("name", &request.name)?;
    Ok(RewrapKey { id, wrapped: wrapped_key(&request.wrapped_key, request.wrapped_key_crc32c)? })
}

pub(crate) fn parse_generate(
    request: v1::GenerateDataKeyRequest,
    with_plaintext: bool,
) -> Result<GenerateDataKey, Error> {
    let len = match request.length {
        0 => DATA_KEY_LEN,
        len => usize::try_from(len).unwrap_or(usize::MAX),
    };
    let context = context("encryption_context", request.encryption_context)?;
    Ok(GenerateDataKey { id: name::key("name", &request.name)?, len, context, with_plaintext })
}

pub(crate) fn parse_encrypt(request: v1::EncryptRequest) -> Result<Encrypt, Error> {
    check_crc("plaintext_crc32c", request.plaintext_crc32c, &request.plaintext)?;
    Ok(Encrypt {
        id: name::key("name", &request.name)?,
        plaintext: SecretBytes::new(request.plaintext),
        context: contexts(request.encryption_context, request.payload_context)?,
    })
}

pub(crate) fn parse_decrypt(request: v1::DecryptRequest) -> Result<Decrypt, Error> {
    check_crc("ciphertext_crc32c", request.ciphertext_crc32c, &request.ciphertext)?;
    Ok(Decrypt {
        id: name::key("name", &request.name)?,
        envelope: request.ciphertext,
        context: contexts(request.encryption_context, request.payload_context)?,
    })
}

pub(crate) fn parse_re_encrypt(request: v1::ReEncryptRequest) -> Result<ReEncrypt, Error> {
    check_crc("ciphertext_crc32c", request.ciphertext_crc32c, &request.ciphertext)?;
    Ok(ReEncrypt { id: name::key("name", &request.name)?, envelope: request.ciphertext })
}

pub(crate) fn wrapped(made: Wrapped, verified_plaintext_crc32c: bool) -> v1::WrapKeyResponse {
    let wrapped_key = made.wrapped.to_bytes();
    v1::WrapKeyResponse {
        name: name::of_version(&made.key, made.version),
        wrapped_key_crc32c: crc32c::crc32c(&wrapped_key),
        wrapped_key,
        verified_plaintext_crc32c,
    }
}

pub(crate) fn unwrapped(opened: Opened) -> v1::UnwrapKeyResponse {
    let plaintext = opened.plaintext.expose_secret().to_vec();
    v1::UnwrapKeyResponse {
        name: name::of_version(&opened.key, opened.version),
        plaintext_crc32c: crc32c::crc32c(&plaintext),
        plaintext,
        primary: opened.is_primary,
    }
}

pub(crate) fn rewrapped(moved: Rewrapped<WrappedKey>) -> v1::RewrapKeyResponse {
    let wrapped_key = moved.moved.to_bytes();
    v1::RewrapKeyResponse {
        name: name::of_version(&moved.key, moved.version),
        wrapped_key_crc32c: crc32c::crc32c(&wrapped_key),
        wrapped_key,
        source_name: name::of_version(&moved.key, moved.from),
    }
}

/// Empty where core gave no plaintext: then nobody asked for it.
pub(crate) fn data_key(made: DataKeyMade) -> v1::GenerateDataKeyResponse {
    let plaintext = made.plaintext.map(|key| key.expose_secret().to_vec()).unwrap_or_default();
    let wrapped_key = made.wrapped.wrapped.to_bytes();
    v1::GenerateDataKeyResponse {
        name: name::of_version(&made.wrapped.key, made.wrapped.version),
        plaintext_crc32c: crc32c::crc32c(&plaintext),
        plaintext,
        wrapped_key_crc32c: crc32c::crc32c(&wrapped_key),
        wrapped_key,
    }
}

pub(crate) fn data_key_wrapped(made: DataKeyMade) -> v1::GenerateDataKeyWithoutPlaintextResponse {
    let wrapped_key = made.wrapped.wrapped.to_bytes();
    v1::GenerateDataKeyWithoutPlaintextResponse {
        name: name::of_version(&made.wrapped.key, made.wrapped.version),
        wrapped_key_crc32c: crc32c::crc32c(&wrapped_key),
        wrapped_key,
    }
}

pub(crate) fn encrypted(made: Encrypted, verified_plaintext_crc32c: bool) -> v1::EncryptResponse {
    v1::EncryptResponse {
        name: name::of_version(&made.key, made.version),
        ciphertext_crc32c: crc32c::crc32c(&made.envelope),
        ciphertext: made.envelope,
        verified_plaintext_crc32c,
    }
}

pub(crate) fn decrypted(opened: Opened) -> v1::DecryptResponse {
    let plaintext = opened.plaintext.expose_secret().to_vec();
    v1::DecryptResponse {
        name: name::of_version(&opened.key, opened.version),
        plaintext_crc32c: crc32c::crc32c(&plaintext),
        plaintext,
        primary: opened.is_primary,
    }
}

pub(crate) fn re_encrypted(moved: Rewrapped<Vec<u8>>) -> v1::ReEncryptResponse {
    v1::ReEncryptResponse {
        name: name::of_version(&moved.key, moved.version),
        ciphertext_crc32c: crc32c::crc32c(&moved.moved),
        ciphertext: moved.moved,
        source_name: name::of_version(&moved.key, moved.from),
    }
}

fn wrapped_key(bytes: &[u8], crc32c: Option<u32>) -> Result<WrappedKey, Error> {
    check_crc("wrapped_key_crc32c", crc32c, bytes)?;
    WrappedKey::parse(bytes).map_err(|error| Error::invalid("wrapped_key", error.to_string()))
}

fn contexts(key: Context, payload: Context) -> Result<EnvelopeContext, Error> {
    Ok(EnvelopeContext {
        key: context("encryption_context", key)?,
        local: context("payload_context", payload)?,
    })
}

type Context = BTreeMap<String, String>;

fn context(field: &'static str, pairs: Context) -> Result<EncryptionContext, Error> {
    EncryptionContext::new(pairs).map_err(|error| Error::invalid(field, error.to_string()))
}

fn check_crc(field: &'static str, given: Option<u32>, bytes: &[u8]) -> Result<(), Error> {
    if given.is_none_or(|given| given == crc32c::crc32c(bytes)) {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        "the checksum does not fit: the bytes were changed on their way; send them again",
    ))
}
