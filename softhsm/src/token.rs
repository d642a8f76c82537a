//! What every sort of token has: module, configuration, PIN file, label and serial number.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs::{self, DirBuilder, OpenOptions},
    io::Write as _,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use crate::{Error, program::Slot, secret};

/// An initialised token, and what a PKCS#11 program needs to use it.
#[derive(Debug, Clone)]
pub struct Token {
    module: PathBuf,
    conf: PathBuf,
    env: (&'static str, OsString),
    pin_file: PathBuf,
    label: String,
    serial: String,
}

impl Token {
    /// A token of `module`, which `variable` leads to `conf`.
    pub(crate) fn new(
        module: PathBuf,
        variable: &'static str,
        conf: PathBuf,
        pin_file: PathBuf,
        slot: Slot,
    ) -> Self {
        let env = (variable, conf.clone().into_os_string());
        Self { module, conf, env, pin_file, label: slot.label, serial: slot.serial }
    }

    /// The same token as another module shows it.
    pub(crate) fn through(&self, module: PathBuf, env: (&'static str, OsString)) -> Self {
        Self { module, env, ..self.clone() }
    }

    /// Path of the PKCS#11 module.
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// Path of the token's own configuration, e.g. `softhsm2.conf`. PINs lie beside it.
    pub fn conf(&self) -> &Path {
        &self.conf
    }

    /// The environment variable that leads the module to this token. It is read at C_Initialize.
    pub fn env(&self) -> (&'static str, &OsStr) {
        (self.env.0, &self.env.1)
    }

    /// Path of the file that holds the user PIN and nothing else, mode 0600.
    pub fn pin_file(&self) -> &Path {
        &self.pin_file
    }

    /// CK_TOKEN_INFO `label`, without its padding.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// CK_TOKEN_INFO `serialNumber`, without its padding.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The token as an RFC 7512 URI, with `module-path` and `pin-source`.
    pub fn uri(&self) -> String {
        format!(
            "pkcs11:token={};serial={}?module-path={}&pin-source=file:{}",
            encoded(self.label.as_bytes(), b""),
            encoded(self.serial.as_bytes(), b""),
            encoded(self.module.as_os_str().as_bytes(), b"/"),
            encoded(self.pin_file.as_os_str().as_bytes(), b"/"),
        )
    }
}

/// The PINs of a token about to be made. No Debug: they would end up in a log.
pub(crate) struct Pins {
    user: String,
    security_officer: String,
}

impl Pins {
    pub(crate) fn draw() -> Result<Self, Error> {
        Ok(Self { user: secret::pin()?, security_officer: secret::pin()? })
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn security_officer(&self) -> &str {
        &self.security_officer
    }

    /// What `softhsm2-util --init-token` asks for: SO PIN and user PIN, each twice.
    pub(crate) fn as_typed(&self) -> String {
        let Self { user, security_officer: so } = self;
        format!("{so}\n{so}\n{user}\n{user}\n")
    }

    /// Writes `pin` and `so-pin` into `dir` and returns the path of the first.
    pub(crate) fn write(&self, dir: &Path) -> Result<PathBuf, Error> {
        write_private(&dir.join("so-pin"), &self.security_officer)?;
        write_private(&dir.join("pin"), &self.user)
    }
}

/// Writes `dir/softhsm2.conf` for the tokens in `tokens`, and makes that directory.
pub(crate) fn write_softhsm_conf(dir: &Path, tokens: &Path) -> Result<PathBuf, Error> {
    let path = fit(tokens)?;
    make_private_dir(tokens)?;
    let text = format!(
        "# Written by kms for one token of its own. Development and tests only.\n\
         directories.tokendir = {path}\n\
         objectstore.backend = file\n\
         log.level = ERROR\n\
         slots.removable = false\n"
    );
    write_private(&dir.join("softhsm2.conf"), &text)
}

/// Writes `dir/kryoptic.toml` for the one token in the SQLite file `dir/token.db`.
pub(crate) fn write_kryoptic_conf(dir: &Path) -> Result<PathBuf, Error> {
    let tokens = dir.join("token.db");
    let path = fit(&tokens)?;
    let text = format!(
        "# Written by kms for one token of its own. Tests only.\n\
         [[slots]]\n\
         slot = 0\n\
         dbtype = \"sqlite\"\n\
         dbargs = \"{path}\"\n"
    );
    write_private(&dir.join("kryoptic.toml"), &text)
}

/// A path that both sorts of configuration can hold as it is.
fn fit(path: &Path) -> Result<&str, Error> {
    let fits = |text: &&str| !text.contains(|c: char| matches!(c, '#' | '=' | '"' | '\\') || c.is_control());
    path.to_str().filter(fits).ok_or_else(|| Error::UnfitPath(path.to_owned()))
}

/// Makes `dir` and its parents with mode 0700; one that is there already stays as it is.
pub(crate) fn make_private_dir(dir: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io(dir))
}

/// Replaces `path` with a file of mode 0600, by rename, so that a reader sees the old text or the new one.
fn write_private(path: &Path, text: &str) -> Result<PathBuf, Error> {
    let new = path.with_added_extension("new");
    let write = || {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(Error::io(path))?;
    Ok(path.to_owned())
}

/// Percent-encodes all but RFC 3986 `unreserved` and `also`: a subset of what RFC 7512 §2.3 lets stand.
fn encoded(bytes: &[u8], also: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String never fails.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_a_configuration_would_misread_is_refused() {
        for bad in ["/tmp/a#b", "/tmp/a=b", "/tmp/a\"b", "/tmp/a\\b", "/tmp/a\nb"] {
            let refused = write_softhsm_conf(Path::new("/nonexistent"), Path::new(bad));
            assert!(matches!(refused, Err(Error::UnfitPath(_))), "{bad:?}");
        }
    }

    #[test]
    fn the_uri_encodes_everything_that_could_end_an_attribute() {
        assert_eq!(encoded(b"a b;c?d&e/f", b""), "a%20b%3Bc%3Fd%26e%2Ff");
        assert_eq!(encoded("/srv/k\u{e9}y".as_bytes(), b"/"), "/srv/k%C3%A9y");
    }
}
