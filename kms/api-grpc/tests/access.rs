//! Role bindings, policy and approvals through the facade, over a core whose ports are fakes.

#![expect(clippy::expect_used, reason = "a test stops where its ground is missing")]

use std::{collections::HashMap, sync::Arc, time::Duration};

use kms_api_grpc::{AccessService, ApprovalService, PolicyService, Services};
use kms_core::{
    Caller,
    algorithm::Hash,
    caller::{KeyScope, Role},
    fakes::{ManualClock, MemoryLog, MemoryStore, SoftHsm, World, administrator},
    hsm::hex,
    kms::Settings,
    principal::Principal,
    time::SignedDuration,
};
use kms_proto::v1::{
    self, access_service_client::AccessServiceClient, access_service_server::AccessServiceServer,
    approval_service_client::ApprovalServiceClient, approval_service_server::ApprovalServiceServer,
    explain_policy_request::Question, policy_service_client::PolicyServiceClient,
    policy_service_server::PolicyServiceServer, proposal::State,
};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

type Hsm = Arc<SoftHsm>;
type Store = Arc<MemoryStore>;
type Clock = Arc<ManualClock>;

struct Clients {
    access: AccessServiceClient<AccessServiceServer<AccessService<Hsm, Store, MemoryLog, Clock>>>,
    policy: PolicyServiceClient<PolicyServiceServer<PolicyService<Hsm, Store, MemoryLog, Clock>>>,
    approval: ApprovalServiceClient<ApprovalServiceServer<ApprovalService<Hsm, Store, MemoryLog, Clock>>>,
    clock: Clock,
}

async fn clients() -> Clients {
    let world = World::default();
    let kms = world.open(Settings::default()).await.expect("an empty world opens");
    let services = Services::new(&Arc::new(kms), Duration::from_secs(60));
    Clients {
        access: AccessServiceClient::new(services.access),
        policy: PolicyServiceClient::new(services.policy),
        approval: ApprovalServiceClient::new(services.approval),
        clock: world.clock,
    }
}

/// A request as authentication hands it on.
fn by<T>(caller: Caller, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller);
    request
}

fn admin<T>(message: T) -> Request<T> {
    by(administrator(), message)
}

/// Whoever holds an access token of this name with the role.
fn holder(name: &str, role: Role) -> Caller {
    Caller::new(format!("access-token:{name}"), role, KeyScope::All)
}

/// Whoever has what bindings give to this name.
fn named(name: &str) -> Caller {
    Caller::named(&name.parse::<Principal>().expect("canonical"))
}

fn token(name: &str, role: &str) -> v1::CreateAccessTokenRequest {
    let access_token =
        v1::AccessToken { role: role.into(), all_keys: !role.is_empty(), ..v1::AccessToken::default() };
    v1::CreateAccessTokenRequest { access_token_id: name.into(), access_token: Some(access_token), ttl: None }
}

fn binding(name: &str, principal: &str, role: &str, on: &str) -> v1::CreateRoleBindingRequest {
    let binding = v1::RoleBinding {
        principal: principal.into(),
        role: role.into(),
        on: on.into(),
        ..v1::RoleBinding::default()
    };
    v1::CreateRoleBindingRequest { role_binding_id: name.into(), role_binding: Some(binding) }
}

fn document(text: &str) -> v1::SetPolicyRequest {
    let policy = v1::Policy { text: text.into(), note: "why".into(), ..v1::Policy::default() };
    v1::SetPolicyRequest { policy: Some(policy), ..v1::SetPolicyRequest::default() }
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("ErrorInfo").reason
}

fn wrong_field(status: &Status) -> String {
    let request = status.get_details_bad_request().expect("BadRequest");
    request.field_violations[0].field.clone()
}

impl Clients {
    /// Two approvers, from which on four eyes are asked for.
    async fn with_approvers(mut self) -> Self {
        for name in ["anne", "bob"] {
            self.access.create_access_token(admin(token(name, "approver"))).await.expect("an approver");
        }
        self
    }

    /// An administrator asks for another one; the name of the proposal.
    async fn propose(&mut self, name: &str) -> String {
        let status = self
            .access
            .create_access_token(admin(token(name, "administrator")))
            .await
            .expect_err("four eyes");
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::FailedPrecondition, "APPROVAL_REQUIRED")
        );
        let info = status.get_details_error_info().expect("ErrorInfo");
        info.metadata.get("resource").expect("the proposal's name").clone()
    }

    async fn proposal(&mut self, name: &str) -> v1::Proposal {
        let request = v1::GetProposalRequest { name: name.into() };
        self.approval.get_proposal(admin(request)).await.expect("a proposal").into_inner()
    }

    async fn approve(&mut self, caller: Caller, name: &str, hash: &str) -> Result<v1::Proposal, Status> {
        let change_sha256 = hash.to_owned();
        let request = v1::ApproveProposalRequest { name: name.into(), change_sha256, note: "seen".into() };
        self.approval.approve_proposal(by(caller, request)).await.map(tonic::Response::into_inner)
    }

    async fn execute(&mut self, caller: Caller, name: &str) -> Result<v1::ExecuteProposalResponse, Status> {
        let request = v1::ExecuteProposalRequest { name: name.into() };
        self.approval.execute_proposal(by(caller, request)).await.map(tonic::Response::into_inner)
    }
}

