//! A development token that stays: `kms dev --dir DIR` resumes where it stopped.
//!
//! The token is made in `DIR/staging` and moved to `DIR/tokens` by one rename, the last step. So `tokens/`
//! exists whole or not at all, and whatever a crash leaves without it holds no key and may be thrown away.

use std::{
    fs::{self, File},
    io::ErrorKind,
    ops::Deref,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    Error, SOFTHSM_CONF, Token,
    program::{Program, Slot},
    secret,
    token::{self, Pins},
};

/// A token in a directory of the developer's choice: `softhsm2.conf`, `tokens/`, `pin`, `so-pin`.
#[derive(Debug)]
pub struct DevToken(Token);

impl DevToken {
    /// Opens the token in `dir`, or makes one (and `dir`) when there is none. Two processes may do so at once.
    ///
    /// A `tokens/` that is damaged, or whose `pin` is lost, is refused and left untouched.
    pub fn open_or_create(dir: &Path) -> Result<Self, Error> {
        let program = Program::find()?;
        token::make_private_dir(dir)?;
        let dir = dir.canonicalize().map_err(Error::io(dir))?;
        let lock = File::open(&dir).map_err(Error::io(&dir))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|errno| Error::io(&dir)(errno.into()))?;

        let tokens = dir.join("tokens");
        if !tokens.exists() {
            create(&program, &dir, &tokens)?;
        }
        // Written anew each time: the directory may have been moved.
        let conf = token::write_softhsm_conf(&dir, &tokens)?;
        let slot = the_one_token(&dir, program.slots(&conf)?)?;
        Ok(Self(Token::new(program.into_module(), SOFTHSM_CONF, conf, present_pin(&dir)?, slot)))
    }
}

impl Deref for DevToken {
    type Target = Token;

    fn deref(&self) -> &Token {
        &self.0
    }
}

fn create(program: &Program, dir: &Path, tokens: &Path) -> Result<(), Error> {
    let staging = dir.join("staging");
    match fs::remove_dir_all(&staging) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(&staging)(error)),
        _ => {}
    }
    token::make_private_dir(&staging)?;
    let staged = staging.join("tokens");
    let conf = token::write_softhsm_conf(&staging, &staged)?;
    let pins = Pins::draw()?;
    pins.write(dir)?;
    program.init_token(&conf, &secret::label("kms-dev")?, &pins)?;
    fs::rename(&staged, tokens).map_err(Error::io(tokens))?;
    fs::remove_dir_all(&staging).map_err(Error::io(&staging))
}

fn the_one_token(dir: &Path, slots: Vec<Slot>) -> Result<Slot, Error> {
    let unusable = |why: &str| Error::Unusable { dir: dir.to_owned(), why: why.to_owned() };
    let mut initialised = slots.into_iter().filter(|slot| slot.initialised);
    match (initialised.next(), initialised.next()) {
        (Some(slot), None) if slot.user_pin_set => Ok(slot),
        (Some(_), None) => Err(unusable("its token has no user PIN")),
        (None, _) => Err(unusable("tokens/ is there, but SoftHSM finds no readable token in it")),
        (Some(_), Some(_)) => Err(unusable("tokens/ holds more than one token")),
    }
}

fn present_pin(dir: &Path) -> Result<PathBuf, Error> {
    let pin = dir.join("pin");
    let present = fs::metadata(&pin).is_ok_and(|meta| meta.is_file() && meta.len() > 0);
    present.then_some(pin).ok_or_else(|| Error::Unusable {
        dir: dir.to_owned(),
        why: "the file `pin` is missing or empty".to_owned(),
    })
}
