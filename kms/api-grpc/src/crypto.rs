//! `kms.v1.CryptoService`: signatures and tokens, wrapped keys and envelopes.

use kms_core::{
    AuditLog, Clock, Error, Hsm, Store,
    verbs::{Encoding, Sign, SignJwt, ToSign, Verify},
};
use kms_proto::v1::{self, SignatureFormat, sign_request, verify_request};
use tonic::{Request, Response, Status};

use crate::{
    batch,
    call::{Call, Door, Kms},
    message, name,
    time::span,
    wrapping,
};

/// Longest signature in bytes that Verify takes; the longest that exists here has 512.
const SIGNATURE_LEN_MAX: usize = 2048;

/// The service. Its requests must carry a [`kms_core::Caller`].
pub struct CryptoService<H, S, A, C>(pub(crate) Door<H, S, A, C>);

#[tonic::async_trait]
impl<H: Hsm, S: Store, A: AuditLog, C: Clock> v1::crypto_service_server::CryptoService
    for CryptoService<H, S, A, C>
{
    async fn sign(&self, request: Request<v1::SignRequest>) -> Result<Response<v1::SignResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request| async move {
            let request = parse_sign(request)?;
            kms.sign(&call.caller, request, call.deadline).await.map(message::signed)
        };
        self.0.run(request, verb).await
    }

    async fn verify(
        &self,
        request: Request<v1::VerifyRequest>,
    ) -> Result<Response<v1::VerifyResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request| async move {
            let request = parse_verify(request)?;
            let id = request.id.clone();
            let verified = kms.verify(&call.caller, request).await?;
            Ok(message::verified(&id, verified))
        };
        self.0.run(request, verb).await
    }

    async fn sign_jwt(
        &self,
        request: Request<v1::SignJwtRequest>,
    ) -> Result<Response<v1::SignJwtResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::SignJwtRequest| async move {
            let request = SignJwt {
                id: name::key("name", &request.name)?,
                claims: request.claims_json,
                ttl: request.ttl.map(|ttl| span("ttl", &ttl)).transpose()?,
                typ: Some(request.r#type).filter(|typ| !typ.is_empty()),
            };
            kms.sign_jwt(&call.caller, request, call.deadline).await.map(message::signed_jwt)
        };
        self.0.run(request, verb).await
    }

    async fn batch_sign(
        &self,
        request: Request<v1::BatchSignRequest>,
    ) -> Result<Response<v1::BatchSignResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::BatchSignRequest| async move {
            let verb = |items| async move { kms.batch_sign(&call.caller, items, call.deadline).await };
            let results = batch::run(request.requests, parse_sign, verb).await?;
            let results = results.into_iter().map(|signed| batch::sign(signed.map(message::signed)));
            Ok(v1::BatchSignResponse { results: results.collect() })
        };
        self.0.run(request, verb).await
    }

    async fn wrap_key(
        &self,
        request: Request<v1::WrapKeyRequest>,
    ) -> Result<Response<v1::WrapKeyResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::WrapKeyRequest| async move {
            let checked = request.plaintext_crc32c.is_some();
            let request = wrapping::parse_wrap(request)?;
            let made = kms.wrap_key(&call.caller, request, call.deadline).await?;
            Ok(wrapping::wrapped(made, checked))
        };
        self.0.run_detached(request, verb).await
    }

    async fn unwrap_key(
        &self,
        request: Request<v1::UnwrapKeyRequest>,
    ) -> Result<Response<v1::UnwrapKeyResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::UnwrapKeyRequest| async move {
            let request = wrapping::parse_unwrap(request)?;
            kms.unwrap_key(&call.caller, request, call.deadline).await.map(wrapping::unwrapped)
        };
        self.0.run(request, verb).await
    }

    async fn rewrap_key(
        &self,
        request: Request<v1::RewrapKeyRequest>,
    ) -> Result<Response<v1::RewrapKeyResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::RewrapKeyRequest| async move {
            let request = wrapping::parse_rewrap(request)?;
            kms.rewrap_key(&call.caller, request, call.deadline).await.map(wrapping::rewrapped)
        };
        self.0.run_detached(request, verb).await
    }

    async fn generate_data_key(
        &self,
        request: Request<v1::GenerateDataKeyRequest>,
    ) -> Result<Response<v1::GenerateDataKeyResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::GenerateDataKeyRequest| async move {
            let request = wrapping::parse_generate(request, true)?;
            kms.generate_data_key(&call.caller, request, call.deadline).await.map(wrapping::data_key)
        };
        self.0.run_detached(request, verb).await
    }

    async fn generate_data_key_without_plaintext(
        &self,
        request: Request<v1::GenerateDataKeyRequest>,
    ) -> Result<Response<v1::GenerateDataKeyWithoutPlaintextResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::GenerateDataKeyRequest| async move {
            let request = wrapping::parse_generate(request, false)?;
            kms.generate_data_key(&call.caller, request, call.deadline).await.map(wrapping::data_key_wrapped)
        };
        self.0.run_detached(request, verb).await
    }

    async fn encrypt(
        &self,
        request: Request<v1::EncryptRequest>,
    ) -> Result<Response<v1::EncryptResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::EncryptRequest| async move {
            let checked = request.plaintext_crc32c.is_some();
            let request = wrapping::parse_encrypt(request)?;
            let made = kms.encrypt(&call.caller, request, call.deadline).await?;
            Ok(wrapping::encrypted(made, checked))
        };
        self.0.run_detached(request, verb).await
    }

    async fn decrypt(
        &self,
        request: Request<v1::DecryptRequest>,
    ) -> Result<Response<v1::DecryptResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::DecryptRequest| async move {
            let request = wrapping::parse_decrypt(request)?;
            kms.decrypt(&call.caller, request, call.deadline).await.map(wrapping::decrypted)
        };
        self.0.run(request, verb).await
    }

    async fn re_encrypt(
        &self,
        request: Request<v1::ReEncryptRequest>,
    ) -> Result<Response<v1::ReEncryptResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::ReEncryptRequest| async move {
            let request = wrapping::parse_re_encrypt(request)?;
            kms.re_encrypt(&call.caller, request, call.deadline).await.map(wrapping::re_encrypted)
        };
        self.0.run_detached(request, verb).await
    }

    async fn batch_wrap_key(
        &self,
        request: Request<v1::BatchWrapKeyRequest>,
    ) -> Result<Response<v1::BatchWrapKeyResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::BatchWrapKeyRequest| async move {
            let checked: Vec<_> =
                request.requests.iter().map(|item| item.plaintext_crc32c.is_some()).collect();
            let verb = |items| async move { kms.batch_wrap_key(&call.caller, items, call.deadline).await };
            let results = batch::run(request.requests, wrapping::parse_wrap, verb).await?;
            let results = results.into_iter().zip(checked);
            let results = results
                .map(|(made, checked)| batch::wrap_key(made.map(|made| wrapping::wrapped(made, checked))));
            Ok(v1::BatchWrapKeyResponse { results: results.collect() })
        };
        self.0.run_detached(request, verb).await
    }

    async fn batch_unwrap_key(
        &self,
        request: Request<v1::BatchUnwrapKeyRequest>,
    ) -> Result<Response<v1::BatchUnwrapKeyResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::BatchUnwrapKeyRequest| async move {
            let verb = |items| async move { kms.batch_unwrap_key(&call.caller, items, call.deadline).await };
            let results = batch::run(request.requests, wrapping::parse_unwrap, verb).await?;
            let results = results.into_iter().map(|made| batch::unwrap_key(made.map(wrapping::unwrapped)));
            Ok(v1::BatchUnwrapKeyResponse { results: results.collect() })
        };
        self.0.run(request, verb).await
    }

    async fn batch_rewrap_key(
        &self,
        request: Request<v1::BatchRewrapKeyRequest>,
    ) -> Result<Response<v1::BatchRewrapKeyResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::BatchRewrapKeyRequest| async move {
            let verb = |items| async move { kms.batch_rewrap_key(&call.caller, items, call.deadline).await };
            let results = batch::run(request.requests, wrapping::parse_rewrap, verb).await?;
            let results = results.into_iter().map(|made| batch::rewrap_key(made.map(wrapping::rewrapped)));
            Ok(v1::BatchRewrapKeyResponse { results: results.collect() })
        };
        self.0.run_detached(request, verb).await
    }

    async fn batch_generate_data_key(
        &self,
        request: Request<v1::BatchGenerateDataKeyRequest>,
    ) -> Result<Response<v1::BatchGenerateDataKeyResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::BatchGenerateDataKeyRequest| async move {
            let verb =
                |items| async move { kms.batch_generate_data_key(&call.caller, items, call.deadline).await };
            let results =
                batch::run(request.requests, |request| wrapping::parse_generate(request, true), verb).await?;
            let results =
                results.into_iter().map(|made| batch::generate_data_key(made.map(wrapping::data_key)));
            Ok(v1::BatchGenerateDataKeyResponse { results: results.collect() })
        };
        self.0.run_detached(request, verb).await
    }

    async fn batch_generate_data_key_without_plaintext(
        &self,
        request: Request<v1::BatchGenerateDataKeyRequest>,
    ) -> Result<Response<v1::BatchGenerateDataKeyWithoutPlaintextResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::BatchGenerateDataKeyRequest| async move {
            let verb =
                |items| async move { kms.batch_generate_data_key(&call.caller, items, call.deadline).await };
            let results =
                batch::run(request.requests, |request| wrapping::parse_generate(request, false), verb)
                    .await?;
            let results = results
                .into_iter()
                .map(|made| batch::generate_data_key_without_plaintext(made.map(wrapping::data_key_wrapped)));
            Ok(v1::BatchGenerateDataKeyWithoutPlaintextResponse { results: results.collect() })
        };
        self.0.run_detached(request, verb).await
    }

    async fn batch_encrypt(
        &self,
        request: Request<v1::BatchEncryptRequest>,
    ) -> Result<Response<v1::BatchEncryptResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::BatchEncryptRequest| async move {
            let checked: Vec<_> =
                request.requests.iter().map(|item| item.plaintext_crc32c.is_some()).collect();
            let verb = |items| async move { kms.batch_encrypt(&call.caller, items, call.deadline).await };
            let results = batch::run(request.requests, wrapping::parse_encrypt, verb).await?;
            let results = results.into_iter().zip(checked);
            let results = results
                .map(|(made, checked)| batch::encrypt(made.map(|made| wrapping::encrypted(made, checked))));
            Ok(v1::BatchEncryptResponse { results: results.collect() })
        };
        self.0.run_detached(request, verb).await
    }

    async fn batch_decrypt(
        &self,
        request: Request<v1::BatchDecryptRequest>,
    ) -> Result<Response<v1::BatchDecryptResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::BatchDecryptRequest| async move {
            let verb = |items| async move { kms.batch_decrypt(&call.caller, items, call.deadline).await };
            let results = batch::run(request.requests, wrapping::parse_decrypt, verb).await?;
            let results = results.into_iter().map(|made| batch::decrypt(made.map(wrapping::decrypted)));
            Ok(v1::BatchDecryptResponse { results: results.collect() })
        };
        self.0.run(request, verb).await
    }

    async fn batch_re_encrypt(
        &self,
        request: Request<v1::BatchReEncryptRequest>,
    ) -> Result<Response<v1::BatchReEncryptResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::BatchReEncryptRequest| async move {
            let verb = |items| async move { kms.batch_re_encrypt(&call.caller, items, call.deadline).await };
            let results = batch::run(request.requests, wrapping::parse_re_encrypt, verb).await?;
            let results = results.into_iter().map(|made| batch::re_encrypt(made.map(wrapping::re_encrypted)));
            Ok(v1::BatchReEncryptResponse { results: results.collect() })
        };
        self.0.run_detached(request, verb).await
    }
}

