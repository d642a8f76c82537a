//! The catalog: all keys and access tokens in memory, as of one generation. The hot path reads nothing else.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;

use crate::{
    Caller, Error, Key, KeyId, KeyState, KeyVersion,
    access::{PolicyDocument, RoleBinding},
    class::{ClassName, KeyClass},
    epoch::Epoch,
    error::Kind,
    hsm::{KekRef, SecretKeyRef},
    key::{Born, Material, Purpose, later},
    key_set::{Kept, KeySet},
    policy::{About, Document, Rules, Traits},
    principal::Principal,
    proposal::{self, Proposal},
    signature::PublicKey,
    store::{AccessToken, Generation, QuarantinedObject, Snapshot, UsageReport, VersionUse},
    time::{SignedDuration, Timestamp},
};

/// The current picture; readers take it whole, without a lock.
pub(crate) struct Catalog {
    current: ArcSwap<Picture>,
}

/// Everything at one generation.
pub(crate) struct Picture {
    pub(crate) generation: Generation,
    pub(crate) keys: BTreeMap<KeyId, Arc<Entry>>,
    classes: BTreeMap<ClassName, KeyClass>,
    access_tokens: HashMap<[u8; 32], Arc<AccessToken>>,
    role_bindings: BTreeMap<KeyId, Arc<RoleBinding>>,
    /// In ascending order.
    policies: Vec<PolicyDocument>,
    proposals: BTreeMap<proposal::Id, Proposal>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) epoch: Option<Epoch>,
    quarantined: Vec<QuarantinedObject>,
    uses: BTreeMap<(KeyId, u32), VersionUse>,
    usage_reports: BTreeMap<(KeyId, KeyId), UsageReport>,
    /// The set of all keys.
    pub(crate) kept: Kept,
}

/// A key with its versions, and their public keys parsed once.
pub(crate) struct Entry {
    pub(crate) key: Key,
    /// By number.
    pub(crate) versions: Vec<Version>,
    /// Its key set.
    pub(crate) kept: Kept,
    /// What time itself may ask for: versions grow many, and nobody should look at each of them again and again.
    pub(crate) due: Due,
}

/// A version's row with what is derived from it.
pub(crate) struct Version {
    pub(crate) row: KeyVersion,
    /// The public half: present exactly when the row is born and of a pair.
    pub(crate) public: Option<Arc<PublicKey>>,
}

impl Catalog {
    /// A catalog of `snapshot`. Fails when a stored public key does not parse.
    pub(crate) fn new(snapshot: Snapshot) -> Result<Self, Error> {
        Ok(Self { current: ArcSwap::from_pointee(Picture::new(snapshot, None)?) })
    }

    /// A catalog of nothing.
    pub(crate) fn empty() -> Self {
        Self { current: ArcSwap::from_pointee(Picture::empty()) }
    }

    /// Puts a snapshot in the place of the picture `base`: on top of it what was written `since`, or everything anew.
    /// Unchanged entries are kept, not parsed again. Returns whether the picture is as new as the snapshot now; it is
    /// not when another picture has taken the place of `base` meanwhile.
    pub(crate) fn apply(
        &self,
        base: &Arc<Picture>,
        since: Option<Generation>,
        snapshot: Snapshot,
    ) -> Result<bool, Error> {
        let generation = snapshot.generation;
        let picture = match since {
            Some(since) if since != base.generation => return Ok(false),
            Some(since) if since == generation => return Ok(self.now().generation >= generation),
            Some(_) => base.with(snapshot)?,
            None => Picture::new(snapshot, Some(base))?,
        };
        let before = self.current.compare_and_swap(base, Arc::new(picture));
        // What others have read since may stand on a picture that is in doubt: only a delta may leave it at that.
        Ok(Arc::ptr_eq(&before, base) || (since.is_some() && before.generation >= generation))
    }

    /// The picture as it is.
    pub(crate) fn now(&self) -> Arc<Picture> {
        self.current.load_full()
    }

    /// The key's entry.
    pub(crate) fn entry(&self, id: &KeyId) -> Result<Arc<Entry>, Error> {
        self.current.load().keys.get(id).cloned().ok_or_else(|| absent(id))
    }

