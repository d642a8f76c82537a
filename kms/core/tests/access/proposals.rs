//! Four eyes: who must approve what, who may, and that what was approved is done once and nothing else.

use kms_core::{
    audit::{Event, Phase},
    class::PeriodChanges,
    key::TakeOver,
    proposal::{Change, Id, PROPOSAL_TTL, State},
    time::SignedDuration,
    verbs::{
        CastVote, ChangeVersion, ProposalView, Request, RotateKey, SetPolicy, UpdateKey, UpdateKeyClass,
    },
};

use super::*;

const ALICE: &str = "spiffe://example.org/alice";
const BOB: &str = "spiffe://example.org/bob";
const CAROL: &str = "spiffe://example.org/carol";

/// Alice and Bob administer, Carol approves.
async fn three(kms: &FakeKms) {
    bind(kms, "carol", CAROL, Role::Approver, "*").await;
    bind(kms, "alice", ALICE, Role::Administrator, "*").await;
    bind(kms, "bob", BOB, Role::Administrator, "*").await;
}

/// The proposal that a refusal names.
fn proposed<T>(outcome: Result<T, Error>) -> Id {
    let error = outcome.map(drop).expect_err("it needs an approval");
    assert_eq!(error.reason(), "APPROVAL_REQUIRED", "{error}");
    let name = error.resource().expect("a name").strip_prefix("proposals/").expect("a proposal").to_owned();
    Id::try_from(name).expect("an id")
}

async fn destroy(kms: &FakeKms, who: &str, key: &str) -> Result<(), Error> {
    let change = ChangeVersion { id: id(key), number: 1, request: Request::default() };
    let name = format!("keys/{key}/versions/1");
    kms.destroy_key_version(&named(who), change, name.as_str()).await.map(drop)
}

async fn disable(kms: &FakeKms, key: &str) {
    let change = ChangeVersion { id: id(key), number: 1, request: Request::default() };
    kms.disable_key_version(&administrator(), change).await.expect("disabled");
}

async fn approve(kms: &FakeKms, who: &str, proposal: &Id) -> Result<ProposalView, Error> {
    let sha256 = kms.proposal(&administrator(), proposal).await.expect("read").proposal.sha256;
    kms.vote(&named(who), CastVote { id: proposal.clone(), approves: Some(sha256), note: String::new() })
        .await
}

async fn reject(kms: &FakeKms, who: &str, proposal: &Id) -> Result<ProposalView, Error> {
    kms.vote(&named(who), CastVote { id: proposal.clone(), approves: None, note: "no".to_owned() }).await
}

async fn execute(kms: &FakeKms, who: &str, proposal: &Id) -> Result<(), Error> {
    kms.execute_proposal(&named(who), proposal, soon()).await.map(drop)
}

async fn is_scheduled(kms: &FakeKms, key: &str) -> bool {
    let mut versions = kms.list_key_versions(&administrator(), &id(key)).await.expect("read");
    versions.remove(0).row.born.expect("born").timeline.destroys_at.is_some()
}

#[test]
fn a_destruction_needs_somebody_else_and_happens_once() {
    block_on(async {
        let (_world, kms) = a_world().await;
        three(&kms).await;
        disable(&kms, "signs").await;
        let proposal = proposed(destroy(&kms, ALICE, "signs").await);
        assert_eq!(proposed(destroy(&kms, ALICE, "signs").await), proposal, "asked again, it is the same");
        assert!(!is_scheduled(&kms, "signs").await);
        assert_eq!(reason(execute(&kms, ALICE, &proposal).await), Err("APPROVAL_REQUIRED"));
        assert_eq!(reason(approve(&kms, ALICE, &proposal).await), Err("OWN_PROPOSAL"));
        assert_eq!(reason(execute(&kms, ALICE, &proposal).await), Err("APPROVAL_REQUIRED"));
        let view = approve(&kms, CAROL, &proposal).await.expect("approved");
        assert_eq!((view.approvals, view.is_approved()), (1, true));
        assert!(!is_scheduled(&kms, "signs").await, "an approval does nothing");
        assert_eq!(reason(execute(&kms, BOB, &proposal).await), Err("NOT_THE_PROPOSER"));
        assert_eq!(reason(execute(&kms, CAROL, &proposal).await), Err("PERMISSION_DENIED"));
        execute(&kms, ALICE, &proposal).await.expect("executed");
        assert!(is_scheduled(&kms, "signs").await);
        assert_eq!(reason(execute(&kms, ALICE, &proposal).await), Err("PROPOSAL_CLOSED"), "once");
        let restore = ChangeVersion { id: id("signs"), number: 1, request: Request::default() };
        kms.restore_key_version(&named(ALICE), restore).await.expect("called off");
        assert_eq!(reason(execute(&kms, ALICE, &proposal).await), Err("PROPOSAL_CLOSED"), "not again");
        assert_ne!(proposed(destroy(&kms, ALICE, "signs").await), proposal, "it is asked for anew");
    });
}

