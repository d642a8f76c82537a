//! Requests about keys, parsed.

use std::str::FromStr;

use kms_core::{
    Error, KeyId,
    claim_rules::ClaimRules,
    class::{AskedPeriods, KeyClass, PeriodChanges},
    key::{Purpose, TakeOver},
    time::SignedDuration,
    verbs::{ChangeVersion, CreateKey, RotateKey, UpdateKey, UpdateKeyClass},
};
use kms_proto::v1;

use crate::{
    guards,
    mask::{KeyField, Mask},
    name,
    time::{instant, span},
};

pub(crate) fn parse_create(request: v1::CreateKeyRequest) -> Result<CreateKey, Error> {
    let id: KeyId = request.key_id.parse()?;
    let key = request.key.ok_or_else(|| Error::invalid("key", "a key with an algorithm is required"))?;
    if !key.name.is_empty() && key.name != name::of_key(&id) {
        return Err(Error::invalid("key.name", "the name is empty or keys/{key_id}"));
    }
    let algorithm = key.algorithm.parse()?;
    Ok(CreateKey {
        algorithm,
        purpose: match key.purpose.as_str() {
            "" => Purpose::of(algorithm),
            purpose => purpose.parse()?,
        },
        class: or_default(&key.class)?,
        owner: key.owner,
        labels: key.labels,
        periods: AskedPeriods {
            rotation_period: optional_span("rotation_period", key.rotation_period)?,
            publish_lead: optional_span("publish_lead", key.publish_lead)?,
            max_token_ttl: optional_span("max_token_ttl", key.max_token_ttl)?,
            overlap: optional_span("overlap", key.overlap)?,
            destroy_after: optional_span("destroy_after", key.destroy_after)?,
        },
        claim_rules: claim_rules(key.claim_rules),
        required_context: key.required_context,
        request: guards::parse(&request.request_id, "")?,
        id,
    })
}

pub(crate) fn parse_update(request: v1::UpdateKeyRequest) -> Result<UpdateKey, Error> {
    let key = request.key.ok_or_else(|| Error::invalid("key", "a key with its name is required"))?;
    let mask = Mask::parse(request.update_mask.as_ref(), KeyField::OF_KEY, |field| field.is_set(&key))?;
    let change = |field, name, span| changed_span(mask.has(field), name, span);
    Ok(UpdateKey {
        id: name::key("key.name", &key.name)?,
        class: mask.has(KeyField::Class).then(|| or_default(&key.class)).transpose()?,
        periods: PeriodChanges {
            rotation_period: change(KeyField::RotationPeriod, "rotation_period", key.rotation_period)?,
            publish_lead: change(KeyField::PublishLead, "publish_lead", key.publish_lead)?,
            max_token_ttl: change(KeyField::MaxTokenTtl, "max_token_ttl", key.max_token_ttl)?,
            overlap: change(KeyField::Overlap, "overlap", key.overlap)?,
            destroy_after: change(KeyField::DestroyAfter, "destroy_after", key.destroy_after)?,
        },
        claim_rules: mask.has(KeyField::ClaimRules).then(|| claim_rules(key.claim_rules)),
        required_context: mask.has(KeyField::RequiredContext).then_some(key.required_context),
        owner: mask.has(KeyField::Owner).then_some(key.owner),
        labels: mask.has(KeyField::Labels).then_some(key.labels),
        request: guards::parse(&request.request_id, &key.etag)?,
    })
}

pub(crate) fn parse_update_class(request: v1::UpdateKeyClassRequest) -> Result<UpdateKeyClass, Error> {
    let class =
        request.key_class.ok_or_else(|| Error::invalid("key_class", "a class with its name is required"))?;
    let mask = Mask::parse(request.update_mask.as_ref(), KeyField::OF_CLASS, |field| match field {
        KeyField::RotationPeriod => class.rotation_period.is_some(),
        KeyField::PublishLead => class.publish_lead.is_some(),
        KeyField::MaxTokenTtl => class.max_token_ttl.is_some(),
        KeyField::Overlap => class.overlap.is_some(),
        KeyField::DestroyAfter => class.destroy_after.is_some(),
        KeyField::Approvals => class.approvals.is_some(),
        _ => false,
    })?;
    let change = |field, name, span| changed_span(mask.has(field), name, span);
    let name = name::key_class("key_class.name", &class.name)?;
    let approvals = || optional_count(class.approvals, KeyClass::built_in(name).approvals);
    Ok(UpdateKeyClass {
        name,
        approvals: mask.has(KeyField::Approvals).then(approvals).transpose()?,
        periods: PeriodChanges {
            rotation_period: change(KeyField::RotationPeriod, "rotation_period", class.rotation_period)?,
            publish_lead: change(KeyField::PublishLead, "publish_lead", class.publish_lead)?,
            max_token_ttl: change(KeyField::MaxTokenTtl, "max_token_ttl", class.max_token_ttl)?,
            overlap: change(KeyField::Overlap, "overlap", class.overlap)?,
            destroy_after: change(KeyField::DestroyAfter, "destroy_after", class.destroy_after)?,
        },
        etag: guards::parse("", &class.etag)?.etag,
    })
}

