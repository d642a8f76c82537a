//! `kms access`: who has which role, on which keys, for how long.

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use kms_client::{Client, envelope::EncryptionContext, v1};
use kms_core::{KeyId, access, principal::Principal};
use serde::Serialize;

use crate::{
    clock,
    connection::Connection,
    context::{self, parse_pair},
    duration,
    failure::Failure,
    output::{self, Format},
    role::Role,
    view,
};

/// Bindings asked for at once; the server's own limit.
const PAGE_SIZE: i32 = 1_000;

/// Give and take roles, and see who has them
#[derive(Debug, Args)]
pub(crate) struct Access {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Grant(Box<Grant>),
    Revoke(Revoke),
    List(List),
    Whoami(Whoami),
}

/// Give a caller a role. One that manages needs the approval of another, once there are two who may approve
#[derive(Debug, Args)]
struct Grant {
    /// What the caller may do
    #[arg(value_enum)]
    role: Role,
    /// Who: spiffe://DOMAIN/PATH, dns:NAME, subject:CN=..., jwt:ISSUER/SUB, access-token:NAME or unix:UID
    #[arg(long, value_name = "PRINCIPAL")]
    to: Principal,
    /// On which keys: *, key:NAME, class:NAME or label:NAME=VALUE. What is about the service as a whole needs *
    #[arg(long, value_name = "SCOPE")]
    on: access::Scope,
    /// Name of the binding; without it the role and eight random digits
    #[arg(long, value_name = "NAME")]
    name: Option<KeyId>,
    /// Only these of the role's actions, e.g. sign_jwt,get_public_key
    #[arg(long, value_name = "ACTION", value_delimiter = ',')]
    only: Vec<String>,
    /// A name and a value that the encryption context of an operation must hold; may be repeated
    #[arg(long = "context", value_name = "NAME=VALUE", value_parser = parse_pair)]
    context: Vec<(String, String)>,
    /// From when on, e.g. 2027-01-31T04:00:00Z; without it at once
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Until when; without it until it is revoked
    #[arg(long, value_name = "TIME", conflicts_with = "for_")]
    until: Option<Timestamp>,
    /// For how long, from now, or from --from
    #[arg(long = "for", id = "for_", value_name = "DURATION", value_parser = duration::parse)]
    for_: Option<SignedDuration>,
}

/// Take a role away, for good
#[derive(Debug, Args)]
struct Revoke {
    /// Name of the binding
    name: String,
}

/// List role bindings, revoked and expired ones included
#[derive(Debug, Args)]
struct List {}

/// Show who this caller is for the service, and which roles it has
#[derive(Debug, Args)]
struct Whoami {}

/// A role binding.
#[derive(Debug, Serialize)]
struct Binding {
    name: String,
    principal: String,
    role: String,
    only: Vec<String>,
    on: String,
    required_context: std::collections::BTreeMap<String, String>,
    start_time: Option<String>,
    expire_time: Option<String>,
    creator: String,
    create_time: Option<String>,
    revoke_time: Option<String>,
}

/// The same, as a line for people.
#[derive(Debug, Serialize)]
struct Line<'a> {
    name: &'a str,
    principal: &'a str,
    role: &'a str,
    on: &'a str,
    until: String,
}

/// Who the caller is.
#[derive(Debug, Serialize)]
struct Caller {
    caller: String,
    role: Option<String>,
    expire_time: Option<String>,
    role_bindings: Vec<Binding>,
}

impl Access {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let client = self.connection.client().await?;
        match self.verb {
            Verb::Grant(verb) => verb.run(client, format).await,
            Verb::Revoke(verb) => verb.run(client, format).await,
            Verb::List(List {}) => list(client, format).await,
            Verb::Whoami(Whoami {}) => whoami(client, format).await,
        }
    }
}

