//! SignKeySetBundle: the key set as a JWS with an end, for a CDN or an object store, so that tokens verify while we are
//! down.
//!
//! Whoever keeps a set cannot know what happens after it was made, so each set must hold until its end whatever
//! happens, but for what an emergency announces. What a verifier must not miss is a version that begins to sign. That
//! stands in every set for `publish_lead` before, and a bundle lives for half of that at most: so it has ended before a
//! version signs that it lacks, without anybody knowing which bundles there are. Who shortens the lead later does not
//! shorten it for bundles that are out there: see `Key::bundles_until`.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{
    Action, Admission, AuditLog, Caller, Clock, Error, Hsm, Key, KeyId, Kid, Kms, Store, Unsettled,
    catalog::{Entry, Picture, Version},
    jwk::{Jwk, base64url},
    key::Purpose,
    signature,
    time::{Deadline, SignedDuration, Timestamp},
    verbs::sign_jwt::{CLAIMS_LEN_MAX, header},
};

/// The header's `typ`: a bundle is never taken for a token (RFC 8725 §3.11).
const TYP: &str = "kms-jwks-bundle+jwt";
/// The `sub` of a bundle of all keys.
const ALL_KEYS: &str = "keys/*";
/// Most keys that one bundle names.
pub const BUNDLE_KEYS_MAX: usize = 1_000;
/// Longest claims of a bundle in bytes; with a key that hashes in the token, those of a token.
const BUNDLE_LEN_MAX: usize = 1024 * 1024;
/// Shortest life of a bundle. Below it, clocks that differ and replicas that are about to be fenced would count.
const BUNDLE_TTL_MIN: SignedDuration = SignedDuration::from_secs(30);
/// Most statements that come with a bundle; whoever has pinned an older version pins anew.
const CHAIN_LEN_MAX: usize = 128;

/// A key set to be signed.
#[derive(Debug, Clone)]
pub struct SignKeySetBundle {
    /// The key that signs, of the purpose [`Purpose::JwksBundle`].
    pub id: KeyId,
    /// Whose versions stand in it; none for all keys.
    pub keys: Vec<KeyId>,
    /// Its life, in whole seconds; `None` for the longest.
    pub ttl: Option<SignedDuration>,
}

/// A signed key set.
#[derive(Debug, Clone)]
pub struct KeySetBundle {
    /// `header.claims.signature`.
    pub bundle: String,
    /// The key that signed.
    pub key: KeyId,
    /// Its version.
    pub version: u32,
    /// The generation of the set: a set of a lower one is older.
    pub sequence: u64,
    /// From here on it holds.
    pub not_before: Timestamp,
    /// From here on it no longer holds.
    pub not_after: Timestamp,
    /// How the version that signed has come from the oldest one that may still be pinned: statements of each about the
    /// next, the oldest first.
    pub chain: Vec<Arc<str>>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    /// Which set it is: one of some keys must not be taken for one of others.
    sub: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    seq: u64,
    keys: Vec<&'a Jwk>,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Signs the key set of some keys, or of all, as it stands now.
    pub async fn sign_key_set_bundle(
        &self,
        caller: &Caller,
        request: SignKeySetBundle,
        deadline: Deadline,
    ) -> Result<KeySetBundle, Error> {
        let now = self.clock.now();
        let mut admission = self.gate.admit(caller, Action::SignKeySetBundle, Some(&request.id), now).await?;
        let result = self.sign_bundle_admitted(&mut admission, request, now, deadline).await;
        admission.settle(result).await
    }

    /// Whether there may be bundles.
    pub(super) fn bundles(picture: &Picture) -> bool {
        let signs_them = |entry: &Arc<Entry>| entry.key.purpose == Purpose::JwksBundle;
        picture.keys.values().any(signs_them)
    }

