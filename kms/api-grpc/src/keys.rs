//! `kms.v1.KeyService`: managing keys and their versions.

use std::str::FromStr;

use kms_core::{
    AuditLog, Clock, Error, Hsm, KeyId, Store,
    claim_rules::ClaimRules,
    class::{AskedPeriods, PeriodChanges},
    key::{Purpose, TakeOver},
    kms::VersionView,
    time::SignedDuration,
    verbs::{
        ChangeVersion, Confirmation, CreateKey, ListKeys, ReportUsage, RevokeKeyVersion, RotateKey,
        SignKeySetBundle, UpdateKey, UpdateKeyClass,
    },
};
use kms_proto::v1;
use tonic::{Request, Response, Status};

use crate::{
    call::{Call, Door, Kms},
    guards,
    mask::{KeyField, Mask},
    message, name, page,
    time::{instant, span},
};

/// The service. Its requests must carry a [`kms_core::Caller`].
pub struct KeyService<H, S, A, C>(pub(crate) Door<H, S, A, C>);

#[tonic::async_trait]
impl<H: Hsm, S: Store, A: AuditLog, C: Clock> v1::key_service_server::KeyService for KeyService<H, S, A, C> {
    async fn create_key(&self, request: Request<v1::CreateKeyRequest>) -> Result<Response<v1::Key>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request| async move {
            let request = parse_create(request)?;
            kms.create_key(&call.caller, request, call.deadline).await.map(message::key)
        };
        self.0.run_detached(request, verb).await
    }

    async fn get_key(&self, request: Request<v1::GetKeyRequest>) -> Result<Response<v1::Key>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::GetKeyRequest| async move {
            let id = name::key("name", &request.name)?;
            kms.get_key(&call.caller, &id).await.map(message::key)
        };
        self.0.run(request, verb).await
    }

    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<v1::ListKeysResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::ListKeysRequest| async move {
            let list = ["ListKeys", request.filter.as_str()];
            let after = page::start(&request.page_token, list)?.map(|id| id.parse()).transpose()?;
            let limit = page::len(request.page_size)?;
            let filter = Some(request.filter.clone());
            let page = kms.list_keys(&call.caller, ListKeys { after, limit, filter }).await?;
            Ok(v1::ListKeysResponse {
                keys: page.keys.into_iter().map(message::key).collect(),
                next_page_token: page.next.map(|last| page::token(last.as_str(), list)).unwrap_or_default(),
            })
        };
        self.0.run(request, verb).await
    }

    async fn update_key(&self, request: Request<v1::UpdateKeyRequest>) -> Result<Response<v1::Key>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request| async move {
            kms.update_key(&call.caller, parse_update(request)?).await.map(message::key)
        };
        self.0.run_detached(request, verb).await
    }

    async fn rotate_key(
        &self,
        request: Request<v1::RotateKeyRequest>,
    ) -> Result<Response<v1::KeyVersion>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::RotateKeyRequest| async move {
            let view = kms.rotate_key(&call.caller, parse_rotate(&request)?, call.deadline).await;
            view.map(message::key_version)
        };
        self.0.run_detached(request, verb).await
    }

    async fn list_key_versions(
        &self,
        request: Request<v1::ListKeyVersionsRequest>,
    ) -> Result<Response<v1::ListKeyVersionsResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::ListKeyVersionsRequest| async move {
            let id = name::key("parent", &request.parent)?;
            let list = ["ListKeyVersions", request.parent.as_str()];
            let len = page::len(request.page_size)?;
            let after = page::start(&request.page_token, list)?.map_or(0, |last| last.parse().unwrap_or(0));
            let versions = kms.list_key_versions(&call.caller, &id).await?;
            let is_after = |version: &VersionView| version.row.number > after;
            let (versions, next_page_token) =
                page::cut(versions, len, list, is_after, |version| version.row.number.to_string());
            let key_versions = versions.into_iter().map(message::key_version).collect();
            Ok(v1::ListKeyVersionsResponse { key_versions, next_page_token })
        };
        self.0.run(request, verb).await
    }

    async fn disable_key_version(
        &self,
        request: Request<v1::DisableKeyVersionRequest>,
    ) -> Result<Response<v1::KeyVersion>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::DisableKeyVersionRequest| async move {
            let change = parse_change(&request.name, &request.request_id, &request.etag)?;
            kms.disable_key_version(&call.caller, change).await.map(message::key_version)
        };
        self.0.run_detached(request, verb).await
    }

    async fn enable_key_version(
        &self,
        request: Request<v1::EnableKeyVersionRequest>,
    ) -> Result<Response<v1::KeyVersion>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::EnableKeyVersionRequest| async move {
            let change = parse_change(&request.name, &request.request_id, &request.etag)?;
            kms.enable_key_version(&call.caller, change, call.deadline).await.map(message::key_version)
        };
        self.0.run_detached(request, verb).await
    }

    async fn destroy_key_version(
        &self,
        request: Request<v1::DestroyKeyVersionRequest>,
    ) -> Result<Response<v1::KeyVersion>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::DestroyKeyVersionRequest| async move {
            let change = parse_change(&request.name, &request.request_id, &request.etag)?;
            let confirmation = Confirmation { name: &request.confirm, attestation: &request.attestation };
            let view = kms.destroy_key_version(&call.caller, change, confirmation).await;
            view.map(message::key_version)
        };
        self.0.run_detached(request, verb).await
    }

    async fn restore_key_version(
        &self,
        request: Request<v1::RestoreKeyVersionRequest>,
    ) -> Result<Response<v1::KeyVersion>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::RestoreKeyVersionRequest| async move {
            let change = parse_change(&request.name, &request.request_id, &request.etag)?;
            kms.restore_key_version(&call.caller, change).await.map(message::key_version)
        };
        self.0.run_detached(request, verb).await
    }

    async fn revoke_key_version(
        &self,
        request: Request<v1::RevokeKeyVersionRequest>,
    ) -> Result<Response<v1::RevokeKeyVersionResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::RevokeKeyVersionRequest| async move {
            let change = parse_change(&request.name, &request.request_id, &request.etag)?;
            let request = RevokeKeyVersion { change, reason: request.reason };
            kms.revoke_key_version(&call.caller, request, call.deadline).await.map(message::revoked)
        };
        self.0.run_detached(request, verb).await
    }

    async fn list_key_classes(
        &self,
        request: Request<v1::ListKeyClassesRequest>,
    ) -> Result<Response<v1::ListKeyClassesResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, _: v1::ListKeyClassesRequest| async move {
            let classes = kms.list_key_classes(&call.caller).await?;
            let key_classes = classes.iter().map(message::key_class).collect();
            Ok(v1::ListKeyClassesResponse { key_classes })
        };
        self.0.run(request, verb).await
    }

    async fn update_key_class(
        &self,
        request: Request<v1::UpdateKeyClassRequest>,
    ) -> Result<Response<v1::KeyClass>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request| async move {
            let class = kms.update_key_class(&call.caller, parse_update_class(request)?).await;
            class.map(|class| message::key_class(&class))
        };
        self.0.run_detached(request, verb).await
    }

    async fn get_public_key(
        &self,
        request: Request<v1::GetPublicKeyRequest>,
    ) -> Result<Response<v1::PublicKey>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::GetPublicKeyRequest| async move {
            let (id, number) = name::key_or_version("name", &request.name)?;
            kms.public_key(&call.caller, &id, number).await.map(message::public_key)
        };
        self.0.run(request, verb).await
    }

    async fn sign_key_set_bundle(
        &self,
        request: Request<v1::SignKeySetBundleRequest>,
    ) -> Result<Response<v1::SignKeySetBundleResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::SignKeySetBundleRequest| async move {
            let request = SignKeySetBundle {
                id: name::key("name", &request.name)?,
                keys: request.keys.iter().map(|name| name::key("keys", name)).collect::<Result<_, _>>()?,
                ttl: optional_span("ttl", request.ttl)?,
            };
            let bundle = kms.sign_key_set_bundle(&call.caller, request, call.deadline).await;
            bundle.map(message::key_set_bundle)
        };
        self.0.run(request, verb).await
    }

    async fn report_usage(
        &self,
        request: Request<v1::ReportUsageRequest>,
    ) -> Result<Response<v1::KeyUsage>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::ReportUsageRequest| async move {
            let report = ReportUsage {
                id: name::key("name", &request.name)?,
                consumer: name::consumer(&request.consumer)?,
                envelopes: request.envelopes,
            };
            kms.report_usage(&call.caller, report).await.map(message::key_usage)
        };
        self.0.run_detached(request, verb).await
    }

    async fn get_key_usage(
        &self,
        request: Request<v1::GetKeyUsageRequest>,
    ) -> Result<Response<v1::KeyUsage>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::GetKeyUsageRequest| async move {
            let id = name::key("name", &request.name)?;
            kms.key_usage(&call.caller, &id).await.map(message::key_usage)
        };
        self.0.run(request, verb).await
    }

    async fn remove_consumer(
        &self,
        request: Request<v1::RemoveConsumerRequest>,
    ) -> Result<Response<v1::KeyUsage>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::RemoveConsumerRequest| async move {
            let (id, consumer) = (name::key("name", &request.name)?, name::consumer(&request.consumer)?);
            kms.remove_consumer(&call.caller, &id, &consumer).await.map(message::key_usage)
        };
        self.0.run_detached(request, verb).await
    }
}

