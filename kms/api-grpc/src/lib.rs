//! The gRPC facade: package `kms.v1` in front of [`kms_core::Kms`].
//!
//! A facade parses, calls core and formats. Policy, audit, limits on keys and everything cryptographic are
//! core's. What lives here is what only gRPC has: resource names, page tokens, field masks, deadlines and
//! `google.rpc` error details (Google's AIPs 122, 158, 161, 193).
//!
//! Start at `call.rs`, the way of every request, then follow one verb in `keys.rs` or `crypto.rs`.
//! Requests must carry the authenticated [`kms_core::Caller`] as an extension; `kms/server` puts it there.

mod access;
mod action;
mod approval;
mod batch;
mod call;
mod crypto;
mod guards;
mod hsm;
mod key_requests;
mod keys;
mod mask;
mod message;
mod name;
mod page;
mod policy;
mod role_binding;
mod service_status;
mod status;
mod time;
mod wrapping;

use std::{sync::Arc, time::Duration};

use kms_core::{AuditLog, Clock, Hsm, Kms, Store};
use kms_proto::v1::{
    access_service_server::AccessServiceServer, approval_service_server::ApprovalServiceServer,
    crypto_service_server::CryptoServiceServer, hsm_service_server::HsmServiceServer,
    key_service_server::KeyServiceServer, policy_service_server::PolicyServiceServer,
    status_service_server::StatusServiceServer,
};

pub use access::AccessService;
pub use approval::ApprovalService;
pub use crypto::CryptoService;
pub use hsm::HsmService;
pub use keys::KeyService;
pub use policy::PolicyService;
pub use service_status::StatusService;
pub use status::{status, unauthenticated};

/// Largest request in bytes.
pub const REQUEST_LEN_MAX: usize = 1024 * 1024;
/// Bound on every call when the server's configuration names none: an RSA-4096 pair takes many seconds to generate.
pub const DEADLINE_MAX_DEFAULT: Duration = Duration::from_secs(60);

/// The services over one core, ready to be authenticated and routed.
pub struct Services<H: Hsm, S: Store, A: AuditLog, C: Clock> {
    /// `kms.v1.KeyService`.
    pub keys: KeyServiceServer<KeyService<H, S, A, C>>,
    /// `kms.v1.CryptoService`.
    pub crypto: CryptoServiceServer<CryptoService<H, S, A, C>>,
    /// `kms.v1.AccessService`.
    pub access: AccessServiceServer<AccessService<H, S, A, C>>,
    /// `kms.v1.PolicyService`.
    pub policy: PolicyServiceServer<PolicyService<H, S, A, C>>,
    /// `kms.v1.ApprovalService`.
    pub approval: ApprovalServiceServer<ApprovalService<H, S, A, C>>,
    /// `kms.v1.HsmService`.
    pub hsm: HsmServiceServer<HsmService<H, S, A, C>>,
    /// `kms.v1.StatusService`.
    pub status: StatusServiceServer<StatusService<H, S, A, C>>,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Services<H, S, A, C> {
    /// Services that call `kms`. No call takes longer than `deadline_max`, whatever its caller would allow.
    pub fn new(kms: &Arc<Kms<H, S, A, C>>, deadline_max: Duration) -> Self {
        let door = || call::Door::new(Arc::clone(kms), deadline_max);
        Self {
            keys: KeyServiceServer::new(KeyService(door())).max_decoding_message_size(REQUEST_LEN_MAX),
            crypto: CryptoServiceServer::new(CryptoService(door()))
                .max_decoding_message_size(REQUEST_LEN_MAX),
            access: AccessServiceServer::new(AccessService(door()))
                .max_decoding_message_size(REQUEST_LEN_MAX),
            policy: PolicyServiceServer::new(PolicyService(door()))
                .max_decoding_message_size(REQUEST_LEN_MAX),
            approval: ApprovalServiceServer::new(ApprovalService(door()))
                .max_decoding_message_size(REQUEST_LEN_MAX),
            hsm: HsmServiceServer::new(HsmService(door())).max_decoding_message_size(REQUEST_LEN_MAX),
            status: StatusServiceServer::new(StatusService(door()))
                .max_decoding_message_size(REQUEST_LEN_MAX),
        }
    }
}
