//! `kms access-token`: making, listing and revoking the bearer credentials of the service.

use std::{io::Write as _, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use jiff::SignedDuration;
use kms_client::{Client, v1};
use serde::Serialize;

use crate::{
    connection::Connection,
    duration,
    failure::Failure,
    name::KeyName,
    output::{self, Format},
    view,
};

/// Access tokens asked for at once; the server's own limit.
const PAGE_SIZE: i32 = 1_000;

/// Make, list and revoke the credentials that callers show
#[derive(Debug, Args)]
pub(crate) struct AccessToken {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(Create),
    List(List),
    Revoke(Revoke),
}

/// Make an access token, and show its credential this once
#[derive(Debug, Args)]
struct Create {
    /// Name: 1 to 63 of a-z, 0-9, '.', '_' and '-'
    name: String,
    /// What its bearer may do
    #[arg(long, value_enum)]
    role: Role,
    #[command(flatten)]
    scope: Scope,
    /// When it stops to work by itself, from now; without it never
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    ttl: Option<SignedDuration>,
    /// Write the credential to this new file (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Scope {
    /// A key that the role extends to; may be repeated
    #[arg(long = "key", value_name = "NAME")]
    keys: Vec<KeyName>,
    /// The role extends to every key, also those not yet made
    #[arg(long)]
    all_keys: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    /// Manages keys and access tokens, and may use keys
    Administrator,
    /// Signs, verifies, wraps, unwraps and reads; with keys of tokens signs tokens only
    User,
    /// The same as a user, and signs bytes of its own choice with keys of tokens too
    RawSigner,
    /// The same as a user, and unwraps and rewraps what a compromised version wrapped: for the rewrap after it
    Recoverer,
}

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
struct Created {
    #[serde(flatten)]
    access_token: view::AccessToken,
    secret: Option<String>,
}

impl AccessToken {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let client = self.connection.client().await?;
        match self.verb {
            Verb::Create(verb) => verb.run(client, format).await,
            Verb::List(List {}) => list(client, format).await,
            Verb::Revoke(verb) => verb.run(client, format).await,
        }
    }
}

impl Create {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        // The file first: a credential that cannot be kept must not be made.
        let file = self.out.as_deref().map(output::create_new_secret_file).transpose()?;
        let request = v1::CreateAccessTokenRequest {
            access_token_id: id(&self.name).to_owned(),
            access_token: Some(v1::AccessToken {
                role: self.role.on_the_wire().to_owned(),
                keys: self.scope.keys.iter().map(KeyName::to_string).collect(),
                all_keys: self.scope.all_keys,
                ..Default::default()
            }),
            ttl: self.ttl.map(duration::to_wire),
        };
        let response = match (client.create_access_token(request).await, &self.out) {
            (Err(error), Some(path)) => {
                // Empty, and ours; if it stays, the next attempt says so.
                let _ = std::fs::remove_file(path);
                return Err(error.into());
            }
            (response, _) => response?,
        };
        let access_token = view::AccessToken::from(response.access_token.unwrap_or_default());
        match (file, self.out) {
            (Some(mut file), Some(path)) => {
                writeln!(file, "{}", response.secret)
                    .and_then(|()| file.sync_all())
                    .map_err(Failure::about(path.display()))?;
                format.print_one(&access_token)
            }
            _ => {
                output::note(
                    "The credential is shown this once: keep it in a file that only its user can read.",
                );
                let created = Created { access_token, secret: Some(response.secret) };
                output::print_credential(
                    &format.one(&created)?,
                    &format!("nobody has it: revoke {} and make another, with --out FILE", id(&self.name)),
                )
            }
        }
    }
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

impl Role {
    fn on_the_wire(self) -> &'static str {
        match self {
            Self::Administrator => "administrator",
            Self::User => "user",
            Self::RawSigner => "raw-signer",
            Self::Recoverer => "recoverer",
        }
    }
}

/// `NAME` of `NAME` and of `accessTokens/NAME`.
fn id(name: &str) -> &str {
    name.strip_prefix("accessTokens/").unwrap_or(name)
}
