//! A token of its own, a supervisor and a pool in one test process; the workers are real processes.

use std::{
    ffi::OsString,
    ops::Deref,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kms_core::{
    Action, Algorithm, Grant, Hsm,
    hsm::{CkaId, Fault, KekRef, KeyRef, KnownAnswer, NewKey, SecretKeyRef},
    signature,
    time::Deadline,
};
use kms_envelope::SecretBytes;
use kms_pkcs11::{
    Pool, Uri,
    pool::{Config, StartError},
    supervisor::{self, Settings},
};
use kms_softhsm::{
    EphemeralToken, RemoteToken, Token,
    faults::{self, Controller},
    unless_left_out,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{net::UnixStream, task::JoinHandle};

pub(crate) const WORKER: &str = env!("CARGO_BIN_EXE_kms-hsm-worker");

/// Everything that a test of the whole room needs. The token goes last: workers must be gone before it.
pub(crate) struct Rig<T = EphemeralToken> {
    pub(crate) pool: Pool,
    pub(crate) supervisor: JoinHandle<()>,
    pub(crate) dir: TempDir,
    pub(crate) token: T,
}

impl Rig {
    /// Two READY workers with quick timeouts, on a SoftHSM token.
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(EphemeralToken::new().unwrap(), change).await
    }

    /// A pool whose workers load the fault shim before the module, under `script` from the first call on. It is not
    /// waited for.
    pub(crate) fn faulty(script: &str, change: impl FnOnce(&mut Config)) -> (Self, Controller) {
        let token = EphemeralToken::new().unwrap();
        let controller = Controller::start(token.conf().parent().unwrap()).unwrap();
        controller.set(&script.parse().unwrap());
        let (uri, env) = (shim_uri(&token), controller.env(token.module()));
        (Self::start(token, &uri, env, change), controller)
    }

    /// One READY worker behind the fault shim, without any rule yet.
    pub(crate) async fn faulty_worker() -> (Self, Controller) {
        let (rig, controller) = Self::faulty("", |config| config.workers = 1);
        rig.pool.wait_ready().await.unwrap();
        (rig, controller)
    }
}

impl<T: Deref<Target = Token>> Rig<T> {
    /// Two READY workers, unless `change` says otherwise, on `token`.
    pub(crate) async fn on(token: T, change: impl FnOnce(&mut Config)) -> Self {
        let uri = token.uri();
        let rig = Self::start(token, &uri, Vec::new(), change);
        rig.pool.wait_ready().await.unwrap();
        rig.workers_are(u32::from(rig.wanted())).await;
        rig
    }

    /// A pool whose start must fail.
    pub(crate) async fn refused(token: T, uri: &str) -> (Self, StartError) {
        let rig = Self::start(token, uri, Vec::new(), |_| ());
        let error = rig.pool.wait_ready().await.unwrap_err();
        (rig, error)
    }

    pub(crate) fn start(
        token: T,
        uri: &str,
        env: Vec<(OsString, OsString)>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            workers: 2,
            spare_workers: 0,
            call_timeout: Duration::from_secs(2),
            runtime_dir: dir.path().join("run"),
            ..Config::default()
        };
        change(&mut config);
        let mut settings = settings(&token, uri, dir.path(), &config);
        settings.env.extend(env);
        let (pool, supervisor) = link_with(settings, config);
        Self { pool, supervisor, dir, token }
    }

    fn wanted(&self) -> u16 {
        u16::try_from(self.pool.health().workers_wanted).unwrap()
    }

    pub(crate) async fn workers_are(&self, count: u32) {
        eventually("the number of READY workers", || self.pool.health().workers_ready == count).await;
    }

    /// Process ids of the READY workers.
    pub(crate) fn workers(&self) -> Vec<u32> {
        self.pool.worker_pids()
    }

    /// Makes a key for `algorithm` and says where it is and what its SPKI is.
    pub(crate) async fn key(&self, algorithm: Algorithm) -> (KeyRef, Vec<u8>) {
        let id = CkaId::from_bytes(random());
        let new = NewKey {
            id,
            label: format!("test/{algorithm}"),
            spec: algorithm.key_spec(),
            usage: algorithm.usage(),
        };
        self.pool.generate(&grant(), &new, soon()).await.unwrap();
        let found = self.pool.find(&grant(), id, soon()).await.unwrap();
        assert_eq!((found.private.len(), found.public.len()), (1, 1));
        let spki = found.public.into_iter().next().unwrap();
        (KeyRef::new(id, &spki), spki)
    }

    pub(crate) async fn sign(&self, key: &KeyRef, deadline: Deadline) -> Result<Vec<u8>, Fault> {
        let input = signature::input_of(Algorithm::Es256, b"m");
        let signed = self.pool.sign(&grant(), key, Algorithm::Es256, input, deadline).await;
        signed.map(kms_core::Unsettled::open_for_conformance)
    }

    /// Makes a key that wraps, and asks for its known answer as a birth does.
    pub(crate) async fn kek(&self) -> SecretKeyRef {
        let (id, algorithm) = (CkaId::from_bytes(random()), Algorithm::A256GcmKw);
        let (spec, usage) = (algorithm.key_spec(), algorithm.usage());
        let new = NewKey { id, label: format!("test/{algorithm}"), spec, usage };
        self.pool.generate(&grant(), &new, soon()).await.unwrap();
        self.known(id).await
    }

    /// The key under `id`, whichever it is.
    pub(crate) async fn known(&self, id: CkaId) -> SecretKeyRef {
        let unknown = SecretKeyRef { id, known_answer: None };
        let answer = self.wrap_with(&unknown, KnownAnswer::TEXT, KnownAnswer::aad(id)).await.unwrap();
        SecretKeyRef::new(id, KnownAnswer::from_bytes(&answer).unwrap())
    }

    pub(crate) async fn wrap(&self, key: &SecretKeyRef, plaintext: &[u8]) -> Result<Vec<u8>, Fault> {
        self.wrap_with(key, plaintext, b"aad".to_vec()).await
    }

    async fn wrap_with(&self, key: &SecretKeyRef, text: &[u8], aad: Vec<u8>) -> Result<Vec<u8>, Fault> {
        let text = SecretBytes::new(text.to_vec());
        let wrapped = self.pool.wrap_key(&grant(), key, text, aad, soon()).await;
        wrapped.map(kms_core::Unsettled::open_for_conformance)
    }

    pub(crate) async fn unwrap(&self, key: &KekRef, wrapped: &[u8]) -> Result<Vec<u8>, Fault> {
        let opened = self.pool.unwrap_key(&grant(), key, wrapped.to_vec(), b"aad".to_vec(), soon()).await;
        opened.map(|opened| opened.open_for_conformance().expose_secret().to_vec())
    }

    /// Closes the pool and waits for the last worker.
    pub(crate) async fn close(self) -> T {
        drop(self.pool);
        self.supervisor.await.unwrap();
        self.token
    }
}

