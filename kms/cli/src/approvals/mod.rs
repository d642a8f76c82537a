//! `kms approvals`: four eyes. What somebody proposes is looked at, approved by others, and executed once.

mod ask;
mod view;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use kms_client::{Client, v1};
use kms_core::proposal;

use self::view::Proposal;
use crate::{
    access_token,
    connection::Connection,
    failure::Failure,
    kept::Kept,
    output::{self, Format},
};

/// Proposals asked for at once; the server's own limit.
const PAGE_SIZE: i32 = 1_000;

/// See, approve, reject and execute what needs more than one pair of eyes
#[derive(Debug, Args)]
pub(crate) struct Approvals {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(List),
    Show(Show),
    Approve(Approve),
    Reject(Reject),
    Execute(Execute),
}

/// List proposals, the newest first
#[derive(Debug, Args)]
struct List {
    /// Only those that can still be voted on or executed
    #[arg(long)]
    open: bool,
}

/// Show a proposal: the change itself, who asks for it, until when, and who said what
#[derive(Debug, Args)]
struct Show {
    /// Name of the proposal
    #[arg(value_parser = parse_id)]
    id: proposal::Id,
}

/// Approve a proposal of somebody else: shows the change, asks, and approves exactly that
#[derive(Debug, Args)]
struct Approve {
    /// Name of the proposal
    #[arg(value_parser = parse_id)]
    id: proposal::Id,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
    /// Do not ask: it was looked at already
    #[arg(long)]
    yes: bool,
}

/// Reject a proposal, or withdraw one of your own: it can never be executed
#[derive(Debug, Args)]
struct Reject {
    /// Name of the proposal
    #[arg(value_parser = parse_id)]
    id: proposal::Id,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
}

/// Have your own proposal done, once enough others have approved it
#[derive(Debug, Args)]
struct Execute {
    /// Name of the proposal
    #[arg(value_parser = parse_id)]
    id: proposal::Id,
    /// Write the credential of an access token that is made to this new file (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Approvals {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let client = self.connection.client().await?;
        match self.verb {
            Verb::List(verb) => verb.run(client, format).await,
            Verb::Show(verb) => verb.run(client, format).await,
            Verb::Approve(verb) => verb.run(client, format).await,
            Verb::Reject(verb) => verb.run(client, format).await,
            Verb::Execute(verb) => verb.run(client, format).await,
        }
    }
}

impl List {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let mut request =
            v1::ListProposalsRequest { page_size: PAGE_SIZE, only_open: self.open, ..Default::default() };
        let mut proposals: Vec<Proposal> = Vec::new();
        loop {
            let page = client.list_proposals(request.clone()).await?;
            for proposal in page.proposals {
                proposals.push(proposal.try_into()?);
            }
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        let columns = ["name", "state", "action", "key", "proposer", "approvals", "required", "expire_time"];
        format.print_list(&proposals, &columns)
    }
}

impl Show {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        output::print_text(&read(&client, &self.id).await?.shown(format)?)
    }
}

impl Approve {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let proposal = read(&client, &self.id).await?;
        output::note(&proposal.shown(Format::Table)?);
        if !self.yes {
            ask::whether_to_approve()?;
        }
        let (name, change_sha256) = (name(&self.id), proposal.change_sha256);
        let request = v1::ApproveProposalRequest { name, change_sha256, note: self.note };
        print_voted(client.approve_proposal(request).await?, format)
    }
}

impl Reject {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let request = v1::RejectProposalRequest { name: name(&self.id), note: self.note };
        print_voted(client.reject_proposal(request).await?, format)
    }
}

impl Execute {
    async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let kept = Kept::at(self.out)?;
        let done = client.execute_proposal(v1::ExecuteProposalRequest { name: name(&self.id) }).await;
        match done {
            Ok(v1::ExecuteProposalResponse { access_token: Some(token), secret, .. }) => {
                output::note(&format!("proposals/{} is executed", self.id));
                access_token::keep(kept, token, &secret, format)
            }
            Ok(v1::ExecuteProposalResponse { proposal, .. }) => {
                kept.give_up();
                print_voted(proposal.unwrap_or_default(), format)
            }
            Err(error) => {
                kept.give_up();
                Err(error.into())
            }
        }
    }
}

async fn read(client: &Client, id: &proposal::Id) -> Result<Proposal, Failure> {
    client.get_proposal(v1::GetProposalRequest { name: name(id) }).await?.try_into()
}

/// What became of it; as a table without the change, which whoever voted has seen.
fn print_voted(proposal: v1::Proposal, format: Format) -> Result<(), Failure> {
    let proposal = Proposal::try_from(proposal)?;
    match format {
        Format::Table => format.print_one(&proposal.head()),
        Format::Json | Format::Yaml => format.print_one(&proposal),
    }
}

fn name(id: &proposal::Id) -> String {
    format!("proposals/{id}")
}

/// `ID` of `ID` and of `proposals/ID`.
fn parse_id(text: &str) -> Result<proposal::Id, String> {
    let id = text.strip_prefix("proposals/").unwrap_or(text).to_owned();
    id.try_into().map_err(|error: kms_core::Error| error.to_string())
}
