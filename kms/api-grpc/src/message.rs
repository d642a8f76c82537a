//! Core's views as messages of `kms.v1`.

use kms_core::{
    KeyState,
    caller::KeyScope,
    kms::{KeyView, VersionView},
    store,
    verbs::{PublicKeyView, Signed, SignedJwt, Verified},
};
use kms_proto::v1::{self, key_version::State};

use crate::{
    guards::etag,
    name,
    time::{duration, timestamp},
};

pub(crate) fn key(view: KeyView) -> v1::Key {
    let KeyView { key, primary } = view;
    v1::Key {
        name: name::of_key(&key.id),
        uid: key.uid.to_string(),
        algorithm: key.algorithm.to_string(),
        owner: key.owner,
        labels: key.labels,
        rotation_period: key.rotation_period.map(duration),
        publish_lead: Some(duration(key.publish_lead)),
        max_token_ttl: Some(duration(key.max_token_ttl)),
        create_time: Some(timestamp(key.created_at)),
        update_time: Some(timestamp(key.updated_at)),
        etag: etag(key.revision),
        primary: primary.map(|number| name::of_version(&key.id, number)).unwrap_or_default(),
    }
}

pub(crate) fn key_version(view: VersionView) -> v1::KeyVersion {
    let timeline = view.row.born.as_ref().map(|born| born.timeline);
    let destroyed_at = view.row.destroyed_at.or_else(|| timeline?.destroys_at);
    v1::KeyVersion {
        name: name::of_version(&view.key, view.row.number),
        number: view.row.number,
        state: i32::from(state(view.state)),
        kid: view.row.born.as_ref().map(|born| born.kid.to_string()).unwrap_or_default(),
        algorithm: view.algorithm.to_string(),
        etag: etag(view.revision),
        primary: view.primary,
        create_time: Some(timestamp(view.row.created_at)),
        publish_time: timeline.map(|timeline| timestamp(timeline.published_at)),
        activate_time: timeline.map(|timeline| timestamp(timeline.activates_at)),
        retire_time: timeline.and_then(|timeline| timeline.retires_at).map(timestamp),
        withdraw_time: timeline.and_then(|timeline| timeline.withdrawn_at).map(timestamp),
        destroy_time: destroyed_at.map(timestamp),
    }
}

pub(crate) fn public_key(view: PublicKeyView) -> v1::PublicKey {
    v1::PublicKey {
        name: name::of_version(&view.key, view.version),
        pem: view.pem,
        spki_der: view.spki_der.to_vec(),
        jwk_json: view.jwk,
        algorithm: view.algorithm.to_string(),
        kid: view.kid.to_string(),
    }
}

pub(crate) fn signed(signed: Signed) -> v1::SignResponse {
    v1::SignResponse {
        name: name::of_version(&signed.key, signed.version),
        signature: signed.signature,
        kid: signed.kid.to_string(),
        algorithm: signed.algorithm.to_string(),
    }
}

pub(crate) fn verified(key: &kms_core::KeyId, verified: Verified) -> v1::VerifyResponse {
    v1::VerifyResponse {
        valid: verified.valid,
        name: verified.version.map(|number| name::of_version(key, number)).unwrap_or_default(),
    }
}

pub(crate) fn signed_jwt(jwt: SignedJwt) -> v1::SignJwtResponse {
    v1::SignJwtResponse {
        name: name::of_version(&jwt.key, jwt.version),
        token: jwt.token,
        kid: jwt.kid.to_string(),
        expire_time: Some(timestamp(jwt.expires_at)),
    }
}

pub(crate) fn access_token(token: store::AccessToken) -> v1::AccessToken {
    let (keys, all_keys) = match &token.scope {
        KeyScope::All => (Vec::new(), true),
        KeyScope::Only(keys) => (keys.iter().map(name::of_key).collect(), false),
    };
    v1::AccessToken {
        name: name::of_access_token(&token.name),
        role: token.role.to_string(),
        keys,
        all_keys,
        create_time: Some(timestamp(token.created_at)),
        expire_time: token.expires_at.map(timestamp),
        revoke_time: token.revoked_at.map(timestamp),
    }
}

fn state(state: Option<KeyState>) -> State {
    match state {
        None => State::PendingCreation,
        Some(KeyState::PreActivation) => State::PreActivation,
        Some(KeyState::Active) => State::Active,
        Some(KeyState::Suspended) => State::Suspended,
        Some(KeyState::Deactivated) => State::Deactivated,
        Some(KeyState::Compromised) => State::Compromised,
        Some(KeyState::Destroyed) => State::Destroyed,
    }
}
