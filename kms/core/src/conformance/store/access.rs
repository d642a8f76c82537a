//! Rows of access: renewals, role bindings, versions of the policy, proposals.

use super::{at, transaction};
use crate::{
    Action, Store,
    access::{PolicyDocument, RoleBinding, Scope},
    caller::Role,
    class::ClassName,
    fakes::a_token,
    proposal::{Change, Id, Proposal, State, Vote},
    store::{AccessToken, Fault, Write},
    time::SignedDuration,
};

pub(super) async fn an_access_token_is_renewed_from_the_end_that_it_had<S: Store>(store: &S) {
    let token = AccessToken { expires_at: Some(at(10)), ..a_token("renewed", Role::Unsealer) };
    let commit = async |write| store.commit(transaction(vec![write])).await;
    let renew = |from, to| Write::RenewAccessToken { name: "renewed".to_owned(), from: at(from), to: at(to) };
    commit(Write::InsertAccessToken(token.clone())).await.expect("commit");
    let before = store.check().await.expect("check");
    let other = commit(renew(9, 20)).await;
    assert!(matches!(other, Err(Fault::Changed(_))), "its end is another: {other:?}");
    commit(renew(10, 20)).await.expect("commit");
    let renewed = AccessToken { expires_at: Some(at(20)), ..token };
    assert_eq!(store.load(Some(before)).await.expect("load").access_tokens, [renewed]);
    commit(Write::RevokeAccessToken { name: "renewed".to_owned(), at: at(11) }).await.expect("commit");
    let ended = commit(renew(20, 30)).await;
    assert!(matches!(ended, Err(Fault::Changed(_))), "it was revoked: {ended:?}");
}

pub(super) async fn a_role_binding_comes_back_as_it_was_written_and_its_name_is_taken_for_good<S: Store>(
    store: &S,
) {
    let full = RoleBinding {
        name: "full".parse().expect("a name"),
        principal: "jwt:cluster/system:serviceaccount:ns:app".parse().expect("a principal"),
        role: Role::User,
        only: vec![Action::WrapKey, Action::UnwrapKey],
        on: Scope::Label { name: "team".to_owned(), value: "a/b".to_owned() },
        required_context: [("tenant".to_owned(), "\"ä\\".to_owned())].into(),
        not_before: Some(at(1)),
        expires_at: Some(at(2)),
        created_by: "spiffe://example.org/admin".to_owned(),
        created_at: at(0),
        revoked_at: None,
    };
    let bare = RoleBinding {
        name: "bare".parse().expect("a name"),
        principal: "unix:0".parse().expect("a principal"),
        role: Role::Auditor,
        only: Vec::new(),
        on: Scope::All,
        required_context: Default::default(),
        not_before: None,
        expires_at: None,
        ..full.clone()
    };
    let scoped = |name: &str, on| RoleBinding { name: name.parse().expect("a name"), on, ..bare.clone() };
    let class = scoped("by-class", Scope::Class(ClassName::Root));
    let key = scoped("by-key", Scope::Key("k".parse().expect("a name")));
    let all = [bare.clone(), class, key, full.clone()];
    let commit = async |writes| store.commit(transaction(writes)).await;
    let before = store.check().await.expect("check");
    commit(all.iter().cloned().map(Write::InsertRoleBinding).collect()).await.expect("commit");
    assert_eq!(store.load(Some(before)).await.expect("load").role_bindings, all);
    let revoke = Write::RevokeRoleBinding { name: full.name.clone(), at: at(3) };
    let inserted = store.check().await.expect("check");
    commit(vec![revoke.clone()]).await.expect("commit");
    let revoked = RoleBinding { revoked_at: Some(at(3)), ..full.clone() };
    assert_eq!(store.load(Some(inserted)).await.expect("load").role_bindings, [revoked]);
    let twice = commit(vec![revoke]).await;
    assert!(matches!(twice, Err(Fault::Changed(_))), "{twice:?}");
    let again = commit(vec![Write::InsertRoleBinding(full)]).await;
    assert!(matches!(again, Err(Fault::Exists(_))), "the name of a revoked one: {again:?}");
}

pub(super) async fn of_two_that_set_the_policy_at_once_one_wins<S: Store>(store: &S) {
    let document = |version, text: &str| PolicyDocument {
        version,
        text: text.to_owned(),
        note: "\"why\"".to_owned(),
        by: "access-token:admin".to_owned(),
        at: at(i64::from(version)),
    };
    let set = async |version, text| {
        store.commit(transaction(vec![Write::InsertPolicy(document(version, text))])).await
    };
    let early = set(2, "").await;
    assert!(matches!(early, Err(Fault::Changed(_))), "there is no first one: {early:?}");
    set(1, "// one\n").await.expect("commit");
    let both = futures::join!(set(2, "a"), set(2, "b"));
    let won = [both.0.is_ok(), both.1.is_ok()].into_iter().filter(|won| *won).count();
    assert_eq!(won, 1, "{both:?}");
    let text = if both.0.is_ok() { "a" } else { "b" };
    assert_eq!(store.load(None).await.expect("load").policies, [document(1, "// one\n"), document(2, text)]);
    let gap = set(4, "").await;
    assert!(matches!(gap, Err(Fault::Changed(_))), "{gap:?}");
}

pub(super) async fn a_proposal_changes_from_one_revision_to_the_next_and_only_where_it_may<S: Store>(
    store: &S,
) {
    let change = Change::DestroyKeyVersion {
        key: "k".parse().expect("a name"),
        version: 3,
        attestation: "none is \"left\"".to_owned(),
        etag: Some(7),
    };
    let proposal = Proposal {
        id: Id::new([5; 16]),
        sha256: change.sha256().expect("a hash"),
        change,
        proposed_by: "access-token:a".to_owned(),
        proposed_at: at(1),
        expires_at: at(100),
        required: 2,
        votes: Vec::new(),
        state: State::Open,
        state_at: at(1),
        reason: None,
        revision: 1,
    };
    let commit = async |write| store.commit(transaction(vec![write])).await;
    commit(Write::InsertProposal(proposal.clone())).await.expect("commit");
    let again = commit(Write::InsertProposal(proposal.clone())).await;
    assert!(matches!(again, Err(Fault::Exists(_))), "{again:?}");
    let vote = Vote { by: "unix:0".to_owned(), approves: true, at: at(2), note: "\"yes\"".to_owned() };
    let voted = Proposal { votes: vec![vote], revision: 2, ..proposal.clone() };
    // What may not change stays, whatever is written.
    let meddled = Proposal {
        required: 0,
        proposed_by: "access-token:b".to_owned(),
        expires_at: at(100) + SignedDuration::from_hours(1),
        ..voted.clone()
    };
    let before = store.check().await.expect("check");
    commit(Write::UpdateProposal(meddled)).await.expect("commit");
    assert_eq!(store.load(Some(before)).await.expect("load").proposals, std::slice::from_ref(&voted));
    let stale = commit(Write::UpdateProposal(voted.clone())).await;
    assert!(matches!(stale, Err(Fault::Changed(_))), "{stale:?}");
    let failed = Proposal {
        state: State::Failed,
        state_at: at(9),
        reason: Some("NOT_FOUND".to_owned()),
        revision: 3,
        ..voted
    };
    commit(Write::UpdateProposal(failed.clone())).await.expect("commit");
    assert_eq!(store.load(None).await.expect("load").proposals, [failed]);
}