#[tokio::test]
async fn what_one_asks_for_another_approves_and_it_is_done_once() {
    let mut clients = clients().await.with_approvers().await;
    let name = clients.propose("carl").await;
    assert_eq!(clients.propose("carl").await, name, "asking again finds the same proposal");

    let pending = clients.proposal(&name).await;
    assert_eq!((pending.state(), pending.required, pending.approvals), (State::Pending, 1, 0));
    assert_eq!((pending.action.as_str(), pending.key.as_str()), ("create_access_token", ""));
    assert_eq!(pending.proposer, "access-token:admin");
    assert!(pending.change.contains("carl"), "{}", pending.change);
    let hash = pending.change_sha256;
    assert_eq!(hash, hex(Hash::Sha256.digest(pending.change.as_bytes()).as_ref()), "of what is shown");

    let anne = || holder("anne", Role::Approver);
    let early = clients.execute(administrator(), &name).await.expect_err("nobody has approved");
    assert_eq!(reason(&early), "APPROVAL_REQUIRED");
    let own = clients.approve(administrator(), &name, &hash).await.expect_err("its own");
    assert_eq!((own.code(), reason(&own).as_str()), (Code::FailedPrecondition, "OWN_PROPOSAL"));
    let other = clients.approve(anne(), &name, &"0".repeat(64)).await.expect_err("another change");
    assert_eq!((other.code(), reason(&other).as_str()), (Code::Aborted, "OTHER_CHANGE"));
    let odd = clients.approve(anne(), &name, "").await.expect_err("no hash");
    assert_eq!(wrong_field(&odd), "change_sha256");
    let stranger = clients.approve(holder("x", Role::User), &name, &hash).await.expect_err("a stranger");
    assert_eq!(stranger.code(), Code::PermissionDenied);

    let approved = clients.approve(anne(), &name, &hash).await.expect("a vote");
    assert_eq!((approved.state(), approved.approvals), (State::Approved, 1));
    let vote = &approved.votes[0];
    assert_eq!((vote.voter.as_str(), vote.approves, vote.note.as_str()), ("access-token:anne", true, "seen"));

    clients.execute(anne(), &name).await.expect_err("she did not propose it");
    let done = clients.execute(administrator(), &name).await.expect("approved");
    assert_eq!(done.proposal.as_ref().map(v1::Proposal::state), Some(State::Executed));
    assert_eq!(done.access_token.as_ref().map(|token| token.name.as_str()), Some("accessTokens/carl"));
    assert!(done.secret.starts_with("kms_") && !format!("{done:?}").contains(&done.secret));
    let again = clients.execute(administrator(), &name).await.expect_err("once");
    assert_eq!(reason(&again), "PROPOSAL_CLOSED");
}

