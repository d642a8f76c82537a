//! Tokens are made, found again, and repaired or refused, with the real SoftHSM.
#![expect(clippy::expect_used, reason = "a test's own steps must succeed")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use kms_softhsm::{DevToken, EphemeralToken, Error, Token};

#[test]
fn an_ephemeral_token_is_private_and_goes_with_its_directory() {
    let token = EphemeralToken::new().expect("SoftHSM is installed");
    let dir = token.conf().parent().expect("a file lies in a directory").to_owned();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("tokens")), 0o700);
    assert_eq!(mode(token.pin_file()), 0o600);
    assert_eq!(token.serial().len(), 16);
    assert!(token.label().len() <= 32);
    drop(token);
    assert!(!dir.exists());
}

#[test]
fn two_ephemeral_tokens_share_nothing() {
    let (one, other) = (EphemeralToken::new().expect("one"), EphemeralToken::new().expect("other"));
    assert_ne!(one.label(), other.label());
    assert_ne!(one.serial(), other.serial());
    assert_ne!(pin(&one), pin(&other));
    assert!(show_slots(&one).contains(one.label()));
    assert!(!show_slots(&one).contains(other.label()));
}

#[test]
fn the_pin_in_the_file_opens_the_token() {
    let token = EphemeralToken::new().expect("SoftHSM is installed");
    assert!(pin(&token).len() >= 16);
    // An import needs a login and nothing but softhsm2-util; 16 bytes are an AES key.
    let key = token.conf().with_file_name("aes-key");
    fs::write(&key, [7; 16]).expect("the directory is ours");
    let import = |pin: &str| {
        util(&token)
            .args(["--import", key.to_str().expect("UTF-8"), "--aes", "--token", token.label()])
            .args(["--label", "k", "--id", "A1", "--pin", pin])
            .output()
            .expect("it runs")
    };
    assert!(!import("a-wrong-pin-of-mine").status.success());
    let output = import(&pin(&token));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_uri_names_token_module_and_pin_source() {
    let token = EphemeralToken::new().expect("SoftHSM is installed");
    let uri = token.uri();
    assert!(uri.starts_with(&format!("pkcs11:token={};serial={}?", token.label(), token.serial())), "{uri}");
    assert!(uri.contains("?module-path=/"), "{uri}");
    assert!(uri.contains("&pin-source=file:/"), "{uri}");
}

#[test]
fn a_development_token_is_resumed_even_after_its_directory_has_moved() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (first, second) = (parent.path().join("first"), parent.path().join("second"));
    let made = DevToken::open_or_create(&first).expect("it is made");
    let (label, serial, secret) = (made.label().to_owned(), made.serial().to_owned(), pin(&made));
    assert_eq!(mode(&first), 0o700);
    assert_eq!(mode(&first.join("so-pin")), 0o600);
    assert!(!first.join("staging").exists());

    fs::rename(&first, &second).expect("nobody holds it");
    let resumed = DevToken::open_or_create(&second).expect("it is found");
    assert_eq!((resumed.label(), resumed.serial(), pin(&resumed)), (&*label, &*serial, secret));
    assert!(resumed.conf().starts_with(second.canonicalize().expect("it exists")));
}

#[test]
fn what_a_crash_left_before_the_token_was_whole_is_made_anew() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir_all(dir.path().join("staging/tokens/half")).expect("ours");
    fs::write(dir.path().join("staging/tokens/half/token.object"), b"").expect("ours");
    fs::write(dir.path().join("pin"), "of-an-earlier-attempt").expect("ours");
    fs::write(dir.path().join("pin.new"), "torn").expect("ours");
    let token = DevToken::open_or_create(dir.path()).expect("it begins anew");
    assert_ne!(pin(&token), "of-an-earlier-attempt");
    assert_eq!(mode(token.pin_file()), 0o600);
    assert!(!dir.path().join("staging").exists());
}

#[test]
fn a_damaged_token_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    drop(DevToken::open_or_create(dir.path()).expect("it is made"));
    let token_dir =
        fs::read_dir(dir.path().join("tokens")).expect("there").next().expect("one").expect("readable");
    let object = token_dir.path().join("token.object");
    fs::write(&object, b"").expect("ours");

    let refused = DevToken::open_or_create(dir.path()).expect_err("it cannot be read");
    assert!(matches!(refused, Error::Unusable { .. }), "{refused}");
    assert!(refused.to_string().contains("restore it, or remove"), "{refused}");
    assert!(object.exists(), "nothing is thrown away");
}

#[test]
fn a_token_whose_pin_is_lost_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    drop(DevToken::open_or_create(dir.path()).expect("it is made"));
    fs::remove_file(dir.path().join("pin")).expect("it was there");
    let refused = DevToken::open_or_create(dir.path()).expect_err("there is no PIN");
    assert!(refused.to_string().contains("`pin` is missing"), "{refused}");
}

#[test]
fn two_processes_that_create_at_once_get_the_same_token() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let serials: Vec<String> = std::thread::scope(|scope| {
        let open = || DevToken::open_or_create(dir.path()).expect("one makes it").serial().to_owned();
        let both = [scope.spawn(open), scope.spawn(open)];
        both.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(serials[0], serials[1]);
}

fn pin(token: &Token) -> String {
    fs::read_to_string(token.pin_file()).expect("the PIN file is there")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

fn util(token: &Token) -> Command {
    let (name, value) = token.env();
    let mut command = Command::new("softhsm2-util");
    command.env(name, value);
    command
}

fn show_slots(token: &Token) -> String {
    let Output { stdout, .. } = util(token).arg("--show-slots").output().expect("it runs");
    String::from_utf8(stdout).expect("labels are ASCII")
}
