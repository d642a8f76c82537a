//! `kms.v1.AccessService`: the bearer credentials of this service, and who has which role.

use kms_core::{
    AuditLog, Clock, Error, Hsm, KeyId, Store,
    access::RoleBinding,
    caller::{KeyScope, OwnRole},
    principal::Principal,
    store::AccessToken,
    verbs::CreateAccessToken,
};
use kms_proto::v1;
use tonic::{Request, Response, Status};

use crate::{
    call::{Call, Door, Kms},
    message, name, page, role_binding,
    time::{instant, span},
};

/// Most keys of one access token.
const KEYS_MAX: usize = 1000;

/// The service. Its requests must carry a [`kms_core::Caller`].
pub struct AccessService<H, S, A, C>(pub(crate) Door<H, S, A, C>);

#[tonic::async_trait]
impl<H: Hsm, S: Store, A: AuditLog, C: Clock> v1::access_service_server::AccessService
    for AccessService<H, S, A, C>
{
    async fn create_access_token(
        &self,
        request: Request<v1::CreateAccessTokenRequest>,
    ) -> Result<Response<v1::CreateAccessTokenResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request| async move {
            let (token, secret) = kms.create_access_token(&call.caller, parse_create(request)?).await?;
            Ok(v1::CreateAccessTokenResponse { access_token: Some(message::access_token(token)), secret })
        };
        self.0.run_detached(request, verb).await
    }

    async fn list_access_tokens(
        &self,
        request: Request<v1::ListAccessTokensRequest>,
    ) -> Result<Response<v1::ListAccessTokensResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::ListAccessTokensRequest| async move {
            let list = ["ListAccessTokens", ""];
            let len = page::len(request.page_size)?;
            let after = page::start(&request.page_token, list)?.unwrap_or_default();
            let tokens = kms.list_access_tokens(&call.caller).await?;
            let is_after = |token: &AccessToken| token.name > after;
            let (tokens, next_page_token) =
                page::cut(tokens, len, list, is_after, |token| token.name.clone());
            let access_tokens = tokens.into_iter().map(message::access_token).collect();
            Ok(v1::ListAccessTokensResponse { access_tokens, next_page_token })
        };
        self.0.run(request, verb).await
    }

    async fn revoke_access_token(
        &self,
        request: Request<v1::RevokeAccessTokenRequest>,
    ) -> Result<Response<v1::AccessToken>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::RevokeAccessTokenRequest| async move {
            let id = name::access_token("name", &request.name)?;
            kms.revoke_access_token(&call.caller, id).await.map(message::access_token)
        };
        self.0.run_detached(request, verb).await
    }

    async fn renew_access_token(
        &self,
        request: Request<v1::RenewAccessTokenRequest>,
    ) -> Result<Response<v1::AccessToken>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, _| async move {
            kms.renew_access_token(&call.caller).await.map(message::access_token)
        };
        self.0.run_detached(request, verb).await
    }

    async fn get_caller(
        &self,
        request: Request<v1::GetCallerRequest>,
    ) -> Result<Response<v1::GetCallerResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, _| async move {
            kms.caller(&call.caller).await.map(role_binding::caller)
        };
        self.0.run(request, verb).await
    }

    async fn create_role_binding(
        &self,
        request: Request<v1::CreateRoleBindingRequest>,
    ) -> Result<Response<v1::RoleBinding>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request| async move {
            let binding = role_binding::parse_create(request)?;
            let made = kms.create_role_binding(&call.caller, binding).await;
            made.map(role_binding::message).map_err(role_binding::inside)
        };
        self.0.run_detached(request, verb).await
    }

    async fn list_role_bindings(
        &self,
        request: Request<v1::ListRoleBindingsRequest>,
    ) -> Result<Response<v1::ListRoleBindingsResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::ListRoleBindingsRequest| async move {
            let list = ["ListRoleBindings", ""];
            let len = page::len(request.page_size)?;
            let after = page::start(&request.page_token, list)?.unwrap_or_default();
            let bindings = kms.list_role_bindings(&call.caller).await?;
            let is_after = |binding: &RoleBinding| *binding.name.as_str() > *after;
            let (bindings, next_page_token) =
                page::cut(bindings, len, list, is_after, |binding| binding.name.to_string());
            let role_bindings = bindings.into_iter().map(role_binding::message).collect();
            Ok(v1::ListRoleBindingsResponse { role_bindings, next_page_token })
        };
        self.0.run(request, verb).await
    }

    async fn revoke_role_binding(
        &self,
        request: Request<v1::RevokeRoleBindingRequest>,
    ) -> Result<Response<v1::RoleBinding>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::RevokeRoleBindingRequest| async move {
            let id = name::role_binding("name", &request.name)?;
            kms.revoke_role_binding(&call.caller, &id).await.map(role_binding::message)
        };
        self.0.run_detached(request, verb).await
    }
}