pub(crate) fn parse_rotate(request: &v1::RotateKeyRequest) -> Result<RotateKey, Error> {
    let takes_over = match (&request.activate_time, request.emergency) {
        (Some(_), true) => {
            return Err(Error::invalid(
                "activate_time",
                "an emergency rotation takes over at once; leave activate_time or emergency out",
            ));
        }
        (Some(at), false) => TakeOver::At(instant("activate_time", at)?),
        (None, true) => TakeOver::AtOnce,
        (None, false) => TakeOver::AfterLead,
    };
    let id = name::key("name", &request.name)?;
    Ok(RotateKey { id, takes_over, request: guards::parse(&request.request_id, &request.etag)? })
}

/// How many must approve; absent for as many as it is built in.
fn optional_count(count: Option<i32>, built_in: u32) -> Result<u32, Error> {
    let wrong = |_| Error::invalid("approvals", "a number of approvals is not negative; 0 for none");
    count.map_or(Ok(built_in), |count| u32::try_from(count).map_err(wrong))
}

/// `None` leaves a period as it is, `Some(None)` gives it back.
fn changed_span(
    is_named: bool,
    field: &'static str,
    duration: Option<prost_types::Duration>,
) -> Result<Option<Option<SignedDuration>>, Error> {
    if is_named { optional_span(field, duration).map(Some) } else { Ok(None) }
}

/// An empty text stands for the default.
fn or_default<T: FromStr<Err = Error> + Default>(text: &str) -> Result<T, Error> {
    if text.is_empty() { Ok(T::default()) } else { text.parse() }
}

fn claim_rules(rules: Option<v1::ClaimRules>) -> ClaimRules {
    let v1::ClaimRules { issuers, audiences, required } = rules.unwrap_or_default();
    ClaimRules { issuers, audiences, required }
}

pub(crate) fn parse_change(name: &str, request_id: &str, etag: &str) -> Result<ChangeVersion, Error> {
    let (id, number) = name::version("name", name)?;
    Ok(ChangeVersion { id, number, request: guards::parse(request_id, etag)? })
}

pub(crate) fn optional_span(
    field: &'static str,
    duration: Option<prost_types::Duration>,
) -> Result<Option<SignedDuration>, Error> {
    duration.map(|duration| span(field, &duration)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(change: impl FnOnce(&mut v1::Key)) -> Result<CreateKey, Error> {
        let mut key = v1::Key { algorithm: "ES256".into(), ..v1::Key::default() };
        change(&mut key);
        parse_create(v1::CreateKeyRequest { key_id: "k".into(), key: Some(key), request_id: String::new() })
    }

    #[test]
    fn each_wrong_field_of_a_new_key_is_named() {
        let field = |result: Result<CreateKey, Error>| result.err().and_then(|error| error.field());
        let odd = prost_types::Duration { seconds: 1, nanos: -1 };
        assert_eq!(field(create(|key| key.algorithm = "none".into())), Some("algorithm"));
        assert_eq!(field(create(|key| key.name = "keys/other".into())), Some("key.name"));
        assert_eq!(field(create(|key| key.publish_lead = Some(odd))), Some("publish_lead"));
        assert_eq!(field(parse_create(v1::CreateKeyRequest::default())), Some("key_id"));
        let empty = v1::CreateKeyRequest { key_id: "k".into(), ..v1::CreateKeyRequest::default() };
        assert_eq!(field(parse_create(empty)), Some("key"));
    }

    #[test]
    fn approvals_of_a_class_change_where_they_are_meant_and_are_never_negative() {
        let update = |approvals, paths: &[&str]| {
            let key_class =
                v1::KeyClass { name: "keyClasses/root".into(), approvals, ..v1::KeyClass::default() };
            let mask = (!paths.is_empty())
                .then(|| prost_types::FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
            let request = v1::UpdateKeyClassRequest { key_class: Some(key_class), update_mask: mask };
            parse_update_class(request).map(|update| update.approvals)
        };
        assert_eq!(update(Some(2), &[]), Ok(Some(2)));
        assert_eq!(update(Some(2), &["overlap"]), Ok(None));
        assert_eq!(update(None, &["approvals"]), Ok(Some(1)), "as it is built in");
        assert_eq!(update(Some(-1), &[]).err().and_then(|error| error.field()), Some("approvals"));
    }

    #[test]
    fn a_masked_field_that_is_absent_goes_back_to_its_default() {
        let request = v1::UpdateKeyRequest {
            key: Some(v1::Key { name: "keys/k".into(), owner: "kept".into(), ..v1::Key::default() }),
            update_mask: Some(prost_types::FieldMask {
                paths: ["labels", "rotation_period", "publish_lead"].map(str::to_owned).into(),
            }),
            request_id: String::new(),
        };
        let update = parse_update(request).expect("well-formed");
        assert_eq!((update.owner, update.periods.max_token_ttl), (None, None));
        assert_eq!(update.labels, Some(kms_core::key::Labels::new()));
        assert_eq!((update.periods.rotation_period, update.periods.publish_lead), (Some(None), Some(None)));
    }
}