    /// The key set of one key, or of all, at `now`. `None` when there is no such key.
    pub(crate) fn key_set(&self, id: Option<&KeyId>, now: Timestamp) -> Option<Arc<KeySet>> {
        let picture = self.current.load();
        match id {
            Some(id) => {
                let entry = picture.keys.get(id).filter(|entry| entry.key.purpose.is_published())?;
                Some(entry.key_set(now))
            }
            None => Some(picture.key_set(now)),
        }
    }
}

impl Picture {
    fn empty() -> Self {
        Self {
            generation: Generation::default(),
            keys: BTreeMap::new(),
            classes: BTreeMap::new(),
            access_tokens: HashMap::new(),
            role_bindings: BTreeMap::new(),
            policies: Vec::new(),
            proposals: BTreeMap::new(),
            rules: Arc::new(Rules::new(&[], Arc::default())),
            epoch: None,
            quarantined: Vec::new(),
            uses: BTreeMap::new(),
            usage_reports: BTreeMap::new(),
            kept: Kept::default(),
        }
    }

    fn new(snapshot: Snapshot, previous: Option<&Self>) -> Result<Self, Error> {
        Self::empty().filled(snapshot, previous)
    }

    /// This picture with what a later snapshot has changed.
    fn with(&self, changes: Snapshot) -> Result<Self, Error> {
        let base = Self {
            generation: self.generation,
            keys: self.keys.clone(),
            classes: self.classes.clone(),
            access_tokens: self.access_tokens.clone(),
            role_bindings: self.role_bindings.clone(),
            policies: self.policies.clone(),
            proposals: self.proposals.clone(),
            rules: Arc::clone(&self.rules),
            epoch: self.epoch,
            quarantined: self.quarantined.clone(),
            uses: self.uses.clone(),
            usage_reports: self.usage_reports.clone(),
            kept: Kept::default(),
        };
        base.filled(changes, Some(self))
    }

    /// The rows of `snapshot` on top of these. Entries that are in `previous` as they are need not be parsed again.
    fn filled(mut self, snapshot: Snapshot, previous: Option<&Self>) -> Result<Self, Error> {
        let rules_change = !snapshot.role_bindings.is_empty() || !snapshot.policies.is_empty();
        self.generation = snapshot.generation;
        self.keys.extend(entries(snapshot.keys, previous)?);
        self.classes.extend(by_name(snapshot.classes));
        self.access_tokens.extend(hashed(snapshot.access_tokens));
        let bindings = snapshot.role_bindings.into_iter();
        self.role_bindings.extend(bindings.map(|binding| (binding.name.clone(), Arc::new(binding))));
        let last = self.policies.last().map_or(0, |document| document.version);
        self.policies.extend(snapshot.policies.into_iter().filter(|document| document.version > last));
        let proposals = snapshot.proposals.into_iter();
        self.proposals.extend(proposals.map(|proposal| (proposal.id.clone(), proposal)));
        self.epoch = snapshot.epoch.or(self.epoch);
        for record in snapshot.quarantined {
            if self.quarantined(&record.token_serial, &record.cka_id).is_none() {
                self.quarantined.push(record);
            }
        }
        self.uses.extend(by_version(snapshot.uses));
        self.usage_reports.extend(by_consumer(snapshot.usage_reports));
        if rules_change {
            let document = self.policies.last().map(|document| Document::parse(&document.text)).transpose();
            // What it would have forbidden nobody knows: without it nothing may be decided.
            let document = document.map_err(|error| {
                Error::internal(format!("the policy document in the store cannot be used: {error}"))
            })?;
            let bindings: Vec<_> = self.role_bindings.values().cloned().collect();
            self.rules = Arc::new(Rules::new(&bindings, document.unwrap_or_default()));
        }
        Ok(self)
    }

    /// The record of a quarantined object.
    pub(crate) fn quarantined(&self, token_serial: &str, cka_id: &[u8]) -> Option<&QuarantinedObject> {
        self.quarantined.iter().find(|record| record.cka_id == cka_id && record.token_serial == token_serial)
    }