impl Grant {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let required_context = EncryptionContext::new(self.context)
            .map_err(|error| Failure::usage(format!("--context: {error}")))?;
        let end = |span| self.from.unwrap_or_else(clock::now).checked_add(span).unwrap_or(Timestamp::MAX);
        let expires_at = self.until.or(self.for_.map(end));
        let role = self.role.on_the_wire();
        let request = v1::CreateRoleBindingRequest {
            role_binding_id: match self.name {
                Some(name) => name.to_string(),
                None => format!("{role}-{:08x}", u32::from_be_bytes(random()?)),
            },
            role_binding: Some(v1::RoleBinding {
                principal: self.to.to_string(),
                role: role.to_owned(),
                only: self.only,
                on: self.on.to_string(),
                required_context: context::to_wire(&required_context),
                start_time: self.from.map(view::time_to_wire),
                expire_time: expires_at.map(view::time_to_wire),
                ..Default::default()
            }),
        };
        format.print_one(&Binding::from(client.create_role_binding(request).await?))
    }
}

impl Revoke {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let id = self.name.strip_prefix("roleBindings/").unwrap_or(&self.name);
        let request = v1::RevokeRoleBindingRequest { name: format!("roleBindings/{id}") };
        format.print_one(&Binding::from(client.revoke_role_binding(request).await?))
    }
}

async fn list(client: Client, format: Format) -> Result<(), Failure> {
    let mut request = v1::ListRoleBindingsRequest { page_size: PAGE_SIZE, ..Default::default() };
    let mut bindings: Vec<Binding> = Vec::new();
    loop {
        let page = client.list_role_bindings(request.clone()).await?;
        bindings.extend(page.role_bindings.into_iter().map(Into::into));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    output::print_text(&table(format, &bindings)?)
}

async fn whoami(client: Client, format: Format) -> Result<(), Failure> {
    let answer = client.get_caller(v1::GetCallerRequest {}).await?;
    let caller = Caller {
        caller: answer.caller,
        role: view::some(answer.role),
        expire_time: answer.expire_time.and_then(view::time_text),
        role_bindings: answer.role_bindings.into_iter().map(Into::into).collect(),
    };
    let text = match format {
        Format::Table => {
            let Caller { caller, role, expire_time, role_bindings } = caller;
            let head = Caller { caller, role, expire_time, role_bindings: Vec::new() };
            let head = format.one(&head)?;
            if role_bindings.is_empty() {
                head
            } else {
                format!("{head}\n\n{}", table(format, &role_bindings)?)
            }
        }
        Format::Json | Format::Yaml => format.all(&caller)?,
    };
    output::print_text(&text)
}

fn table(format: Format, bindings: &[Binding]) -> Result<String, Failure> {
    if format != Format::Table {
        return format.all(&bindings);
    }
    let lines: Vec<_> = bindings.iter().map(Line::of).collect();
    format.list(&lines, &["name", "principal", "role", "on", "until"])
}

impl<'a> Line<'a> {
    fn of(binding: &'a Binding) -> Self {
        let until = match (&binding.revoke_time, &binding.expire_time) {
            (Some(at), _) => format!("revoked {at}"),
            (None, end) => end.clone().unwrap_or_default(),
        };
        let Binding { name, principal, role, on, .. } = binding;
        Self { name, principal, role, on, until }
    }
}

impl From<v1::RoleBinding> for Binding {
    fn from(binding: v1::RoleBinding) -> Self {
        Self {
            name: binding.name,
            principal: binding.principal,
            role: binding.role,
            only: binding.only,
            on: binding.on,
            required_context: binding.required_context.into_iter().collect(),
            start_time: binding.start_time.and_then(view::time_text),
            expire_time: binding.expire_time.and_then(view::time_text),
            creator: binding.creator,
            create_time: binding.create_time.and_then(view::time_text),
            revoke_time: binding.revoke_time.and_then(view::time_text),
        }
    }
}

fn random() -> Result<[u8; 4], Failure> {
    let mut bytes = [0; 4];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Failure::other("the operating system gives no random numbers"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_until_when_a_binding_holds_or_since_when_no_more() {
        let until = |expire: Option<i64>, revoke: Option<i64>| {
            let at = |seconds| prost_types::Timestamp { seconds, nanos: 0 };
            let binding = v1::RoleBinding {
                expire_time: expire.map(at),
                revoke_time: revoke.map(at),
                ..Default::default()
            };
            Line::of(&Binding::from(binding)).until
        };
        assert_eq!(until(None, None), "");
        assert_eq!(until(Some(0), None), "1970-01-01T00:00:00Z");
        assert_eq!(until(Some(1), Some(0)), "revoked 1970-01-01T00:00:00Z");
    }
}