fn parse_create(request: v1::CreateKeyRequest) -> Result<CreateKey, Error> {
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

fn parse_update(request: v1::UpdateKeyRequest) -> Result<UpdateKey, Error> {
    let key = request.key.ok_or_else(|| Error::invalid("key", "a key with its name is required"))?;
    let mask = Mask::parse(request.update_mask.as_ref(), KeyField::ALL, |field| field.is_set(&key))?;
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

fn parse_update_class(request: v1::UpdateKeyClassRequest) -> Result<UpdateKeyClass, Error> {
    let class =
        request.key_class.ok_or_else(|| Error::invalid("key_class", "a class with its name is required"))?;
    let mask = Mask::parse(request.update_mask.as_ref(), KeyField::PERIODS, |field| match field {
        KeyField::RotationPeriod => class.rotation_period.is_some(),
        KeyField::PublishLead => class.publish_lead.is_some(),
        KeyField::MaxTokenTtl => class.max_token_ttl.is_some(),
        KeyField::Overlap => class.overlap.is_some(),
        KeyField::DestroyAfter => class.destroy_after.is_some(),
        _ => false,
    })?;
    let change = |field, name, span| changed_span(mask.has(field), name, span);
    Ok(UpdateKeyClass {
        name: name::key_class("key_class.name", &class.name)?,
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

fn parse_rotate(request: &v1::RotateKeyRequest) -> Result<RotateKey, Error> {
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

fn parse_change(name: &str, request_id: &str, etag: &str) -> Result<ChangeVersion, Error> {
    let (id, number) = name::version("name", name)?;
    Ok(ChangeVersion { id, number, request: guards::parse(request_id, etag)? })
}

fn optional_span(
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
