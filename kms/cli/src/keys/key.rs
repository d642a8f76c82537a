//! `kms keys create`, `list`, `get`, `update`: the key as a whole.

use clap::Args;
use jiff::SignedDuration;
use kms_client::{Client, v1};
use prost_types::FieldMask;

use super::periods::{Period, Periods};
use crate::{
    duration,
    failure::Failure,
    name::{KeyName, parse_label},
    output::Format,
    view,
};

/// Keys asked for at once; the server's own limit.
const PAGE_SIZE: i32 = 1_000;

/// Make a key and its first version, which signs or wraps at once
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name: 1 to 63 of a-z, 0-9, '.', '_' and '-'
    name: KeyName,
    /// ES256, ES384, ES512, Ed25519, EdDSA, or RS256, RS384, RS512, PS256, PS384, PS512 with -2048, -3072 or -4096;
    /// to wrap: A256GCMKW, or RSA-OAEP-256 with the same sizes
    #[arg(long, short, value_name = "ALGORITHM")]
    algorithm: String,
    /// Whom to ask about the key
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    owner: String,
    /// A label, for filters; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// jwt: signs tokens; signature: signs bytes, and no tokens; jwks-bundle: signs key sets, by `kms jwks bundle`;
    /// wrap: wraps keys of others [server's default: jwt, or what alone the algorithm can]
    #[arg(long, value_name = "PURPOSE", default_value = "", hide_default_value = true)]
    purpose: String,
    /// Which class gives the periods that are not named: root, jwt-signing, database, api, session or development
    /// [server's default: jwt-signing]
    #[arg(long, value_name = "CLASS", default_value = "", hide_default_value = true)]
    class: String,
    #[command(flatten)]
    periods: Periods,
    #[command(flatten)]
    claim_rules: ClaimRules,
    /// Wrap only under an encryption context that has this name; may be repeated, for keys that wrap
    #[arg(long = "require-context", value_name = "NAME")]
    required_context: Vec<String>,
}

/// What the claims of a key's tokens must say.
#[derive(Debug, Args)]
struct ClaimRules {
    /// Sign only claims with this `iss`, or another one that is named; may be repeated
    #[arg(long = "issuer", value_name = "ISS")]
    issuers: Vec<String>,
    /// Sign only claims with this `aud`, or others that are named; may be repeated
    #[arg(long = "audience", value_name = "AUD")]
    audiences: Vec<String>,
    /// Sign only claims that have this one; may be repeated
    #[arg(long = "require-claim", value_name = "NAME")]
    required: Vec<String>,
}

/// List keys
#[derive(Debug, Args)]
pub(super) struct List {
    /// Only keys of which all terms hold: algorithm=ALG, purpose=PURPOSE, labels.NAME=VALUE and others, joined by AND
    #[arg(long, value_name = "TERMS", default_value = "", hide_default_value = true)]
    filter: String,
    /// Only keys whose next version takes over within this time, or is overdue
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    due: Option<SignedDuration>,
    /// Only keys of this owner
    #[arg(long, value_name = "TEXT")]
    owner: Option<String>,
    /// Only keys of this class
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Only keys of which a version is in this state, e.g. compromised
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
}

/// Show a key
#[derive(Debug, Args)]
pub(super) struct Get {
    /// Name of the key
    name: KeyName,
}

/// Change owner, labels, class, periods, claim rules or required context; what is not named stays
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
    /// Move the key to another class
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    #[command(flatten)]
    periods: Periods,
    /// Give a period back to the class; may be repeated
    #[arg(long, value_name = "PERIOD")]
    inherit: Vec<Period>,
    #[command(flatten)]
    claim_rules: ClaimRules,
    /// Take all claim rules away
    #[arg(long, conflicts_with_all = ["issuers", "audiences", "required"])]
    no_claim_rules: bool,
    /// Wrap only under an encryption context that has this name; all that are required are replaced by those given. May
    /// be repeated. What is wrapped already opens as before
    #[arg(long = "require-context", value_name = "NAME")]
    required_context: Vec<String>,
    /// Require no name in the encryption context any more
    #[arg(long, conflicts_with = "required_context")]
    no_required_context: bool,
}

impl Create {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let key = v1::Key {
            algorithm: self.algorithm,
            owner: self.owner,
            labels: self.labels.into_iter().collect(),
            purpose: self.purpose,
            class: self.class,
            claim_rules: self.claim_rules.to_wire(),
            required_context: self.required_context,
            ..with_periods(&self.periods)
        };
        let request =
            v1::CreateKeyRequest { key_id: self.name.id().to_owned(), key: Some(key), ..Default::default() };
        format.print_one(&view::Key::from(client.create_key(request).await?))
    }
}

impl List {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let mut request =
            v1::ListKeysRequest { page_size: PAGE_SIZE, filter: self.whole_filter(), ..Default::default() };
        let mut keys: Vec<view::Key> = Vec::new();
        loop {
            let page = client.list_keys(request.clone()).await?;
            keys.extend(page.keys.into_iter().map(Into::into));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        let columns = [
            "name",
            "algorithm",
            "class",
            "primary",
            "rotation_period",
            "next_rotation_time",
            "owner",
            "labels",
        ];
        format.print_list(&keys, &columns)
    }

    fn whole_filter(&self) -> String {
        let due = self.due.map(|due| format!("due={}s", due.as_secs()));
        let term = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name}={value}"));
        let written = Some(self.filter.clone()).filter(|filter| !filter.trim().is_empty());
        let named = [("owner", &self.owner), ("class", &self.class), ("state", &self.state)];
        let named = named.into_iter().filter_map(|(name, value)| term(name, value));
        written.into_iter().chain(due).chain(named).collect::<Vec<_>>().join(" AND ")
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
        if paths.is_empty() {
            return Err(Failure::usage(
                "nothing is to be changed; see kms keys update --help for what can be",
            ));
        }
        let key = v1::Key {
            name: self.name.to_string(),
            owner: self.changes.owner.unwrap_or_default(),
            labels: self.changes.labels.into_iter().collect(),
            class: self.changes.class.unwrap_or_default(),
            claim_rules: self.changes.claim_rules.to_wire(),
            required_context: self.changes.required_context,
            etag: self.etag,
            ..with_periods(&self.changes.periods)
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
        let named = [
            ("owner", self.owner.is_some()),
            ("labels", !self.labels.is_empty() || self.no_labels),
            ("class", self.class.is_some()),
            ("claim_rules", self.claim_rules.to_wire().is_some() || self.no_claim_rules),
            ("required_context", !self.required_context.is_empty() || self.no_required_context),
        ];
        let named = named.into_iter().filter(|(_, named)| *named).map(|(path, _)| path.to_owned());
        named.chain(self.periods.paths(&self.inherit)).collect()
    }
}

impl ClaimRules {
    /// `None` when nothing is asked for.
    fn to_wire(&self) -> Option<v1::ClaimRules> {
        let rules = v1::ClaimRules {
            issuers: self.issuers.clone(),
            audiences: self.audiences.clone(),
            required: self.required.clone(),
        };
        (rules != v1::ClaimRules::default()).then_some(rules)
    }
}

fn with_periods(periods: &Periods) -> v1::Key {
    v1::Key {
        rotation_period: periods.of(Period::Rotation),
        publish_lead: periods.of(Period::PublishLead),
        max_token_ttl: periods.of(Period::MaxTokenTtl),
        overlap: periods.of(Period::Overlap),
        destroy_after: periods.of(Period::DestroyAfter),
        ..Default::default()
    }
}
