//! `kms policy`: the policy document beside the role bindings.

mod examples;

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use kms_client::{Client, v1};
use kms_core::{access::POLICY_LEN_MAX, policy::SCHEMA, principal::Principal};
use serde::Serialize;

use crate::{
    connection::Connection,
    context::{self, KeyContext},
    failure::Failure,
    input::Source,
    name::KeyName,
    output::{self, Format},
    view,
};

/// Versions asked for at once; the server's own limit.
const PAGE_SIZE: i32 = 1_000;

/// Read, change, test and explain policy: Cedar policies beside the role bindings
#[derive(Debug, Args)]
pub(crate) struct Policy {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Get(Get),
    Versions(Versions),
    Set(Set),
    Schema(Schema),
    Test(examples::Test),
    Explain(Explain),
}

/// Print the document that holds, or an earlier version
#[derive(Debug, Args)]
struct Get {
    /// Version, e.g. 3; without it the one that holds
    version: Option<Version>,
}

/// List the versions of the document, the latest first
#[derive(Debug, Args)]
struct Versions {}

/// Put a new document in the place of the one that holds. Needs the approval of another, once there are two who may approve
#[derive(Debug, Args)]
struct Set {
    /// File with Cedar policies, at most 64 KiB; - for standard input
    file: Source,
    /// Why, for whoever reads it later
    #[arg(long, value_name = "TEXT")]
    note: String,
    /// Only if this version still holds
    #[arg(long, value_name = "VERSION")]
    expected: Option<Version>,
    /// Take a document without any policy: role bindings alone decide from now on
    #[arg(long)]
    allow_empty: bool,
}

/// Print the Cedar schema that the document is validated against; asks no server
#[derive(Debug, Args)]
struct Schema {}

/// Ask whether a caller may do something, and which rules say so
#[derive(Debug, Args)]
struct Explain {
    /// Canonical name of the caller, e.g. spiffe://example.org/ci
    caller: Principal,
    /// What it would do, e.g. sign_jwt
    action: String,
    /// With which key; without it, to the service as a whole
    key: Option<KeyName>,
    #[command(flatten)]
    context: KeyContext,
}

/// A version of the document, by its number or by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version(u32);

/// One version of the document.
#[derive(Debug, Serialize)]
struct Document {
    name: String,
    note: String,
    creator: Option<String>,
    create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// What policy says.
#[derive(Debug, Serialize)]
struct Explanation {
    allowed: bool,
    rules: Vec<String>,
    reason: String,
}

impl Policy {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let client = || self.connection.client();
        match self.verb {
            Verb::Schema(Schema {}) => output::print_text(SCHEMA),
            Verb::Get(verb) => verb.run(client().await?, format).await,
            Verb::Versions(Versions {}) => versions(client().await?, format).await,
            Verb::Set(verb) => verb.run(client().await?, format).await,
            Verb::Test(verb) => verb.run(client().await?, format).await,
            Verb::Explain(verb) => verb.run(client().await?, format).await,
        }
    }
}

impl Get {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let name = self.version.map(Version::name).unwrap_or_default();
        let document = client.get_policy(v1::GetPolicyRequest { name }).await?;
        let text = document.text.clone();
        // To a file as it is; a terminal is not steered by a comment.
        let text = if output::to_terminal() { output::lines(&text) } else { text };
        format.print_text_or(&text, &Document { text: Some(document.text.clone()), ..document.into() })
    }
}

async fn versions(client: Client, format: Format) -> Result<(), Failure> {
    let mut request = v1::ListPoliciesRequest { page_size: PAGE_SIZE, ..Default::default() };
    let mut documents: Vec<Document> = Vec::new();
    loop {
        let page = client.list_policies(request.clone()).await?;
        documents.extend(page.policies.into_iter().map(Into::into));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    format.print_list(&documents, &["name", "creator", "create_time", "note"])
}

impl Set {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let policy = v1::Policy { text: read(&self.file)?, note: self.note, ..Default::default() };
        let request = v1::SetPolicyRequest {
            policy: Some(policy),
            expected: self.expected.map(Version::name).unwrap_or_default(),
            allow_empty: self.allow_empty,
        };
        format.print_one(&Document::from(client.set_policy(request).await?))
    }
}

impl Explain {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let question = v1::explain_policy_request::Question {
            caller: self.caller.to_string(),
            action: self.action,
            key: self.key.map(|key| key.to_string()).unwrap_or_default(),
            context: context::to_wire(&self.context.parse()?),
        };
        let explanations = explain(&client, vec![question], None).await?;
        format.print_one(explanations.first().ok_or_else(senseless)?)
    }
}

/// Asks, and takes nothing but one answer for each question.
async fn explain(
    client: &Client,
    questions: Vec<v1::explain_policy_request::Question>,
    candidate: Option<String>,
) -> Result<Vec<Explanation>, Failure> {
    let asked = questions.len();
    let answer = client.explain_policy(v1::ExplainPolicyRequest { questions, candidate }).await?;
    let explanations: Vec<_> = answer.explanations.into_iter().map(Explanation::from).collect();
    if explanations.len() == asked { Ok(explanations) } else { Err(senseless()) }
}

fn senseless() -> Failure {
    Failure::other("the service has not answered each question")
}

/// A document, as it stands in a file.
fn read(file: &Source) -> Result<String, Failure> {
    String::from_utf8(file.read(POLICY_LEN_MAX)?).map_err(|_| Failure::usage("the document is not UTF-8"))
}

impl Version {
    fn name(self) -> String {
        format!("policies/{}", self.0)
    }
}

impl std::str::FromStr for Version {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix("policies/").unwrap_or(text).parse();
        number.map(Self).map_err(|_| "a version is a number, as `kms policy versions` shows it")
    }
}

impl From<v1::Policy> for Document {
    fn from(policy: v1::Policy) -> Self {
        Self {
            name: policy.name,
            note: policy.note,
            creator: view::some(policy.creator),
            create_time: policy.create_time.and_then(view::time_text),
            text: None,
        }
    }
}

impl From<v1::explain_policy_response::Explanation> for Explanation {
    fn from(explanation: v1::explain_policy_response::Explanation) -> Self {
        let v1::explain_policy_response::Explanation { allowed, rules, reason } = explanation;
        Self { allowed, rules, reason }
    }
}

/// The wire's map, from pairs of a file.
type Context = BTreeMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_named_short_or_in_full() {
        for text in ["3", "policies/3"] {
            assert_eq!(text.parse::<Version>().map(Version::name), Ok("policies/3".to_owned()));
        }
        for odd in ["", "-1", "latest", "policies/", "policies/x"] {
            assert!(odd.parse::<Version>().is_err(), "{odd}");
        }
    }
}
