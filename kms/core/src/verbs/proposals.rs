//! Proposals: made by the verbs that need the consent of others, voted on, and executed once.
//!
//! Which changes need it, and of how many, is decided in [`Kms::approvals_needed`]. Destruction always does where the class
//! says so, and so does whatever would make the class say less; everything else from the day on which there are two who may
//! approve: before it nobody could.

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Hsm, Kms, Store, Unsettled,
    access::NOTE_LEN_MAX,
    audit::Subject,
    catalog::Picture,
    claim_rules::ClaimRules,
    class::ClassName,
    error::Kind,
    key::TakeOver,
    policy,
    proposal::{self, Change, OPEN_MAX, OPEN_PER_CALLER_MAX, PROPOSAL_TTL, Proposal, State, Vote},
    store::{AccessToken, CHANGED_MEANWHILE, Transaction, Write},
    time::{Deadline, Timestamp},
    verbs::{ChangeVersion, Request, RotateKey},
};

/// Most votes on one proposal.
const VOTES_MAX: usize = 64;

/// A proposal as callers see it, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProposalView {
    /// The row.
    pub proposal: Proposal,
    /// Approvals that count: of others than the proposer, who may approve at this moment.
    pub approvals: u32,
    /// Whether it can still be voted on and executed.
    pub open: bool,
}

/// A vote to be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CastVote {
    /// On what.
    pub id: proposal::Id,
    /// For it, and the SHA-256 of the change that the caller was shown; `None` for a rejection.
    pub approves: Option<[u8; 32]>,
    /// Why.
    pub note: String,
}

/// What became of an execution.
pub struct Executed {
    /// The proposal.
    pub view: ProposalView,
    /// The access token that was made, and its credential, which is shown only now.
    pub made: Option<(AccessToken, String)>,
}

impl ProposalView {
    /// Whether enough have approved.
    pub fn is_approved(&self) -> bool {
        self.open && self.approvals >= self.proposal.required
    }
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// The proposals that the caller may see, the newest first.
    pub async fn list_proposals(&self, caller: &Caller) -> Result<Vec<ProposalView>, Error> {
        let now = self.clock.now();
        let admission = self.gate.admit(caller, Action::ListProposals, None, now).await?;
        let picture = self.catalog.now();
        let seen = picture.proposals().filter(|proposal| may_see(&picture, caller, proposal, now));
        let mut views: Vec<_> = seen.map(|proposal| view(&picture, proposal, now)).collect();
        views.sort_by(|a, b| {
            (b.proposal.proposed_at, &b.proposal.id).cmp(&(a.proposal.proposed_at, &a.proposal.id))
        });
        admission.settle(Ok(Unsettled::new(views))).await
    }

    /// One of them.
    pub async fn proposal(&self, caller: &Caller, id: &proposal::Id) -> Result<ProposalView, Error> {
        let (subject, now) = (Subject::of_access(id.as_str()), self.clock.now());
        let admission = self.gate.admit_about(caller, Action::ListProposals, subject, now).await?;
        let picture = self.catalog.now();
        let found = find(&picture, id).and_then(|proposal| {
            // Like one that is not there.
            if may_see(&picture, caller, proposal, now) { Ok(proposal) } else { Err(absent(id)) }
        });
        admission.settle(found.map(|proposal| Unsettled::new(view(&picture, proposal, now)))).await
    }

