//! `kms keys rotate`, `versions`, `revoke`, `disable`, `enable`, `destroy`, `restore`, `public`: the versions of a key.

use clap::Args;
use jiff::Timestamp;
use kms_client::{Client, v1};

use crate::{
    failure::Failure,
    name::KeyName,
    output::{Format, note},
    view,
};

/// Versions asked for at once; the server's own limit.
const PAGE_SIZE: i32 = 1_000;

/// Make the next version: published at once, signing after the key's publish lead; of a key that wraps, wrapping soon
#[derive(Debug, Args)]
pub(super) struct Rotate {
    /// Name of the key
    name: KeyName,
    /// When it takes over, e.g. 2027-01-31T04:00:00Z; after the lead at the earliest
    #[arg(long, value_name = "TIME", conflicts_with = "emergency")]
    at: Option<Timestamp>,
    /// Let it sign at once. Verifiers that have cached the key set refuse its tokens until they fetch again
    #[arg(long)]
    emergency: bool,
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

/// Declare a version compromised, for good: nobody can use it any more, and another one signs in its place
#[derive(Debug, Args)]
pub(super) struct Revoke {
    #[command(flatten)]
    which: Which,
    /// Why, for whoever reads it later
    #[arg(long, value_name = "TEXT")]
    reason: String,
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
    /// For keys that wrap: that nothing which nobody reports, such as a backup, holds envelopes of this version, in your
    /// own words. Stands in the audit log
    #[arg(long = "attest", value_name = "TEXT", default_value = "", hide_default_value = true)]
    attestation: String,
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
        let request = v1::RotateKeyRequest {
            name: self.name.to_string(),
            etag: self.etag,
            emergency: self.emergency,
            activate_time: self.at.map(view::time_to_wire),
            ..Default::default()
        };
        let version = client.rotate_key(request).await?;
        if self.emergency && !wraps(&version.algorithm) {
            note(&breaks(&version));
        }
        print(version, format)
    }
}

impl Revoke {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let reason = self.reason;
        let (name, etag) = self.which.into_parts();
        let request = v1::RevokeKeyVersionRequest { name, reason, etag, ..Default::default() };
        let answer = client.revoke_key_version(request).await?;
        let version = answer.key_version.unwrap_or_default();
        for line in next_steps(&version, answer.successor.as_ref()) {
            note(&line);
        }
        print(version, format)
    }
}

/// How long a verifier may go on with a key set that it has: the server's longest max-age.
const CACHED_MINUTES: u32 = 5;

/// Whether a key of this algorithm wraps, and so stands in no key set.
fn wraps(algorithm: &str) -> bool {
    algorithm == "A256GCMKW" || algorithm.starts_with("RSA-OAEP-256")
}

/// What an emergency breaks, for whom and for how long.
fn breaks(version: &v1::KeyVersion) -> String {
    format!(
        "{} signs now. Verifiers refuse its tokens until they have fetched the key set again: those that fetch on an \
         unknown kid at once, those that keep to max-age within {CACHED_MINUTES} minutes, others when their own interval \
         is over, and those that use a bundle when there is a new one: make it now (`kms jwks bundle`). What the version \
         before it signed still verifies.",
        version.name
    )
}

/// What to do after a revocation.
fn next_steps(version: &v1::KeyVersion, successor: Option<&v1::KeyVersion>) -> Vec<String> {
    if wraps(&version.algorithm) {
        return rewrap_steps(version, successor);
    }
    let mut steps = vec![format!(
        "{} is out of the JWKS and signs nothing more. Verifiers that have cached the key set accept it for up to \
         {CACHED_MINUTES} minutes more, and those that use a bundle until it has expired; make those that keep it longer \
         fetch again, and refuse kid {} where you can.",
        version.name, version.kid
    )];
    steps.push("Tokens that it signed no longer verify: their holders must get new ones.".to_owned());
    steps.push(match successor {
        Some(successor) if successor.emergency => breaks(successor),
        Some(successor) => format!("{} signs, as before or as it was planned.", successor.name),
        None => "Nothing signs yet in its place: a version is being made, or could not be made yet. It is \
                 tried again without a request; see `kms status` and the server's log."
            .to_owned(),
    });
    steps.push(
        "Find out how it got out before you trust the next one; the audit log has every signature."
            .to_owned(),
    );
    steps
}

/// The same of a key that wraps: whoever has the version opens what it wrapped, until that is rewrapped, and every copy
/// of it for ever.
fn rewrap_steps(version: &v1::KeyVersion, successor: Option<&v1::KeyVersion>) -> Vec<String> {
    let key = version.name.split("/versions/").next().unwrap_or_default();
    let id = key.trim_start_matches("keys/");
    vec![
        format!(
            "{} wraps nothing more, and unwraps only for callers with the role recoverer: nobody else opens its envelopes \
             until they are rewrapped.",
            version.name
        ),
        match successor {
            Some(successor) => format!("{} wraps in its place.", successor.name),
            None => "Nothing wraps yet in its place: a version is being made, or could not be made yet. It is tried \
                     again without a request; see `kms status` and the server's log."
                .to_owned(),
        },
        format!(
            "Rewrap now: make a credential (`kms access-token create rewrap-{id} --role recoverer --key {id} --ttl 1d --out \
             FILE`), and with it move every store that `kms keys usage {id}` names; files: `kms envelope rewrap --key {id} \
             --recursive --consumer NAME DIR`."
        ),
        format!(
            "Whoever has the version also has every data key of every copy of what it wrapped, such as a backup. Payloads \
             that are worth it must be sealed anew (`kms envelope open`, `kms envelope seal --key {id}`), not only rewrapped."
        ),
        "Find out how it got out before you trust the next one; the audit log has every unwrap.".to_owned(),
    ]
}

impl Versions {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let versions = all(&client, &self.name).await?;
        let versions: Vec<_> = versions.into_iter().map(view::KeyVersion::from).collect();
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
        let (confirm, attestation) = (self.confirm, self.attestation);
        let (name, etag) = self.which.into_parts();
        let request = v1::DestroyKeyVersionRequest { name, etag, confirm, attestation, ..Default::default() };
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

/// Every version of a key, oldest first.
pub(super) async fn all(client: &Client, name: &KeyName) -> Result<Vec<v1::KeyVersion>, Failure> {
    let mut request =
        v1::ListKeyVersionsRequest { parent: name.to_string(), page_size: PAGE_SIZE, ..Default::default() };
    let mut versions = vec![];
    loop {
        let page = client.list_key_versions(request.clone()).await?;
        versions.extend(page.key_versions);
        if page.next_page_token.is_empty() {
            return Ok(versions);
        }
        request.page_token = page.next_page_token;
    }
}

fn print(version: v1::KeyVersion, format: Format) -> Result<(), Failure> {
    format.print_one(&view::KeyVersion::from(version))
}
