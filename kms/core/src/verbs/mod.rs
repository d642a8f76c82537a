//! The verbs: one file each, all of one shape. Read `sign.rs` first.

mod access_tokens;
mod attribute_audit;
mod batch;
mod birth;
mod create_key;
mod cross_sign;
mod decrypt;
mod due;
mod encrypt;
mod epoch;
mod generate_data_key;
mod inventory;
mod jwks;
mod key_classes;
mod key_set_bundle;
mod key_usage;
mod policies;
mod proposals;
mod quarantine;
mod read;
mod requests;
mod resumption;
mod revoke_key_version;
mod rewrap_key;
mod role_bindings;
mod rotate_key;
mod rotations;
mod sign;
mod sign_jwt;
mod status;
mod unwrap_key;
mod update_key;
mod verify;
mod version_states;
mod wrap_key;
mod wrapping;

pub(crate) use jwks::MAX_AGE_MAX;
pub(crate) use resumption::Births;
pub(crate) use rotations::RotationFailures;

pub use access_tokens::{Bootstrap, CREDENTIAL_PREFIX, CreateAccessToken, bootstrap};
pub use attribute_audit::AttributeAudits;
pub use batch::BATCH_ITEMS_MAX;
pub use create_key::CreateKey;
pub use decrypt::{Decrypt, ENVELOPE_LEN_MAX};
pub use encrypt::{Encrypt, Encrypted, PAYLOAD_LEN_MAX};
pub use generate_data_key::{DATA_KEY_LEN, DataKeyMade, GenerateDataKey};
pub use jwks::PublishedKeys;
pub use key_classes::UpdateKeyClass;
pub use key_set_bundle::{BUNDLE_KEYS_MAX, KeySetBundle, SignKeySetBundle};
pub use key_usage::{
    ATTESTATION_LEN_MAX, CONSUMERS_MAX, Confirmation, KeyUsage, REPORTED_VERSIONS_MAX, ReportUsage,
    VersionUsage,
};
pub use policies::{Explanation, QUESTIONS_MAX, Question, SetPolicy};
pub use proposals::{CastVote, Executed, ProposalView};
pub use quarantine::{NOTE_LEN_MAX, Quarantine};
pub use read::{KeyPage, ListKeys, PAGE_LEN_MAX, PublicKeyView};
pub use requests::{ChangeVersion, Request};
pub use revoke_key_version::{RevokeKeyVersion, Revoked};
pub use rewrap_key::{ReEncrypt, RewrapKey, Rewrapped};
pub use role_bindings::{CallerView, CreateRoleBinding};
pub use rotate_key::{PUBLISHED_VERSIONS_MAX, RotateKey};
pub use rotations::{KeyRotation, OVERDUE_AFTER, Rotations};
pub use sign::{Encoding, MESSAGE_LEN_MAX, Sign, Signed, ToSign};
pub use sign_jwt::{CLAIMS_LEN_MAX, SignJwt, SignedJwt, TYP_LEN_MAX};
pub use status::{BackgroundWork, ReplicaState, ReplicaStatus, Status};
pub use unwrap_key::{Opened, UnwrapKey};
pub use update_key::UpdateKey;
pub use verify::{Verified, Verify};
pub use wrap_key::WrapKey;
pub use wrapping::{WRAPPED_LEN_MAX, WRAPPED_LEN_MIN, Wrapped};
