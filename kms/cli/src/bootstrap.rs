//! `kms bootstrap`: the first administrator, made once, while the server does not run.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;
use kms_server::config::Config;

use crate::{
    configuration::Configuration,
    failure::Failure,
    output::{self, Format},
};

/// What to do when the credential went nowhere.
const NOT_SHOWN: &str = "nobody has it, and nothing else is in the store yet: remove the file of store.path, and \
                         bootstrap again, with --out FILE";

/// Make the first administrator, and show the credential this once
#[derive(Debug, Args)]
pub(crate) struct Bootstrap {
    #[command(flatten)]
    configuration: Configuration,
    /// Write the credential to this new file (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Bootstrap {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let config = self.configuration.load()?;
        match &self.out {
            Some(file) => {
                to_file(&config, file).await?;
                output::note(&format!("the administrator's credential is in {}", file.display()));
                Ok(())
            }
            None => {
                let credential = kms_server::bootstrap(&config).await?;
                output::note("This credential of the first administrator is shown this once:");
                let text = match format {
                    Format::Table => credential,
                    Format::Json | Format::Yaml => {
                        format.all(&serde_json::json!({ "secret": credential }))?
                    }
                };
                output::print_credential(&text, NOT_SHOWN)
            }
        }
    }
}

/// Makes the first administrator and writes its credential to a new file.
pub(crate) async fn to_file(config: &Config, path: &Path) -> Result<(), Failure> {
    // The file first: a credential that cannot be kept must not be made.
    let mut file = output::create_new_secret_file(path)?;
    let made = kms_server::bootstrap(config).await;
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