#[test]
fn of_two_executions_at_once_one_is_done() {
    block_on(async {
        let (_world, kms) = a_world().await;
        three(&kms).await;
        let rotate = RotateKey { id: id("roots"), takes_over: TakeOver::AtOnce, request: Request::default() };
        let proposal = proposed(kms.rotate_key(&named(ALICE), rotate, soon()).await);
        approve(&kms, BOB, &proposal).await.expect("approved");
        let both = futures::join!(execute(&kms, ALICE, &proposal), execute(&kms, ALICE, &proposal));
        assert_eq!([both.0.is_ok(), both.1.is_ok()].into_iter().filter(|done| *done).count(), 1, "{both:?}");
        let versions = kms.list_key_versions(&administrator(), &id("roots")).await.expect("read").len();
        assert_eq!(versions, 2);
    });
}

#[test]
fn an_approval_counts_only_while_its_giver_may_approve() {
    block_on(async {
        let (world, kms) = a_world().await;
        three(&kms).await;
        disable(&kms, "signs").await;
        let proposal = proposed(destroy(&kms, ALICE, "signs").await);
        assert_eq!(
            reason(approve(&kms, "spiffe://example.org/nobody", &proposal).await),
            Err("PERMISSION_DENIED")
        );
        approve(&kms, CAROL, &proposal).await.expect("approved");
        kms.revoke_role_binding(&administrator(), &id("carol")).await.expect("revoked");
        assert_eq!(reason(execute(&kms, ALICE, &proposal).await), Err("APPROVAL_REQUIRED"), "she left");
        approve(&kms, BOB, &proposal).await.expect("approved");
        // Whoever proposed it must be allowed to do it still.
        kms.revoke_role_binding(&administrator(), &id("alice")).await.expect("revoked");
        assert_eq!(reason(execute(&kms, ALICE, &proposal).await), Err("PERMISSION_DENIED"));
        assert_eq!(
            kms.proposal(&administrator(), &proposal).await.expect("read").proposal.state,
            State::Open
        );
        world.clock.advance(PROPOSAL_TTL);
        assert_eq!(reason(approve(&kms, BOB, &proposal).await), Err("PROPOSAL_CLOSED"), "expired");
        assert!(!is_scheduled(&kms, "signs").await);
    });
}

#[test]
fn an_approver_of_some_keys_approves_what_is_about_these() {
    block_on(async {
        let (_world, kms) = a_world().await;
        three(&kms).await;
        bind(&kms, "dave", "unix:7", Role::Approver, "class:database").await;
        disable(&kms, "signs").await;
        let proposal = proposed(destroy(&kms, ALICE, "signs").await);
        assert_eq!(reason(approve(&kms, "unix:7", &proposal).await), Err("PERMISSION_DENIED"));
        assert_eq!(
            reason(kms.proposal(&named("unix:7"), &proposal).await),
            Err("NOT_FOUND"),
            "not his to see"
        );
        assert_eq!(kms.list_proposals(&named("unix:7")).await.expect("listed").len(), 0);
        assert!(!kms.list_proposals(&named(CAROL)).await.expect("listed").is_empty());
    });
}

