//! Reading: keys, versions, public keys.

use std::{str::FromStr, sync::Arc};

use der::pem::{LineEnding, encode_string};

use crate::{
    Action, Algorithm, AuditLog, Caller, Clock, Error, Hsm, KeyId, KeyState, Kid, Kms, Store, Unsettled,
    catalog::Entry,
    class::ClassName,
    key::{Purpose, later},
    kms::{KeyView, VersionView},
    policy,
    time::{SignedDuration, Timestamp},
    timeline,
};

/// Most keys of one page.
pub const PAGE_LEN_MAX: usize = 1000;

/// Which keys to list.
#[derive(Debug, Clone, Default)]
pub struct ListKeys {
    /// Begin behind this name.
    pub after: Option<KeyId>,
    /// At most so many, up to [`PAGE_LEN_MAX`].
    pub limit: usize,
    /// Terms `algorithm=ALG`, `owner=TEXT`, `class=CLASS`, `purpose=PURPOSE`, `labels.NAME=VALUE`, `state=STATE` and
    /// `due=SECONDSs`, joined by ` AND ` (a small part of AIP-160).
    pub filter: Option<String>,
}

/// One page of keys, by name.
#[derive(Debug, Clone)]
pub struct KeyPage {
    /// The keys.
    pub keys: Vec<KeyView>,
    /// Where the next page begins, if there is one: pass it as [`ListKeys::after`].
    pub next: Option<KeyId>,
}

/// A public key in every form that somebody asks for.
#[derive(Debug, Clone)]
pub struct PublicKeyView {
    /// The key.
    pub key: KeyId,
    /// The version.
    pub version: u32,
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// Its kid.
    pub kid: Kid,
    /// SubjectPublicKeyInfo, DER.
    pub spki_der: Arc<[u8]>,
    /// The same as PEM (RFC 7468 §13).
    pub pem: String,
    /// The same as a JWK, JSON.
    pub jwk: String,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Reads a key.
    pub async fn get_key(&self, caller: &Caller, id: &KeyId) -> Result<KeyView, Error> {
        let now = self.clock.now();
        let admission = self.gate.admit(caller, Action::GetKey, Some(id), now).await?;
        let view = self.catalog.entry(id).map(|entry| Unsettled::new(KeyView::of(&entry, now)));
        admission.settle(view).await
    }

    /// Reads the versions of a key, the oldest first.
    pub async fn list_key_versions(&self, caller: &Caller, id: &KeyId) -> Result<Vec<VersionView>, Error> {
        let now = self.clock.now();
        let admission = self.gate.admit(caller, Action::GetKey, Some(id), now).await?;
        let views = self.catalog.entry(id).map(|entry| {
            let views = entry.versions.iter().map(|version| VersionView::of(&entry, version, now));
            Unsettled::new(views.collect())
        });
        admission.settle(views).await
    }

    /// Lists keys by name, page by page.
    pub async fn list_keys(&self, caller: &Caller, list: ListKeys) -> Result<KeyPage, Error> {
        let now = self.clock.now();
        let admission = self.gate.admit(caller, Action::ListKeys, None, now).await?;
        admission.settle(self.page(caller, &list, now).map(Unsettled::new)).await
    }

    /// Reads the public key of a version, or of the one that signs now.
    pub async fn public_key(
        &self,
        caller: &Caller,
        id: &KeyId,
        version: Option<u32>,
    ) -> Result<PublicKeyView, Error> {
        let now = self.clock.now();
        let mut admission = self.gate.admit(caller, Action::GetPublicKey, Some(id), now).await?;
        let view = self.public_key_view(id, version, now);
        if let Ok(view) = &view {
            admission.uses_version(view.version);
        }
        admission.settle(view.map(Unsettled::new)).await
    }

