//! `kms hsm`: preparing a production token, measuring one, and logging in once on purpose, all beside the server, with
//! PINs from files; and what the token holds and what an administrator decides about it, through the running server.

mod inventory;
mod older_store;
mod probe;
mod quarantine;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use kms_pkcs11::{
    Uri,
    token::{self, Preparation},
};
use kms_server::hygiene;

use crate::{
    configuration::{self, Overrides},
    failure::{Code, Failure},
    output::{self, Format},
};

/// Prepare a token, see what it holds, and decide about it
#[derive(Debug, Args)]
pub(crate) struct Hsm {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Init(Init),
    Login(Login),
    AcceptOlderStore(older_store::AcceptOlderStore),
    Probe(probe::Probe),
    Inventory(inventory::Inventory),
    Quarantine(quarantine::Quarantine),
}

/// Initialise a blank token and print the URI that names it; never touches one that is initialised. Needs no server
#[derive(Debug, Args)]
struct Init {
    /// The vendor's PKCS#11 module, a shared library
    #[arg(long, value_name = "FILE")]
    module_path: PathBuf,
    /// Label to give the token, at most 32 bytes
    #[arg(long, value_name = "TEXT")]
    label: String,
    /// Serial number of the token to take; without it the only blank one
    #[arg(long, value_name = "SERIAL")]
    serial: Option<String>,
    /// File with the security officer's PIN
    #[arg(long, value_name = "FILE")]
    so_pin_file: PathBuf,
    /// File with the user PIN, which the server will read
    #[arg(long, value_name = "FILE")]
    pin_file: PathBuf,
    /// Directory of the locks around the token; give the server's hsm.lock_dir, which is the directory of
    /// store.path unless it is set [default: that of the PIN file]
    #[arg(long, value_name = "DIR")]
    lock_dir: Option<PathBuf>,
}

/// Log in once and out again, which clears the warning that a wrong PIN left on the token; spends one try. Works
/// beside the server
#[derive(Debug, Args)]
struct Login {
    /// The server's configuration, which names the token and the file of its PIN
    #[arg(long, env = "KMS_CONFIG", value_name = "FILE", default_value = configuration::DEFAULT_CONFIG)]
    config: PathBuf,
}

impl Hsm {
    pub(crate) fn run(self, format: Format) -> Result<(), Failure> {
        match self.verb {
            Verb::Init(verb) => with_pins(|| verb.run(format)),
            Verb::Login(verb) => with_pins(|| verb.run()),
            Verb::Probe(verb) => with_pins(|| verb.run()),
            Verb::AcceptOlderStore(verb) => crate::block_on(verb.run(format)),
            Verb::Inventory(verb) => crate::block_on(verb.run(format)),
            Verb::Quarantine(verb) => crate::block_on(verb.run(format)),
        }
    }
}

/// PINs are read by this process.
fn with_pins(command: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    hygiene::establish()?;
    command()
}

impl Init {
    fn run(self, format: Format) -> Result<(), Failure> {
        let absolute = |path: PathBuf| std::path::absolute(&path).map_err(Failure::about(path.display()));
        let user_pin_file = absolute(self.pin_file)?;
        let lock_dir = match (self.lock_dir, user_pin_file.parent()) {
            (Some(dir), _) => dir,
            (None, Some(dir)) => dir.to_owned(),
            (None, None) => return Err(Failure::usage("--pin-file must name a file")),
        };
        let preparation = Preparation {
            module_path: absolute(self.module_path)?,
            serial: self.serial,
            label: self.label,
            so_pin_file: absolute(self.so_pin_file)?,
            user_pin_file,
            lock_dir,
        };
        let uri = token::prepare(&preparation).map_err(refused)?.to_string();
        output::note(&format!(
            "The token was prepared under the lock in {}. The server locks in hsm.lock_dir, by default the directory \
             of store.path: everything that uses the token on this host must lock in the same directory.",
            preparation.lock_dir.display()
        ));
        output::note("The token is ready. Name it in the server's configuration, as uri of [hsm]:");
        format.print_text_or(&uri, &serde_json::json!({ "uri": uri }))
    }
}

impl Login {
    fn run(self) -> Result<(), Failure> {
        let (uri, lock_dir) = configured(&self.config)?;
        token::login(&uri, &lock_dir).map_err(refused)?;
        output::note("The token took the PIN; the server may be started.");
        Ok(())
    }
}

/// The token that a configuration names, and the directory of the locks around it.
fn configured(config: &Path) -> Result<(Uri, PathBuf), Failure> {
    let config = configuration::load(config, &Overrides::default())?;
    let uri: Uri = config.hsm.uri.parse().map_err(Failure::about("hsm.uri"))?;
    let lock_dir = config.hsm.lock_dir.as_deref().unwrap_or_else(|| config.store_dir());
    Ok((uri, lock_dir.to_owned()))
}

/// Module, token or PIN are not as they must be. The message says what to do.
fn refused(error: kms_pkcs11::TokenError) -> Failure {
    Failure::new(Code::Precondition, error.to_string())
}
