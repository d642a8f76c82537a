//! `kms keys rotate`, `versions`, `disable`, `enable`, `destroy`, `restore`, `public`: the versions of a key.

use clap::Args;
use kms_client::{Client, v1};

use crate::{failure::Failure, name::KeyName, output::Format, view};

/// Versions asked for at once; the server's own limit.
const PAGE_SIZE: i32 = 1_000;

/// Make the next version: published at once, signing after the key's publish lead
#[derive(Debug, Args)]
pub(super) struct Rotate {
    /// Name of the key
    name: KeyName,
    /// Only if the key still has this etag
    #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
    etag: String,
}

/// List the versions of a key, oldest first
#[derive(Debug, Args)]
pub(super) struct Versions {
    /// Name of the key
    name: KeyName,
}

/// Take a version out of use and out of the JWKS; tokens that it signed no longer verify
#[derive(Debug, Args)]
pub(super) struct Disable {
    #[command(flatten)]
    which: Which,
}

/// Bring a disabled version back
#[derive(Debug, Args)]
pub(super) struct Enable {
    #[command(flatten)]
    which: Which,
}

/// Schedule the destruction of a version in the HSM, and suspend it
#[derive(Debug, Args)]
pub(super) struct Destroy {
    #[command(flatten)]
    which: Which,
    /// The version's name in full, keys/NAME/versions/N: destruction cannot be undone
    #[arg(long, value_name = "VERSION-NAME")]
    confirm: String,
}

/// Call a scheduled destruction off; the version stays disabled
#[derive(Debug, Args)]
pub(super) struct Restore {
    #[command(flatten)]
    which: Which,
}

/// Print the public key as PEM
#[derive(Debug, Args)]
pub(super) struct Public {
    /// Name of the key
    name: KeyName,
    /// Number of the version; without it the one that signs now
    #[arg(long, value_name = "N")]
    version: Option<u32>,
}

/// One version, for a change of its state.
#[derive(Debug, Args)]
struct Which {
    /// Name of the key
    name: KeyName,
    /// Number of the version
    #[arg(long, value_name = "N")]
    version: u32,
    /// Only if the key still has this etag
    #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
    etag: String,
}

impl Rotate {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let request =
            v1::RotateKeyRequest { name: self.name.to_string(), etag: self.etag, ..Default::default() };
        print(client.rotate_key(request).await?, format)
    }
}

impl Versions {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let mut request = v1::ListKeyVersionsRequest {
            parent: self.name.to_string(),
            page_size: PAGE_SIZE,
            ..Default::default()
        };
        let mut versions: Vec<view::KeyVersion> = Vec::new();
        loop {
            let page = client.list_key_versions(request.clone()).await?;
            versions.extend(page.key_versions.into_iter().map(Into::into));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        let columns = [
            "number",
            "state",
            "primary",
            "kid",
            "activate_time",
            "retire_time",
            "withdraw_time",
            "destroy_time",
        ];
        format.print_list(&versions, &columns)
    }
}

impl Disable {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let (name, etag) = self.which.into_parts();
        let request = v1::DisableKeyVersionRequest { name, etag, ..Default::default() };
        print(client.disable_key_version(request).await?, format)
    }
}

impl Enable {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let (name, etag) = self.which.into_parts();
        let request = v1::EnableKeyVersionRequest { name, etag, ..Default::default() };
        print(client.enable_key_version(request).await?, format)
    }
}

impl Destroy {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let confirm = self.confirm;
        let (name, etag) = self.which.into_parts();
        let request = v1::DestroyKeyVersionRequest { name, etag, confirm, ..Default::default() };
        print(client.destroy_key_version(request).await?, format)
    }
}

impl Restore {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let (name, etag) = self.which.into_parts();
        let request = v1::RestoreKeyVersionRequest { name, etag, ..Default::default() };
        print(client.restore_key_version(request).await?, format)
    }
}

impl Public {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let request = v1::GetPublicKeyRequest { name: self.name.maybe_version(self.version) };
        let key = view::PublicKey::from(client.get_public_key(request).await?);
        format.print_text_or(key.pem(), &key)
    }
}

impl Which {
    /// The version's resource name, and the etag.
    fn into_parts(self) -> (String, String) {
        (self.name.version(self.version), self.etag)
    }
}

fn print(version: v1::KeyVersion, format: Format) -> Result<(), Failure> {
    format.print_one(&view::KeyVersion::from(version))
}