    fn page(&self, caller: &Caller, list: &ListKeys, now: Timestamp) -> Result<KeyPage, Error> {
        use std::ops::Bound::{Excluded, Unbounded};
        let filter: Filter = list.filter.as_deref().unwrap_or_default().parse()?;
        let limit = list.limit.clamp(1, PAGE_LEN_MAX);
        let picture = self.catalog.now();
        let start = list.after.as_ref().map_or(Unbounded, Excluded);
        let visible = |entry: &&Arc<_>| {
            let entry: &Entry = entry;
            filter.matches(entry, now)
                && policy::may(&picture, caller, Action::GetKey, Some(&entry.key.id), now)
        };
        let mut entries = picture.keys.range((start, Unbounded)).map(|(_, entry)| entry).filter(visible);
        let keys: Vec<_> = entries.by_ref().take(limit).map(|entry| KeyView::of(entry, now)).collect();
        let next = entries.next().and_then(|_| keys.last()).map(|last| last.key.id.clone());
        Ok(KeyPage { keys, next })
    }

    fn public_key_view(
        &self,
        id: &KeyId,
        number: Option<u32>,
        now: Timestamp,
    ) -> Result<PublicKeyView, Error> {
        let entry = self.catalog.entry(id)?;
        let version = match number {
            Some(number) => entry.version(number)?,
            None => entry.primary(now)?,
        };
        let public = version.public()?;
        let pem = encode_string("PUBLIC KEY", LineEnding::LF, public.spki())
            .map_err(|_| Error::internal("cannot write a public key as PEM"))?;
        Ok(PublicKeyView {
            key: id.clone(),
            version: version.row.number,
            algorithm: entry.key.algorithm,
            kid: public.jwk().kid(),
            spki_der: Arc::clone(public.spki()),
            pem,
            jwk: public.jwk().to_json()?,
        })
    }
}

/// A conjunction of equalities.
#[derive(Debug, Default)]
struct Filter(Vec<Term>);

#[derive(Debug)]
enum Term {
    Algorithm(Algorithm),
    Owner(String),
    Class(ClassName),
    Purpose(Purpose),
    /// A version is in this state.
    State(KeyState),
    /// The next version takes over within this time.
    Due(SignedDuration),
    Label(String, String),
}

impl Filter {
    /// Most terms of one filter.
    const TERMS_MAX: usize = 16;

    fn matches(&self, entry: &Entry, now: Timestamp) -> bool {
        let key = &entry.key;
        self.0.iter().all(|term| match term {
            Term::Class(class) => key.class == *class,
            Term::Purpose(purpose) => key.purpose == *purpose,
            Term::State(state) => entry
                .versions
                .iter()
                .any(|version| version.row.born.is_some() && version.row.state(now) == *state),
            Term::Due(within) => {
                timeline::next_rotation(entry, now).is_some_and(|at| at <= later(now, *within))
            }
            Term::Algorithm(algorithm) => key.algorithm == *algorithm,
            Term::Owner(owner) => key.owner == *owner,
            Term::Label(name, value) => key.labels.get(name) == Some(value),
        })
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let wrong = || {
            Error::invalid(
                "filter",
                "a filter is up to 16 of algorithm=ALG, owner=TEXT, class=CLASS, purpose=PURPOSE, state=STATE, \
                 due=SECONDSs and labels.NAME=VALUE, joined by ' AND '",
            )
        };
        let terms = text.split(" AND ").map(|term| {
            let (name, value) = term.trim().split_once('=').ok_or_else(wrong)?;
            let (name, value) = (name.trim(), value.trim().trim_matches('"').to_owned());
            match (name, name.strip_prefix("labels.")) {
                ("algorithm", _) => Ok(Term::Algorithm(value.parse().map_err(|_| wrong())?)),
                ("owner", _) => Ok(Term::Owner(value)),
                ("class", _) => Ok(Term::Class(value.parse()?)),
                ("purpose", _) => Ok(Term::Purpose(value.parse()?)),
                ("state", _) => {
                    let state = KeyState::ALL.into_iter().find(|state| state.to_string() == value);
                    Ok(Term::State(state.ok_or_else(wrong)?))
                }
                ("due", _) => {
                    let seconds = value.strip_suffix('s').and_then(|seconds| seconds.parse::<u32>().ok());
                    Ok(Term::Due(SignedDuration::from_secs(seconds.ok_or_else(wrong)?.into())))
                }
                (_, Some(label)) => Ok(Term::Label(label.to_owned(), value)),
                _ => Err(wrong()),
            }
        });
        let terms: Vec<_> = terms.collect::<Result<_, _>>()?;
        if terms.len() > Self::TERMS_MAX { Err(wrong()) } else { Ok(Self(terms)) }
    }
}
