//! The shim before SoftHSM, in processes of their own: it reads the environment of whoever loads it, once. What the
//! workers of kms meet is tested in kms/pkcs11; here is what they do not use yet.
#![expect(clippy::unwrap_used, reason = "a test's own steps must succeed")]

use std::{
    ffi::OsString,
    process::{Command, Output},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11},
    error::{Error, RvError},
    mechanism::{Mechanism, aead::GcmParams},
    object::{Attribute, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};
use kms_softhsm::{
    EphemeralToken, Token,
    faults::{Controller, Event, environment, line::Question, module},
};

/// What the child processes need beside the shim's own variables.
const PIN_FILE: &str = "KMS_TEST_PIN_FILE";
const SHIM: &str = "KMS_TEST_SHIM";

#[test]
fn without_the_dev_flag_it_does_not_start_and_says_what_it_is() {
    let token = EphemeralToken::new().unwrap();
    let controller = Controller::start(token.conf().parent().unwrap()).unwrap();
    let mut env = controller.env(token.module());
    env.retain(|(name, _)| name != environment::DEV_FLAG);
    passes(child(&token, "child_is_refused", &env));
    env.push((environment::DEV_FLAG.into(), "yes".into()));
    passes(child(&token, "child_is_refused", &env));
    assert!(controller.processes().is_empty());
}

#[test]
fn without_a_controller_at_its_socket_it_does_not_load() {
    let token = EphemeralToken::new().unwrap();
    let controller = Controller::start(token.conf().parent().unwrap()).unwrap();
    let mut env = controller.env(token.module());
    env.push((environment::SOCKET.into(), "/nonexistent/faults.sock".into()));
    let output = child(&token, "child_cannot_load", &env);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    passes(output);
    assert!(told.contains("kms fault shim: KMS_FAULTY_SOCKET /nonexistent/faults.sock"), "{told}");
}

#[test]
fn secret_keys_meet_their_faults_and_every_iv_is_recorded() {
    let token = EphemeralToken::new().unwrap();
    let controller = Controller::start(token.conf().parent().unwrap()).unwrap();
    let script = "C_EncryptInit always: record-iv\n\
                  C_Encrypt nth 3: flip-bit 9\n\
                  C_Encrypt nth 4: shorten\n\
                  C_EncryptInit nth 5: swap-handles\n\
                  C_EncryptFinal nth 1: flip-bit 0\n\
                  C_DecryptInit nth 1: swap-handles\n\
                  C_WrapKey nth 2: flip-bit 0\n\
                  C_GenerateKey nth 3: lose-object 2\n\
                  C_Login nth 1 times 1: delay-ms 1";
    controller.set(&script.parse().unwrap());
    let file = token.conf().parent().unwrap().join("ivs");
    let mut env = controller.env(token.module());
    env.push((environment::IVS.into(), file.clone().into()));
    passes(child(&token, "child_encrypts", &env));
    let events: Vec<Event> = controller.reports().into_iter().map(|report| report.event).collect();
    let ivs: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Iv(gcm) => Some((gcm.cka_id.clone().unwrap(), gcm.iv.clone())),
            _ => None,
        })
        .collect();
    let by = |key: u8, iv: u8| (vec![key], vec![iv; 12]);
    // The fifth was meant for key 1, and the swap made it key 2's; the sixth is in parts.
    assert_eq!(ivs, [by(1, 1), by(2, 1), by(1, 2), by(1, 3), by(2, 1), by(1, 5)]);
    let recorded = std::fs::read_to_string(file).unwrap();
    let recorded: Vec<_> = recorded.lines().map(|line| line.parse::<Question>().unwrap()).collect();
    let reported = events.iter().filter_map(|event| match event {
        Event::Iv(gcm) => Some(Question::Iv(gcm.clone())),
        _ => None,
    });
    assert_eq!(recorded, reported.collect::<Vec<_>>(), "the file says the same");
    assert_eq!(controller.fired(), 8, "{events:#?}");
    let logins = events.iter().filter(|event| matches!(event, Event::Login { user: 1 })).count();
    let results =
        events.iter().filter(|event| matches!(event, Event::LoggedIn { code } if code.0 == 0)).count();
    assert_eq!((logins, results), (1, 1));
}

