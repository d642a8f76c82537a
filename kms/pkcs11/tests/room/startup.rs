//! What can be wrong before the first worker is READY, and what is said about it.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use kms_core::{Hsm, hsm::Fault};
use kms_pkcs11::{
    Pool,
    pool::{Config, StartError, Status},
    wire::{self, FromWorker, Hello, Order, Secret},
};
use kms_softhsm::EphemeralToken;

use crate::{
    admin,
    support::{self, Rig, grant, soon},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_is_tried_exactly_once_and_never_again_without_the_operator() {
    let token = EphemeralToken::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("pin");
    std::fs::write(&wrong, "not-the-pin\n").unwrap();
    let uri = with_pin_source(&token, &wrong);

    let (rig, error) = Rig::refused(token, &uri).await;
    assert!(matches!(&error, StartError::Pin(text) if text.contains("exactly one try")), "{error}");
    let began = Instant::now();
    let Err(Fault::Unavailable(text)) = rig.pool.check(&grant(), soon()).await else { panic!("no link") };
    assert!(text.contains("PIN") && began.elapsed() < Duration::from_secs(1), "{text}");
    assert!(matches!(&*rig.pool.status().borrow(), Status::PinRefused(_)));
    support::eventually("the worker is gone", || rig.pool.health().respawns == 1).await;
    let token = rig.close().await;
    assert_eq!(admin::user_pin(&token), "CountLow");

    // Started again, even with the right PIN, it does not try: the token remembers the wrong one.
    let uri = token.uri();
    let (rig, error) = Rig::refused(token, &uri).await;
    assert!(matches!(&error, StartError::Pin(text) if text.contains("COUNT_LOW")), "{error}");
    let token = rig.close().await;

    // The operator clears it with one deliberate login.
    admin::login(&token);
    assert_eq!(admin::user_pin(&token), "Fine");
    let (pool, supervisor) = support::link(&token, &token.uri(), dir.path(), config(dir.path()));
    pool.wait_ready().await.unwrap();
    drop(pool);
    supervisor.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_that_was_changed_while_serving_is_tried_once_by_the_replacement() {
    let rig = Rig::new().await;
    std::fs::write(rig.token.pin_file(), "changed-meanwhile").unwrap();
    support::signal(rig.workers()[0], rustix::process::Signal::KILL);
    support::eventually("one worker is left and no other is started", || {
        rig.pool.health().workers_ready == 1 && rig.pool.health().respawns == 2
    })
    .await;
    rig.pool.check(&grant(), soon()).await.unwrap();
    support::signal(rig.workers()[0], rustix::process::Signal::KILL);
    support::eventually("the last is gone", || rig.pool.health().workers_ready == 0).await;
    let Err(Fault::Unavailable(text)) = rig.pool.check(&grant(), soon()).await else { panic!("no link") };
    assert!(text.contains("exactly one try"), "{text}");
    let token = rig.close().await;
    assert_eq!(admin::user_pin(&token), "CountLow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_wrong_module_token_or_pin_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let text_file = dir.path().join("module.so");
    std::fs::write(&text_file, "no library").unwrap();
    let empty = dir.path().join("empty-pin");
    std::fs::write(&empty, "\n").unwrap();
    let libc = libc_path();
    let cases = [
        ("module-path=/nonexistent/module.so", "there is no PKCS#11 module at /nonexistent/module.so"),
        (&format!("module-path={}", text_file.display()), "is not a PKCS#11 module"),
        (&format!("module-path={}", dir.path().display()), "it is not a file"),
        (&format!("module-path={libc}"), "C_GetFunctionList"),
        (&format!("MODULE&pin-source={}", empty.display()), "it is empty"),
        ("MODULE&pin-source=/nonexistent/pin", "/nonexistent/pin"),
        ("MODULE", "no pin-source"),
    ];
    for (query, expected) in cases {
        let token = EphemeralToken::new().unwrap();
        let query = query.replace("MODULE", &format!("module-path={}", token.module().display()));
        let uri = format!("pkcs11:serial={}?{query}", token.serial());
        let (rig, error) = Rig::refused(token, &uri).await;
        assert!(
            matches!(error, StartError::Token(_)) && error.to_string().contains(expected),
            "{query}: {error}"
        );
        rig.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_token_is_reported_with_those_that_are_present() {
    let token = EphemeralToken::new().unwrap();
    let uri = format!("pkcs11:token=elsewhere?module-path={}", token.module().display());
    let (rig, error) = Rig::refused(token, &uri).await;
    let text = error.to_string();
    assert!(text.contains("token=elsewhere") && text.contains(rig.token.label()), "{text}");
    rig.close().await;
}

/// p11-kit's trust module has tokens, which are lists of certificates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_can_sign_with_no_algorithm_is_refused_before_the_login() {
    let token = EphemeralToken::new().unwrap();
    let Some(remote) = support::remote(EphemeralToken::new().unwrap()) else { return };
    let trust = remote.module().with_file_name("p11-kit-trust.so");
    let uri = format!(
        "pkcs11:token=System%20Trust?module-path={}&pin-source={}",
        trust.display(),
        token.pin_file().display()
    );
    let (rig, error) = Rig::refused(token, &uri).await;
    let text = error.to_string();
    assert!(matches!(error, StartError::Token(_)) && text.contains("no algorithm"), "{text}");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tokens_with_one_label_are_told_apart_by_serial_only() {
    let token = EphemeralToken::new().unwrap();
    let (name, conf) = token.env();
    let made = Command::new("softhsm2-util")
        .env(name, conf)
        .args([
            "--init-token",
            "--free",
            "--label",
            token.label(),
            "--so-pin",
            "87654321",
            "--pin",
            "12345678",
        ])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let module = token.module().display().to_string();
    let pin = token.pin_file().display().to_string();
    let uri = format!("pkcs11:token={}?module-path={module}&pin-source={pin}", token.label());
    let (rig, error) = Rig::refused(token, &uri).await;
    let text = error.to_string();
    assert!(text.contains(rig.token.serial()) && text.contains("name one by serial="), "{text}");
    let token = rig.close().await;
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("pkcs11:serial={}?module-path={module}&pin-source={pin}", token.serial());
    let (pool, supervisor) = support::link(&token, &uri, dir.path(), config(dir.path()));
    pool.wait_ready().await.unwrap();
    assert_eq!(pool.token_serial(), token.serial());
    drop(pool);
    supervisor.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_program_that_cannot_run_is_named() {
    let token = EphemeralToken::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut settings = support::settings(&token, &token.uri(), dir.path(), &config(dir.path()));
    settings.program = "/nonexistent/kms".into();
    let (pool, supervisor) = support::link_with(settings, config(dir.path()));
    let error = pool.wait_ready().await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/kms"), "{error}");
    drop(pool);
    supervisor.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_at_every_start_is_named_and_retried_ever_more_slowly() {
    let token = EphemeralToken::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut settings = support::settings(&token, &token.uri(), dir.path(), &config(dir.path()));
    settings.program = "/bin/false".into();
    let (pool, supervisor) = support::link_with(settings, config(dir.path()));
    let error = pool.wait_ready().await.unwrap_err();
    assert!(error.to_string().contains("died while it started (exit status: 1)"), "{error}");
    let waiting = pool.check(&grant(), support::within(Duration::from_secs(1))).await;
    assert!(matches!(waiting, Err(Fault::Unavailable(_))), "{waiting:?}");
    assert!(pool.health().respawns < 20, "{} starts in about a second", pool.health().respawns);
    drop(pool);
    supervisor.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_hangs_is_reported_and_not_killed() {
    let token = EphemeralToken::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = Config { startup_timeout: Duration::from_millis(200), ..config(dir.path()) };
    let mut settings = support::settings(&token, &token.uri(), dir.path(), &config);
    (settings.program, settings.args) = ("/bin/sleep".into(), vec!["3".into()]);
    settings.leave_timeout = Duration::from_millis(100);
    let (pool, supervisor) = support::link_with(settings, config);
    let error = pool.wait_ready().await.unwrap_err();
    assert!(error.to_string().contains("has been starting for"), "{error}");
    assert_eq!(pool.health().respawns, 0);
    let began = Instant::now();
    drop(pool);
    supervisor.await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(1), "it was waited for, not killed");
}

#[test]
fn a_worker_whose_pool_went_while_it_waited_to_start_leaves_the_token_alone() {
    let dir = tempfile::tempdir().unwrap();
    let lock = File::create(dir.path().join("hsm-startup.lock")).unwrap();
    lock.lock().unwrap();
    let socket = dir.path().join("hsm.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let order = Order {
        socket,
        secret: Secret::from_bytes([0; 32]),
        number: 1,
        // Were it to look at the module, its exit status would say so.
        uri: "pkcs11:token=a?module-path=/nonexistent/module.so".to_owned(),
        sessions: 1,
        lock_dir: dir.path().to_owned(),
        profile_file: None,
    };
    let mut bytes = Vec::new();
    wire::frame(&mut bytes, |body| order.encode(body));
    let mut worker = Command::new(support::WORKER).stdin(Stdio::piped()).spawn().unwrap();
    worker.stdin.take().unwrap().write_all(&bytes).unwrap();
    let (mut pool, _) = listener.accept().unwrap();
    assert!(pool.read(&mut [0; 1024]).unwrap() > 0, "its hello");
    drop(pool);
    drop(listener);
    lock.unlock().unwrap();
    assert_eq!(worker.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_runtime_directory_that_others_can_enter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("run");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (control, _supervisor) = tokio::net::UnixStream::pair().unwrap();
    let refused = Pool::start(config(dir.path()), control).err().unwrap();
    assert!(refused.to_string().contains("0700"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_at_the_socket_are_turned_away() {
    let rig = Rig::new().await;
    let socket = rig.dir.path().join("run/hsm.sock");
    let hello = |number, build: &str| {
        let secret = Secret::from_bytes([0; 32]);
        let mut out = Vec::new();
        wire::frame(&mut out, |body| {
            FromWorker::Hello(Hello { build: build.to_owned(), number, secret }).encode(body)
        });
        out
    };
    let others = [
        hello(1, wire::BUILD_ID),
        hello(9, wire::BUILD_ID),
        hello(1, "another build"),
        vec![0xff; 100],
        vec![],
    ];
    for first in others {
        let mut stranger = UnixStream::connect(&socket).unwrap();
        stranger.write_all(&first).unwrap();
        stranger.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stranger.read(&mut [0; 1]).unwrap_or(0), 0, "hung up without a word");
    }
    rig.pool.check(&grant(), soon()).await.unwrap();
    assert_eq!(rig.pool.health().workers_ready, 2);
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_shows_no_secret_and_dumps_no_core() {
    let rig = Rig::new().await;
    let pin = std::fs::read_to_string(rig.token.pin_file()).unwrap();
    for pid in rig.workers() {
        let of = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        assert!(!of("cmdline").contains(pin.trim_end()) && !of("environ").contains(pin.trim_end()));
        let limits = of("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
    }
    rig.close().await;
}

fn config(dir: &Path) -> Config {
    Config { runtime_dir: dir.join("run"), ..Config::default() }
}

fn with_pin_source(token: &EphemeralToken, pin: &Path) -> String {
    format!(
        "pkcs11:serial={}?module-path={}&pin-source={}",
        token.serial(),
        token.module().display(),
        pin.display()
    )
}

/// A shared library that is no PKCS#11 module: the C library of this very process.
fn libc_path() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .find_map(|line| line.split_whitespace().last().filter(|path| path.contains("/libc")))
        .unwrap()
        .to_owned()
}
