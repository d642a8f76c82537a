//! A token behind a server that is killed, stopped and restarted apart from us.

use std::time::Duration;

use kms_core::{Algorithm, Hsm, hsm::Fault};
use kms_pkcs11::pool::Status;
use kms_softhsm::{EphemeralToken, RemoteToken};

use crate::support::{Rig, eventually, grant, kryoptic, remote, soon, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_far_side_is_told_by_every_call_and_cured_by_its_restart_alone() {
    if let Some(token) = remote(EphemeralToken::new().unwrap()) {
        dies_and_comes_back(token).await;
    }
    if let Some(token) = kryoptic().and_then(remote) {
        dies_and_comes_back(token).await;
    }
}

async fn dies_and_comes_back(token: RemoteToken) {
    let rig = Rig::on(token, |_| ()).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let workers = rig.workers();
    rig.token.kill().unwrap();
    // p11-kit tells CKR_DEVICE_ERROR, whatever is called, and the worker ends. A pool may have asked others by then.
    let told = rig.sign(&key, within(Duration::from_secs(5))).await;
    assert!(matches!(told, Err(Fault::Unavailable(_))), "{told:?}");
    // A worker that nobody asks does not know yet.
    while rig.pool.health().workers_ready > 0 {
        let told = rig.pool.check(&grant(), within(Duration::from_secs(1))).await;
        assert!(matches!(told, Err(Fault::Unavailable(_))), "{told:?}");
    }
    let status = rig.pool.status();
    eventually("the pool says why it cannot start a worker", || {
        matches!(&*status.borrow(), Status::Failing { refusal, .. } if refusal.text.contains("shows no token"))
    })
    .await;

    rig.token.restart().unwrap();
    rig.workers_are(2).await;
    assert!(rig.workers().iter().all(|pid| !workers.contains(pid)));
    rig.sign(&key, soon()).await.unwrap();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_far_side_that_hangs_costs_callers_their_deadline_and_heals_when_it_goes_on() {
    let Some(token) = remote(EphemeralToken::new().unwrap()) else { return };
    let rig = Rig::on(token, |config| config.call_timeout = Duration::from_millis(300)).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let workers = rig.workers();
    rig.token.stop().unwrap();
    let hung = rig.sign(&key, within(Duration::from_millis(100))).await;
    assert_eq!(hung, Err(Fault::DeadlineExceeded));
    eventually("the worker that hangs is given up", || rig.workers() != workers).await;
    // Its successor hangs while it starts, and is left alone.
    rig.token.resume().unwrap();
    rig.workers_are(2).await;
    rig.sign(&key, soon()).await.unwrap();
    rig.close().await;
}
