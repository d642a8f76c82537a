//! Core's views as messages of `kms.v1`.

use kms_core::{
    KeyState, Kid,
    caller::{KeyScope, OwnRole},
    claim_rules::ClaimRules,
    class::{KeyClass, Periods},
    key::TakeOver,
    kms::{KeyView, VersionView},
    store,
    time::SignedDuration,
    verbs::{KeySetBundle, KeyUsage, PublicKeyView, Revoked, Signed, SignedJwt, Verified},
};
use kms_proto::v1::{self, key_version::State};

use crate::{
    guards::etag,
    name,
    time::{duration, timestamp},
};

pub(crate) fn key(view: KeyView) -> v1::Key {
    let KeyView { key, primary, next_rotation } = view;
    let periods = periods(&key.periods());
    v1::Key {
        name: name::of_key(&key.id),
        uid: key.uid.to_string(),
        algorithm: key.algorithm.to_string(),
        owner: key.owner,
        labels: key.labels,
        rotation_period: periods.rotation_period,
        publish_lead: periods.publish_lead,
        max_token_ttl: periods.max_token_ttl,
        overlap: periods.overlap,
        destroy_after: periods.destroy_after,
        purpose: key.purpose.to_string(),
        class: key.class.to_string(),
        inherited: key.inherited.names().map(str::to_owned).collect(),
        claim_rules: (key.claim_rules != ClaimRules::default()).then(|| claim_rules(key.claim_rules)),
        required_context: key.required_context,
        next_rotation_time: next_rotation.map(timestamp),
        create_time: Some(timestamp(key.created_at)),
        update_time: Some(timestamp(key.updated_at)),
        etag: etag(key.revision),
        primary: primary.map(|number| name::of_version(&key.id, number)).unwrap_or_default(),
    }
}

/// A class; its periods as those of a key are told.
pub(crate) fn key_class(class: &KeyClass) -> v1::KeyClass {
    v1::KeyClass {
        name: name::of_key_class(class.name),
        update_time: class.updated_at.map(timestamp),
        etag: etag(class.revision),
        approvals: Some(i32::try_from(class.approvals).unwrap_or(i32::MAX)),
        ..periods(&class.periods)
    }
}

/// Zero for what is done by hand only.
fn periods(periods: &Periods) -> v1::KeyClass {
    let or_never = |span: Option<SignedDuration>| Some(duration(span.unwrap_or(SignedDuration::ZERO)));
    v1::KeyClass {
        rotation_period: or_never(periods.rotation_period),
        publish_lead: Some(duration(periods.publish_lead)),
        max_token_ttl: Some(duration(periods.max_token_ttl)),
        overlap: Some(duration(periods.overlap)),
        destroy_after: or_never(periods.destroy_after),
        ..v1::KeyClass::default()
    }
}

fn claim_rules(rules: ClaimRules) -> v1::ClaimRules {
    let ClaimRules { issuers, audiences, required } = rules;
    v1::ClaimRules { issuers, audiences, required }
}

pub(crate) fn revoked(revoked: Revoked) -> v1::RevokeKeyVersionResponse {
    v1::RevokeKeyVersionResponse {
        key_version: Some(key_version(revoked.version)),
        successor: revoked.successor.map(key_version),
    }
}

pub(crate) fn key_version(view: VersionView) -> v1::KeyVersion {
    let timeline = view.row.born.as_ref().map(|born| born.timeline);
    let kid = view.row.born.as_ref().and_then(|born| born.material.kid()).map(Kid::to_string);
    let destroyed_at = view.row.destroyed_at.or_else(|| timeline?.destroys_at);
    v1::KeyVersion {
        name: name::of_version(&view.key, view.row.number),
        number: view.row.number,
        state: i32::from(state(view.state)),
        kid: kid.unwrap_or_default(),
        algorithm: view.algorithm.to_string(),
        etag: etag(view.revision),
        primary: view.primary,
        create_time: Some(timestamp(view.row.created_at)),
        publish_time: timeline.map(|timeline| timestamp(timeline.published_at)),
        activate_time: timeline.map(|timeline| timestamp(timeline.activates_at)),
        retire_time: timeline.and_then(|timeline| timeline.retires_at).map(timestamp),
        withdraw_time: timeline.and_then(|timeline| timeline.withdrawn_at).map(timestamp),
        destroy_time: destroyed_at.map(timestamp),
        emergency: view.row.takes_over == TakeOver::AtOnce,
        compromise_time: view.row.compromise.as_ref().map(|compromise| timestamp(compromise.at)),
        compromise_reason: view.row.compromise.map(|compromise| compromise.reason).unwrap_or_default(),
    }
}

pub(crate) fn key_usage(usage: KeyUsage) -> v1::KeyUsage {
    let KeyUsage { key, versions, consumers } = usage;
    let versions = versions.into_iter().map(|version| {
        let used = version.used.as_ref();
        v1::VersionUsage {
            name: name::of_version(&key, version.number),
            number: version.number,
            primary: version.is_primary,
            state: i32::from(state(version.state)),
            wraps_reserved: used.map_or(0, |used| used.reserved),
            wraps_max: version.wraps_max,
            last_wrap_time: used.and_then(|used| used.wrapped_at).map(timestamp),
            last_unwrap_time: used.and_then(|used| used.unwrapped_at).map(timestamp),
            envelopes: version.envelopes,
            destruction_blockers: version.blockers,
        }
    });
    let versions = versions.collect();
    let consumers = consumers.into_iter().map(|said| v1::Consumer {
        consumer: said.consumer.to_string(),
        envelopes: said.envelopes,
        report_time: Some(timestamp(said.at)),
        reporter: said.by,
    });
    v1::KeyUsage { name: name::of_key(&key), versions, consumers: consumers.collect() }
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

pub(crate) fn key_set_bundle(bundle: KeySetBundle) -> v1::SignKeySetBundleResponse {
    v1::SignKeySetBundleResponse {
        name: name::of_version(&bundle.key, bundle.version),
        bundle: bundle.bundle,
        sequence: bundle.sequence,
        not_before_time: Some(timestamp(bundle.not_before)),
        not_after_time: Some(timestamp(bundle.not_after)),
        chain: bundle.chain.iter().map(|statement| (**statement).to_owned()).collect(),
    }
}

pub(crate) fn access_token(token: store::AccessToken) -> v1::AccessToken {
    let (keys, all_keys) = match token.own.as_ref().map(|own| &own.keys) {
        None => (Vec::new(), false),
        Some(KeyScope::All) => (Vec::new(), true),
        Some(KeyScope::Only(keys)) => (keys.iter().map(name::of_key).collect(), false),
    };
    v1::AccessToken {
        name: name::of_access_token(&token.name),
        role: token.own.map(|OwnRole { role, .. }| role.to_string()).unwrap_or_default(),
        keys,
        all_keys,
        period: token.period.map(duration),
        renewable_until: token.renewable_until.map(timestamp),
        bound_to: token.bound_to.map(|principal| principal.to_string()).unwrap_or_default(),
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
