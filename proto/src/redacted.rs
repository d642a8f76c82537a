//! Debug for messages that carry payloads, signatures, tokens or credentials: lengths instead of bytes.
//!
//! `build.rs` turns the derived Debug of these messages off, so that forgetting one here does not compile where
//! it matters: whatever contains it asks for its Debug.

use std::fmt;

use crate::v1::{
    AcceptOlderStoreRequest, CreateAccessTokenResponse, DecryptResponse, EncryptRequest,
    ExecuteProposalResponse, GenerateDataKeyResponse, SignJwtRequest, SignJwtResponse, SignRequest,
    SignResponse, UnwrapKeyResponse, VerifyRequest, WrapKeyRequest, sign_request, verify_request,
};

/// Stands for bytes that must not be shown.
struct Redacted(usize);

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0)
    }
}

impl fmt::Debug for SignRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignRequest")
            .field("name", &self.name)
            .field("input", &self.input)
            .field("signature_format", &self.signature_format())
            .finish()
    }
}

impl fmt::Debug for sign_request::Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(bytes) => f.debug_tuple("Message").field(&Redacted(bytes.len())).finish(),
            Self::Digest(bytes) => f.debug_tuple("Digest").field(&Redacted(bytes.len())).finish(),
        }
    }
}

impl fmt::Debug for SignResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignResponse")
            .field("name", &self.name)
            .field("signature", &Redacted(self.signature.len()))
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .finish()
    }
}

impl fmt::Debug for VerifyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyRequest")
            .field("name", &self.name)
            .field("input", &self.input)
            .field("signature", &Redacted(self.signature.len()))
            .field("signature_format", &self.signature_format())
            .finish()
    }
}

impl fmt::Debug for verify_request::Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(bytes) => f.debug_tuple("Message").field(&Redacted(bytes.len())).finish(),
            Self::Digest(bytes) => f.debug_tuple("Digest").field(&Redacted(bytes.len())).finish(),
        }
    }
}

impl fmt::Debug for SignJwtRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignJwtRequest")
            .field("name", &self.name)
            .field("claims_json", &Redacted(self.claims_json.len()))
            .field("ttl", &self.ttl)
            .field("type", &self.r#type)
            .finish()
    }
}

impl fmt::Debug for SignJwtResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignJwtResponse")
            .field("token", &Redacted(self.token.len()))
            .field("name", &self.name)
            .field("kid", &self.kid)
            .field("expire_time", &self.expire_time)
            .finish()
    }
}

impl fmt::Debug for WrapKeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrapKeyRequest")
            .field("name", &self.name)
            .field("plaintext", &Redacted(self.plaintext.len()))
            .field("encryption_context", &self.encryption_context.len())
            .field("data_key_id", &Redacted(self.data_key_id.len()))
            .finish()
    }
}

impl fmt::Debug for UnwrapKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnwrapKeyResponse")
            .field("name", &self.name)
            .field("plaintext", &Redacted(self.plaintext.len()))
            .field("primary", &self.primary)
            .finish()
    }
}

impl fmt::Debug for GenerateDataKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GenerateDataKeyResponse")
            .field("name", &self.name)
            .field("plaintext", &Redacted(self.plaintext.len()))
            .field("wrapped_key", &Redacted(self.wrapped_key.len()))
            .finish()
    }
}

impl fmt::Debug for EncryptRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptRequest")
            .field("name", &self.name)
            .field("plaintext", &Redacted(self.plaintext.len()))
            .field("encryption_context", &self.encryption_context.len())
            .field("payload_context", &self.payload_context.len())
            .finish()
    }
}

impl fmt::Debug for DecryptResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecryptResponse")
            .field("name", &self.name)
            .field("plaintext", &Redacted(self.plaintext.len()))
            .field("primary", &self.primary)
            .finish()
    }
}

impl fmt::Debug for CreateAccessTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateAccessTokenResponse")
            .field("access_token", &self.access_token)
            .field("secret", &Redacted(self.secret.len()))
            .finish()
    }
}

impl fmt::Debug for ExecuteProposalResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecuteProposalResponse")
            .field("proposal", &self.proposal)
            .field("access_token", &self.access_token)
            .field("secret", &Redacted(self.secret.len()))
            .finish()
    }
}

impl fmt::Debug for AcceptOlderStoreRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptOlderStoreRequest").field("confirm", &Redacted(self.confirm.len())).finish()
    }
}
