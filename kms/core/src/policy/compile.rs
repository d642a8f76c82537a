//! Roles as Cedar policies: what a binding, or an access token of its own role, gives.
//!
//! Each becomes at most two policies, one for actions on keys and one for those on the service. They are built as Cedar's JSON
//! (<https://docs.cedarpolicy.com/policies/json-format.html>), so that no name or value is ever pasted into a text.

use cedar_policy::{Policy, PolicyId};
use serde_json::{Value, json};

use super::role::{is_about_a_key, is_everybodys, is_for_some_keys_too, role_has};
use crate::{
    Action, Error, KeyId,
    access::{RoleBinding, Scope},
    caller::{KeyScope, OwnRole, Role},
};

/// The service's entity.
pub(super) const SERVICE: &str = "kms";

/// What a rule gives: on which keys, and whether to the service too.
enum Reach<'a> {
    Scope(&'a Scope),
    Keys(&'a [KeyId]),
}

/// The policies of a role binding; times are not in them.
pub(super) fn binding(binding: &RoleBinding) -> Result<Vec<Policy>, Error> {
    let context = binding.required_context.iter().map(|(name, value)| {
        let context = json!({".": {"left": {"Var": "context"}, "attr": "encryption_context"}});
        has_tag(&context, name, value)
    });
    let context: Vec<_> = context.collect();
    let name = format!("role-binding:{}", binding.name);
    let has = |action| {
        role_has(binding.role, action) && (binding.only.is_empty() || binding.only.contains(&action))
    };
    policies(&name, binding.principal.as_str(), has, &Reach::Scope(&binding.on), &context)
}

/// The policies of an access token's own role.
pub(super) fn own(caller: &str, own: &OwnRole) -> Result<Vec<Policy>, Error> {
    let reach = match &own.keys {
        KeyScope::All => Reach::Scope(&Scope::All),
        KeyScope::Only(keys) => Reach::Keys(keys),
    };
    policies(caller, caller, |action| role_has(own.role, action), &reach, &[])
}

/// What everybody may do.
pub(super) fn everybodys() -> Result<Policy, Error> {
    let policy = json!({
        "effect": "permit",
        "principal": {"op": "All"},
        "action": one_of(Action::ALL.into_iter().filter(|action| is_everybodys(*action))),
        "resource": {"op": "==", "entity": entity("Service", SERVICE)},
        "conditions": [],
    });
    parse("built-in:own-access", policy)
}

/// Whether `role` waits in the unsealers' lane.
pub(super) fn is_unsealer(role: Role) -> bool {
    role == Role::Unsealer
}

fn policies(
    name: &str,
    caller: &str,
    has: impl Fn(Action) -> bool,
    reach: &Reach<'_>,
    context: &[Value],
) -> Result<Vec<Policy>, Error> {
    let everywhere = matches!(reach, Reach::Scope(Scope::All));
    let actions = |on_keys: bool| -> Vec<Action> {
        let fits = |action: &Action| match on_keys {
            // Approvals are about either.
            true => is_about_a_key(*action) || *action == Action::ApproveProposal,
            false => {
                !is_about_a_key(*action)
                    && !is_everybodys(*action)
                    && (everywhere || is_for_some_keys_too(*action))
            }
        };
        Action::ALL.into_iter().filter(|action| has(*action) && fits(action)).collect()
    };
    let principal = json!({"op": "==", "entity": entity("Caller", caller)});
    let policy = |id: String, actions: Vec<Action>, resource: Value, conditions: Vec<Value>| {
        let when = |body| json!({"kind": "when", "body": body});
        let policy = json!({
            "effect": "permit",
            "principal": principal,
            "action": one_of(actions.into_iter()),
            "resource": resource,
            "conditions": conditions.into_iter().map(when).collect::<Vec<_>>(),
        });
        parse(&id, policy)
    };
    let mut made = Vec::new();
    // An action that knows no encryption context is never allowed by a binding that requires one.
    let on_keys: Vec<_> = actions(true);
    let on_keys: Vec<_> = match context {
        [] => on_keys,
        _ => on_keys.into_iter().filter(|action| super::role::has_context(*action)).collect(),
    };
    if !on_keys.is_empty() {
        let (resource, mut conditions) = resource(reach);
        conditions.extend(context.iter().cloned());
        made.push(policy(name.to_owned(), on_keys, resource, conditions)?);
    }
    let on_service: Vec<_> = if context.is_empty() { actions(false) } else { Vec::new() };
    if !on_service.is_empty() {
        let service = json!({"op": "==", "entity": entity("Service", SERVICE)});
        made.push(policy(format!("{name}#service"), on_service, service, Vec::new())?);
    }
    Ok(made)
}

/// The constraint on the resource, and conditions beside it.
fn resource(reach: &Reach<'_>) -> (Value, Vec<Value>) {
    let any_key = || json!({"op": "is", "entity_type": "Kms::Key"});
    match reach {
        Reach::Scope(Scope::All) => (any_key(), Vec::new()),
        Reach::Scope(Scope::Key(id)) => {
            (json!({"op": "==", "entity": entity("Key", id.as_str())}), Vec::new())
        }
        Reach::Scope(Scope::Class(class)) => {
            let class = entity("Class", class.as_str());
            (json!({"op": "is", "entity_type": "Kms::Key", "in": {"entity": class}}), Vec::new())
        }
        Reach::Scope(Scope::Label { name, value }) => {
            (any_key(), vec![has_tag(&json!({"Var": "resource"}), name, value)])
        }
        Reach::Keys(keys) => {
            let keys = keys.iter().map(|id| json!({"Value": {"__entity": entity("Key", id.as_str())}}));
            let set = json!({"Set": keys.collect::<Vec<_>>()});
            (any_key(), vec![json!({"contains": {"left": set, "right": {"Var": "resource"}}})])
        }
    }
}

fn has_tag(of: &Value, name: &str, value: &str) -> Value {
    let name = json!({"Value": name});
    json!({"&&": {
        "left": {"hasTag": {"left": of, "right": name}},
        "right": {"==": {"left": {"getTag": {"left": of, "right": name}}, "right": {"Value": value}}},
    }})
}

fn one_of(actions: impl Iterator<Item = Action>) -> Value {
    let entities: Vec<_> = actions.map(|action| entity("Action", &action.to_string())).collect();
    json!({"op": "in", "entities": entities})
}

fn entity(kind: &str, id: &str) -> Value {
    json!({"type": format!("Kms::{kind}"), "id": id})
}

fn parse(id: &str, policy: Value) -> Result<Policy, Error> {
    Policy::from_json(Some(PolicyId::new(id)), policy)
        .map_err(|error| Error::internal(format!("{id} does not compile to a policy: {error}")))
}
