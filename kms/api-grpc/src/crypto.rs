//! `kms.v1.CryptoService`: signatures and tokens.

use kms_core::{
    AuditLog, Clock, Error, Hsm, Store,
    verbs::{BATCH_ITEMS_MAX, Encoding, Sign, SignJwt, ToSign, Verify},
};
use kms_proto::v1::{self, SignatureFormat, batch_sign_result::Outcome, sign_request, verify_request};
use tonic::{Request, Response, Status};

use crate::{
    call::{Call, Door, Kms},
    message, name, status,
    time::span,
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
            if request.requests.is_empty() || request.requests.len() > BATCH_ITEMS_MAX {
                return Err(Error::invalid("requests", format!("a batch has 1 to {BATCH_ITEMS_MAX} items")));
            }
            let (good, mut bad) = parse_batch(request.requests);
            let mut signed = match good.is_empty() {
                true => Vec::new(),
                false => kms.batch_sign(&call.caller, good, call.deadline).await?,
            }
            .into_iter();
            let in_order = bad.iter_mut().map(|bad| match bad.take() {
                Some(error) => Some(Err(error)),
                None => signed.next(),
            });
            Ok(v1::BatchSignResponse { results: in_order.flatten().map(result).collect() })
        };
        self.0.run(request, verb).await
    }
}

/// The items that core can take, and for each place of the batch the error of one that it cannot.
fn parse_batch(requests: Vec<v1::SignRequest>) -> (Vec<Sign>, Vec<Option<Error>>) {
    let mut good = Vec::with_capacity(requests.len());
    let bad = requests.into_iter().map(|request| parse_sign(request).map(|sign| good.push(sign)).err());
    let bad = bad.collect();
    (good, bad)
}

fn result(result: Result<kms_core::verbs::Signed, Error>) -> v1::BatchSignResult {
    let outcome = match result {
        Ok(signed) => Outcome::Response(message::signed(signed)),
        Err(error) => Outcome::Error(status::message(&error)),
    };
    v1::BatchSignResult { outcome: Some(outcome) }
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

    #[test]
    fn a_malformed_item_of_a_batch_keeps_its_place() {
        let (good, bad) = parse_batch(["keys/a", "odd", "keys/b", "keys/B"].map(request).into());
        let good: Vec<_> = good.iter().map(|sign| sign.id.as_str()).collect();
        let bad: Vec<_> = bad.iter().map(Option::is_some).collect();
        assert_eq!((good, bad), (vec!["a", "b"], vec![false, true, false, true]));
    }
}
