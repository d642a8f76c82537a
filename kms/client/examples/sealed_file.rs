//! Seals a file of any size, and opens it again, in constant memory.
//!
//! ```text
//! export KMS_ADDR=localhost:8443 KMS_CACERT=ca.pem KMS_TOKEN_FILE=token
//! cargo run -p kms-client --example sealed_file -- keys/files seal notes.txt
//! cargo run -p kms-client --example sealed_file -- keys/files open notes.txt.sealed
//! ```
//!
//! `seal` writes `notes.txt.sealed` beside `notes.txt`, and `open` the other way round. What is written has a temporary
//! name until it is whole and on the disk, so neither a crash nor a changed envelope leaves half a file behind. The
//! file's name is part of the context: a sealed file that somebody put in another's place does not open there.

use std::{
    env,
    error::Error,
    fs::{self, File},
    path::{Path, PathBuf},
};

use kms_client::{
    Client, Options,
    envelope::{ContextError, EncryptionContext, EnvelopeContext, Envelopes, Policy},
};
use tempfile::NamedTempFile;

const SUFFIX: &str = ".sealed";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [key, verb, path] = arguments.as_slice() else {
        return Err("usage: sealed_file keys/KEY seal|open FILE".into());
    };
    let envelopes = Envelopes::new(client().await?, key, Policy::default());
    match (verb.as_str(), path.strip_suffix(SUFFIX)) {
        ("seal", _) => seal(&envelopes, path.as_ref(), format!("{path}{SUFFIX}").as_ref()).await,
        ("open", Some(opened)) => open(&envelopes, path.as_ref(), opened.as_ref()).await,
        ("open", None) => Err(format!("{path} does not end in {SUFFIX}").into()),
        _ => Err(format!("{verb} is neither seal nor open").into()),
    }
}

async fn client() -> Result<Client, Box<dyn Error>> {
    let token = fs::read_to_string(env::var("KMS_TOKEN_FILE")?)?;
    let mut options = Options::new(env::var("KMS_ADDR")?, token.trim().into());
    options.ca_pem = env::var("KMS_CACERT").ok().map(fs::read).transpose()?;
    Ok(Client::connect(options).await?)
}

async fn seal(envelopes: &Envelopes, plain: &Path, sealed: &Path) -> Result<(), Box<dyn Error>> {
    let written = envelopes.seal_stream(&context(plain)?, File::open(plain)?, beside(sealed)?).await?;
    put(written, sealed)
}

async fn open(envelopes: &Envelopes, sealed: &Path, plain: &Path) -> Result<(), Box<dyn Error>> {
    let written = envelopes.open_stream(&context(plain)?, File::open(sealed)?, beside(plain)?).await?;
    put(written, plain)
}

fn context(plain: &Path) -> Result<EnvelopeContext, ContextError> {
    let name = plain.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(EnvelopeContext {
        // What the service sees, and its key may require.
        key: EncryptionContext::new([("kind".into(), "file".into())])?,
        // What stays here.
        local: EncryptionContext::new([("name".into(), name)])?,
    })
}

/// A file on the same file system that only we can read, and which goes away unless it is renamed.
fn beside(target: &Path) -> std::io::Result<NamedTempFile> {
    let directory = target.parent().filter(|directory| !directory.as_os_str().is_empty());
    NamedTempFile::new_in(directory.map_or_else(|| PathBuf::from("."), Path::to_owned))
}

/// The whole file on the disk, then its name.
fn put(written: NamedTempFile, target: &Path) -> Result<(), Box<dyn Error>> {
    written.as_file().sync_all()?;
    written.persist(target)?;
    Ok(())
}