    /// Approves a proposal of somebody else, or rejects one.
    pub async fn vote(&self, caller: &Caller, request: CastVote) -> Result<ProposalView, Error> {
        let now = self.clock.now();
        let proposal = self.known_proposal(caller, &request.id).await?;
        let withdraws = request.approves.is_none() && proposal.proposed_by == caller.name();
        let action = if withdraws { proposal.change.action() } else { Action::ApproveProposal };
        let admission = self.gate.begin_about(caller, action, subject(&proposal), now).await?;
        // Whoever executes it looks at the store anew: nobody need wait for other servers to have heard.
        let result = self.vote_admitted(caller, request).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Does what was proposed. Run it detached: it must not be cut off.
    pub async fn execute_proposal(
        &self,
        caller: &Caller,
        id: &proposal::Id,
        deadline: Deadline,
    ) -> Result<Executed, Error> {
        let now = self.clock.now();
        let proposal = self.known_proposal(caller, id).await?;
        // Policy is asked what it was asked when this was proposed.
        let action = proposal.change.action();
        let mut admission = self.gate.begin_about(caller, action, subject(&proposal), now).await?;
        let result = self.execute_admitted(&mut admission, caller, id, deadline).await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Passes when nobody else must approve. Otherwise it makes a proposal, or finds the one that was made already, and
    /// refuses with its name.
    pub(super) async fn unless_approval_is_needed(
        &self,
        admission: &mut Admission<A>,
        caller: &Caller,
        change: impl FnOnce() -> Change + Send,
    ) -> Result<(), Error> {
        let change = change();
        let now = self.clock.now();
        let required = self.approvals_needed(&self.catalog.now(), &change, now)?;
        if required == 0 {
            return Ok(());
        }
        let proposal = self.propose(caller, change, required, now).await?;
        admission.is_about(&proposal.id.to_string());
        let others = if required == 1 { "somebody else".to_owned() } else { format!("{required} others") };
        let text = format!(
            "this needs the approval of {others}: proposals/{id} asks for it; have it approved, then execute it \
             (kms approvals execute {id})",
            id = proposal.id
        );
        Err(Error::precondition("APPROVAL_REQUIRED", text).about(format!("proposals/{}", proposal.id)))
    }

    /// How many others must approve `change` as things are.
    fn approvals_needed(&self, picture: &Picture, change: &Change, now: Timestamp) -> Result<u32, Error> {
        let of_class = |class: ClassName| picture.class(class).approvals;
        let from_two_on = |required: u32| if policy::two_may_approve(picture) { required } else { 0 };
        Ok(match change {
            Change::DestroyKeyVersion { key, .. } => of_class(picture.entry(key)?.key.class),
            Change::EmergencyRotateKey { key, .. } => match picture.entry(key)?.key.class {
                ClassName::Root => from_two_on(of_class(ClassName::Root)),
                _ => 0,
            },
            Change::UpdateKey(update) => {
                let key = &picture.entry(&update.id)?.key;
                let after = self.key_updated(picture, update, now)?;
                let required = of_class(key.class);
                let leaves_root = key.class == ClassName::Root && after.class != ClassName::Root;
                let unbinds = after.required_context != key.required_context
                    && key.required_context.iter().any(|name| !after.required_context.contains(name));
                let frees_claims =
                    key.claim_rules != after.claim_rules && after.claim_rules == ClaimRules::default();
                if of_class(after.class) < required || key.periods().destroys_sooner(&after.periods()) {
                    required
                } else if leaves_root
                    || unbinds
                    || frees_claims
                    || key.periods().protects_less(&after.periods())
                {
                    from_two_on(required)
                } else {
                    0
                }
            }
            Change::UpdateKeyClass(update) => {
                let before = picture.class(update.name);
                let after = self.class_updated(picture, update)?;
                if after.approvals < before.approvals || before.periods.destroys_sooner(&after.periods) {
                    before.approvals
                } else if before.periods.protects_less(&after.periods) {
                    from_two_on(before.approvals)
                } else {
                    0
                }
            }
            Change::CreateAccessToken(_)
            | Change::CreateRoleBinding(_)
            | Change::SetPolicy(_)
            | Change::AcceptOlderStore { .. } => from_two_on(of_class(ClassName::Root)),
        })
    }

    /// Refuses what would need the consent of others on the very rows that it is about to be committed on: they may have
    /// changed since it was asked for.
    pub(super) fn unless_consent_is_missing(
        &self,
        picture: &Picture,
        change: &Change,
        now: Timestamp,
    ) -> Result<(), Error> {
        match self.approvals_needed(picture, change, now)? {
            0 => Ok(()),
            _ => {
                let text = "it needs the approval of others by now; ask again";
                Err(Error::new(Kind::Conflict, CHANGED_MEANWHILE, text))
            }
        }
    }

    async fn propose(
        &self,
        caller: &Caller,
        change: Change,
        required: u32,
        now: Timestamp,
    ) -> Result<Proposal, Error> {
        let sha256 = change.sha256()?;
        let picture = self.catalog.now();
        let open = || picture.proposals().filter(|proposal| proposal.is_open(now));
        let own = || open().filter(|proposal| proposal.proposed_by == caller.name());
        if let Some(same) = own().find(|proposal| proposal.sha256 == sha256) {
            return Ok(same.clone());
        }
        if open().count() >= OPEN_MAX || own().count() >= OPEN_PER_CALLER_MAX {
            let text = format!(
                "there are {OPEN_MAX} open proposals, or {OPEN_PER_CALLER_MAX} of yours; execute or reject some first"
            );
            return Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_PROPOSALS", text));
        }
        let proposal = Proposal {
            id: proposal::Id::new(self.random()?),
            change,
            sha256,
            proposed_by: caller.name().to_owned(),
            proposed_at: now,
            expires_at: now.saturating_add(PROPOSAL_TTL).unwrap_or(Timestamp::MAX),
            required,
            votes: Vec::new(),
            state: State::Open,
            state_at: now,
            reason: None,
            revision: 1,
        };
        let writes = vec![Write::InsertProposal(proposal.clone())];
        self.commit(Transaction::new("propose a change", writes)).await?;
        Ok(proposal)
    }

    /// The proposal, or the refusal of somebody who may not know that there is none.
    async fn known_proposal(&self, caller: &Caller, id: &proposal::Id) -> Result<Proposal, Error> {
        if let Ok(proposal) = find(&self.catalog.now(), id) {
            return Ok(proposal.clone());
        }
        let (subject, now) = (Subject::of_access(id.as_str()), self.clock.now());
        let admission = self.gate.admit_about(caller, Action::ListProposals, subject, now).await?;
        admission.settle(Err(absent(id))).await
    }

    async fn vote_admitted(&self, caller: &Caller, request: CastVote) -> Result<ProposalView, Error> {
        let CastVote { id, approves, note } = request;
        if note.len() > NOTE_LEN_MAX || note.chars().any(char::is_control) {
            let text = format!("a note has at most {NOTE_LEN_MAX} bytes and no control characters");
            return Err(Error::invalid("note", text));
        }
        let now = self.time_for_all().await?;
        let picture = self.catalog.now();
        let proposal = find(&picture, &id)?;
        unless_closed(proposal, now)?;
        if let Some(sha256) = approves {
            if proposal.proposed_by == caller.name() {
                return Err(Error::precondition(
                    "OWN_PROPOSAL",
                    "who proposed it cannot approve it; ask somebody else",
                ));
            }
            if proposal.sha256 != sha256 {
                let text = "the hash is of another change than this proposal's; look at it again";
                return Err(Error::new(Kind::Conflict, "OTHER_CHANGE", text));
            }
        }
        let approves = approves.is_some();
        let said = |vote: &Vote| vote.by == caller.name() && vote.approves == approves;
        if proposal.votes.iter().any(said) {
            return Ok(view(&picture, proposal, now));
        }
        if approves && proposal.votes.len() >= VOTES_MAX {
            return Err(Error::precondition("TOO_MANY_VOTES", "it has all the votes that it can hold"));
        }
        let mut changed = proposal.clone();
        changed.votes.push(Vote { by: caller.name().to_owned(), approves, at: now, note });
        if !approves {
            (changed.state, changed.state_at) = (State::Rejected, now);
        }
        self.update(changed, "vote on a proposal").await?;
        let picture = self.catalog.now();
        find(&picture, &id).map(|proposal| view(&picture, proposal, now))
    }

    async fn execute_admitted(
        &self,
        admission: &mut Admission<A>,
        caller: &Caller,
        id: &proposal::Id,
        deadline: Deadline,
    ) -> Result<Executed, Error> {
        let now = self.time_for_all().await?;
        let picture = self.catalog.now();
        let proposal = find(&picture, id)?;
        unless_closed(proposal, now)?;
        if proposal.proposed_by != caller.name() {
            let text = format!("only {} can have this executed, who proposed it", proposal.proposed_by);
            return Err(Error::precondition("NOT_THE_PROPOSER", text));
        }
        // Rules may have become stricter since, and approvers may have left.
        let required = self.approvals_needed(&picture, &proposal.change, now)?.max(proposal.required);
        let approvals = count_approvals(&picture, proposal, now);
        if approvals < required {
            let text = format!("{approvals} of {required} approvals are there; ask those who may approve");
            return Err(Error::precondition("APPROVAL_REQUIRED", text).about(format!("proposals/{id}")));
        }
        let (change, executing) = (proposal.change.clone(), State::Executing);
        let begun = Proposal { state: executing, state_at: now, ..proposal.clone() };
        // Once: of two at the same time one finds another revision.
        let begun = self.update(begun, "begin to execute a proposal").await?;
        let outcome = self.apply(admission, caller, change, deadline).await;
        let (state, reason) = match &outcome {
            Ok(_) => (State::Executed, None),
            Err(error) => (State::Failed, Some(error.reason().to_owned())),
        };
        let ended = Proposal { state, state_at: self.clock.now(), reason, ..begun };
        if let Err(error) = self.update(ended, "end the execution of a proposal").await {
            // What was done is done, and is answered for.
            tracing::error!(proposal = %id, %error, "the outcome of a proposal is not on record in the store");
        }
        let made = outcome?;
        let picture = self.catalog.now();
        let view = find(&picture, id).map(|proposal| view(&picture, proposal, now))?;
        Ok(Executed { view, made })
    }

    async fn apply(
        &self,
        admission: &mut Admission<A>,
        caller: &Caller,
        change: Change,
        deadline: Deadline,
    ) -> Result<Option<(AccessToken, String)>, Error> {
        let guards = |etag| Request { id: None, etag };
        match change {
            Change::DestroyKeyVersion { key, version, attestation, etag } => {
                let request = ChangeVersion { id: key, number: version, request: guards(etag) };
                self.destroy_admitted(caller, request, &attestation, true).await.map(|_| None)
            }
            Change::EmergencyRotateKey { key, etag } => {
                let seen = self.last_number(&key);
                let request = RotateKey { id: key, takes_over: TakeOver::AtOnce, request: guards(etag) };
                self.rotate_admitted(admission, caller, &request, seen, deadline).await.map(|_| None)
            }
            Change::UpdateKey(update) => self.update_admitted(caller, *update, true).await.map(|_| None),
            Change::UpdateKeyClass(update) => self.update_class_admitted(update, true).await.map(|_| None),
            Change::CreateAccessToken(create) => {
                self.create_token_admitted(create, self.clock.now()).await.map(Some)
            }
            Change::CreateRoleBinding(create) => {
                self.bind_admitted(caller.name(), *create).await.map(|_| None)
            }
            Change::SetPolicy(set) => self.set_policy_admitted(caller, set).await.map(|_| None),
            Change::AcceptOlderStore { store, token } => {
                self.accept_recovery(store, token, deadline).await.map(|_| None)
            }
        }
    }

    async fn update(&self, proposal: Proposal, name: &'static str) -> Result<Proposal, Error> {
        let proposal = Proposal { revision: proposal.revision + 1, ..proposal };
        let transaction = Transaction::new(name, vec![Write::UpdateProposal(proposal.clone())]);
        match proposal.state {
            // No restore may open it again.
            State::Rejected | State::Executing => self.commit_moving(transaction).await?,
            State::Open | State::Executed | State::Failed => self.commit(transaction).await?,
        }
        Ok(proposal)
    }
}

fn find<'a>(picture: &'a Picture, id: &proposal::Id) -> Result<&'a Proposal, Error> {
    picture.proposal(id).ok_or_else(|| absent(id))
}