#[test]
#[ignore = "a child process of the tests above"]
fn child_is_refused() {
    let pkcs11 = Pkcs11::new(std::env::var_os(SHIM).unwrap()).unwrap();
    let refused = pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    assert!(
        matches!(refused, Err(Error::Pkcs11(RvError::GeneralError, Function::Initialize))),
        "{refused:?}"
    );
    let info = pkcs11.get_library_info().unwrap();
    assert_eq!(info.library_description().trim_end(), "kms fault shim");
    assert!(pkcs11.get_all_slots().is_err());
}

#[test]
#[ignore = "a child process of the tests above"]
fn child_cannot_load() {
    assert!(Pkcs11::new(std::env::var_os(SHIM).unwrap()).is_err());
}

#[test]
#[ignore = "a child process of the tests above"]
fn child_encrypts() {
    let session = logged_in();
    let (one, two) = (aes_key(&session, 1).unwrap(), aes_key(&session, 2).unwrap());
    let encrypt = |key, iv| session.encrypt(&gcm(&mut [iv; 12]), key, b"some text").unwrap();
    let right = encrypt(one, 1);
    let of_two = encrypt(two, 1);
    assert_ne!(right, of_two);

    let flipped = encrypt(one, 2);
    let decrypt = |key, iv, text: &[u8]| session.decrypt(&gcm(&mut [iv; 12]), key, text);
    assert!(decrypt(two, 2, &right).is_err(), "swapped: under key 1, but with another IV");
    assert!(decrypt(one, 2, &flipped).is_err());
    let mut mended = flipped;
    mended[1] ^= 0x40;
    assert_eq!(decrypt(one, 2, &mended).unwrap(), b"some text");

    assert_eq!(encrypt(one, 3).len(), right.len() - 1);
    assert_eq!(encrypt(one, 1), of_two, "the other key's");

    session.encrypt_init(&gcm(&mut [5; 12]), one).unwrap();
    let mut parts = session.encrypt_update(b"some text").unwrap();
    parts.extend(session.encrypt_final().unwrap());
    assert!(decrypt(one, 5, &parts).is_err(), "a bit of the last part is another");

    let wrap = || session.wrap_key(&Mechanism::AesKeyWrap, one, two).unwrap();
    let (wrapped, spoilt) = (wrap(), wrap());
    assert_eq!(wrapped[0] ^ 0x80, spoilt[0]);
    assert_eq!(wrapped[1..], spoilt[1..]);

    let lost = aes_key(&session, 3).unwrap();
    let there = || session.get_attributes(lost, &[cryptoki::object::AttributeType::Id]);
    // cryptoki reads an attribute by two calls.
    assert!(there().is_ok() && there().is_err());
}

/// The shim, with its one token logged in to.
fn logged_in() -> Session {
    let pkcs11 = Pkcs11::new(std::env::var_os(SHIM).unwrap()).unwrap();
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let info = pkcs11.get_library_info().unwrap();
    assert!(info.manufacturer_id().contains("SoftHSM"), "profiles go by it");
    let slots = pkcs11.get_slots_with_initialized_token().unwrap();
    let session = pkcs11.open_rw_session(slots[0]).unwrap();
    let pin = std::fs::read_to_string(std::env::var_os(PIN_FILE).unwrap()).unwrap();
    session.login(UserType::User, Some(&AuthPin::new(pin.trim_end().into()))).unwrap();
    session
}

fn aes_key(session: &Session, id: u8) -> Result<ObjectHandle, Error> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Token(true),
        Attribute::ValueLen(32.into()),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(true),
        Attribute::Extractable(true),
        Attribute::Id(vec![id]),
    ];
    session.generate_key(&Mechanism::AesKeyGen, &template)
}

fn gcm(iv: &mut [u8; 12]) -> Mechanism<'_> {
    Mechanism::AesGcm(GcmParams::new(iv, b"aad", 128.into()).unwrap())
}

/// Runs one of the children with `env`.
fn child(token: &Token, name: &str, env: &[(OsString, OsString)]) -> Output {
    let (conf, conf_file) = token.env();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", name])
        .env(conf, conf_file)
        .env(PIN_FILE, token.pin_file())
        .env(SHIM, module().unwrap())
        .envs(env.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap()
}

fn passes(output: Output) {
    let told = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&told));
}
