//! A token for one test: made in a temporary directory, removed with it.

use std::{fs::Permissions, ops::Deref, os::unix::fs::PermissionsExt as _};

use tempfile::TempDir;

use crate::{
    Error, Token,
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
    /// Makes a token with random PINs and a label of its own.
    pub fn new() -> Result<Self, Error> {
        let program = Program::find()?;
        let temporary = std::env::temp_dir();
        let dir = tempfile::Builder::new()
            .prefix("kms-softhsm-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&temporary)
            .map_err(Error::io(&temporary))?;
        let root = dir.path().canonicalize().map_err(Error::io(dir.path()))?;
        let conf = token::write_conf(&root, &root.join("tokens"))?;
        let pins = Pins::draw()?;
        let pin_file = pins.write(&root)?;
        let label = secret::label("kms-test")?;
        let slot = program.init_token(&conf, &label, &pins)?;
        Ok(Self { token: Token::new(program.into_module(), conf, pin_file, slot), _dir: dir })
    }
}

impl Deref for EphemeralToken {
    type Target = Token;

    fn deref(&self) -> &Token {
        &self.token
    }
}
