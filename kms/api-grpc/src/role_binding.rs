//! Role bindings between `kms.v1` and core.

use kms_core::{
    Error, KeyId,
    access::RoleBinding,
    verbs::{CallerView, CreateRoleBinding},
};
use kms_proto::v1;

use crate::{
    action, name,
    time::{instant, timestamp},
};

/// Most actions that a binding names: there are not as many.
const ONLY_MAX: usize = 64;

pub(crate) fn parse_create(request: v1::CreateRoleBindingRequest) -> Result<CreateRoleBinding, Error> {
    let id = name::of_role_binding(&request.role_binding_id);
    let name: KeyId = name::role_binding("role_binding_id", &id)?;
    let binding = request
        .role_binding
        .ok_or_else(|| Error::invalid("role_binding", "a binding of a role to a principal is required"))?;
    if !binding.name.is_empty() && binding.name != id {
        return Err(Error::invalid(
            "role_binding.name",
            "the name is empty or roleBindings/{role_binding_id}",
        ));
    }
    if binding.only.len() > ONLY_MAX {
        return Err(Error::invalid("role_binding.only", format!("name at most {ONLY_MAX} actions")));
    }
    let only = binding.only.iter().map(|text| action::parse("role_binding.only", text));
    let not_before = binding.start_time.map(|at| instant("role_binding.start_time", &at)).transpose()?;
    let expires_at = binding.expire_time.map(|at| instant("role_binding.expire_time", &at)).transpose()?;
    Ok(CreateRoleBinding {
        name,
        principal: binding.principal.parse().map_err(inside)?,
        role: binding.role.parse().map_err(inside)?,
        only: only.collect::<Result<_, _>>()?,
        on: binding.on.parse().map_err(inside)?,
        required_context: binding.required_context,
        not_before,
        expires_at,
    })
}

/// Core names the fields of a binding flat, and as those of other things; on the wire they lie inside the binding.
pub(crate) fn inside(error: Error) -> Error {
    let field = match error.field() {
        Some("principal") => "role_binding.principal",
        Some("role") => "role_binding.role",
        Some("only") => "role_binding.only",
        Some("on") => "role_binding.on",
        Some("required_context") => "role_binding.required_context",
        Some("expire_time") => "role_binding.expire_time",
        _ => return error,
    };
    Error::invalid(field, error.to_string())
}

pub(crate) fn message(binding: RoleBinding) -> v1::RoleBinding {
    v1::RoleBinding {
        name: name::of_role_binding(binding.name.as_str()),
        principal: binding.principal.to_string(),
        role: binding.role.to_string(),
        only: binding.only.iter().map(ToString::to_string).collect(),
        on: binding.on.to_string(),
        required_context: binding.required_context,
        start_time: binding.not_before.map(timestamp),
        expire_time: binding.expires_at.map(timestamp),
        creator: binding.created_by,
        create_time: Some(timestamp(binding.created_at)),
        revoke_time: binding.revoked_at.map(timestamp),
    }
}

pub(crate) fn caller(view: CallerView) -> v1::GetCallerResponse {
    v1::GetCallerResponse {
        caller: view.name,
        role: view.own_role.map(|role| role.to_string()).unwrap_or_default(),
        role_bindings: view.role_bindings.into_iter().map(message).collect(),
        expire_time: view.expires_at.map(timestamp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> v1::CreateRoleBindingRequest {
        let binding = v1::RoleBinding {
            principal: "spiffe://example.org/ci".into(),
            role: "user".into(),
            only: vec!["sign_jwt".into()],
            on: "class:jwt-signing".into(),
            ..v1::RoleBinding::default()
        };
        v1::CreateRoleBindingRequest { role_binding_id: "ci".into(), role_binding: Some(binding) }
    }

    fn wrong_field(change: impl FnOnce(&mut v1::RoleBinding)) -> Option<&'static str> {
        let mut request = request();
        request.role_binding.as_mut().map(change);
        parse_create(request).err().and_then(|error| error.field())
    }

    #[test]
    fn each_wrong_field_is_named() {
        let odd = Some(prost_types::Timestamp { seconds: 0, nanos: -1 });
        assert_eq!(wrong_field(|_| {}), None);
        assert_eq!(wrong_field(|it| it.name = "roleBindings/other".into()), Some("role_binding.name"));
        assert_eq!(wrong_field(|it| it.principal = "ci".into()), Some("role_binding.principal"));
        assert_eq!(wrong_field(|it| it.role = "root".into()), Some("role_binding.role"));
        assert_eq!(wrong_field(|it| it.only = vec!["Sign".into()]), Some("role_binding.only"));
        assert_eq!(wrong_field(|it| it.only = vec!["sign".into(); ONLY_MAX + 1]), Some("role_binding.only"));
        assert_eq!(wrong_field(|it| it.on = String::new()), Some("role_binding.on"));
        assert_eq!(wrong_field(|it| it.start_time = odd), Some("role_binding.start_time"));
        assert_eq!(wrong_field(|it| it.expire_time = odd), Some("role_binding.expire_time"));
        let field = |request| parse_create(request).err().and_then(|error| error.field());
        let odd = v1::CreateRoleBindingRequest { role_binding_id: "A/b".into(), ..request() };
        assert_eq!(field(odd), Some("role_binding_id"));
        let empty = v1::CreateRoleBindingRequest { role_binding: None, ..request() };
        assert_eq!(field(empty), Some("role_binding"));
    }
}
