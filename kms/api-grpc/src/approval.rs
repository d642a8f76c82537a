//! `kms.v1.ApprovalService`: proposals, votes, and the execution of what was approved.

use kms_core::{
    AuditLog, Clock, Error, Hsm, Store,
    hsm::hex,
    proposal::{Proposal, State, Vote},
    verbs::{CastVote, Executed, ProposalView},
};
use kms_proto::v1::{
    self,
    proposal::{State as WireState, Vote as WireVote},
};
use tonic::{Request, Response, Status};

use crate::{
    call::{Call, Door, Kms},
    message::access_token,
    name, page,
    time::timestamp,
};

/// The service. Its requests must carry a [`kms_core::Caller`].
pub struct ApprovalService<H, S, A, C>(pub(crate) Door<H, S, A, C>);

#[tonic::async_trait]
impl<H: Hsm, S: Store, A: AuditLog, C: Clock> v1::approval_service_server::ApprovalService
    for ApprovalService<H, S, A, C>
{
    async fn list_proposals(
        &self,
        request: Request<v1::ListProposalsRequest>,
    ) -> Result<Response<v1::ListProposalsResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::ListProposalsRequest| async move {
            let list = ["ListProposals", if request.only_open { "only_open" } else { "" }];
            let len = page::len(request.page_size)?;
            let last = page::start(&request.page_token, list)?;
            let mut views = kms.list_proposals(&call.caller).await?;
            views.retain(|view| view.open || !request.only_open);
            let is_after = |view: &ProposalView| last.as_ref().is_none_or(|last| place(view) < *last);
            let (views, next_page_token) = page::cut(views, len, list, is_after, place);
            let proposals = views.into_iter().map(message).collect::<Result<_, _>>()?;
            Ok(v1::ListProposalsResponse { proposals, next_page_token })
        };
        self.0.run(request, verb).await
    }

    async fn get_proposal(
        &self,
        request: Request<v1::GetProposalRequest>,
    ) -> Result<Response<v1::Proposal>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::GetProposalRequest| async move {
            let id = name::proposal("name", &request.name)?;
            message(kms.proposal(&call.caller, &id).await?)
        };
        self.0.run(request, verb).await
    }

    async fn approve_proposal(
        &self,
        request: Request<v1::ApproveProposalRequest>,
    ) -> Result<Response<v1::Proposal>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::ApproveProposalRequest| async move {
            let id = name::proposal("name", &request.name)?;
            let approves = Some(parse_sha256(&request.change_sha256)?);
            message(kms.vote(&call.caller, CastVote { id, approves, note: request.note }).await?)
        };
        self.0.run_detached(request, verb).await
    }

    async fn reject_proposal(
        &self,
        request: Request<v1::RejectProposalRequest>,
    ) -> Result<Response<v1::Proposal>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::RejectProposalRequest| async move {
            let id = name::proposal("name", &request.name)?;
            message(kms.vote(&call.caller, CastVote { id, approves: None, note: request.note }).await?)
        };
        self.0.run_detached(request, verb).await
    }

    async fn execute_proposal(
        &self,
        request: Request<v1::ExecuteProposalRequest>,
    ) -> Result<Response<v1::ExecuteProposalResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::ExecuteProposalRequest| async move {
            let id = name::proposal("name", &request.name)?;
            let Executed { view, made } = kms.execute_proposal(&call.caller, &id, call.deadline).await?;
            let (token, secret) = made.unzip();
            Ok(v1::ExecuteProposalResponse {
                proposal: Some(message(view)?),
                access_token: token.map(access_token),
                secret: secret.unwrap_or_default(),
            })
        };
        self.0.run_detached(request, verb).await
    }
}

/// Where a proposal stands in the list: texts of one length, which sort as its time and name do.
fn place(view: &ProposalView) -> String {
    let Proposal { proposed_at, id, .. } = &view.proposal;
    format!("{:024} {id}", proposed_at.as_nanosecond())
}

/// 64 hexadecimal digits in lower case, as the service writes them.
fn parse_sha256(text: &str) -> Result<[u8; 32], Error> {
    let wrong = || {
        Error::invalid("change_sha256", "give the change_sha256 of the proposal as it was shown: 64 digits")
    };
    let mut sha256 = [0; 32];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != sha256.len() || !rest.is_empty() {
        return Err(wrong());
    }
    for (byte, pair) in sha256.iter_mut().zip(pairs) {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let [high, low] = pair.map(digit);
        *byte = high.zip(low).map(|(high, low)| high << 4 | low).ok_or_else(wrong)?;
    }
    Ok(sha256)
}

fn message(view: ProposalView) -> Result<v1::Proposal, Error> {
    let state = wire_state(&view);
    let ProposalView { proposal, approvals, .. } = view;
    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    Ok(v1::Proposal {
        name: name::of_proposal(&proposal.id),
        change: proposal.change.canonical()?,
        change_sha256: hex(&proposal.sha256),
        action: proposal.change.action().to_string(),
        key: proposal.change.key().map(name::of_key).unwrap_or_default(),
        proposer: proposal.proposed_by,
        create_time: Some(timestamp(proposal.proposed_at)),
        expire_time: Some(timestamp(proposal.expires_at)),
        required: count(proposal.required),
        approvals: count(approvals),
        votes: proposal.votes.into_iter().map(vote).collect(),
        state: state.into(),
        state_time: Some(timestamp(proposal.state_at)),
        reason: proposal.reason.unwrap_or_default(),
    })
}

/// Whether an open one is approved, or its time over, stands in no row.
fn wire_state(view: &ProposalView) -> WireState {
    match view.proposal.state {
        State::Open if view.is_approved() => WireState::Approved,
        State::Open if view.open => WireState::Pending,
        State::Open => WireState::Expired,
        State::Rejected => WireState::Rejected,
        State::Executing => WireState::Executing,
        State::Executed => WireState::Executed,
        State::Failed => WireState::Failed,
    }
}

fn vote(vote: Vote) -> WireVote {
    let Vote { by, approves, at, note } = vote;
    WireVote { voter: by, approves, time: Some(timestamp(at)), note }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_that_is_not_written_as_the_service_writes_it_is_refused() {
        let good = "0f".repeat(32);
        assert_eq!(parse_sha256(&good), Ok([15; 32]));
        let long = format!("{good}0f");
        for odd in
            ["", "0f", &good[1..], &good.to_uppercase(), &long, &good.replace('f', "g"), &"é".repeat(32)]
        {
            assert_eq!(
                parse_sha256(odd).err().and_then(|error| error.field()),
                Some("change_sha256"),
                "{odd}"
            );
        }
    }
}
