//! The operator's half: look at tokens, prepare one, log in once on purpose. For `kms doctor` and `kms hsm`.
//!
//! Runs in the calling process, which therefore must be a short-lived one: call one of these functions, print what it
//! returns, exit. Slots are chosen by serial number or label, never by number. Nothing here spends a PIN try except
//! [`prepare`], [`Login::run`] and [`Login::probe`], which say so. From the moment at which these begin with the module, SIGTERM,
//! SIGINT and SIGHUP no longer end the process: a token does not survive that in the middle of a change.

mod probe;
mod text;

use std::path::{Path, PathBuf};

use cryptoki::{
    session::UserType,
    slot::{Slot, TokenInfo},
};
use kms_core::Algorithm;
use secrecy::{ExposeSecret, SecretString};

pub use self::probe::Measured;

use crate::{
    TokenError, Uri, mechanism,
    module::{self, Module},
    pin,
    profile::Profile,
    signals,
    worker::locks::{Locks, Starting},
};

/// What a module shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Manufacturer, description and version of the module.
    pub library: String,
    /// The profile that kms uses for it.
    pub profile: Profile,
    /// Every token, initialised or not.
    pub tokens: Vec<TokenReport>,
    /// Serial number of the token that the URI names, or why there is none.
    pub chosen: Result<String, TokenError>,
}

/// What a token shows without login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenReport {
    /// CK_TOKEN_INFO.label, trimmed.
    pub label: String,
    /// Serial number, trimmed.
    pub serial: String,
    /// Manufacturer, trimmed.
    pub manufacturer: String,
    /// Model, trimmed.
    pub model: String,
    /// Whether it was initialised.
    pub initialized: bool,
    /// The user PIN, as far as the flags tell.
    pub user_pin: PinState,
    /// Every algorithm with the mechanisms that it lacks; an empty list means that it can be used.
    pub algorithms: Vec<(Algorithm, Vec<&'static str>)>,
}

/// What the flags tell about the user PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinState {
    /// Never set.
    Unset,
    /// Set, and no wrong try since the last login.
    Fine,
    /// At least one wrong try since the last login. Workers refuse to try.
    CountLow,
    /// One more wrong try locks it.
    FinalTry,
    /// Locked: only the security officer can help.
    Locked,
}

/// How to prepare a token.
#[derive(Debug, Clone)]
pub struct Preparation {
    /// The module.
    pub module_path: PathBuf,
    /// Serial number of the token to take; without it, the only token that is not initialised.
    pub serial: Option<String>,
    /// Label to give it.
    pub label: String,
    /// File with the security officer's PIN.
    pub so_pin_file: PathBuf,
    /// File with the user PIN.
    pub user_pin_file: PathBuf,
    /// Directory of the locks between processes that use this token.
    pub lock_dir: PathBuf,
}

/// A token's label has at most this many bytes (CK_TOKEN_INFO).
const LABEL_LEN_MAX: usize = 32;

/// Looks at everything behind the URI's module, with the profile in `profile_file` or the built-in one. Spends no PIN
/// try.
pub fn examine(uri: &Uri, lock_dir: &Path, profile_file: Option<&Path>) -> Result<Report, TokenError> {
    let _starting = lock(lock_dir)?;
    let module = Module::load(&uri.module_path)?.profiled(profile_file)?;
    let tokens = module.tokens()?.iter().map(|(slot, info)| report(&module, *slot, info)).collect();
    let chosen = module.token(uri).map(|(_, info)| info.serial_number().trim().to_owned());
    Ok(Report { library: module.library.clone(), profile: module.profile.clone(), tokens, chosen })
}

/// Initialises a blank token, sets both PINs, and returns the URI that names it. Never touches a token that is
/// initialised: that would erase its keys.
pub fn prepare(preparation: &Preparation) -> Result<Uri, TokenError> {
    let refuse = |text: String| Err(TokenError::NotPreparable(text));
    let label = preparation.label.as_str();
    if label.is_empty() || label.len() > LABEL_LEN_MAX || label.trim() != label {
        return refuse(format!("a label has 1 to {LABEL_LEN_MAX} bytes and no blank at its ends"));
    }
    let (so_pin, user_pin) = (pin::read(&preparation.so_pin_file)?, pin::read(&preparation.user_pin_file)?);
    if so_pin.expose_secret() == user_pin.expose_secret() {
        return refuse("SO PIN and user PIN are the same; choose two".to_owned());
    }
    let _starting = lock(&preparation.lock_dir)?;
    outlive_signals()?;
    let module = Module::load(&preparation.module_path)?;
    let tokens = module.tokens()?;
    if tokens.iter().any(|(_, info)| info.token_initialized() && info.label().trim() == label) {
        return refuse(format!("a token with the label {label:?} is there already; choose another label"));
    }
    let (slot, info) = blank(&tokens, preparation.serial.as_deref())?;
    check_length(info, &so_pin)?;
    check_length(info, &user_pin)?;
    module.pkcs11.init_token(*slot, &so_pin, label)?;
    let session = module.pkcs11.open_rw_session(*slot)?;
    session.login(UserType::So, Some(&so_pin)).map_err(module::login_error)?;
    session.init_pin(&user_pin)?;
    session.logout()?;
    let info = module.pkcs11.get_token_info(*slot)?;
    Ok(Uri {
        token: Some(label.to_owned()),
        serial: Some(info.serial_number().trim().to_owned()),
        manufacturer: None,
        model: None,
        module_path: preparation.module_path.clone(),
        pin_source: Some(preparation.user_pin_file.clone()),
    })
}