/// The token's URI with the fault shim in the module's place.
pub(crate) fn shim_uri(token: &Token) -> String {
    let (module, shim) = (token.module().display().to_string(), faults::module().unwrap());
    token.uri().replace(&module, &shim.display().to_string())
}

/// A Kryoptic token, unless such tests are left out.
pub(crate) fn kryoptic() -> Option<EphemeralToken> {
    unless_left_out(EphemeralToken::kryoptic()).unwrap()
}

/// A server in front of `behind`, unless such tests are left out.
pub(crate) fn remote(behind: EphemeralToken) -> Option<RemoteToken> {
    unless_left_out(RemoteToken::in_front_of(behind)).unwrap()
}

/// Starts a supervisor and a pool for the token that `uri` names.
pub(crate) fn link(token: &Token, uri: &str, dir: &Path, config: Config) -> (Pool, JoinHandle<()>) {
    link_with(settings(token, uri, dir, &config), config)
}

pub(crate) fn link_with(settings: Settings, config: Config) -> (Pool, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let supervisor = tokio::spawn(supervisor::serve(theirs, settings));
    (Pool::start(config, ours).unwrap(), supervisor)
}

pub(crate) fn settings(token: &Token, uri: &str, dir: &Path, config: &Config) -> Settings {
    let (name, value) = token.env();
    Settings {
        program: PathBuf::from(WORKER),
        name: "kms".into(),
        args: Vec::new(),
        env: vec![(name.into(), value.into())],
        uri: uri.parse::<Uri>().unwrap(),
        sessions_per_worker: config.sessions_per_worker,
        runtime_dir: config.runtime_dir.clone(),
        lock_dir: dir.join("lock"),
        profile_file: None,
        leave_timeout: Duration::from_secs(2),
        startup_timeout: Duration::from_secs(30),
    }
}

pub(crate) fn grant() -> Grant {
    Grant::for_conformance(Action::Sign)
}

pub(crate) fn soon() -> Deadline {
    within(Duration::from_secs(60))
}

pub(crate) fn within(time: Duration) -> Deadline {
    Deadline::at(Instant::now() + time)
}

/// Asks again while the worker that was asked is gone: the pool may not have heard of its end yet.
pub(crate) async fn served<T>(mut call: impl AsyncFnMut() -> Result<T, Fault>) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        match call().await {
            Ok(value) => return value,
            Err(fault) => {
                assert!(matches!(fault, Fault::Unavailable(_)) && Instant::now() < end, "{fault:?}");
            }
        }
    }
}

/// Waits for a condition that must come true.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within 30 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    bytes
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}
