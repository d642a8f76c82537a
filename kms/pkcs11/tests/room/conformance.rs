//! The suite that every [`kms_core::Hsm`] must pass, against SoftHSM through real workers.

use std::time::Duration;

use kms_core::{Algorithm, conformance};

use crate::support::{Rig, within};

/// Generating three RSA pairs of 4096 bits may take long on a busy machine.
const SUITE_TIME_MAX: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_does_what_every_hsm_must_do() {
    let rig = Rig::new().await;
    let algorithms = rig.pool.token().unwrap().algorithms.clone();
    assert_eq!(algorithms, Algorithm::ALL, "SoftHSM has them all");
    conformance::hsm::run(&rig.pool, &algorithms, within(SUITE_TIME_MAX)).await;
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_sessions_of_one_worker_do_the_same() {
    let rig = Rig::with(|config| (config.workers, config.sessions_per_worker) = (1, 4)).await;
    conformance::hsm::run(&rig.pool, &[Algorithm::Es256, Algorithm::Ed25519], within(SUITE_TIME_MAX)).await;
    rig.close().await;
}
