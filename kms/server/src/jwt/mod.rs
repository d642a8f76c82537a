//! JWTs as proof of who calls (RFC 7519, and RFC 8725 for what must not be believed): those of issuers that the
//! configuration names, made for us, and signed with a key that the issuer publishes.
//!
//! A token is taken apart (`token.rs`), tells by its `iss` which issuer's rules it must keep (`claims.rs`), and is
//! believed when the one key of that issuer that fits it (`key_set.rs`) verifies its signature. Key sets are read when
//! a token needs them (`key_cache.rs`) from where the configuration says (`key_source.rs`), and nowhere else: `jku`,
//! `x5u` and `jwk` in a header are a stranger's word. No issuer is needed to start.
//!
//! Who is refused is not told why. The log is: the issuer's name in our configuration and a fixed word, never the token
//! nor what it claims.

mod claims;
mod key_cache;
mod key_set;
mod key_source;
mod refusal;
#[cfg(test)]
mod tests;
mod token;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use kms_core::{Clock, principal::Principal};

use self::{
    key_cache::KeyCache,
    refusal::{Refusal, Refusals},
    token::Token,
};
use crate::config::JwtIssuer;

pub use self::key_source::check;

/// The issuers whose JWTs we believe.
pub struct Issuers {
    /// By what stands in `iss`.
    issuers: BTreeMap<String, Issuer>,
    clock: Arc<dyn Clock>,
    refusals: Refusals,
}

struct Issuer {
    rules: JwtIssuer,
    keys: Arc<KeyCache>,
}

/// How long a token may wait for its issuer, and how many may.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// The longest that a caller waits.
    wait_max: Duration,
    /// The longest that a key set may take to arrive.
    fetch_max: Duration,
    /// Most callers that wait for one issuer; one more is refused.
    waiting_max: usize,
}

impl Limits {
    const STANDARD: Self =
        Self { wait_max: Duration::from_secs(5), fetch_max: Duration::from_secs(10), waiting_max: 64 };
}

impl Issuers {
    /// Those of the configuration. Nothing is read and nobody is asked before a token needs it.
    pub fn new(issuers: &[JwtIssuer], clock: Arc<dyn Clock>) -> Self {
        Self::with_limits(issuers, clock, Limits::STANDARD)
    }

    fn with_limits(issuers: &[JwtIssuer], clock: Arc<dyn Clock>, limits: Limits) -> Self {
        let issuer = |rules: &JwtIssuer| {
            let keys = Arc::new(KeyCache::new(rules, Arc::clone(&clock), limits));
            (rules.issuer.clone(), Issuer { rules: rules.clone(), keys })
        };
        let issuers = issuers.iter().map(issuer).collect();
        Self { issuers, refusals: Refusals::new(Arc::clone(&clock)), clock }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.issuers.is_empty()
    }

    /// Whom `token` proves. `None` for whatever is not wholly right; why is for the log alone.
    ///
    /// Waits at most 5 s, for the keys of its issuer. Needs a Tokio runtime.
    pub async fn principal(&self, token: &str) -> Option<Principal> {
        let (issuer, decision) = self.decide(token).await;
        let told = |refusal| self.refusals.tell(issuer.map(|issuer| &issuer.rules.name), refusal);
        decision.inspect_err(|refusal| told(*refusal)).ok()
    }

    /// Whom `token` proves, or why nobody; and whose it says that it is.
    async fn decide(&self, token: &str) -> (Option<&Issuer>, Result<Principal, Refusal>) {
        let token = match Token::parse(token) {
            Ok(token) => token,
            Err(refusal) => return (None, Err(refusal)),
        };
        // Not verified yet, and good for nothing but to say whose rules and keys are to be used.
        match token.issuer().and_then(|name| self.issuers.get(name)) {
            Some(issuer) => (Some(issuer), self.believe(issuer, &token).await),
            None => (None, Err(Refusal::UnknownIssuer)),
        }
    }

    /// What costs nothing comes first, so that only tokens that could be good wait for keys or have them fetched.
    async fn believe(&self, issuer: &Issuer, token: &Token<'_>) -> Result<Principal, Refusal> {
        let algorithm = token.algorithm().filter(|algorithm| issuer.rules.algorithms.contains(algorithm));
        let algorithm = algorithm.ok_or(Refusal::Algorithm)?;
        let principal = claims::check(token.claims(), &issuer.rules, self.clock.now())?;
        let key = issuer.keys.key(token.kid(), algorithm).await?;
        if key.verifies(algorithm, token.signed(), token.signature()) {
            Ok(principal)
        } else {
            Err(Refusal::Signature)
        }
    }
}

impl fmt::Debug for Issuers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.issuers.values().map(|issuer| issuer.rules.name.as_str())).finish()
    }
}