#[test]
fn what_is_approved_is_what_was_shown() {
    block_on(async {
        let (_world, kms) = a_world().await;
        three(&kms).await;
        disable(&kms, "signs").await;
        let proposal = proposed(destroy(&kms, ALICE, "signs").await);
        let other = CastVote { id: proposal.clone(), approves: Some([7; 32]), note: String::new() };
        assert_eq!(reason(kms.vote(&named(CAROL), other).await), Err("OTHER_CHANGE"));
        let shown = kms.proposal(&named(CAROL), &proposal).await.expect("shown").proposal;
        let Change::DestroyKeyVersion { key, version, .. } = &shown.change else { panic!("{shown:?}") };
        assert_eq!((key.as_str(), *version), ("signs", 1));
        assert_eq!(shown.sha256, shown.change.sha256().expect("a hash"));
        // A change of what it was about makes the execution fail, and it is not tried again.
        approve(&kms, CAROL, &proposal).await.expect("approved");
        let enable = ChangeVersion { id: id("signs"), number: 1, request: Request::default() };
        kms.enable_key_version(&administrator(), enable, soon()).await.expect("enabled");
        assert_eq!(reason(execute(&kms, ALICE, &proposal).await), Err("VERSION_IN_USE"));
        let failed = kms.proposal(&named(CAROL), &proposal).await.expect("shown").proposal;
        assert_eq!((failed.state, failed.reason.as_deref()), (State::Failed, Some("VERSION_IN_USE")));
        assert_eq!(reason(execute(&kms, ALICE, &proposal).await), Err("PROPOSAL_CLOSED"));
    });
}

#[test]
fn a_rejection_ends_it_and_the_proposer_may_take_it_back() {
    block_on(async {
        let (_world, kms) = a_world().await;
        three(&kms).await;
        disable(&kms, "signs").await;
        let proposal = proposed(destroy(&kms, ALICE, "signs").await);
        approve(&kms, BOB, &proposal).await.expect("approved");
        reject(&kms, CAROL, &proposal).await.expect("rejected");
        assert_eq!(reason(execute(&kms, ALICE, &proposal).await), Err("PROPOSAL_CLOSED"));
        assert_eq!(reason(approve(&kms, BOB, &proposal).await), Err("PROPOSAL_CLOSED"));
        let proposal = proposed(destroy(&kms, ALICE, "signs").await);
        assert_eq!(reason(reject(&kms, "unix:9", &proposal).await), Err("PERMISSION_DENIED"));
        reject(&kms, ALICE, &proposal).await.expect("taken back");
        assert_eq!(reason(execute(&kms, ALICE, &proposal).await), Err("PROPOSAL_CLOSED"));
        let unknown = Id::new([9; 16]);
        assert_eq!(reason(execute(&kms, ALICE, &unknown).await), Err("NOT_FOUND"));
        assert_eq!(reason(execute(&kms, "unix:9", &unknown).await), Err("PERMISSION_DENIED"));
    });
}

#[test]
fn what_gives_power_over_others_needs_two_as_soon_as_there_are_two() {
    block_on(async {
        let (_world, kms) = a_world().await;
        let make = async |name: &str, role| {
            let own = OwnRole { role, keys: KeyScope::All };
            kms.create_access_token(&named(ALICE), CreateAccessToken::new(name, own)).await.map(drop)
        };
        let document = || SetPolicy {
            text: "permit(principal, action == Kms::Action::\"verify\", resource);".to_owned(),
            note: String::new(),
            expected: None,
            allow_empty: false,
        };
        bind(&kms, "alice", ALICE, Role::Administrator, "*").await;
        assert_eq!(reason(kms.set_policy(&named(ALICE), document()).await), Ok(()), "she is alone");
        assert_eq!(reason(make("bob", Role::Administrator).await), Ok(()));
        for role in [Role::Administrator, Role::KeyAdmin, Role::Approver] {
            let asked = make(&format!("{role}"), role).await;
            assert_eq!(reason(asked), Err("APPROVAL_REQUIRED"), "{role}");
            let bound = binding(&format!("b-{role}"), BOB, role, "key:signs");
            assert_eq!(reason(kms.create_role_binding(&named(ALICE), bound).await), Err("APPROVAL_REQUIRED"));
        }
        for role in [Role::User, Role::Unsealer, Role::Auditor] {
            assert_eq!(reason(make(&format!("{role}"), role).await), Ok(()), "{role}: everyday work");
        }
        assert_eq!(reason(kms.set_policy(&named(ALICE), document()).await), Err("APPROVAL_REQUIRED"));
        // Whoever has stolen one credential revokes the others, and is not alone by that.
        kms.revoke_access_token(&named(ALICE), "bob").await.expect("to revoke needs nobody");
        assert_eq!(reason(make("mallory", Role::Approver).await), Err("APPROVAL_REQUIRED"));
    });
}

