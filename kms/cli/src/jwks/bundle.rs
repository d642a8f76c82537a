//! `kms jwks bundle`: the key set as a JWS, for a CDN or an object store.

use std::path::PathBuf;

use clap::Args;
use jiff::SignedDuration;
use kms_client::v1;

use crate::{
    connection::Connection,
    duration,
    failure::Failure,
    name::KeyName,
    output::{self, Format},
    view,
};

/// Sign the key set, with an end and a number, for caches that answer while the service does not
#[derive(Debug, Args)]
pub(super) struct Bundle {
    /// Name of the key that signs; its purpose is jwks-bundle
    #[arg(long, value_name = "NAME")]
    key: KeyName,
    /// A key whose versions stand in the set; may be repeated. Without it all keys
    #[arg(long = "of", value_name = "NAME")]
    of: Vec<KeyName>,
    /// Its life; without it as long as it may live
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    ttl: Option<SignedDuration>,
    /// Write it to this file, whole or not at all, instead of showing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

impl Bundle {
    pub(super) async fn run(self, format: Format) -> Result<(), Failure> {
        let request = v1::SignKeySetBundleRequest {
            name: self.key.to_string(),
            keys: self.of.iter().map(KeyName::to_string).collect(),
            ttl: self.ttl.map(duration::to_wire),
        };
        let bundle = self.connection.client().await?.sign_key_set_bundle(request).await?;
        let bundle = view::KeySetBundle::from(bundle);
        let Some(path) = self.out else { return format.print_text_or(&bundle.document(), &bundle) };
        output::replace_file(&path, bundle.document().as_bytes())?;
        format.print_one(&bundle.summary())
    }
}