fn parse_create(request: v1::CreateAccessTokenRequest) -> Result<CreateAccessToken, Error> {
    let id = name::of_access_token(&request.access_token_id);
    let name = name::access_token("access_token_id", &id)?.to_owned();
    let token = request.access_token.ok_or_else(|| {
        Error::invalid("access_token", "an access token is required; it may be an empty one")
    })?;
    if !token.name.is_empty() && token.name != id {
        return Err(Error::invalid(
            "access_token.name",
            "the name is empty or accessTokens/{access_token_id}",
        ));
    }
    if token.expire_time.is_some() {
        return Err(Error::invalid("access_token.expire_time", "the server sets it; say how long as ttl"));
    }
    let period = token.period.map(|period| span("access_token.period", &period)).transpose()?;
    let renewable_until =
        token.renewable_until.map(|at| instant("access_token.renewable_until", &at)).transpose()?;
    Ok(CreateAccessToken {
        name,
        ttl: request.ttl.map(|ttl| span("ttl", &ttl)).transpose()?,
        period,
        renewable_until,
        bound_to: parse_bound_to(&token.bound_to)?,
        own: parse_own(&token)?,
    })
}

fn parse_bound_to(name: &str) -> Result<Option<Principal>, Error> {
    let wrong = |error: Error| Error::invalid("access_token.bound_to", error.to_string());
    if name.is_empty() { Ok(None) } else { name.parse().map(Some).map_err(wrong) }
}

fn parse_own(token: &v1::AccessToken) -> Result<Option<OwnRole>, Error> {
    let keys = parse_scope(&token.keys, token.all_keys)?;
    if !token.role.is_empty() {
        return Ok(Some(OwnRole { role: token.role.parse()?, keys }));
    }
    if keys == KeyScope::Only([].into()) {
        return Ok(None);
    }
    Err(Error::invalid("access_token.keys", "keys are those of a role; give a role too, or no keys"))
}

fn parse_scope(keys: &[String], all_keys: bool) -> Result<KeyScope, Error> {
    const FIELD: &str = "access_token.keys";
    match (keys, all_keys) {
        ([], true) => Ok(KeyScope::All),
        (_, true) => Err(Error::invalid(FIELD, "give keys or all_keys, not both")),
        (keys, false) if keys.len() > KEYS_MAX => {
            Err(Error::invalid(FIELD, format!("an access token names at most {KEYS_MAX} keys")))
        }
        (keys, false) => {
            let keys = keys.iter().map(|key| name::key(FIELD, key));
            Ok(KeyScope::Only(keys.collect::<Result<Vec<KeyId>, _>>()?.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> v1::CreateAccessTokenRequest {
        let access_token = v1::AccessToken { role: "user".into(), ..v1::AccessToken::default() };
        v1::CreateAccessTokenRequest {
            access_token_id: "ci".into(),
            access_token: Some(access_token),
            ttl: None,
        }
    }

    fn wrong_field(change: impl FnOnce(&mut v1::AccessToken)) -> Option<&'static str> {
        let mut request = request();
        request.access_token.as_mut().map(change);
        parse_create(request).err().and_then(|error| error.field())
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert_eq!(wrong_field(|token| token.role = "root".into()), Some("role"));
        assert_eq!(wrong_field(|token| token.name = "accessTokens/other".into()), Some("access_token.name"));
        assert_eq!(wrong_field(|token| token.keys = vec!["k".into()]), Some("access_token.keys"));
        let many = vec!["keys/k".to_owned(); KEYS_MAX + 1];
        assert_eq!(wrong_field(|token| token.keys = many), Some("access_token.keys"));
        assert_eq!(wrong_field(|token| token.bound_to = "DNS:db1".into()), Some("access_token.bound_to"));
        let odd = prost_types::Duration { seconds: 1, nanos: -1 };
        assert_eq!(wrong_field(|token| token.period = Some(odd)), Some("access_token.period"));
        let odd = prost_types::Timestamp { seconds: 0, nanos: -1 };
        assert_eq!(
            wrong_field(|token| token.renewable_until = Some(odd)),
            Some("access_token.renewable_until")
        );
        let odd = v1::CreateAccessTokenRequest { access_token_id: "A/b".into(), ..request() };
        assert_eq!(parse_create(odd).err().and_then(|error| error.field()), Some("access_token_id"));
        let empty = v1::CreateAccessTokenRequest { access_token: None, ..request() };
        assert_eq!(parse_create(empty).err().and_then(|error| error.field()), Some("access_token"));
    }

    #[test]
    fn an_end_that_would_be_ignored_is_refused() {
        let end = prost_types::Timestamp::default();
        assert_eq!(wrong_field(|token| token.expire_time = Some(end)), Some("access_token.expire_time"));
    }

    #[test]
    fn no_keys_means_none_and_all_keys_excludes_a_list() {
        let made = parse_create(request()).expect("well-formed");
        assert_eq!(made.own.map(|own| own.keys), Some(KeyScope::Only([].into())));
        let both = wrong_field(|token| {
            token.all_keys = true;
            token.keys = vec!["keys/k".into()];
        });
        assert_eq!(both, Some("access_token.keys"));
    }

    #[test]
    fn a_token_without_a_role_has_nothing_of_its_own_and_names_no_keys() {
        let without = |change: fn(&mut v1::AccessToken)| {
            let mut request = request();
            let token = request.access_token.as_mut().expect("there is one");
            token.role = String::new();
            change(token);
            parse_create(request)
        };
        assert_eq!(without(|_| {}).map(|made| made.own), Ok(None));
        let all_keys = |token: &mut v1::AccessToken| token.all_keys = true;
        let one_key = |token: &mut v1::AccessToken| token.keys = vec!["keys/k".into()];
        for refused in [without(all_keys), without(one_key)] {
            assert_eq!(refused.err().and_then(|error| error.field()), Some("access_token.keys"));
        }
    }
}
