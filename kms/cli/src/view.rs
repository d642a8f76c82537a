//! What commands print: the messages of `kms.v1` with times as RFC 3339, durations as they are typed, and
//! states in lower case. Field names are those of the wire contract; they are part of the interface.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::{SignedDuration, Timestamp};
use kms_client::v1;
use serde::Serialize;

use crate::duration;

/// A key.
#[derive(Debug, Serialize)]
pub(crate) struct Key {
    name: String,
    uid: String,
    algorithm: String,
    purpose: String,
    class: String,
    primary: Option<String>,
    next_rotation_time: Option<String>,
    owner: String,
    labels: BTreeMap<String, String>,
    rotation_period: Option<String>,
    publish_lead: Option<String>,
    max_token_ttl: Option<String>,
    overlap: Option<String>,
    destroy_after: Option<String>,
    /// Which of the periods are the class's.
    inherited: Vec<String>,
    claim_rules: Option<ClaimRules>,
    required_context: Vec<String>,
    create_time: Option<String>,
    update_time: Option<String>,
    etag: String,
}

/// What the claims of a key's tokens must say.
#[derive(Debug, Serialize)]
struct ClaimRules {
    issuers: Vec<String>,
    audiences: Vec<String>,
    required: Vec<String>,
}

/// A class of keys.
#[derive(Debug, Serialize)]
pub(crate) struct KeyClass {
    name: String,
    rotation_period: Option<String>,
    publish_lead: Option<String>,
    max_token_ttl: Option<String>,
    overlap: Option<String>,
    destroy_after: Option<String>,
    approvals: Option<i32>,
    update_time: Option<String>,
    etag: String,
}

/// One version of a key.
#[derive(Debug, Serialize)]
pub(crate) struct KeyVersion {
    name: String,
    number: u32,
    state: String,
    primary: bool,
    kid: String,
    algorithm: String,
    create_time: Option<String>,
    publish_time: Option<String>,
    activate_time: Option<String>,
    retire_time: Option<String>,
    withdraw_time: Option<String>,
    destroy_time: Option<String>,
    emergency: bool,
    compromise_time: Option<String>,
    compromise_reason: Option<String>,
    etag: String,
}

/// The public half of a version.
#[derive(Debug, Serialize)]
pub(crate) struct PublicKey {
    name: String,
    kid: String,
    algorithm: String,
    pem: String,
    jwk: serde_json::Value,
}

/// A signature.
#[derive(Debug, Serialize)]
pub(crate) struct Signature {
    name: String,
    kid: String,
    algorithm: String,
    signature_base64: String,
}

/// What became of a verification.
#[derive(Debug, Serialize)]
pub(crate) struct Verification {
    pub(crate) valid: bool,
    pub(crate) name: Option<String>,
}

/// A signed token.
#[derive(Debug, Serialize)]
pub(crate) struct Jwt {
    token: String,
    name: String,
    kid: String,
    expire_time: Option<String>,
}

/// A signed key set. Its first two fields are what verifiers fetch.
#[derive(Debug, Serialize)]
pub(crate) struct KeySetBundle {
    bundle: String,
    chain: Vec<String>,
    name: String,
    sequence: u64,
    not_before_time: Option<String>,
    not_after_time: Option<String>,
}

#[derive(Debug, Serialize)]
struct KeySetBundleSummary {
    name: String,
    sequence: u64,
    not_before_time: Option<String>,
    not_after_time: Option<String>,
    /// Length of the chain.
    statements: usize,
}

/// An access token, without the credential.
#[derive(Debug, Serialize)]
pub(crate) struct AccessToken {
    name: String,
    role: String,
    all_keys: bool,
    keys: Vec<String>,
    period: Option<String>,
    renewable_until: Option<String>,
    bound_to: Option<String>,
    create_time: Option<String>,
    expire_time: Option<String>,
    revoke_time: Option<String>,
}

/// The objects under one CKA_ID of the token.
#[derive(Debug, Serialize)]
pub(crate) struct HsmObject {
    cka_id: String,
    state: String,
    label: Option<String>,
    private_objects: u32,
    public_objects: u32,
    key_version: Option<String>,
    finding: Option<String>,
    quarantine_note: Option<String>,
    quarantined_by: Option<String>,
    quarantine_time: Option<String>,
}

impl From<v1::Key> for Key {
    fn from(key: v1::Key) -> Self {
        Self {
            name: key.name,
            uid: key.uid,
            algorithm: key.algorithm,
            purpose: key.purpose,
            class: key.class,
            primary: some(key.primary),
            next_rotation_time: key.next_rotation_time.and_then(time_text),
            owner: key.owner,
            labels: key.labels.into_iter().collect(),
            rotation_period: key.rotation_period.and_then(duration_or_never),
            publish_lead: key.publish_lead.and_then(duration_text),
            max_token_ttl: key.max_token_ttl.and_then(duration_text),
            overlap: key.overlap.and_then(duration_text),
            destroy_after: key.destroy_after.and_then(duration_or_never),
            inherited: key.inherited,
            claim_rules: key.claim_rules.map(|rules| ClaimRules {
                issuers: rules.issuers,
                audiences: rules.audiences,
                required: rules.required,
            }),
            required_context: key.required_context,
            create_time: key.create_time.and_then(time_text),
            update_time: key.update_time.and_then(time_text),
            etag: key.etag,
        }
    }
}

