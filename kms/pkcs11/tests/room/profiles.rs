//! What the built-in profiles say of SoftHSM and Kryoptic, and profiles from files.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use futures::future::join_all;
use kms_core::{Algorithm, Hsm, hsm::Fault};
use kms_pkcs11::{
    Pool,
    pool::{Config, StartError},
};
use kms_softhsm::{EphemeralToken, Token};
use tokio::task::JoinHandle;

use crate::{
    admin,
    support::{self, Rig, grant, kryoptic, random, remote, soon},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_file_that_is_missing_wrong_or_of_another_token_is_refused() {
    let softhsm = EphemeralToken::new().unwrap();
    let other = "name = \"x\"\n[token]\nmodule_manufacturer = \"Acme\"\n";
    let model = "name = \"x\"\n[token]\nmodule_manufacturer = \"SoftHSM\"\ntoken_model = \"v9\"\n";
    let unknown = "name = \"x\"\nspeed = 3\n[token]\nmodule_manufacturer = \"SoftHSM\"\n";
    refused(&softhsm, None, "No such file").await;
    refused(&softhsm, Some(unknown), "speed").await;
    refused(&softhsm, Some(other), "\"SoftHSM\", and it is for \"Acme\"").await;
    refused(&softhsm, Some(model), "\"SoftHSM v2\", and it is for \"v9\"").await;

    let Some(kryoptic) = kryoptic() else { return };
    let no_such_mechanism =
        "name = \"x\"\nedwards_params = \"oid\"\n[token]\nmodule_manufacturer = \"Kryoptic\"\n";
    refused(&kryoptic, Some(no_such_mechanism), "CKM_EC_EDWARDS_KEY_PAIR_GEN").await;
    let Some(remote) = remote(softhsm) else { return };
    let not_passed_on =
        "name = \"x\"\niv_source = \"caller\"\n[token]\nmodule_manufacturer = \"PKCS#11 Kit\"\n";
    refused(&remote, Some(not_passed_on), "CKM_AES_GCM").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_sessions_than_the_profile_allows_are_refused_before_the_login() {
    let token = EphemeralToken::new().unwrap();
    let profile = "name = \"x\"\nsessions_max = 2\n[token]\nmodule_manufacturer = \"SoftHSM\"\n";
    let dir = tempfile::tempdir().unwrap();
    let file = written(dir.path(), profile);
    for (sessions, fits) in [(2, false), (1, true)] {
        let config = Config {
            sessions_per_worker: sessions,
            runtime_dir: dir.path().join("run"),
            ..Config::default()
        };
        let (pool, supervisor) = profiled(&token, dir.path(), file.clone(), config);
        match pool.wait_ready().await {
            Ok(()) => assert!(fits),
            Err(error) => {
                assert!(!fits && error.to_string().contains("lower hsm.sessions_per_worker"), "{error}")
            }
        }
        drop(pool);
        supervisor.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_another_worker_destroyed_is_not_found_and_costs_no_worker() {
    destroyed_elsewhere(EphemeralToken::new().unwrap()).await;
    if let Some(token) = kryoptic() {
        destroyed_elsewhere(token).await;
    }
}

/// Both workers hold a handle; one of them destroys. Kryoptic tells the other CKR_GENERAL_ERROR.
async fn destroyed_elsewhere(token: EphemeralToken) {
    let rig = Rig::on(token, |_| ()).await;
    for _ in 0..4 {
        let (key, _) = rig.key(Algorithm::Es256).await;
        for signed in join_all((0..32).map(|_| rig.sign(&key, soon()))).await {
            signed.unwrap();
        }
        rig.pool.destroy(&grant(), key.id, soon()).await.unwrap();
        for signed in join_all((0..32).map(|_| rig.sign(&key, soon()))).await {
            assert_eq!(signed, Err(Fault::KeyNotFound));
        }
    }
    assert_eq!(rig.pool.health().respawns, 0);
    rig.close().await;
}

/// (SoftHSM lost its token in each of three such runs of 300 kills.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kryoptic_token_survives_kills_while_processes_start_and_log_in() {
    let Some(token) = kryoptic() else { return };
    survives_kills_of_starting_processes(token).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_softhsm_token_behind_a_server_survives_kills_while_clients_start_and_log_in() {
    let Some(token) = remote(EphemeralToken::new().unwrap()) else { return };
    survives_kills_of_starting_processes(token).await;
}

/// Kills at random moments from exec to the end of the logout.
async fn survives_kills_of_starting_processes<T: Deref<Target = Token>>(token: T) {
    let rig = Rig::on(token, |_| ()).await;
    let (key, _) = rig.key(Algorithm::Es256).await;
    let token = rig.close().await;

    let kills: u32 = std::env::var("KMS_KILLS").map_or(100, |count| count.parse().unwrap());
    let seed = u64::from_le_bytes(random()[..8].try_into().unwrap()) | 1;
    println!("seed {seed}");
    let began = Instant::now();
    admin::login(&token);
    let whole = began.elapsed();
    let mut random = seed;
    for _ in 0..kills {
        // xorshift64 (Marsaglia)
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut starting = admin::command("logged_in", &token, &token.uri())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moment = Duration::from_nanos(random % u64::try_from(whole.as_nanos()).unwrap());
        tokio::time::sleep(moment).await;
        starting.kill().unwrap();
        starting.wait().unwrap();
    }
    let rig = Rig::on(token, |_| ()).await;
    rig.sign(&key, soon()).await.unwrap();
    assert_eq!(admin::user_pin(&rig.token), "Fine");
    rig.close().await;
}

async fn refused(token: &Token, profile: Option<&str>, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = match profile {
        Some(text) => written(dir.path(), text),
        None => dir.path().join("absent.toml"),
    };
    let config = Config { runtime_dir: dir.path().join("run"), ..Config::default() };
    let (pool, supervisor) = profiled(token, dir.path(), file, config);
    let error = pool.wait_ready().await.unwrap_err();
    assert!(matches!(&error, StartError::Token(text) if text.contains(expected)), "{expected}: {error}");
    drop(pool);
    supervisor.await.unwrap();
}

fn written(dir: &Path, profile: &str) -> PathBuf {
    let file = dir.join("profile.toml");
    std::fs::write(&file, profile).unwrap();
    file
}

/// A pool whose workers use the profile in `file`.
pub(crate) fn profiled(token: &Token, dir: &Path, file: PathBuf, config: Config) -> (Pool, JoinHandle<()>) {
    let mut settings = support::settings(token, &token.uri(), dir, &config);
    settings.profile_file = Some(file);
    support::link_with(settings, config)
}