/// A login that the operator asks for: all is ready, and the PIN was not tried yet. Holds the start-up lock.
pub struct Login {
    module: Module,
    slot: Slot,
    serial: String,
    pin: SecretString,
    _starting: Starting,
}

impl Login {
    /// Finds the token and reads the PIN; refuses when one try could lock the token.
    pub fn prepare(uri: &Uri, lock_dir: &Path) -> Result<Self, TokenError> {
        let starting = lock(lock_dir)?;
        outlive_signals()?;
        let module = Module::load(&uri.module_path)?;
        let (slot, info) = module.token(uri)?;
        match pin_state(&info) {
            PinState::CountLow | PinState::Fine => {}
            _ => module::check_pin_flags(&info)?,
        }
        let pin = pin::read(uri.pin_source.as_deref().ok_or(TokenError::PinSourceMissing)?)?;
        let serial = info.serial_number().trim().to_owned();
        Ok(Self { module, slot, serial, pin, _starting: starting })
    }

    /// Serial number of the token, trimmed.
    pub fn token_serial(&self) -> &str {
        &self.serial
    }

    /// Logs in once and out again, which clears the warning that a wrong try left behind. Spends a PIN try, so the
    /// operator must mean it.
    pub fn run(self) -> Result<(), TokenError> {
        let session = self.module.pkcs11.open_rw_session(self.slot)?;
        session.login(UserType::User, Some(&self.pin)).map_err(module::login_error)?;
        // Logged in it has; what C_Logout says changes nothing about the PIN.
        let _ = session.logout();
        Ok(())
    }
}

fn blank<'a>(
    tokens: &'a [(Slot, TokenInfo)],
    serial: Option<&str>,
) -> Result<&'a (Slot, TokenInfo), TokenError> {
    let mut blank = tokens.iter().filter(|(_, info)| match serial {
        Some(serial) => info.serial_number().trim() == serial,
        None => !info.token_initialized(),
    });
    let problem = match (blank.next(), blank.next(), serial) {
        (Some(token), None, _) if !token.1.token_initialized() => return Ok(token),
        (Some(_), None, _) => {
            "the token is initialised already; kms never erases one, use the vendor's tool if that is meant"
                .to_owned()
        }
        (Some(_), Some(_), Some(serial)) => format!("several tokens have the serial number {serial}"),
        (Some(_), Some(_), None) => "several tokens are blank; name one by its serial number".to_owned(),
        (None, _, Some(serial)) => format!("no token has the serial number {serial}"),
        (None, _, None) => "no token is blank".to_owned(),
    };
    Err(TokenError::NotPreparable(problem))
}

fn check_length(info: &TokenInfo, pin: &SecretString) -> Result<(), TokenError> {
    let (min, max) = (info.min_pin_length(), info.max_pin_length());
    // A token that leaves the most at zero does not tell it.
    let max = if max == 0 { usize::MAX } else { max };
    if (min..=max).contains(&pin.expose_secret().len()) {
        return Ok(());
    }
    Err(TokenError::NotPreparable(format!("this token takes PINs of {min} to {max} bytes")))
}

fn report(module: &Module, slot: Slot, info: &TokenInfo) -> TokenReport {
    let mechanism = module.mechanisms(slot);
    TokenReport {
        label: info.label().trim().to_owned(),
        serial: info.serial_number().trim().to_owned(),
        manufacturer: info.manufacturer_id().trim().to_owned(),
        model: info.model().trim().to_owned(),
        initialized: info.token_initialized(),
        user_pin: pin_state(info),
        algorithms: Algorithm::ALL
            .map(|algorithm| (algorithm, mechanism::missing(algorithm, &module.profile, &mechanism)))
            .to_vec(),
    }
}

fn pin_state(info: &TokenInfo) -> PinState {
    if info.user_pin_locked() {
        PinState::Locked
    } else if !info.user_pin_initialized() {
        PinState::Unset
    } else if info.user_pin_final_try() {
        PinState::FinalTry
    } else if info.user_pin_count_low() {
        PinState::CountLow
    } else {
        PinState::Fine
    }
}

fn outlive_signals() -> Result<(), TokenError> {
    signals::outlive().map_err(|error| TokenError::Signals(error.to_string()))
}

fn lock(dir: &Path) -> Result<Starting, TokenError> {
    Locks::new(dir)
        .startup()
        .map_err(|error| TokenError::LockDir { dir: dir.to_owned(), why: error.to_string() })
}