#[test]
fn a_token_that_was_proposed_is_made_at_its_execution_and_its_credential_shown_there() {
    block_on(async {
        let (_world, kms) = a_world().await;
        three(&kms).await;
        let own = OwnRole { role: Role::KeyAdmin, keys: KeyScope::All };
        let proposal =
            proposed(kms.create_access_token(&named(ALICE), CreateAccessToken::new("ops", own)).await);
        approve(&kms, BOB, &proposal).await.expect("approved");
        let executed = kms.execute_proposal(&named(ALICE), &proposal, soon()).await.expect("executed");
        let (token, credential) = executed.made.expect("a token");
        assert!(credential.starts_with("kms_"));
        assert_eq!(token.name, "ops");
        assert_eq!(executed.view.proposal.state, State::Executed);
        assert!(kms.authenticate(&token.sha256, None).is_some());
        assert!(!format!("{:?}", executed.view).contains(&credential));
    });
}

#[test]
fn taking_protection_from_a_key_or_a_class_needs_consent_and_giving_it_does_not() {
    block_on(async {
        let (_world, kms) = a_world().await;
        three(&kms).await;
        let hours = SignedDuration::from_hours;
        let update = async |key: &str, periods: PeriodChanges, class| {
            reason(
                kms.update_key(&named(ALICE), UpdateKey { periods, class, ..UpdateKey::new(id(key)) }).await,
            )
        };
        let needed = Err("APPROVAL_REQUIRED");
        let periods = PeriodChanges::default();
        let ttl = |hours_: i64| PeriodChanges { max_token_ttl: Some(Some(hours(hours_))), ..periods };
        let lead = |hours_: i64| PeriodChanges { publish_lead: Some(Some(hours(hours_))), ..periods };
        let after = |days: i64| PeriodChanges { destroy_after: Some(Some(hours(24 * days))), ..periods };
        assert_eq!(update("signs", ttl(2), None).await, needed, "a longer life of tokens");
        assert_eq!(update("signs", lead(2), None).await, Ok(()), "a longer lead");
        assert_eq!(update("signs", lead(1), None).await, needed, "a shorter one");
        assert_eq!(update("signs", after(1), None).await, needed, "an end where there was none");
        assert_eq!(
            update("signs", periods, Some(ClassName::Development)).await,
            needed,
            "a class that asks nobody"
        );
        let long = PeriodChanges { overlap: Some(Some(hours(24 * 7))), ..periods };
        assert_eq!(update("roots", long, Some(ClassName::Api)).await, needed, "a root key stays one");
        let class = async |name, approvals, periods| {
            let update = UpdateKeyClass { name, periods, approvals, etag: None };
            reason(kms.update_key_class(&named(ALICE), update).await)
        };
        assert_eq!(class(ClassName::Api, Some(0), periods).await, needed, "a class that would ask nobody");
        assert_eq!(class(ClassName::Api, Some(2), periods).await, Ok(()), "one that asks two");
        assert_eq!(class(ClassName::Api, Some(1), periods).await, needed, "two, to be one again");
        assert_eq!(class(ClassName::Api, Some(9), periods).await, Err("INVALID_ARGUMENT"));
        assert_eq!(class(ClassName::Session, None, ttl(13)).await, needed);
        assert_eq!(class(ClassName::Development, None, ttl(2)).await, Ok(()), "it asks nobody");
        let rotate = async |key: &str| {
            let rotate = RotateKey { id: id(key), takes_over: TakeOver::AtOnce, request: Request::default() };
            reason(kms.rotate_key(&named(ALICE), rotate, soon()).await)
        };
        assert_eq!(rotate("roots").await, needed);
        assert_eq!(rotate("signs").await, Ok(()), "an incident of tokens waits for nobody");
    });
}

