//! `kms.v1.KeyService`: managing keys and their versions.

use kms_core::{
    AuditLog, Clock, Hsm, Store,
    kms::VersionView,
    verbs::{Confirmation, ListKeys, ReportUsage, RevokeKeyVersion, SignKeySetBundle},
};
use kms_proto::v1;
use tonic::{Request, Response, Status};

use crate::{
    call::{Call, Door, Kms},
    key_requests::{
        optional_span, parse_change, parse_create, parse_rotate, parse_update, parse_update_class,
    },
    message, name, page,
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
