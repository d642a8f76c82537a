//! OpenID Provider Metadata (OpenID Connect Discovery 1.0 §3), as far as somebody has it who signs tokens and
//! has no authorization endpoint: enough for every verifier that starts from an issuer.

use axum::body::Bytes;
use kms_core::{algorithm::Hash, verbs::PublishedKeys};
use serde_json::json;

use crate::conditional::Document;

/// Where the keys of all names stand.
pub(crate) const JWKS_PATH: &str = "/.well-known/jwks.json";

/// What never changes while we run.
pub(crate) struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Discovery {
    pub(crate) fn new(issuer: &str) -> Self {
        Self { issuer: issuer.to_owned(), jwks_uri: format!("{issuer}{JWKS_PATH}") }
    }

    /// The document, for the keys that are published now.
    pub(crate) fn document(&self, keys: &PublishedKeys) -> Document {
        let metadata = json!({
            "issuer": self.issuer,
            "jwks_uri": self.jwks_uri,
            "id_token_signing_alg_values_supported": keys.algorithms,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
        });
        let body = metadata.to_string();
        Document {
            content_type: "application/json",
            etag: etag(body.as_bytes()),
            body: Bytes::from(body),
            max_age_seconds: keys.max_age_seconds,
        }
    }
}

/// A strong entity tag: the first half of the SHA-256, in hexadecimal.
fn etag(body: &[u8]) -> String {
    let digest = Hash::Sha256.digest(body);
    let hex: String = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issuer_stands_there_exactly_as_given() {
        let keys = PublishedKeys {
            body: b"{}".as_slice().into(),
            etag: "\"x\"".into(),
            max_age_seconds: 60,
            algorithms: vec!["ES256", "RS256"],
        };
        let document = Discovery::new("https://KMS.example.com/Tenant").document(&keys);
        let metadata: serde_json::Value = serde_json::from_slice(&document.body).expect("JSON");
        assert_eq!(metadata["issuer"], "https://KMS.example.com/Tenant");
        assert_eq!(metadata["jwks_uri"], "https://KMS.example.com/Tenant/.well-known/jwks.json");
        assert_eq!(metadata["id_token_signing_alg_values_supported"], json!(["ES256", "RS256"]));
        assert_eq!(document.max_age_seconds, 60);
        assert_eq!(document.etag.len(), 34);
    }
}
