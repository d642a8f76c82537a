//! `kms bootstrap`: an administrator whom nobody has let in: the first, made once; or another, when nobody is left who
//! could make one.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;
use kms_core::{KeyId, verbs};
use kms_server::config::Config;

use crate::{
    configuration::Configuration,
    failure::Failure,
    output::{self, Format},
};

/// What to do when the credential went nowhere.
const NOT_SHOWN: &str = "nobody has it, and nothing else is in the store yet: remove the file of store.path, and \
                         bootstrap again, with --out FILE";

/// Make the first administrator, and show the credential this once. With --another, one more.
///
/// One needs --another when nobody is left who may let others in: every administrator's credential is lost, or has ended,
/// or four eyes are asked for and too few who may approve are left. Whoever can write the database could do as much by hand;
/// this leaves a record in the audit log. With SQLite the server must not run: both want the database for themselves. With
/// PostgreSQL servers may run, and take the new credential at once.
#[derive(Debug, Args)]
pub(crate) struct Bootstrap {
    #[command(flatten)]
    configuration: Configuration,
    /// Write the credential to this new file (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Name of an access token to be made beside those that there are: for when nobody is left who may let others in, or
    /// too few who may approve
    #[arg(long, value_name = "NAME")]
    another: Option<KeyId>,
}

impl Bootstrap {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let config = self.configuration.load()?;
        let (which, whose, remedy) = match self.another {
            None => (verbs::Bootstrap::First, "the first administrator", NOT_SHOWN.to_owned()),
            Some(name) => {
                let remedy = format!(
                    "nobody has it: bootstrap another name, with --out FILE, and revoke accessTokens/{name}"
                );
                (verbs::Bootstrap::Another(name.to_string()), "another administrator", remedy)
            }
        };
        match &self.out {
            Some(file) => {
                to_file(&config, which, file).await?;
                output::note(&format!("the administrator's credential is in {}", file.display()));
                Ok(())
            }
            None => {
                let credential = kms_server::bootstrap(&config, which).await?;
                output::note(&format!("This credential of {whose} is shown this once:"));
                let text = match format {
                    Format::Table => credential,
                    Format::Json | Format::Yaml => {
                        format.all(&serde_json::json!({ "secret": credential }))?
                    }
                };
                output::print_credential(&text, &remedy)
            }
        }
    }
}

/// Makes an administrator and writes its credential to a new file.
pub(crate) async fn to_file(config: &Config, which: verbs::Bootstrap, path: &Path) -> Result<(), Failure> {
    // The file first: a credential that cannot be kept must not be made.
    let mut file = output::create_new_secret_file(path)?;
    let made = kms_server::bootstrap(config, which).await;
    let credential = made.inspect_err(|_| {
        // Empty, and ours; if it stays, the next attempt says so.
        let _ = fs::remove_file(path);
    })?;
    writeln!(file, "{credential}").and_then(|()| persist(&file, path)).map_err(Failure::about(path.display()))
}

/// Makes file and name durable: the credential cannot be shown again.
fn persist(file: &File, path: &Path) -> std::io::Result<()> {
    file.sync_all()?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