fn parse_sign(request: v1::SignRequest) -> Result<Sign, Error> {
    let encoding = encoding(request.signature_format)?;
    let (id, version) = name::key_or_version("name", &request.name)?;
    let input = match request.input.ok_or_else(no_input)? {
        sign_request::Input::Message(bytes) => ToSign::Message(bytes),
        sign_request::Input::Digest(bytes) => ToSign::Digest(bytes),
    };
    Ok(Sign { id, version, input, encoding })
}

fn parse_verify(request: v1::VerifyRequest) -> Result<Verify, Error> {
    let encoding = encoding(request.signature_format)?;
    let (id, version) = name::key_or_version("name", &request.name)?;
    let input = match request.input.ok_or_else(no_input)? {
        verify_request::Input::Message(bytes) => ToSign::Message(bytes),
        verify_request::Input::Digest(bytes) => ToSign::Digest(bytes),
    };
    let signature = request.signature;
    if signature.is_empty() || signature.len() > SIGNATURE_LEN_MAX {
        let message = format!("a signature of 1 to {SIGNATURE_LEN_MAX} bytes is required");
        return Err(Error::invalid("signature", message));
    }
    Ok(Verify { id, version, input, signature, encoding })
}

fn no_input() -> Error {
    Error::invalid("input", "give a message or its digest")
}

