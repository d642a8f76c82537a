//! Access tokens: bearer credentials of our own, 256 random bits, known here by their SHA-256 only.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    Action, AuditLog, Caller, Clock, Error, Gate, Hsm, KeyId, Kms, Store, Unsettled,
    algorithm::Hash,
    audit::Subject,
    caller::{KeyScope, OwnRole, Role},
    error::Kind,
    jwk::base64url,
    kms::Entropy,
    policy,
    principal::{Principal, Source},
    proposal::Change,
    store::{AccessToken, CHANGED_MEANWHILE, Fault, Transaction, Write},
    time::{SignedDuration, Timestamp},
    verbs::role_bindings::last_administrator,
};

/// Every credential begins so: scanners of logs and repositories can look for it.
pub const CREDENTIAL_PREFIX: &str = "kms_";
/// The name of the access token that `bootstrap` makes.
const FIRST_ADMINISTRATOR: &str = "first-administrator";

/// An access token to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateAccessToken {
    /// Unique name; the caller will be `access-token:<name>`.
    pub name: String,
    /// What it may do by itself; `None` for what role bindings give to its name.
    pub own: Option<OwnRole>,
    /// How long it works; `None` for its period, and without one for ever.
    pub ttl: Option<SignedDuration>,
    /// How far a renewal moves its end; `None` for one that cannot be renewed.
    pub period: Option<SignedDuration>,
    /// Beyond this no renewal moves its end.
    pub renewable_until: Option<Timestamp>,
    /// Whose client certificate must come with it.
    pub bound_to: Option<Principal>,
}

impl CreateAccessToken {
    /// One that has `own` by itself, and no end.
    pub fn new(name: impl Into<String>, own: OwnRole) -> Self {
        Self {
            name: name.into(),
            own: Some(own),
            ttl: None,
            period: None,
            renewable_until: None,
            bound_to: None,
        }
    }
}

/// Which administrator is made on the server's own host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// The first, once in the life of a store.
    First,
    /// Another one of this name: when nobody is left who may let others in, or approve. Whoever can write the store could do as
    /// much by hand; this leaves a record.
    Another(String),
}

/// Makes an administrator without asking anybody, and returns its credential.
pub async fn bootstrap<S: Store, A: AuditLog>(
    store: &S,
    audit: Arc<A>,
    which: Bootstrap,
    now: Timestamp,
    entropy: Entropy,
) -> Result<String, Error> {
    let mut prefix = [0; 8];
    entropy(&mut prefix)?;
    let gate = Gate::new(audit, u64::from_be_bytes(prefix));
    let (name, is_first) = match which {
        Bootstrap::First => (FIRST_ADMINISTRATOR.to_owned(), true),
        Bootstrap::Another(name) => (name, false),
    };
    let subject = Subject::of_access_token(&name);
    let operator = Caller::new("system:bootstrap", Role::Administrator, KeyScope::All);
    let admission = gate.begin_about(&operator, Action::CreateAccessToken, subject, now).await?;
    let result = new_administrator(store, name, is_first, now, entropy).await;
    admission.settle(result.map(Unsettled::new)).await
}

