//! `kms keys create`, `list`, `get`, `update`: the key as a whole.

use clap::Args;
use jiff::SignedDuration;
use kms_client::{Client, v1};
use prost_types::FieldMask;

use crate::{
    duration,
    failure::Failure,
    name::{KeyName, parse_label},
    output::Format,
    view,
};

/// Keys asked for at once; the server's own limit.
const PAGE_SIZE: i32 = 1_000;

/// Make a key and its first version, which signs at once
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name: 1 to 63 of a-z, 0-9, '.', '_' and '-'
    name: KeyName,
    /// ES256, ES384, ES512, Ed25519, EdDSA, or RS256, RS384, RS512, PS256, PS384, PS512 with -2048, -3072 or -4096
    #[arg(long, short, value_name = "ALGORITHM")]
    algorithm: String,
    /// Whom to ask about the key
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    owner: String,
    /// A label, for filters; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// How often a new version is made ahead of time; without it only by `rotate`
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    rotation_period: Option<SignedDuration>,
    /// How long a version is published before it signs [server's default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    publish_lead: Option<SignedDuration>,
    /// Longest life of a token signed by `kms jwt sign` [server's default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    max_token_ttl: Option<SignedDuration>,
}

/// List keys
#[derive(Debug, Args)]
pub(super) struct List {
    /// Only keys of which all terms hold: algorithm=ALG, owner=TEXT, labels.NAME=VALUE, joined by AND
    #[arg(long, value_name = "TERMS", default_value = "", hide_default_value = true)]
    filter: String,
}

/// Show a key
#[derive(Debug, Args)]
pub(super) struct Get {
    /// Name of the key
    name: KeyName,
}

/// Change owner, labels or periods; what is not named stays
#[derive(Debug, Args)]
pub(super) struct Update {
    /// Name of the key
    name: KeyName,
    #[command(flatten)]
    changes: Changes,
    /// Only if the key still has this etag
    #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
    etag: String,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// Whom to ask about the key
    #[arg(long, value_name = "TEXT")]
    owner: Option<String>,
    /// A label; all labels are replaced by those given. May be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Take all labels away
    #[arg(long, conflicts_with = "labels")]
    no_labels: bool,
    /// How often a new version is made ahead of time
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    rotation_period: Option<SignedDuration>,
    /// Rotate only by `rotate`
    #[arg(long, conflicts_with = "rotation_period")]
    no_rotation_period: bool,
    /// How long a version is published before it signs
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    publish_lead: Option<SignedDuration>,
    /// Longest life of a token signed by `kms jwt sign`
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    max_token_ttl: Option<SignedDuration>,
}

impl Create {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let key = v1::Key {
            algorithm: self.algorithm,
            owner: self.owner,
            labels: self.labels.into_iter().collect(),
            rotation_period: self.rotation_period.map(duration::to_wire),
            publish_lead: self.publish_lead.map(duration::to_wire),
            max_token_ttl: self.max_token_ttl.map(duration::to_wire),
            ..Default::default()
        };
        let request =
            v1::CreateKeyRequest { key_id: self.name.id().to_owned(), key: Some(key), ..Default::default() };
        format.print_one(&view::Key::from(client.create_key(request).await?))
    }
}

impl List {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let mut request =
            v1::ListKeysRequest { page_size: PAGE_SIZE, filter: self.filter, ..Default::default() };
        let mut keys: Vec<view::Key> = Vec::new();
        loop {
            let page = client.list_keys(request.clone()).await?;
            keys.extend(page.keys.into_iter().map(Into::into));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        format.print_list(&keys, &["name", "algorithm", "primary", "rotation_period", "owner", "labels"])
    }
}

impl Get {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let request = v1::GetKeyRequest { name: self.name.to_string() };
        format.print_one(&view::Key::from(client.get_key(request).await?))
    }
}

impl Update {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let paths = self.changes.paths();
        let key = v1::Key {
            name: self.name.to_string(),
            owner: self.changes.owner.unwrap_or_default(),
            labels: self.changes.labels.into_iter().collect(),
            rotation_period: self.changes.rotation_period.map(duration::to_wire),
            publish_lead: self.changes.publish_lead.map(duration::to_wire),
            max_token_ttl: self.changes.max_token_ttl.map(duration::to_wire),
            etag: self.etag,
            ..Default::default()
        };
        let request = v1::UpdateKeyRequest {
            key: Some(key),
            update_mask: Some(FieldMask { paths }),
            ..Default::default()
        };
        format.print_one(&view::Key::from(client.update_key(request).await?))
    }
}

impl Changes {
    /// The fields that are named, as the field mask names them. A path whose field is empty resets it.
    fn paths(&self) -> Vec<String> {
        [
            ("owner", self.owner.is_some()),
            ("labels", !self.labels.is_empty() || self.no_labels),
            ("rotation_period", self.rotation_period.is_some() || self.no_rotation_period),
            ("publish_lead", self.publish_lead.is_some()),
            ("max_token_ttl", self.max_token_ttl.is_some()),
        ]
        .into_iter()
        .filter(|(_, named)| *named)
        .map(|(path, _)| path.to_owned())
        .collect()
    }
}
