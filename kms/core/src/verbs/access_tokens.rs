//! Access tokens: bearer credentials of our own, 256 random bits, known here by their SHA-256 only.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::{
    Action, AuditLog, Caller, Clock, Error, Gate, Hsm, KeyId, Kms, Store, Unsettled,
    algorithm::Hash,
    audit::Subject,
    caller::{KeyScope, Role},
    error::Kind,
    jwk::base64url,
    kms::Entropy,
    store::{AccessToken, Transaction, Write},
    time::{SignedDuration, Timestamp},
    verbs::requests::Request,
};

/// Every credential begins so: scanners of logs and repositories can look for it.
pub const CREDENTIAL_PREFIX: &str = "kms_";
/// The name of the access token that `bootstrap` makes.
const FIRST_ADMINISTRATOR: &str = "first-administrator";

/// An access token to be made.
#[derive(Debug, Clone)]
pub struct CreateAccessToken {
    /// Unique name; the caller will be `access-token:<name>`.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// On which keys.
    pub scope: KeyScope,
    /// How long it works; `None` for ever.
    pub ttl: Option<SignedDuration>,
    /// The guards; an id is of no use here, for the credential cannot be shown twice.
    pub request: Request,
}

/// Makes the first administrator, once in the life of a store, and returns its credential.
pub async fn bootstrap<S: Store, A: AuditLog>(
    store: &S,
    audit: Arc<A>,
    now: Timestamp,
    entropy: Entropy,
) -> Result<String, Error> {
    let mut prefix = [0; 8];
    entropy(&mut prefix)?;
    let gate = Gate::new(audit, u64::from_be_bytes(prefix));
    let subject = Subject::of_access_token(FIRST_ADMINISTRATOR);
    let operator = Caller::new("system:bootstrap", Role::Administrator, KeyScope::All);
    let admission = gate.begin_about(&operator, Action::CreateAccessToken, subject, now).await?;
    let result = first_administrator(store, now, entropy).await;
    admission.settle(result.map(Unsettled::new)).await
}

async fn first_administrator<S: Store>(store: &S, now: Timestamp, entropy: Entropy) -> Result<String, Error> {
    let (credential, sha256) = new_credential(entropy)?;
    let token = AccessToken {
        name: FIRST_ADMINISTRATOR.to_owned(),
        sha256,
        role: Role::Administrator,
        scope: KeyScope::All,
        bootstrap: true,
        created_at: now,
        expires_at: None,
        revoked_at: None,
    };
    let writes = vec![Write::InsertAccessToken(token)];
    let committed = store.commit(Transaction::new("bootstrap", writes)).await;
    committed.map_err(|fault| match fault {
        crate::store::Fault::Exists(_) => Error::new(
            Kind::Conflict,
            "ALREADY_BOOTSTRAPPED",
            "this store has had its first administrator; use that access token to make others",
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
        let admission = self.gate.begin_about(caller, Action::CreateAccessToken, subject, now).await?;
        let result = self.in_effect(self.create_token_admitted(request, now).await).await;
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

    async fn create_token_admitted(
        &self,
        request: CreateAccessToken,
        now: Timestamp,
    ) -> Result<(AccessToken, String), Error> {
        check_name(&request.name)?;
        let expires_at = match request.ttl {
            Some(ttl) if ttl < SignedDuration::from_secs(1) => {
                return Err(Error::invalid("ttl", "a ttl is at least one second; leave it out for no end"));
            }
            Some(ttl) => Some(now.saturating_add(ttl).unwrap_or(Timestamp::MAX)),
            None => None,
        };
        let (credential, sha256) = new_credential(self.entropy)?;
        let token = AccessToken {
            name: request.name,
            sha256,
            role: request.role,
            scope: request.scope,
            bootstrap: false,
            created_at: now,
            expires_at,
            revoked_at: None,
        };
        let writes = vec![Write::InsertAccessToken(token.clone())];
        self.commit(Transaction::new("create an access token", writes)).await?;
        Ok((token, credential))
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
        if !self.remains_an_administrator_without(&token) {
            return Err(Error::precondition(
                "LAST_ADMINISTRATOR",
                "this is the last access token that can make others; make another administrator first",
            ));
        }
        let revocation = Write::RevokeAccessToken { name: token.name, at: self.clock.now() };
        let writes = vec![revocation];
        self.commit_moving(Transaction::new("revoke an access token", writes)).await?;
        find().ok_or_else(absent)
    }
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Whether somebody could still let others in. One that expires does not count: it would be a delay only.
    fn remains_an_administrator_without(&self, revoked: &AccessToken) -> bool {
        let manages = |token: &AccessToken| token.role == Role::Administrator && token.scope == KeyScope::All;
        let lasts = |token: &AccessToken| token.revoked_at.is_none() && token.expires_at.is_none();
        let remains = |token: &Arc<AccessToken>| token.name != revoked.name && manages(token) && lasts(token);
        !manages(revoked) || self.catalog.now().access_tokens().any(remains)
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

fn check_name(name: &str) -> Result<(), Error> {
    // The same rule as for keys: one rule to remember.
    name.parse::<KeyId>().map(drop).map_err(|error| Error::invalid("access_token_id", error.to_string()))
}