    /// The key's entry.
    pub(crate) fn entry(&self, id: &KeyId) -> Result<&Entry, Error> {
        self.keys.get(id).map(|entry| &**entry).ok_or_else(|| absent(id))
    }

    /// A class: as it is built in, or as somebody has changed it.
    pub(crate) fn class(&self, name: ClassName) -> KeyClass {
        self.classes.get(&name).copied().unwrap_or_else(|| KeyClass::built_in(name))
    }

    /// How much a version was used; `None` for not at all.
    pub(crate) fn use_of(&self, key: &KeyId, version: u32) -> Option<&VersionUse> {
        self.uses.get(&(key.clone(), version))
    }

    /// What the consumers of a key said last, those that are no more among them.
    pub(crate) fn usage_reports(&self, key: &KeyId) -> impl Iterator<Item = &UsageReport> {
        self.usage_reports.values().filter(move |report| report.key == *key)
    }

    /// The access token with that hash, if it is valid at `now`.
    pub(crate) fn access_token(&self, sha256: &[u8; 32], now: Timestamp) -> Option<&AccessToken> {
        self.access_tokens.get(sha256).map(|token| &**token).filter(|token| token.is_valid(now))
    }

    /// Whoever has this canonical name, with what it has by itself: none, when it is an access token that is not valid.
    pub(crate) fn caller(&self, name: &str, now: Timestamp) -> Option<Caller> {
        match name.strip_prefix("access-token:") {
            Some(token) => {
                let token = self.access_tokens().find(|row| row.name == token && row.is_valid(now))?;
                Some(Caller::with(name, token.own.clone()))
            }
            None => name.parse().ok().map(|principal: Principal| Caller::named(&principal)),
        }
    }

    /// What an action on `key`, or on the service, is about.
    pub(crate) fn about<'a>(&'a self, key: Option<&'a KeyId>) -> About<'a> {
        key.map_or(About::Service, |id| About::Key(id, self.keys.get(id).map(|entry| Traits::of(&entry.key))))
    }

    /// Every role binding, by name.
    pub(crate) fn role_bindings(&self) -> impl Iterator<Item = &Arc<RoleBinding>> {
        self.role_bindings.values()
    }

    /// The versions of the policy document, in ascending order.
    pub(crate) fn policies(&self) -> &[PolicyDocument] {
        &self.policies
    }

    /// The proposal of that name.
    pub(crate) fn proposal(&self, id: &proposal::Id) -> Option<&Proposal> {
        self.proposals.get(id)
    }

    /// Every proposal.
    pub(crate) fn proposals(&self) -> impl Iterator<Item = &Proposal> {
        self.proposals.values()
    }

    /// Every access token.
    pub(crate) fn access_tokens(&self) -> impl Iterator<Item = &Arc<AccessToken>> {
        self.access_tokens.values()
    }
}

type Rows = Vec<(Key, Vec<KeyVersion>)>;

fn entries(rows: Rows, previous: Option<&Picture>) -> Result<BTreeMap<KeyId, Arc<Entry>>, Error> {
    let entry = |(key, versions): (Key, Vec<KeyVersion>)| {
        let known = previous.and_then(|picture| picture.keys.get(&key.id));
        let entry = match known {
            Some(entry) if entry.is(&key, &versions) => Arc::clone(entry),
            known => Arc::new(Entry::new(key, versions, known.map(|entry| &**entry))?),
        };
        Ok((entry.key.id.clone(), entry))
    };
    rows.into_iter().map(entry).collect()
}

fn by_name(classes: Vec<KeyClass>) -> BTreeMap<ClassName, KeyClass> {
    classes.into_iter().map(|class| (class.name, class)).collect()
}

fn by_version(uses: Vec<VersionUse>) -> BTreeMap<(KeyId, u32), VersionUse> {
    uses.into_iter().map(|used| ((used.key.clone(), used.version), used)).collect()
}

fn by_consumer(reports: Vec<UsageReport>) -> BTreeMap<(KeyId, KeyId), UsageReport> {
    reports.into_iter().map(|report| ((report.key.clone(), report.consumer.clone()), report)).collect()
}

