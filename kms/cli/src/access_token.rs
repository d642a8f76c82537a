//! `kms access-token`: making, renewing, listing and revoking the bearer credentials of the service.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use kms_client::{Client, v1};
use kms_core::principal::Principal;
use serde::Serialize;

use crate::{
    clock, connection::Connection, duration, failure::Failure, kept::Kept, name::KeyName, output::Format,
    role::Role, view,
};

/// Access tokens asked for at once; the server's own limit.
const PAGE_SIZE: i32 = 1_000;

/// Make, renew, list and revoke the credentials that callers show
#[derive(Debug, Args)]
pub(crate) struct AccessToken {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(Box<Create>),
    Renew(Renew),
    List(List),
    Revoke(Revoke),
}

/// Make an access token, and show its credential this once
#[derive(Debug, Args)]
struct Create {
    /// Name: 1 to 63 of a-z, 0-9, '.', '_' and '-'
    name: String,
    /// What its bearer may do by itself; without it, what `kms access grant` gives to access-token:NAME
    #[arg(long, value_enum, requires = "Scope")]
    role: Option<Role>,
    #[command(flatten)]
    scope: Scope,
    /// When it stops to work by itself, from now; without it after its period, or never
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    ttl: Option<SignedDuration>,
    /// How far `kms access-token renew` moves its end, from then on
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    period: Option<SignedDuration>,
    /// Beyond this time no renewal moves its end, e.g. 2027-01-31T04:00:00Z
    #[arg(long, value_name = "TIME", requires = "period")]
    renewable_until: Option<Timestamp>,
    /// The same, from now
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, requires = "period",
        conflicts_with = "renewable_until")]
    renewable_for: Option<SignedDuration>,
    /// Whose client certificate must come with it: spiffe://..., dns:... or subject:...
    #[arg(long, value_name = "PRINCIPAL")]
    bound_to: Option<Principal>,
    /// Write the credential to this new file (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(multiple = false, requires = "role")]
struct Scope {
    /// A key that the role extends to; may be repeated
    #[arg(long = "key", value_name = "NAME")]
    keys: Vec<KeyName>,
    /// The role extends to every key, also those not yet made
    #[arg(long)]
    all_keys: bool,
}

/// Move the end of the access token that this command shows to the service, by its period from now
#[derive(Debug, Args)]
struct Renew {}

/// List access tokens, revoked and expired ones included
#[derive(Debug, Args)]
struct List {}

/// End an access token for good
#[derive(Debug, Args)]
struct Revoke {
    /// Name of the access token
    name: String,
}

/// A new access token with its credential.
#[derive(Serialize)]
struct Created<'a> {
    #[serde(flatten)]
    access_token: view::AccessToken,
    secret: &'a str,
}

impl AccessToken {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let client = self.connection.client().await?;
        match self.verb {
            Verb::Create(verb) => verb.run(client, format).await,
            Verb::Renew(Renew {}) => renew(client, format).await,
            Verb::List(List {}) => list(client, format).await,
            Verb::Revoke(verb) => verb.run(client, format).await,
        }
    }
}

impl Create {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let kept = Kept::at(self.out)?;
        let until_by = |span| clock::now().checked_add(span).unwrap_or(Timestamp::MAX);
        let renewable_until = self.renewable_until.or(self.renewable_for.map(until_by));
        let request = v1::CreateAccessTokenRequest {
            access_token_id: id(&self.name).to_owned(),
            access_token: Some(v1::AccessToken {
                role: self.role.map(Role::on_the_wire).unwrap_or_default().to_owned(),
                keys: self.scope.keys.iter().map(KeyName::to_string).collect(),
                all_keys: self.scope.all_keys,
                period: self.period.map(duration::to_wire),
                renewable_until: renewable_until.map(view::time_to_wire),
                bound_to: self.bound_to.map(|principal| principal.to_string()).unwrap_or_default(),
                ..Default::default()
            }),
            ttl: self.ttl.map(duration::to_wire),
        };
        match client.create_access_token(request).await {
            Ok(made) => keep(kept, made.access_token.unwrap_or_default(), &made.secret, format),
            Err(error) => {
                kept.give_up();
                Err(error.into())
            }
        }
    }
}

/// Puts the credential of a new access token where it is kept.
pub(crate) fn keep(kept: Kept, token: v1::AccessToken, secret: &str, format: Format) -> Result<(), Failure> {
    let remedy = format!("nobody has it: revoke {} and make another, with --out FILE", id(&token.name));
    let (item, again) = (view::AccessToken::from(token.clone()), view::AccessToken::from(token));
    kept.keep(secret, format, &item, &Created { access_token: again, secret }, &remedy)
}

async fn renew(client: Client, format: Format) -> Result<(), Failure> {
    let token = client.renew_access_token(v1::RenewAccessTokenRequest {}).await?;
    format.print_one(&view::AccessToken::from(token))
}

async fn list(client: Client, format: Format) -> Result<(), Failure> {
    let mut request = v1::ListAccessTokensRequest { page_size: PAGE_SIZE, ..Default::default() };
    let mut tokens: Vec<view::AccessToken> = Vec::new();
    loop {
        let page = client.list_access_tokens(request.clone()).await?;
        tokens.extend(page.access_tokens.into_iter().map(Into::into));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    format.print_list(
        &tokens,
        &["name", "role", "all_keys", "keys", "create_time", "expire_time", "revoke_time"],
    )
}

impl Revoke {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let request = v1::RevokeAccessTokenRequest { name: format!("accessTokens/{}", id(&self.name)) };
        format.print_one(&view::AccessToken::from(client.revoke_access_token(request).await?))
    }
}

/// `NAME` of `NAME` and of `accessTokens/NAME`.
fn id(name: &str) -> &str {
    name.strip_prefix("accessTokens/").unwrap_or(name)
}
