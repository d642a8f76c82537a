//! Kryoptic's token, and tokens behind p11-kit's server, as a stock tool finds them.
#![expect(clippy::expect_used, reason = "a test's own steps must succeed")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kms_softhsm::{EphemeralToken, RemoteToken, Token, unless_left_out};
use rustix::process::{Pid, test_kill_process_group};

#[test]
fn a_kryoptic_token_is_private_and_goes_with_its_directory() {
    let Some(token) = kryoptic() else { return };
    let dir = token.conf().parent().expect("a file lies in a directory").to_owned();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(token.pin_file()), 0o600);
    assert!(!token.serial().is_empty() && token.label().starts_with("kms-test-"));
    drop(token);
    assert!(!dir.exists());
}

#[test]
fn only_the_pin_in_the_file_opens_a_kryoptic_token() {
    let Some(token) = kryoptic() else { return };
    assert!(!logs_in(&token, "a-wrong-pin-of-mine"));
    assert!(logs_in(&token, &pin(&token)));
}

#[test]
fn a_token_behind_a_server_is_the_same_token_until_the_server_dies_and_again_after_its_restart() {
    let tokens = [EphemeralToken::new().map(Some), unless_left_out(EphemeralToken::kryoptic())];
    for behind in tokens {
        let Some(behind) = behind.expect("it is made") else { continue };
        let Some(remote) = in_front_of(behind) else { return };
        assert_eq!(remote.serial(), remote.behind().serial());
        assert_ne!(remote.module(), remote.behind().module());
        assert!(logs_in(&remote, &pin(&remote)));

        remote.kill().expect("killed");
        assert_eq!(remote.pid(), None);
        assert!(!logs_in(&remote, &pin(&remote)), "nobody is there");
        remote.restart().expect("started");
        assert!(logs_in(&remote, &pin(&remote)));
    }
}

#[test]
fn a_stopped_server_hangs_its_clients_until_it_is_resumed() {
    let Some(remote) = in_front_of(EphemeralToken::new().expect("SoftHSM is installed")) else { return };
    remote.stop().expect("stopped");
    let mut hung = login(&remote, &pin(&remote)).spawn().expect("it runs");
    assert!(!ends_within(&mut hung, Duration::from_millis(300)), "a stopped server does not answer");
    remote.resume().expect("resumed");
    assert!(hung.wait().expect("it ends").success());
}

#[test]
fn nothing_of_a_server_outlives_its_token() {
    let Some(remote) = in_front_of(EphemeralToken::new().expect("SoftHSM is installed")) else { return };
    let group = remote.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let group = group.expect("it runs");
    // A client that is served at that moment, by a process of its own.
    remote.stop().expect("stopped");
    let mut client = login(&remote, &pin(&remote)).spawn().expect("it runs");
    drop(remote);
    assert!(!client.wait().expect("it ends").success());
    let end = Instant::now() + Duration::from_secs(10);
    while test_kill_process_group(group).is_ok() {
        assert!(Instant::now() < end, "processes of {group:?} are left");
        std::thread::yield_now();
    }
}

fn kryoptic() -> Option<EphemeralToken> {
    unless_left_out(EphemeralToken::kryoptic()).expect("it is made")
}

fn in_front_of(behind: EphemeralToken) -> Option<RemoteToken> {
    unless_left_out(RemoteToken::in_front_of(behind)).expect("it is started")
}

fn pin(token: &Token) -> String {
    fs::read_to_string(token.pin_file()).expect("the PIN file is there")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

fn logs_in(token: &Token, pin: &str) -> bool {
    login(token, pin).status().expect("pkcs11-tool is installed").success()
}

fn login(token: &Token, pin: &str) -> Command {
    let (name, value) = token.env();
    let mut command = Command::new("pkcs11-tool");
    command
        .env(name, value)
        .env("TEST_PIN", pin)
        .arg("--module")
        .arg(token.module())
        .args(["--token-label", token.label(), "--login", "--pin", "env:TEST_PIN", "--list-objects"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn ends_within(child: &mut Child, time: Duration) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if child.try_wait().expect("it is ours").is_some() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}