    async fn sign_bundle_admitted(
        &self,
        admission: &mut Admission<A>,
        request: SignKeySetBundle,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Unsettled<KeySetBundle>, Error> {
        // A clock that was just set forward must not date it ahead.
        self.time_for_all().await?;
        // One picture for the set and its number.
        let picture = self.catalog.now();
        let entry = picture.keys.get(&request.id).ok_or_else(|| absent(&request.id))?;
        check_purpose(&entry.key)?;
        let version = entry.signing_version(None, now)?;
        admission.uses_version(version.row.number);
        let (sub, of) = selected(&picture, request.keys)?;
        let ttl = life(request.ttl, &of, self.settings.bundle_ttl_max)?;
        let nbf = now.as_second();
        let exp = nbf.saturating_add(ttl.as_secs());
        let (not_before, not_after) = (second(nbf)?, second(exp)?);
        let keys = of.iter().flat_map(|entry| published(entry, now)).collect();
        let sequence = picture.generation.0;
        let claims = Claims { iss: &self.settings.issuer, sub, iat: nbf, nbf, exp, seq: sequence, keys };
        let claims = serde_json::to_vec(&claims)
            .map_err(|error| Error::internal(format!("cannot write a key set: {error}")))?;
        check_len(&entry.key, claims.len())?;
        let header = header(entry.key.algorithm.jose_name(), &version.public()?.jwk().kid(), Some(TYP))?;
        let signing_input = format!("{}.{}", base64url(header.as_bytes()), base64url(&claims));
        let input = signature::input_of(entry.key.algorithm, signing_input.as_bytes());
        let signature = self.sign_with(admission, entry, version, input, deadline).await?;
        let (key, number, chain) = (request.id, version.row.number, chain(entry, version));
        Ok(signature.map(|signature| KeySetBundle {
            bundle: format!("{signing_input}.{}", base64url(&signature)),
            key,
            version: number,
            sequence,
            not_before,
            not_after,
            chain,
        }))
    }
}

impl SignKeySetBundle {
    /// A bundle of all keys, of the longest life.
    pub fn new(id: KeyId) -> Self {
        Self { id, keys: vec![], ttl: None }
    }
}

fn check_purpose(key: &Key) -> Result<(), Error> {
    match key.purpose {
        Purpose::JwksBundle => Ok(()),
        Purpose::Jwt | Purpose::Signature | Purpose::Wrap => Err(Error::precondition(
            "WRONG_PURPOSE",
            format!("keys/{} signs no key sets; use a key whose purpose is jwks-bundle", key.id),
        )),
    }
}

/// The keys whose versions are to stand in the set, by name, and what the set is called: keys of tokens alone, because a
/// verifier takes whatever is signed by one of them for a token. Who signs bundles may learn which keys there are: the
/// key sets are public.
fn selected(picture: &Picture, mut names: Vec<KeyId>) -> Result<(String, Vec<&Entry>), Error> {
    if names.len() > BUNDLE_KEYS_MAX {
        return Err(Error::invalid("keys", format!("a bundle names at most {BUNDLE_KEYS_MAX} keys")));
    }
    if names.is_empty() {
        let entries = picture.keys.values().map(|entry| &**entry);
        return Ok((
            ALL_KEYS.to_owned(),
            entries.filter(|entry| entry.key.purpose == Purpose::Jwt).collect(),
        ));
    }
    names.sort_unstable();
    names.dedup();
    let entry = |name: &KeyId| match picture.keys.get(name) {
        Some(entry) if entry.key.purpose == Purpose::Jwt => Ok(&**entry),
        Some(_) => Err(Error::invalid(
            "keys",
            format!(
                "keys/{name} is no key of tokens, and verifiers would take what it signs for one; leave it out"
            ),
        )),
        None => Err(absent(name)),
    };
    let entries = names.iter().map(entry).collect::<Result<_, _>>()?;
    let names: Vec<_> = names.iter().map(|name| format!("keys/{name}")).collect();
    Ok((names.join(" "), entries))
}

/// What verifiers should find of a key.
fn published(entry: &Entry, now: Timestamp) -> impl Iterator<Item = &Jwk> {
    let published = entry.versions.iter().filter(move |version| version.row.is_published(now));
    published.filter_map(|version| version.public.as_deref().map(signature::PublicKey::jwk))
}

/// The longest that a bundle may live in which a key has that lead.
pub(super) fn longest_life(publish_lead: SignedDuration, bundle_ttl_max: SignedDuration) -> SignedDuration {
    SignedDuration::from_secs(bundle_ttl_max.min(publish_lead / 2).as_secs())
}

/// How long it lives: as asked, or as long as it may.
fn life(asked: Option<SignedDuration>, of: &[&Entry], max: SignedDuration) -> Result<SignedDuration, Error> {
    let shortest = of.iter().map(|entry| &entry.key).min_by_key(|key| key.publish_lead);
    let longest = longest_life(shortest.map_or(SignedDuration::MAX, |key| key.publish_lead), max);
    let why = match shortest.filter(|key| key.publish_lead / 2 < max) {
        Some(key) => format!("half of the publish_lead of keys/{}: raise that, or leave the key out", key.id),
        None => "keys.bundle_ttl_max in the server's configuration".to_owned(),
    };
    let at_most = format!("such a bundle lives at most {} seconds, by {why}", longest.as_secs());
    if longest < BUNDLE_TTL_MIN {
        return Err(Error::precondition(
            "BUNDLE_TOO_SHORT",
            format!("{at_most}; it must live at least {} seconds", BUNDLE_TTL_MIN.as_secs()),
        ));
    }
    match asked {
        None => Ok(longest),
        Some(ttl) if ttl > longest => Err(Error::invalid("ttl", at_most)),
        Some(ttl) if ttl < BUNDLE_TTL_MIN || ttl.subsec_nanos() != 0 => Err(Error::invalid(
            "ttl",
            format!("a bundle lives for whole seconds, at least {}", BUNDLE_TTL_MIN.as_secs()),
        )),
        Some(ttl) => Ok(ttl),
    }
}

fn check_len(key: &Key, len: usize) -> Result<(), Error> {
    let max = if key.algorithm.hash().is_some() { BUNDLE_LEN_MAX } else { CLAIMS_LEN_MAX };
    if len <= max {
        return Ok(());
    }
    let text = format!(
        "the key set has {len} bytes, and keys/{} signs at most {max}; make several bundles that name fewer keys",
        key.id
    );
    Err(Error::invalid("keys", text))
}

fn second(second: i64) -> Result<Timestamp, Error> {
    Timestamp::from_second(second).map_err(|_| Error::internal("the time is out of range"))
}

/// The statements that lead to a version from the oldest one that is to be trusted.
fn chain(entry: &Entry, signer: &Version) -> Vec<Arc<str>> {
    let mut chain = vec![];
    let mut successor = signer;
    while let Some(statement) = &successor.row.cross_signature
        && let Some(by) = signer_of(statement)
        && let Some(version) = entry.versions.iter().find(|version| is(version, &by))
        && version.row.number < successor.row.number
        && version.row.compromise.is_none()
        && chain.len() < CHAIN_LEN_MAX
    {
        chain.push(Arc::clone(statement));
        successor = version;
    }
    chain.reverse();
    chain
}

fn is(version: &Version, kid: &Kid) -> bool {
    version.row.born.as_ref().is_some_and(|born| born.material.kid() == Some(kid))
}

/// Whose statement it is.
fn signer_of(statement: &str) -> Option<Kid> {
    #[derive(Deserialize)]
    struct Header {
        kid: String,
    }
    let header = URL_SAFE_NO_PAD.decode(statement.split('.').next()?).ok()?;
    let Header { kid } = serde_json::from_slice(&header).ok()?;
    Some(Kid::from_stored(&kid))
}

fn absent(id: &KeyId) -> Error {
    Error::not_found(format_args!("keys/{id}"))
}