#[tokio::test]
async fn proposals_are_listed_newest_first_and_only_open_ones_when_asked() {
    let mut clients = clients().await.with_approvers().await;
    let mut names = Vec::new();
    for name in ["a", "b", "c"] {
        names.push(clients.propose(name).await);
        clients.clock.advance(SignedDuration::from_secs(1));
    }
    let request = v1::RejectProposalRequest { name: names[1].clone(), note: "no".into() };
    let bob = holder("bob", Role::Approver);
    let rejected = clients.approval.reject_proposal(by(bob, request)).await.expect("a vote").into_inner();
    assert_eq!((rejected.state(), rejected.votes[0].approves), (State::Rejected, false));

    for (only_open, expected) in [(false, vec![2, 1, 0]), (true, vec![2, 0])] {
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListProposalsRequest { page_size: 1, page_token, only_open };
            let page = clients.approval.list_proposals(admin(request)).await.expect("a page").into_inner();
            listed.extend(page.proposals.into_iter().map(|proposal| proposal.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let expected: Vec<_> = expected.into_iter().map(|place: usize| names[place].clone()).collect();
        assert_eq!(listed, expected, "only_open: {only_open}");
    }
    let request = v1::ListProposalsRequest { page_token: "x".into(), ..Default::default() };
    let status = clients.approval.list_proposals(admin(request)).await.expect_err("no token");
    assert_eq!(wrong_field(&status), "page_token");
}

#[tokio::test]
async fn a_proposal_whose_time_is_over_shows_it() {
    let mut clients = clients().await.with_approvers().await;
    let name = clients.propose("late").await;
    clients.clock.advance(SignedDuration::from_hours(24 * 7));
    assert_eq!(clients.proposal(&name).await.state(), State::Expired);
}

#[tokio::test]
async fn a_binding_gives_a_role_for_some_time_until_it_is_revoked() {
    const CI: &str = "spiffe://example.org/ci";
    let mut clients = clients().await;
    let mut request = binding("ci", CI, "user", "class:jwt-signing");
    let asked = request.role_binding.as_mut().expect("a binding");
    asked.only = vec!["sign_jwt".into()];
    asked.required_context = HashMap::from([("tenant".to_owned(), "a".to_owned())]).into_iter().collect();
    asked.expire_time = Some(prost_types::Timestamp { seconds: 1_800_000_060, nanos: 0 });
    let made = clients.access.create_role_binding(admin(request.clone())).await.expect("made").into_inner();
    let expected = request.role_binding.clone().expect("a binding");
    assert_eq!(
        (&made.principal, &made.role, &made.on, &made.only, &made.required_context, &made.expire_time),
        (
            &expected.principal,
            &expected.role,
            &expected.on,
            &expected.only,
            &expected.required_context,
            &expected.expire_time
        )
    );
    assert_eq!((made.name.as_str(), made.creator.as_str()), ("roleBindings/ci", "access-token:admin"));
    let taken = clients.access.create_role_binding(admin(request)).await.expect_err("taken");
    assert_eq!(taken.code(), Code::AlreadyExists);

    let whoami = || by(named(CI), v1::GetCallerRequest {});
    let caller = clients.access.get_caller(whoami()).await.expect("everybody may ask").into_inner();
    assert_eq!((caller.caller.as_str(), caller.role.as_str()), (CI, ""));
    assert_eq!(caller.role_bindings, std::slice::from_ref(&made));
    let list = || admin(v1::ListRoleBindingsRequest::default());
    let listed = clients.access.list_role_bindings(list()).await.expect("a page").into_inner();
    assert_eq!(listed.role_bindings, [made]);
    for _ in 0..2 {
        let request = v1::RevokeRoleBindingRequest { name: "roleBindings/ci".into() };
        let revoked = clients.access.revoke_role_binding(admin(request)).await.expect("revoked").into_inner();
        assert!(revoked.revoke_time.is_some());
    }
    let caller = clients.access.get_caller(whoami()).await.expect("everybody may ask").into_inner();
    assert_eq!(caller.role_bindings, []);
}

#[tokio::test]
async fn what_is_wrong_in_a_binding_is_named_where_it_lies() {
    let mut clients = clients().await;
    let wrong = |change: fn(&mut v1::RoleBinding)| {
        let mut request = binding("b", "unix:1", "user", "*");
        request.role_binding.as_mut().map(change);
        request
    };
    for (field, request) in [
        ("role_binding.principal", wrong(|it| it.principal = "unix:01".into())),
        ("role_binding.role", wrong(|it| it.role = "root".into())),
        ("role_binding.on", wrong(|it| it.on = "keys/k".into())),
        ("role_binding.only", wrong(|it| it.only = vec!["set_policy".into()])),
        (
            "role_binding.required_context",
            wrong(|it| it.required_context = (0..17).map(|i| (format!("k{i}"), String::new())).collect()),
        ),
        (
            "role_binding.expire_time",
            wrong(|it| it.expire_time = Some(prost_types::Timestamp { seconds: 1, nanos: 0 })),
        ),
    ] {
        let status = clients.access.create_role_binding(admin(request)).await.expect_err(field);
        assert_eq!((status.code(), wrong_field(&status).as_str()), (Code::InvalidArgument, field));
    }
    let request = v1::RevokeRoleBindingRequest { name: "roleBindings/absent".into() };
    let status = clients.access.revoke_role_binding(admin(request)).await.expect_err("absent");
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn a_token_with_a_period_is_renewed_by_its_holder_up_to_its_bound() {
    let mut clients = clients().await;
    let mut request = token("ci", "");
    let asked = request.access_token.as_mut().expect("a token");
    asked.period = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    asked.renewable_until = Some(prost_types::Timestamp { seconds: 1_800_000_080, nanos: 0 });
    asked.bound_to = "dns:ci.example.org".into();
    let made = clients.access.create_access_token(admin(request)).await.expect("made").into_inner();
    let made = made.access_token.expect("the row");
    assert_eq!((made.role.as_str(), made.bound_to.as_str()), ("", "dns:ci.example.org"));
    assert_eq!(made.expire_time.expect("an end").seconds, 1_800_000_060);

    clients.clock.advance(SignedDuration::from_secs(40));
    let renew = || v1::RenewAccessTokenRequest {};
    let ci = named("access-token:ci");
    let renewed = clients.access.renew_access_token(by(ci, renew())).await.expect("renewed").into_inner();
    assert_eq!(renewed.expire_time, made.renewable_until);
    let status = clients.access.renew_access_token(by(named("unix:1"), renew())).await.expect_err("no token");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "NOT_RENEWABLE"));
}

#[tokio::test]
async fn a_policy_that_does_not_fit_is_refused_with_its_line_and_column() {
    let mut clients = clients().await;
    let broken = "permit (principal, action, resource);\nforbid (principal, action resource);\n";
    let status = clients.policy.set_policy(admin(document(broken))).await.expect_err("it does not parse");
    assert_eq!((status.code(), wrong_field(&status).as_str()), (Code::InvalidArgument, "policy.text"));
    assert!(status.message().contains("line 2, column 27"), "{}", status.message());
    let unknown = "forbid (principal, action == Kms::Action::\"steal\", resource);";
    let status = clients.policy.set_policy(admin(document(unknown))).await.expect_err("no such action");
    assert_eq!(wrong_field(&status), "policy.text");
    let status = clients.policy.set_policy(admin(document(""))).await.expect_err("empty");
    assert_eq!(wrong_field(&status), "policy.text");
    let lockout = "forbid (principal, action == Kms::Action::\"set_policy\", resource);";
    let status = clients.policy.set_policy(admin(document(lockout))).await.expect_err("a lockout");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "LOCKOUT"));
}

