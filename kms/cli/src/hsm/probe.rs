//! `kms hsm probe`: a profile for a token that nobody has measured yet.

use std::path::PathBuf;

use clap::Args;
use kms_pkcs11::token;

use super::{blocking, configured, on_purpose, refused};
use crate::{configuration, failure::Failure, output};

/// Measure a token and write its profile, for hsm.profile_file; spends one PIN try, and leaves nothing in the token
///
/// The server must not run. Refused when the token remembers a wrong PIN. Works with session objects alone; an RSA-2048 pair is among them,
/// which may take a minute.
#[derive(Debug, Args)]
pub(super) struct Probe {
    /// The server's configuration, which names the token and the file of its PIN
    #[arg(long, env = "KMS_CONFIG", value_name = "FILE", default_value = configuration::DEFAULT_CONFIG)]
    config: PathBuf,
    /// Where to write the profile; without it to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Probe {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let (config, uri, lock_dir) = configured(&self.config)?;
        let progress = |step: &str| {
            if output::watched() {
                output::note(&format!("{step} ..."));
            }
        };
        let login = blocking(move || token::Login::prepare(&uri, &lock_dir)).await?.map_err(refused)?;
        let serial = login.token_serial().to_owned();
        let profile = on_purpose(&config, &serial, move || login.probe(progress)).await?;
        let profile = profile.to_string();
        let Some(file) = self.out else { return output::print_text(&profile) };
        output::write_file(&file, profile.as_bytes())?;
        output::note(&format!(
            "The profile is in {}. Read it, then name it in the server's configuration, as profile_file of [hsm].",
            file.display()
        ));
        Ok(())
    }
}