#[test]
fn a_destruction_needs_a_second_person_also_where_there_is_none() {
    block_on(async {
        let (_world, kms) = a_world().await;
        bind(&kms, "alice", ALICE, Role::Administrator, "*").await;
        disable(&kms, "signs").await;
        let proposal = proposed(destroy(&kms, ALICE, "signs").await);
        assert_eq!(reason(approve(&kms, ALICE, &proposal).await), Err("OWN_PROPOSAL"));
        // Nor can she talk the class out of it.
        let update = UpdateKeyClass {
            name: ClassName::JwtSigning,
            periods: PeriodChanges::default(),
            approvals: Some(0),
            etag: None,
        };
        assert_eq!(reason(kms.update_key_class(&named(ALICE), update).await), Err("APPROVAL_REQUIRED"));
        let request =
            CreateKey { class: ClassName::Development, ..CreateKey::new(id("toy"), Algorithm::Es256) };
        kms.create_key(&named(ALICE), request, soon()).await.expect("made");
        disable(&kms, "toy").await;
        assert_eq!(reason(destroy(&kms, ALICE, "toy").await), Ok(()), "its class asks nobody");
    });
}

#[test]
fn two_approvals_are_of_two() {
    block_on(async {
        let (_world, kms) = a_world().await;
        three(&kms).await;
        let periods = PeriodChanges::default();
        let two = UpdateKeyClass { name: ClassName::JwtSigning, periods, approvals: Some(2), etag: None };
        disable(&kms, "signs").await;
        let proposal = proposed(destroy(&kms, ALICE, "signs").await);
        kms.update_key_class(&administrator(), two).await.expect("stricter");
        for _ in 0..2 {
            assert_eq!(approve(&kms, CAROL, &proposal).await.expect("approved").approvals, 1);
        }
        assert_eq!(
            reason(execute(&kms, ALICE, &proposal).await),
            Err("APPROVAL_REQUIRED"),
            "the class asks two by now"
        );
        approve(&kms, BOB, &proposal).await.expect("approved");
        execute(&kms, ALICE, &proposal).await.expect("executed");
    });
}

#[test]
fn proposals_are_bounded_and_survive_a_restart() {
    block_on(async {
        let (world, kms) = a_world().await;
        three(&kms).await;
        let ask = async |kms: &FakeKms, who: &str, number: usize| {
            let bound = binding(&format!("n{number}"), BOB, Role::Approver, "key:signs");
            kms.create_role_binding(&named(who), bound).await
        };
        let mut first = None;
        for number in 0..kms_core::proposal::OPEN_PER_CALLER_MAX {
            let id = proposed(ask(&kms, ALICE, number).await);
            first.get_or_insert(id);
        }
        assert_eq!(reason(ask(&kms, ALICE, 99).await), Err("TOO_MANY_PROPOSALS"));
        proposed(ask(&kms, BOB, 99).await);
        drop(kms);
        let kms = world.open(Settings::default()).await.expect("opens");
        let first = first.expect("one");
        approve(&kms, CAROL, &first).await.expect("approved");
        execute(&kms, ALICE, &first).await.expect("executed");
        let bindings = kms.list_role_bindings(&administrator()).await.expect("listed");
        assert!(bindings.iter().any(|binding| binding.name == id("n0") && binding.created_by == ALICE));
        proposed(ask(&kms, ALICE, 98).await);
    });
}

#[test]
fn the_book_tells_who_proposed_approved_and_executed_what() {
    block_on(async {
        let (world, kms) = a_world().await;
        three(&kms).await;
        disable(&kms, "signs").await;
        let before = world.log.events().len();
        let proposal = proposed(destroy(&kms, ALICE, "signs").await);
        approve(&kms, CAROL, &proposal).await.expect("approved");
        execute(&kms, ALICE, &proposal).await.expect("executed");
        let events = world.log.events();
        let about = |event: &&Event| event.target.as_deref() == Some(proposal.as_str());
        let told: Vec<_> = events[before..]
            .iter()
            .filter(about)
            .filter(|event| event.phase == Phase::Outcome && event.action != Action::ListProposals)
            .map(|event| (&*event.caller, event.action, event.reason.as_deref()))
            .collect();
        assert_eq!(
            told,
            [
                (ALICE, Action::DestroyKeyVersion, Some("APPROVAL_REQUIRED")),
                (CAROL, Action::ApproveProposal, None),
                (ALICE, Action::DestroyKeyVersion, None),
            ]
        );
    });
}