impl From<v1::KeyClass> for KeyClass {
    fn from(class: v1::KeyClass) -> Self {
        Self {
            name: class.name,
            rotation_period: class.rotation_period.and_then(duration_or_never),
            publish_lead: class.publish_lead.and_then(duration_text),
            max_token_ttl: class.max_token_ttl.and_then(duration_text),
            overlap: class.overlap.and_then(duration_text),
            destroy_after: class.destroy_after.and_then(duration_or_never),
            approvals: class.approvals,
            update_time: class.update_time.and_then(time_text),
            etag: class.etag,
        }
    }
}

impl From<v1::KeyVersion> for KeyVersion {
    fn from(version: v1::KeyVersion) -> Self {
        Self {
            state: lower(version.state().as_str_name()),
            name: version.name,
            number: version.number,
            primary: version.primary,
            kid: version.kid,
            algorithm: version.algorithm,
            create_time: version.create_time.and_then(time_text),
            publish_time: version.publish_time.and_then(time_text),
            activate_time: version.activate_time.and_then(time_text),
            retire_time: version.retire_time.and_then(time_text),
            withdraw_time: version.withdraw_time.and_then(time_text),
            destroy_time: version.destroy_time.and_then(time_text),
            emergency: version.emergency,
            compromise_time: version.compromise_time.and_then(time_text),
            compromise_reason: some(version.compromise_reason),
            etag: version.etag,
        }
    }
}

impl From<v1::PublicKey> for PublicKey {
    fn from(key: v1::PublicKey) -> Self {
        Self {
            jwk: serde_json::from_str(&key.jwk_json).unwrap_or_default(),
            name: key.name,
            kid: key.kid,
            algorithm: key.algorithm,
            pem: key.pem,
        }
    }
}

impl From<v1::SignResponse> for Signature {
    fn from(response: v1::SignResponse) -> Self {
        Self {
            signature_base64: BASE64_STANDARD.encode(&response.signature),
            name: response.name,
            kid: response.kid,
            algorithm: response.algorithm,
        }
    }
}

impl From<v1::VerifyResponse> for Verification {
    fn from(response: v1::VerifyResponse) -> Self {
        Self { valid: response.valid, name: some(response.name) }
    }
}

impl From<v1::SignJwtResponse> for Jwt {
    fn from(response: v1::SignJwtResponse) -> Self {
        Self {
            expire_time: response.expire_time.and_then(time_text),
            token: response.token,
            name: response.name,
            kid: response.kid,
        }
    }
}

impl From<v1::SignKeySetBundleResponse> for KeySetBundle {
    fn from(response: v1::SignKeySetBundleResponse) -> Self {
        Self {
            bundle: response.bundle,
            chain: response.chain,
            name: response.name,
            sequence: response.sequence,
            not_before_time: response.not_before_time.and_then(time_text),
            not_after_time: response.not_after_time.and_then(time_text),
        }
    }
}

impl From<v1::AccessToken> for AccessToken {
    fn from(token: v1::AccessToken) -> Self {
        Self {
            name: token.name,
            role: token.role,
            all_keys: token.all_keys,
            keys: token.keys,
            period: token.period.and_then(duration_text),
            renewable_until: token.renewable_until.and_then(time_text),
            bound_to: some(token.bound_to),
            create_time: token.create_time.and_then(time_text),
            expire_time: token.expire_time.and_then(time_text),
            revoke_time: token.revoke_time.and_then(time_text),
        }
    }
}

impl From<v1::HsmObject> for HsmObject {
    fn from(object: v1::HsmObject) -> Self {
        Self {
            state: lower(object.state().as_str_name()),
            cka_id: object.cka_id.iter().map(|byte| format!("{byte:02x}")).collect(),
            label: some(object.label),
            private_objects: object.private_objects,
            public_objects: object.public_objects,
            key_version: some(object.key_version),
            finding: some(object.finding),
            quarantine_note: some(object.quarantine_note),
            quarantined_by: some(object.quarantined_by),
            quarantine_time: object.quarantine_time.and_then(time_text),
        }
    }
}

impl PublicKey {
    /// The key alone, as other tools read it.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }
}

impl Signature {
    /// The signature as text, for a terminal.
    pub(crate) fn base64(&self) -> &str {
        &self.signature_base64
    }
}

impl KeySetBundle {
    /// What verifiers fetch, as JSON on one line. The rest says the JWS itself.
    pub(crate) fn document(&self) -> String {
        serde_json::json!({ "bundle": self.bundle, "chain": self.chain }).to_string()
    }

    /// What is to be known of one whose document went to a file.
    pub(crate) fn summary(self) -> impl Serialize {
        let Self { name, sequence, not_before_time, not_after_time, chain, .. } = self;
        KeySetBundleSummary { name, sequence, not_before_time, not_after_time, statements: chain.len() }
    }
}

impl Jwt {
    /// The compact token alone.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }
}

/// A state's name, as it is shown.
pub(crate) fn lower(state: &str) -> String {
    state.to_ascii_lowercase()
}

/// Nothing for nothing.
pub(crate) fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// RFC 3339.
pub(crate) fn time_text(time: prost_types::Timestamp) -> Option<String> {
    Timestamp::new(time.seconds, time.nanos).ok().map(|time| time.to_string())
}

/// As the wire carries a time.
pub(crate) fn time_to_wire(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

/// Of what is done by hand only when it is zero.
fn duration_or_never(duration: prost_types::Duration) -> Option<String> {
    if duration.seconds == 0 { Some("never".to_owned()) } else { duration_text(duration) }
}

fn duration_text(duration: prost_types::Duration) -> Option<String> {
    Some(duration::format(SignedDuration::new(duration.seconds, duration.nanos)))
}
