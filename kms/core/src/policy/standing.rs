//! All who have power, at one moment: so that nobody locks everybody out, and that four eyes are asked for only where there are
//! two pairs.

use std::{collections::BTreeSet, sync::Arc};

use super::{Ask, Decision, Document, role_has};
use crate::{
    Action, Caller, Error,
    access::{RoleBinding, Scope},
    caller::{KeyScope, Role},
    catalog::Picture,
    class::ClassName,
    store::AccessToken,
    time::Timestamp,
};

/// What gives somebody a role.
pub(crate) enum Giver<'a> {
    Token(&'a AccessToken),
    Binding(&'a RoleBinding),
}

/// Whatever gives a role, or gave one.
pub(crate) fn givers(picture: &Picture) -> impl Iterator<Item = Giver<'_>> {
    let tokens = picture.access_tokens().map(|token| Giver::Token(token));
    tokens.chain(picture.role_bindings().map(|binding| Giver::Binding(binding)))
}

/// Whether two have ever been given the right to approve on the whole service. It does not end with a revocation: whoever has
/// stolen one credential would revoke the others first.
pub(crate) fn two_may_approve(picture: &Picture) -> bool {
    let mut first = None;
    givers(picture).filter(Giver::approves).any(|giver| {
        let name = giver.caller();
        first.get_or_insert_with(|| name.clone()) != &name
    })
}

/// How many callers may approve what is about the service, at `now`.
pub(crate) fn count_approvers(picture: &Picture, now: Timestamp) -> usize {
    let live = givers(picture).filter(|giver| giver.approves() && giver.holds(now));
    live.map(|giver| giver.caller()).collect::<BTreeSet<_>>().len()
}

/// Refuses a document under which nobody could let others in, or change it again.
pub(crate) fn unless_locked_out(
    picture: &Picture,
    document: &Arc<Document>,
    caller: &Caller,
    now: Timestamp,
) -> Result<(), Error> {
    let rules = picture.rules.with(Arc::clone(document));
    let may = |caller: &Caller, action| {
        let ask = Ask { action, about: super::About::Service, context: None };
        let compiled = rules.compiled(caller, now);
        compiled.is_ok_and(|compiled| matches!(compiled.decide(&ask), Decision::Allow { .. }))
    };
    let holders = |holds: fn(&Giver<'_>) -> bool| {
        let names = givers(picture).filter(holds).map(|giver| giver.caller());
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().filter_map(|name| picture.caller(&name, now)).collect::<Vec<_>>()
    };
    let administrators = holders(|giver| giver.administers_for_good());
    let administers = |caller: &Caller| {
        [Action::SetPolicy, Action::CreateRoleBinding, Action::CreateAccessToken]
            .map(|action| may(caller, action))
            == [true; 3]
    };
    let remains = match &administrators[..] {
        [] => administers(caller),
        some => some.iter().any(administers),
    };
    // Whoever is let in on the host when everybody else has gone.
    let newcomer = Caller::new("access-token:newcomer", Role::Administrator, KeyScope::All);
    let looks = [Action::ApproveProposal, Action::ListProposals].map(|action| may(&newcomer, action));
    let remains = remains && administers(&newcomer) && looks == [true; 2];
    let required = usize::try_from(picture.class(ClassName::Root).approvals).unwrap_or(usize::MAX);
    let approvers = holders(|giver| giver.approves())
        .iter()
        .filter(|caller| may(caller, Action::ApproveProposal) && may(caller, Action::ListProposals))
        .count();
    if remains && (!two_may_approve(picture) || approvers > required.max(1)) {
        return Ok(());
    }
    Err(Error::precondition(
        "LOCKOUT",
        "with this document no administrator could change it again, none that is made anew on the host could, or too few \
         could approve that; leave set_policy, create_role_binding, create_access_token, approve_proposal and \
         list_proposals to administrators",
    ))
}

impl Giver<'_> {
    /// Whom it gives the role, by its canonical name.
    pub(crate) fn caller(&self) -> String {
        match self {
            Self::Token(token) => format!("access-token:{}", token.name),
            Self::Binding(binding) => binding.principal.to_string(),
        }
    }

    /// Whether it lets somebody let others in, without an end. One that ends does not count: it would be a delay only.
    pub(crate) fn administers_for_good(&self) -> bool {
        match self {
            Self::Token(token) => {
                let own = token.own.as_ref();
                own.is_some_and(|own| own.role == Role::Administrator && own.keys == KeyScope::All)
                    && token.revoked_at.is_none()
                    && token.expires_at.is_none()
            }
            Self::Binding(binding) => {
                binding.role == Role::Administrator
                    && binding.on == Scope::All
                    && binding.only.is_empty()
                    && binding.required_context.is_empty()
                    && binding.revoked_at.is_none()
                    && binding.not_before.is_none()
                    && binding.expires_at.is_none()
            }
        }
    }

    /// Whether it gives anything at `now`.
    fn holds(&self, now: Timestamp) -> bool {
        match self {
            Self::Token(token) => token.is_valid(now),
            Self::Binding(binding) => binding.holds(now),
        }
    }

    /// Whether it makes an administrator at `now`.
    pub(crate) fn administers(&self, now: Timestamp) -> bool {
        match self {
            Self::Token(token) => {
                token.own.as_ref().is_some_and(|own| own.role == Role::Administrator) && token.is_valid(now)
            }
            Self::Binding(binding) => binding.role == Role::Administrator && binding.holds(now),
        }
    }

    /// Whether it gives, or gave, the right to approve what is about the service.
    fn approves(&self) -> bool {
        match self {
            Self::Token(token) => token
                .own
                .as_ref()
                .is_some_and(|own| role_has(own.role, Action::ApproveProposal) && own.keys == KeyScope::All),
            Self::Binding(binding) => {
                role_has(binding.role, Action::ApproveProposal)
                    && binding.on == Scope::All
                    && (binding.only.is_empty() || binding.only.contains(&Action::ApproveProposal))
                    && binding.required_context.is_empty()
            }
        }
    }
}