fn hashed(tokens: Vec<AccessToken>) -> HashMap<[u8; 32], Arc<AccessToken>> {
    tokens.into_iter().map(|token| (token.sha256, Arc::new(token))).collect()
}

/// When there may be something to do for the versions of a key.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Due {
    /// When the next destruction is due, if one is scheduled.
    pub(crate) destroys_at: Option<Timestamp>,
    /// When the next version is to be destroyed by age, if the key asks for that and it is not scheduled yet.
    pub(crate) expires_at: Option<Timestamp>,
    /// Whether a version was ever revoked.
    pub(crate) was_revoked: bool,
}

impl Due {
    fn of(key: &Key, versions: &[Version]) -> Self {
        let rows = || versions.iter().map(|version| &version.row);
        let withdrawn = rows().filter(|row| row.may_ever_sign());
        let withdrawn_at = withdrawn.filter_map(|row| row.born.as_ref()?.timeline.withdrawn_at).min();
        Self {
            destroys_at: rows().filter_map(KeyVersion::destruction_due).min(),
            expires_at: withdrawn_at.and_then(|at| Some(later(at, key.destroy_after?))),
            was_revoked: rows().any(|row| row.compromise.is_some()),
        }
    }
}

impl Entry {
    /// Whether these are its rows. Not by the revision alone: after a failover another change may have that number.
    fn is(&self, key: &Key, rows: &[KeyVersion]) -> bool {
        self.key == *key && self.versions.iter().map(|version| &version.row).eq(rows)
    }

    /// What `known` has parsed already is not parsed again.
    fn new(key: Key, rows: Vec<KeyVersion>, known: Option<&Self>) -> Result<Self, Error> {
        let parsed = |row: &KeyVersion, spki: &[u8]| {
            let public = known?.version(row.number).ok()?.public.as_ref()?;
            (public.is(row.cka_id, spki)).then(|| Arc::clone(public))
        };
        let versions = rows
            .into_iter()
            .map(|row| {
                let public = match row.born.as_ref().map(|born| &born.material) {
                    Some(Material::Pair { spki, .. }) => Some(match parsed(&row, spki) {
                        Some(public) => public,
                        None => Arc::new(PublicKey::from_spki(key.algorithm, row.cka_id, spki)?),
                    }),
                    Some(Material::Secret { .. }) | None => None,
                };
                Ok(Version { row, public })
            })
            .collect::<Result<Vec<Version>, Error>>()?;
        let due = Due::of(&key, &versions);
        Ok(Self { key, versions, due, kept: Kept::default() })
    }

    /// The version that signs at `now`: the newest active one. None is a failed precondition that says why.
    pub(crate) fn primary(&self, now: Timestamp) -> Result<&Version, Error> {
        self.find_primary(now).ok_or_else(|| self.no_primary(now))
    }

    /// The version that signs at `now`, if there is one.
    pub(crate) fn find_primary(&self, now: Timestamp) -> Option<&Version> {
        self.versions.iter().rev().find(|version| version.row.state(now).may_protect())
    }

    /// Whether the version of that number is the one that signs or wraps at `now`.
    pub(crate) fn is_primary(&self, number: u32, now: Timestamp) -> bool {
        self.find_primary(now).is_some_and(|primary| primary.row.number == number)
    }

    /// The version that is to sign at `now`: the primary, or the one asked for if it may. It stands in the JWKS of the
    /// same picture, whatever its row says: a signature that nobody can verify is worse than none.
    pub(crate) fn signing_version(&self, number: Option<u32>, now: Timestamp) -> Result<&Version, Error> {
        let version = self.active_version(number, now)?;
        if version.row.is_published(now) {
            return Ok(version);
        }
        let number = version.row.number;
        let text =
            format!("keys/{}/versions/{number} is active and not in the JWKS; rotate the key", self.key.id);
        Err(Error::precondition("VERSION_NOT_PUBLISHED", text))
    }

