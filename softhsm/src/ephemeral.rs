//! A token for one test: made in a temporary directory, removed with it.

use std::{fs::Permissions, ops::Deref, os::unix::fs::PermissionsExt as _, path::PathBuf};

use tempfile::TempDir;

use crate::{
    Error, KRYOPTIC_CONF, SOFTHSM_CONF, Token, install,
    pkcs11_tool::Pkcs11Tool,
    program::Program,
    secret,
    token::{self, Pins},
};

/// An initialised token in a temporary directory, which is removed on drop. Drop it after every process that
/// has loaded the module with its [`Token::env`] has ended.
#[derive(Debug)]
pub struct EphemeralToken {
    token: Token,
    _dir: TempDir,
}

impl EphemeralToken {
    /// Makes a SoftHSM token with random PINs and a label of its own.
    pub fn new() -> Result<Self, Error> {
        let program = Program::find()?;
        let (dir, root) = private_dir()?;
        let conf = token::write_softhsm_conf(&root, &root.join("tokens"))?;
        let pins = Pins::draw()?;
        let pin_file = pins.write(&root)?;
        let slot = program.init_token(&conf, &secret::label("kms-test")?, &pins)?;
        Ok(Self { token: Token::new(program.into_module(), SOFTHSM_CONF, conf, pin_file, slot), _dir: dir })
    }

    /// Makes a Kryoptic token with random PINs and a label of its own. Unlike SoftHSM's it is one SQLite file, and
    /// survives a kill at any moment.
    pub fn kryoptic() -> Result<Self, Error> {
        let module = install::kryoptic()?;
        let (dir, root) = private_dir()?;
        let conf = token::write_kryoptic_conf(&root)?;
        let pins = Pins::draw()?;
        let pin_file = pins.write(&root)?;
        let tool = Pkcs11Tool { module: &module, variable: KRYOPTIC_CONF, conf: &conf };
        let slot = tool.init_token(&secret::label("kms-test")?, &pins)?;
        Ok(Self { token: Token::new(module, KRYOPTIC_CONF, conf, pin_file, slot), _dir: dir })
    }
}

impl Deref for EphemeralToken {
    type Target = Token;

    fn deref(&self) -> &Token {
        &self.token
    }
}

/// A directory that only this user may enter, and its path without symbolic links.
fn private_dir() -> Result<(TempDir, PathBuf), Error> {
    let temporary = std::env::temp_dir();
    let dir = tempfile::Builder::new()
        .prefix("kms-token-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(&temporary)
        .map_err(Error::io(&temporary))?;
    let root = dir.path().canonicalize().map_err(Error::io(dir.path()))?;
    Ok((dir, root))
}