fn encoding(format: i32) -> Result<Encoding, Error> {
    match SignatureFormat::try_from(format) {
        Ok(SignatureFormat::Unspecified | SignatureFormat::Der) => Ok(Encoding::Der),
        Ok(SignatureFormat::Jose) => Ok(Encoding::Jose),
        Err(_) => Err(Error::invalid("signature_format", "unknown signature format; use DER or JOSE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str) -> v1::SignRequest {
        let input = Some(sign_request::Input::Message(vec![1]));
        v1::SignRequest { name: name.into(), input, signature_format: 0 }
    }

    #[test]
    fn a_signature_without_input_or_in_an_unknown_format_is_refused() {
        let field = |request| parse_sign(request).err().and_then(|error| error.field());
        assert_eq!(field(v1::SignRequest { input: None, ..request("keys/a") }), Some("input"));
        assert_eq!(
            field(v1::SignRequest { signature_format: 9, ..request("keys/a") }),
            Some("signature_format")
        );
        assert_eq!(field(request("a")), Some("name"));
    }

    #[test]
    fn a_signature_to_verify_has_a_bounded_length() {
        for len in [0, SIGNATURE_LEN_MAX + 1] {
            let request = v1::VerifyRequest {
                name: "keys/a".into(),
                input: Some(verify_request::Input::Digest(vec![0; 32])),
                signature: vec![0; len],
                signature_format: 0,
            };
            assert_eq!(
                parse_verify(request).err().and_then(|error| error.field()),
                Some("signature"),
                "{len}"
            );
        }
    }
}
