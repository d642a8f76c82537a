//! `kms.v1.HsmService`: what an administrator decides about the token.

use kms_core::{AuditLog, Clock, Hsm, Store};
use kms_proto::v1;
use tonic::{Request, Response, Status};

use crate::call::{Call, Door, Kms};

/// The service. Its requests must carry a [`kms_core::Caller`].
pub struct HsmService<H, S, A, C>(pub(crate) Door<H, S, A, C>);

#[tonic::async_trait]
impl<H: Hsm, S: Store, A: AuditLog, C: Clock> v1::hsm_service_server::HsmService for HsmService<H, S, A, C> {
    async fn accept_older_store(
        &self,
        request: Request<v1::AcceptOlderStoreRequest>,
    ) -> Result<Response<v1::AcceptOlderStoreResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::AcceptOlderStoreRequest| async move {
            let epoch = kms.accept_older_store(&call.caller, request.confirm, call.deadline).await?;
            Ok(v1::AcceptOlderStoreResponse { epoch })
        };
        self.0.run_detached(request, verb).await
    }
}