#[tokio::test]
async fn a_policy_is_set_read_tried_and_explained() {
    const PERMIT: &str = "@id(\"ci\") permit (principal == Kms::Caller::\"unix:1\", action == Kms::Action::\"sign_jwt\", resource);";
    let mut clients = clients().await;
    let first = clients.policy.get_policy(admin(v1::GetPolicyRequest::default())).await;
    let first = first.expect("the empty one").into_inner();
    assert_eq!((first.name.as_str(), first.text.as_str(), first.create_time), ("policies/0", "", None));

    let question = |caller: &str| Question {
        caller: caller.into(),
        action: "sign_jwt".into(),
        key: "keys/k".into(),
        ..Question::default()
    };
    let ask = |candidate: Option<&str>| {
        let questions = vec![question("unix:1"), question("unix:2")];
        admin(v1::ExplainPolicyRequest { questions, candidate: candidate.map(str::to_owned) })
    };
    let said = clients.policy.explain_policy(ask(Some(PERMIT))).await.expect("tried").into_inner();
    let said: Vec<_> = said.explanations.iter().map(|one| (one.allowed, one.rules.clone())).collect();
    assert_eq!(said, [(true, vec!["policy:ci".to_owned()]), (false, vec![])]);
    let said = clients.policy.explain_policy(ask(None)).await.expect("nothing was changed").into_inner();
    assert!(said.explanations.iter().all(|one| !one.allowed && one.reason == "no rule allows it"));
    let status = clients.policy.explain_policy(ask(Some("permit"))).await.expect_err("it does not parse");
    assert_eq!(wrong_field(&status), "candidate");

    for (version, request) in [
        (1, v1::SetPolicyRequest { expected: "policies/0".into(), ..document(PERMIT) }),
        (2, v1::SetPolicyRequest { allow_empty: true, ..document("") }),
    ] {
        let set = clients.policy.set_policy(admin(request)).await.expect("set").into_inner();
        assert_eq!((set.name, set.note.as_str()), (format!("policies/{version}"), "why"));
    }
    let stale = v1::SetPolicyRequest { expected: "policies/1".into(), ..document(PERMIT) };
    let status = clients.policy.set_policy(admin(stale)).await.expect_err("another one holds");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, "ETAG_MISMATCH"));
    let request = v1::GetPolicyRequest { name: "policies/1".into() };
    let read = clients.policy.get_policy(admin(request)).await.expect("an earlier one").into_inner();
    assert_eq!((read.text.as_str(), read.creator.as_str()), (PERMIT, "access-token:admin"));

    let mut page_token = String::new();
    for expected in ["policies/2", "policies/1"] {
        let request = v1::ListPoliciesRequest { page_size: 1, page_token };
        let page = clients.policy.list_policies(admin(request)).await.expect("a page").into_inner();
        assert_eq!((page.policies[0].name.as_str(), page.policies[0].text.as_str()), (expected, ""));
        page_token = page.next_page_token;
    }
    assert_eq!(page_token, "");
}
