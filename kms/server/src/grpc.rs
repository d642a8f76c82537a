//! The gRPC routes: our services behind authentication, health and reflection before it.

use std::sync::Arc;

use anyhow::Context as _;
use axum::{Router, middleware::from_fn_with_state};
use kms_api_grpc::Services;
use kms_proto::FILE_DESCRIPTOR_SET;
use tonic::service::Routes;
use tonic_health::{ServingStatus, pb::FILE_DESCRIPTOR_SET as HEALTH_DESCRIPTOR_SET, server::HealthReporter};

use crate::{
    Service,
    authn::{Authenticated, Lookup},
    config,
    metrics::{self, Metrics},
};

/// The whole server's entry in `grpc.health.v1`.
const WHOLE_SERVER: &str = "";

/// The routes, and the switch of their health. A path that nobody serves is UNIMPLEMENTED.
pub(crate) fn router(
    service: &Arc<Service>,
    config: &config::Grpc,
    metrics: Arc<Metrics>,
) -> anyhow::Result<(Router, Health)> {
    let lookup: Lookup = {
        let service = Arc::clone(service);
        Arc::new(move |sha256| service.authenticate(sha256))
    };
    let Services { keys, crypto, access } = Services::new(service, config.max_deadline);
    // A fresh reporter says SERVING for the whole server; one service of ours is never away alone.
    let (reporter, health) = tonic_health::server::health_reporter();
    let mut routes = Routes::new(health)
        .add_service(Authenticated::new(keys, Arc::clone(&lookup)))
        .add_service(Authenticated::new(crypto, Arc::clone(&lookup)))
        .add_service(Authenticated::new(access, lookup));
    if config.reflection {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(HEALTH_DESCRIPTOR_SET)
            .build_v1()
            .context("reflection")?;
        routes = routes.add_service(reflection);
    }
    let router = routes.prepare().into_axum_router().layer(from_fn_with_state(metrics, metrics::observe));
    Ok((router, Health(reporter)))
}

/// What `grpc.health.v1` says: whether calls are accepted. Whether the HSM answers is `/readyz`'s to say.
pub(crate) struct Health(HealthReporter);

impl Health {
    /// From now on a load balancer should go elsewhere.
    pub(crate) async fn leave(&self) {
        self.0.set_service_status(WHOLE_SERVER, ServingStatus::NotServing).await;
    }
}
