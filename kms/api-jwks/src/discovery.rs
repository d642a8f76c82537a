//! OpenID Provider Metadata (OpenID Connect Discovery 1.0 §3), as far as somebody has it who signs tokens and
//! has no authorization endpoint: enough for every verifier that starts from an issuer.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::{body::Bytes, http::HeaderValue};
use kms_core::{algorithm::Hash, verbs::PublishedKeys};
use serde_json::json;

use crate::conditional::{self, Document, cache_control};

/// Where the keys of all names stand.
pub(crate) const JWKS_PATH: &str = "/.well-known/jwks.json";

/// What never changes while we run, and the text that was made of it last.
pub(crate) struct Discovery {
    issuer: String,
    jwks_uri: String,
    written: ArcSwapOption<Written>,
}

/// The text for some algorithms.
struct Written {
    algorithms: Arc<[&'static str]>,
    body: Bytes,
    etag: HeaderValue,
}

impl Discovery {
    pub(crate) fn new(issuer: &str) -> Self {
        let jwks_uri = format!("{issuer}{JWKS_PATH}");
        Self { issuer: issuer.to_owned(), jwks_uri, written: ArcSwapOption::empty() }
    }

    /// The document, for the keys that are published now.
    pub(crate) fn document(&self, keys: &PublishedKeys) -> Document {
        let kept = self.written.load();
        let written = match &*kept {
            Some(written) if written.algorithms == keys.algorithms => Arc::clone(written),
            _ => {
                let written = Arc::new(self.write(&keys.algorithms));
                self.written.store(Some(Arc::clone(&written)));
                written
            }
        };
        Document {
            content_type: HeaderValue::from_static("application/json"),
            body: written.body.clone(),
            etag: written.etag.clone(),
            cache_control: cache_control(keys.max_age_seconds),
        }
    }

    fn write(&self, algorithms: &Arc<[&'static str]>) -> Written {
        let metadata = json!({
            "issuer": self.issuer,
            "jwks_uri": self.jwks_uri,
            "id_token_signing_alg_values_supported": **algorithms,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
        });
        let body = metadata.to_string();
        let etag = conditional::etag(etag(body.as_bytes()).into());
        Written { algorithms: Arc::clone(algorithms), body: body.into(), etag }
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

    fn keys(algorithms: &[&'static str]) -> PublishedKeys {
        PublishedKeys {
            body: Bytes::from_static(b"{}"),
            etag: Bytes::from_static(b"\"x\""),
            max_age_seconds: 60,
            algorithms: algorithms.into(),
        }
    }

    fn metadata(document: &Document) -> serde_json::Value {
        serde_json::from_slice(&document.body).expect("JSON")
    }

    #[test]
    fn the_issuer_stands_there_exactly_as_given() {
        let document = Discovery::new("https://KMS.example.com/Tenant").document(&keys(&["ES256", "RS256"]));
        let metadata = metadata(&document);
        assert_eq!(metadata["issuer"], "https://KMS.example.com/Tenant");
        assert_eq!(metadata["jwks_uri"], "https://KMS.example.com/Tenant/.well-known/jwks.json");
        assert_eq!(metadata["id_token_signing_alg_values_supported"], json!(["ES256", "RS256"]));
        assert_eq!(document.cache_control, "public, max-age=60");
        assert_eq!(document.etag.len(), 34);
    }

    #[test]
    fn the_text_that_is_kept_is_of_the_algorithms_that_are_asked_for() {
        let discovery = Discovery::new("https://kms.example.com");
        for algorithms in [&["ES256"][..], &["ES256", "RS256"], &[], &["ES256"], &["ES256"]] {
            let document = discovery.document(&keys(algorithms));
            assert_eq!(metadata(&document)["id_token_signing_alg_values_supported"], json!(algorithms));
            assert_eq!(document.etag.as_bytes(), etag(&document.body).as_bytes());
        }
    }
}