fn absent(id: &proposal::Id) -> Error {
    Error::not_found(format_args!("proposals/{id}"))
}

fn subject(proposal: &Proposal) -> Subject {
    Subject { target: Some(proposal.id.as_str().into()), ..proposal.change.key().into() }
}

fn unless_closed(proposal: &Proposal, now: Timestamp) -> Result<(), Error> {
    if proposal.is_open(now) {
        return Ok(());
    }
    let state = if proposal.state == State::Open { "expired" } else { proposal.state.as_str() };
    let text = format!("this proposal is {state}; ask for the change again");
    Err(Error::precondition("PROPOSAL_CLOSED", text))
}

/// Whoever made it, may approve it, or may read what it is about.
fn may_see(picture: &Picture, caller: &Caller, proposal: &Proposal, now: Timestamp) -> bool {
    let key = proposal.change.key();
    let reads = if key.is_some() { Action::GetKey } else { Action::GetPolicy };
    let may = |action| policy::may(picture, caller, action, key, now);
    proposal.proposed_by == caller.name() || may(Action::ApproveProposal) || may(reads)
}

fn view(picture: &Picture, proposal: &Proposal, now: Timestamp) -> ProposalView {
    let approvals = count_approvals(picture, proposal, now);
    ProposalView { proposal: proposal.clone(), approvals, open: proposal.is_open(now) }
}

/// Approvals of others than the proposer, each of whom may approve now.
fn count_approvals(picture: &Picture, proposal: &Proposal, now: Timestamp) -> u32 {
    let mut counted: Vec<&str> = Vec::new();
    for vote in proposal.votes.iter().filter(|vote| vote.approves && vote.by != proposal.proposed_by) {
        let may = picture.caller(&vote.by, now).is_some_and(|voter| {
            policy::may(picture, &voter, Action::ApproveProposal, proposal.change.key(), now)
        });
        if may && !counted.contains(&vote.by.as_str()) {
            counted.push(&vote.by);
        }
    }
    u32::try_from(counted.len()).unwrap_or(u32::MAX)
}
