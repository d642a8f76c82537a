//! `kms hsm`: preparing a production token, measuring one, and logging in once on purpose, all without the server, with
//! PINs from files; and what the token holds and what an administrator decides about it, through the running server.

mod inventory;
mod older_store;
mod probe;
mod quarantine;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use kms_core::pin_latch::{Holder, Outcome, PinLatch};
use kms_pkcs11::{
    TokenError, Uri,
    token::{self, Preparation},
};
use kms_server::config::Config;
use kms_store::AnyStore;

use crate::{
    clock,
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

/// Log in once and out again, which clears what a wrong PIN left behind: the token's warning, and the latch in the
/// store; spends one try, and the server must not run
#[derive(Debug, Args)]
struct Login {
    /// The server's configuration, which names the token and the file of its PIN
    #[arg(long, env = "KMS_CONFIG", value_name = "FILE", default_value = configuration::DEFAULT_CONFIG)]
    config: PathBuf,
}

impl Hsm {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        match self.verb {
            Verb::Init(verb) => verb.run(format).await,
            Verb::Login(verb) => verb.run().await,
            Verb::Probe(verb) => verb.run().await,
            Verb::AcceptOlderStore(verb) => verb.run(format).await,
            Verb::Inventory(verb) => verb.run(format).await,
            Verb::Quarantine(verb) => verb.run(format).await,
        }
    }
}

impl Init {
    async fn run(self, format: Format) -> Result<(), Failure> {
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
        let locked_in = preparation.lock_dir.clone();
        let uri = blocking(move || token::prepare(&preparation)).await?.map_err(refused)?.to_string();
        output::note(&format!(
            "The token was prepared under the lock in {}. The server locks in hsm.lock_dir, by default the directory \
             of store.path: everything that uses the token on this host must lock in the same directory.",
            locked_in.display()
        ));
        output::note("The token is ready. Name it in the server's configuration, as uri of [hsm]:");
        format.print_text_or(&uri, &serde_json::json!({ "uri": uri }))
    }
}

impl Login {
    async fn run(self) -> Result<(), Failure> {
        let (config, uri, lock_dir) = configured(&self.config)?;
        let login = blocking(move || token::Login::prepare(&uri, &lock_dir)).await?.map_err(refused)?;
        let serial = login.token_serial().to_owned();
        on_purpose(&config, &serial, move || login.run()).await?;
        output::note("The token took the PIN, and the latch is cleared; the server may be started.");
        Ok(())
    }
}

/// Runs `work`, which logs in once, on purpose. The latch first: if this process dies in the middle, nobody else tries.
async fn on_purpose<T: Send + 'static>(
    config: &Config,
    serial: &str,
    work: impl FnOnce() -> Result<T, TokenError> + Send + 'static,
) -> Result<T, Failure> {
    // SQLite's lock proves that no server runs, which could try the PIN at the same time. With PostgreSQL the latch
    // itself keeps the others waiting.
    let store = kms_server::open_store(config).await;
    let store = store.map_err(|error| Failure::new(Code::Precondition, format!("{error:#}")))?;
    let holder = Holder::new(format!("kms hsm, process {}", std::process::id()));
    let others = kms_server::latch_others(&store, config.hsm.startup_timeout)
        .map_err(|error| Failure::new(Code::Precondition, format!("{error:#}")))?;
    let latch = PinLatch::new(store.clone(), config.hsm.pin_generation.get(), holder, others);
    let ended = under(&latch, serial, work).await;
    store.close().await;
    ended
}

async fn under<T: Send + 'static>(
    latch: &PinLatch<AnyStore>,
    serial: &str,
    work: impl FnOnce() -> Result<T, TokenError> + Send + 'static,
) -> Result<T, Failure> {
    let unwritten = |fault| Failure::new(Code::Unavailable, format!("the PIN latch: {fault}"));
    let before = latch.take_on_purpose(serial, clock::now()).await.map_err(unwritten)?;
    let ended = blocking(work).await?;
    let outcome = match &ended {
        Ok(_) => Outcome::Succeeded,
        Err(error) if error.is_of_the_pin() => Outcome::Refused(error.to_string()),
        Err(error) if error.leaves_login_in_doubt() => Outcome::Died(error.to_string()),
        Err(_) => Outcome::NotTried,
    };
    let written = latch.end_on_purpose(serial, before, outcome, clock::now()).await;
    let result = ended.map_err(refused)?;
    written.map_err(unwritten)?;
    Ok(result)
}

/// A configuration, the token that it names, and the directory of the locks around it.
fn configured(file: &Path) -> Result<(Config, Uri, PathBuf), Failure> {
    let config = configuration::load(file, &Overrides::default())?;
    let uri: Uri = config.hsm.uri.parse().map_err(Failure::about("hsm.uri"))?;
    let lock_dir = config.hsm.lock_dir.clone().unwrap_or_else(|| config.state_dir().to_owned());
    Ok((config, uri, lock_dir))
}

/// Runs what waits for the module and the token on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::about("the module"))
}

/// Module, token or PIN are not as they must be. The message says what to do.
fn refused(error: TokenError) -> Failure {
    Failure::new(Code::Precondition, error.to_string())
}
