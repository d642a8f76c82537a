//! The verbs: one file each, all of one shape. Read `sign.rs` first.

mod access_tokens;
mod attribute_audit;
mod birth;
mod create_key;
mod cross_sign;
mod due;
mod epoch;
mod inventory;
mod jwks;
mod key_classes;
mod key_set_bundle;
mod quarantine;
mod read;
mod requests;
mod resumption;
mod revoke_key_version;
mod rotate_key;
mod rotations;
mod sign;
mod sign_jwt;
mod status;
mod update_key;
mod verify;
mod version_states;

pub(crate) use jwks::MAX_AGE_MAX;
pub(crate) use resumption::Births;
pub(crate) use rotations::RotationFailures;

pub use access_tokens::{CREDENTIAL_PREFIX, CreateAccessToken, bootstrap};
pub use attribute_audit::AttributeAudits;
pub use create_key::CreateKey;
pub use jwks::PublishedKeys;
pub use key_classes::UpdateKeyClass;
pub use key_set_bundle::{BUNDLE_KEYS_MAX, KeySetBundle, SignKeySetBundle};
pub use quarantine::{NOTE_LEN_MAX, Quarantine};
pub use read::{KeyPage, ListKeys, PAGE_LEN_MAX, PublicKeyView};
pub use requests::{ChangeVersion, Request};
pub use revoke_key_version::{RevokeKeyVersion, Revoked};
pub use rotate_key::{PUBLISHED_VERSIONS_MAX, RotateKey};
pub use rotations::{KeyRotation, OVERDUE_AFTER, Rotations};
pub use sign::{BATCH_ITEMS_MAX, Encoding, MESSAGE_LEN_MAX, Sign, Signed, ToSign};
pub use sign_jwt::{CLAIMS_LEN_MAX, SignJwt, SignedJwt, TYP_LEN_MAX};
pub use status::{BackgroundWork, ReplicaState, ReplicaStatus, Status};
pub use update_key::UpdateKey;
pub use verify::{Verified, Verify};