async fn new_administrator<S: Store>(
    store: &S,
    name: String,
    is_first: bool,
    now: Timestamp,
    entropy: Entropy,
) -> Result<String, Error> {
    check_name(&name)?;
    let (credential, sha256) = new_credential(entropy)?;
    let token = AccessToken {
        name,
        sha256,
        own: Some(OwnRole { role: Role::Administrator, keys: KeyScope::All }),
        bootstrap: is_first,
        created_at: now,
        expires_at: None,
        period: None,
        renewable_until: None,
        bound_to: None,
        revoked_at: None,
    };
    let writes = vec![Write::InsertAccessToken(token)];
    let committed = store.commit(Transaction::new("bootstrap", writes)).await;
    committed.map_err(|fault| match fault {
        Fault::Exists(_) if is_first => Error::new(
            Kind::Conflict,
            "ALREADY_BOOTSTRAPPED",
            "this store has had its first administrator; use that access token to make others, or make another on this host \
             with --another NAME",
        ),
        other => other.into(),
    })?;
    Ok(credential)
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Makes an access token. The second half of the answer is the credential, which is shown only now.
    pub async fn create_access_token(
        &self,
        caller: &Caller,
        request: CreateAccessToken,
    ) -> Result<(AccessToken, String), Error> {
        let now = self.clock.now();
        let subject = Subject::of_access_token(&request.name);
        let mut admission = self.gate.begin_about(caller, Action::CreateAccessToken, subject, now).await?;
        let result = async {
            check(&request, now)?;
            if self.catalog.now().access_tokens().any(|token| token.name == request.name) {
                return Err(Fault::Exists(format!("accessTokens/{}", request.name)).into());
            }
            // A name that is to manage already is as good as a role.
            let name = format!("access-token:{}", request.name);
            let is_bound = self.catalog.now().role_bindings().any(|binding| {
                binding.principal.as_str() == name
                    && binding.revoked_at.is_none()
                    && policy::manages(binding.role)
            });
            if is_bound || request.own.as_ref().is_some_and(|own| policy::manages(own.role)) {
                let change = || Change::CreateAccessToken(request.clone());
                self.unless_approval_is_needed(&mut admission, caller, change).await?;
            }
            self.create_token_admitted(request, now).await
        }
        .await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Moves the end of the caller's own access token.
    pub async fn renew_access_token(&self, caller: &Caller) -> Result<AccessToken, Error> {
        let now = self.clock.now();
        let admission = self.gate.begin(caller, Action::RenewAccessToken, None, now).await?;
        let result = self.in_effect(self.renew_admitted(caller).await).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// Every access token, revoked ones included, by name.
    pub async fn list_access_tokens(&self, caller: &Caller) -> Result<Vec<AccessToken>, Error> {
        let admission = self.gate.admit(caller, Action::ListAccessTokens, None, self.clock.now()).await?;
        let mut tokens: Vec<_> =
            self.catalog.now().access_tokens().map(|token| AccessToken::clone(token)).collect();
        tokens.sort_by(|a, b| a.name.cmp(&b.name));
        admission.settle(Ok(Unsettled::new(tokens))).await
    }

    /// Revokes an access token: it stops working before this returns.
    pub async fn revoke_access_token(&self, caller: &Caller, name: &str) -> Result<AccessToken, Error> {
        let (subject, now) = (Subject::of_access_token(name), self.clock.now());
        let admission = self.gate.begin_about(caller, Action::RevokeAccessToken, subject, now).await?;
        let result = self.in_effect(self.revoke_admitted(name).await).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    pub(super) async fn create_token_admitted(
        &self,
        request: CreateAccessToken,
        now: Timestamp,
    ) -> Result<(AccessToken, String), Error> {
        check(&request, now)?;
        let CreateAccessToken { name, own, ttl, period, renewable_until, bound_to } = request;
        let end = ttl.or(period).map(|span| now.saturating_add(span).unwrap_or(Timestamp::MAX));
        let expires_at = end.map(|end| renewable_until.map_or(end, |bound| end.min(bound)));
        let (credential, sha256) = new_credential(self.entropy)?;
        let token = AccessToken {
            name,
            sha256,
            own,
            bootstrap: false,
            created_at: now,
            expires_at,
            period,
            renewable_until,
            bound_to,
            revoked_at: None,
        };
        let writes = vec![Write::InsertAccessToken(token.clone())];
        self.commit(Transaction::new("create an access token", writes)).await?;
        Ok((token, credential))
    }

    async fn renew_admitted(&self, caller: &Caller) -> Result<AccessToken, Error> {
        self.own_token(caller)?;
        // The catalog may lag behind a revocation that another server has made.
        let now = self.time_for_all().await?;
        let token = self.own_token(caller)?;
        let (Some(period), Some(from)) = (token.period, token.expires_at) else {
            return Err(Error::precondition(
                "NOT_RENEWABLE",
                "this access token has no period; ask for another one",
            ));
        };
        if token.revoked_at.is_some() || from <= now {
            return Err(Error::precondition(
                "NOT_RENEWABLE",
                "this access token has ended; ask for another one",
            ));
        }
        let end = now.saturating_add(period).unwrap_or(Timestamp::MAX);
        let to = token.renewable_until.map_or(end, |bound| end.min(bound));
        // Renewing never shortens, and one at its bound stays as it is.
        if to > from {
            let writes = vec![Write::RenewAccessToken { name: token.name, from, to }];
            match self.commit(Transaction::new("renew an access token", writes)).await {
                // Another renewal at the same time has moved it as far.
                Err(error) if error.reason() == CHANGED_MEANWHILE => {}
                outcome => outcome?,
            }
        }
        self.own_token(caller)
    }

    fn own_token(&self, caller: &Caller) -> Result<AccessToken, Error> {
        let picture = self.catalog.now();
        let name = caller.name().strip_prefix("access-token:");
        let token = name.and_then(|name| picture.access_tokens().find(|token| token.name == name));
        token.map(|token| AccessToken::clone(token)).ok_or_else(|| {
            Error::precondition(
                "NOT_RENEWABLE",
                "only access tokens are renewed; this caller is known otherwise",
            )
        })
    }

    async fn revoke_admitted(&self, name: &str) -> Result<AccessToken, Error> {
        let find = || {
            let picture = self.catalog.now();
            picture.access_tokens().find(|token| token.name == name).map(|token| AccessToken::clone(token))
        };
        let absent = || Error::not_found(format_args!("accessTokens/{name}"));
        let token = find().ok_or_else(absent)?;
        if token.revoked_at.is_some() {
            return Ok(token);
        }
        let left =
            |other: &policy::Giver<'_>| !matches!(other, policy::Giver::Token(other) if other.name == name);
        if !self.remains_an_administrator(left) {
            return Err(last_administrator());
        }
        let revocation = Write::RevokeAccessToken { name: token.name, at: self.clock.now() };
        let writes = vec![revocation];
        self.commit_moving(Transaction::new("revoke an access token", writes)).await?;
        find().ok_or_else(absent)
    }
}

fn new_credential(entropy: Entropy) -> Result<(String, [u8; 32]), Error> {
    let mut secret = Zeroizing::new([0; 32]);
    entropy(&mut *secret)?;
    let credential = format!("{CREDENTIAL_PREFIX}{}", base64url(&*secret));
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(Hash::Sha256.digest(credential.as_bytes()).as_ref());
    Ok((credential, sha256))
}

/// Refuses what could never work, or would be what nobody means.
fn check(request: &CreateAccessToken, now: Timestamp) -> Result<(), Error> {
    check_name(&request.name)?;
    for (field, span) in [("ttl", request.ttl), ("access_token.period", request.period)] {
        if span.is_some_and(|span| span < SignedDuration::from_secs(1)) {
            return Err(Error::invalid(field, "it is at least one second; leave it out for none"));
        }
    }
    if request.renewable_until.is_some_and(|bound| request.period.is_none() || bound <= now) {
        let text = "only a token with a period is renewed, and the bound of that lies ahead";
        return Err(Error::invalid("access_token.renewable_until", text));
    }
    let from_certificate =
        |principal: &Principal| matches!(principal.source(), Source::Spiffe | Source::Dns | Source::Subject);
    if request.bound_to.as_ref().is_some_and(|principal| !from_certificate(principal)) {
        let text =
            "a token is bound to whoever a client certificate names: spiffe://..., dns:... or subject:...";
        return Err(Error::invalid("access_token.bound_to", text));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), Error> {
    // The same rule as for keys: one rule to remember.
    name.parse::<KeyId>().map(drop).map_err(|error| Error::invalid("access_token_id", error.to_string()))
}