    fn active_version(&self, number: Option<u32>, now: Timestamp) -> Result<&Version, Error> {
        let Some(number) = number else { return self.primary(now) };
        let version = self.version(number)?;
        let state = version.row.state(now);
        if state.may_protect() {
            return Ok(version);
        }
        Err(Error::precondition(
            "VERSION_NOT_ACTIVE",
            format!(
                "keys/{}/versions/{number} is {state} and does not sign; use the key's primary version",
                self.key.id
            ),
        ))
    }

    /// The version of that number.
    pub(crate) fn version(&self, number: u32) -> Result<&Version, Error> {
        let place = self.versions.binary_search_by_key(&number, |version| version.row.number);
        place
            .map(|place| &self.versions[place])
            .map_err(|_| Error::not_found(format_args!("keys/{}/versions/{number}", self.key.id)))
    }

    /// The version whose birth is not over. Only the newest can be: no other is begun beside one.
    pub(crate) fn unborn(&self) -> Option<&KeyVersion> {
        self.versions.last().map(|version| &version.row).filter(|row| row.born.is_none())
    }

    /// How long a version that is not in the JWKS yet must stand there before it signs. Sets that were served
    /// before the key's last change may carry the longest max-age, `kept`, and others half the publish lead; a replica
    /// that is cut off serves one on until it is fenced; and the clock of one that signs may be ahead of ours. Bundles
    /// live up to half of the lead that the key had when they were made.
    ///
    /// A version that wraps stands in no set: every replica must know it, and that is all.
    pub(crate) fn lead(&self, now: Timestamp, kept: SignedDuration) -> SignedDuration {
        if self.key.purpose == Purpose::Wrap {
            return Key::FENCE + Key::CLOCKS_APART;
        }
        let changed_lately = later(self.key.updated_at, kept + Key::CLOCKS_APART) > now;
        let cached = if changed_lately { kept } else { SignedDuration::ZERO };
        let bundled = self.key.bundles_until.map_or(SignedDuration::ZERO, |at| at.duration_since(now));
        let cached = cached.max(bundled).max(self.key.publish_lead / 2);
        self.key.publish_lead.max(cached + Key::FENCE + Key::CLOCKS_APART)
    }

    fn no_primary(&self, now: Timestamp) -> Error {
        let id = &self.key.id;
        let message = match self.versions.last() {
            Some(version) if version.row.born.is_none() => format!(
                "keys/{id} has no active version yet: its creation is not finished; retry in a moment"
            ),
            Some(Version { row: KeyVersion { number, born: Some(born), .. }, .. })
                if self
                    .versions
                    .last()
                    .is_some_and(|last| last.row.state(now) == KeyState::PreActivation) =>
            {
                let at = born.timeline.activates_at;
                format!("keys/{id} has no active version: version {number} signs from {at}, after its lead")
            }
            Some(version) => format!(
                "keys/{id} has no active version: version {} is {}; enable it, or rotate the key",
                version.row.number,
                version.row.state(now)
            ),
            None => format!("keys/{id} has no version; rotate the key"),
        };
        Error::new(Kind::FailedPrecondition, "NO_ACTIVE_VERSION", message)
    }
}

impl Version {
    /// Its public key; a failed precondition while it is being made, and where it has none.
    pub(crate) fn public(&self) -> Result<&PublicKey, Error> {
        self.born()?;
        self.public.as_deref().ok_or_else(|| {
            Error::precondition("NO_PUBLIC_KEY", "this is a secret key: it has no public half")
        })
    }

    /// What is known since its birth; a failed precondition while it is being made.
    pub(crate) fn born(&self) -> Result<&Born, Error> {
        self.row.born.as_ref().ok_or_else(|| {
            Error::precondition(
                "PENDING_CREATION",
                format!("version {} is still being made; retry in a moment", self.row.number),
            )
        })
    }

    /// Where its key lives, for unwrapping.
    pub(crate) fn kek(&self) -> Result<KekRef, Error> {
        Ok(match &self.born()?.material {
            Material::Pair { .. } => KekRef::Pair(self.public()?.key_ref().clone()),
            Material::Secret { known_answer } => {
                KekRef::Secret(SecretKeyRef::new(self.row.cka_id, known_answer.clone()))
            }
        })
    }
}

fn absent(id: &KeyId) -> Error {
    Error::not_found(format_args!("keys/{id}"))
}
