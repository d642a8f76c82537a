//! What lies in the store in memory, and what each write does to it.

use std::collections::{BTreeMap, HashMap};

use crate::{
    Key, KeyId, KeyVersion,
    access::{PolicyDocument, RoleBinding},
    class::{ClassName, KeyClass},
    epoch::Epoch,
    pin_latch::{Place, State},
    proposal::{self, Proposal},
    replica::{Beat, LIVE_MAX, Lease, LeaseToken, Pulse, Replica, ReplicaId},
    store::{
        AccessToken, Fault, Generation, QuarantinedObject, RememberedRequest, Snapshot, UsageReport,
        VersionUse, Write,
    },
    time::{SignedDuration, Timestamp},
};

#[derive(Default, Clone)]
pub(super) struct Rows {
    pub(super) generation: Generation,
    keys: BTreeMap<KeyId, (Key, Vec<KeyVersion>)>,
    classes: BTreeMap<ClassName, KeyClass>,
    access_tokens: Vec<AccessToken>,
    role_bindings: BTreeMap<KeyId, RoleBinding>,
    policies: Vec<PolicyDocument>,
    proposals: BTreeMap<proposal::Id, Proposal>,
    quarantined: BTreeMap<(String, Vec<u8>), QuarantinedObject>,
    uses: BTreeMap<(KeyId, u32), VersionUse>,
    usage_reports: BTreeMap<(KeyId, KeyId), UsageReport>,
    pub(super) requests: HashMap<String, RememberedRequest>,
    epoch: Option<Epoch>,
    /// Which generation wrote a row last.
    written: HashMap<Row, Generation>,
    replicas: BTreeMap<ReplicaId, Replica>,
    /// The holder, until another one takes it or it is given back; and the last token.
    holder: Option<ReplicaId>,
    lease: LeaseToken,
    /// The fault of a commit to come, and how many come before it.
    pub(super) fault: Option<(u32, Fault)>,
    pub(super) pin_latches: HashMap<Place, State>,
    pub(super) interleaves: bool,
    pub(super) next_load_fails: bool,
    pub(super) clock_shift: SignedDuration,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Row {
    Key(KeyId),
    Class(ClassName),
    AccessToken(String),
    RoleBinding(KeyId),
    Policy(u32),
    Proposal(proposal::Id),
    Quarantined(String, Vec<u8>),
    Use(KeyId, u32),
    Report(KeyId, KeyId),
    Epoch,
}

impl Rows {
    pub(super) fn snapshot(&self, since: Option<Generation>) -> Snapshot {
        let changed =
            |row: Row| since.is_none_or(|since| self.written.get(&row).is_some_and(|at| *at > since));
        let keys = self.keys.values().filter(|(key, _)| changed(Row::Key(key.id.clone())));
        let classes = self.classes.values().filter(|class| changed(Row::Class(class.name)));
        let tokens = self.access_tokens.iter().filter(|token| changed(Row::AccessToken(token.name.clone())));
        let bindings = self.role_bindings.values().filter(|row| changed(Row::RoleBinding(row.name.clone())));
        let policies = self.policies.iter().filter(|row| changed(Row::Policy(row.version)));
        let proposals = self.proposals.values().filter(|row| changed(Row::Proposal(row.id.clone())));
        let quarantined = self.quarantined.iter();
        let quarantined =
            quarantined.filter(|((token, id), _)| changed(Row::Quarantined(token.clone(), id.clone())));
        let uses = self.uses.values().filter(|used| changed(Row::Use(used.key.clone(), used.version)));
        let reports = self.usage_reports.values();
        let reports = reports.filter(|said| changed(Row::Report(said.key.clone(), said.consumer.clone())));
        Snapshot {
            generation: self.generation,
            keys: keys.cloned().collect(),
            classes: classes.copied().collect(),
            access_tokens: tokens.cloned().collect(),
            role_bindings: bindings.cloned().collect(),
            policies: policies.cloned().collect(),
            proposals: proposals.cloned().collect(),
            epoch: self.epoch.filter(|_| changed(Row::Epoch)),
            quarantined: quarantined.map(|(_, object)| object.clone()).collect(),
            uses: uses.cloned().collect(),
            usage_reports: reports.cloned().collect(),
        }
    }

    pub(super) fn pulse(&mut self, beat: Beat, now: Timestamp) -> Pulse {
        let Beat { replica: id, generation, leads, report } = beat;
        self.replicas.insert(id.clone(), Replica { id: id.clone(), seen_at: now, generation, report });
        match &self.holder {
            Some(holder) if *holder == id && !leads => self.holder = None,
            Some(holder) if *holder == id || self.lives(holder, now) => {}
            _ if leads => (self.holder, self.lease) = (Some(id), LeaseToken(self.lease.0 + 1)),
            _ => {}
        }
        let holder = self.holder.clone().filter(|holder| self.lives(holder, now));
        let live = self.replicas.values().filter(|replica| self.lives(&replica.id, now));
        Pulse {
            generation: self.generation,
            now,
            lease: holder.map(|holder| Lease { holder, token: self.lease }),
            replicas: live.cloned().collect(),
        }
    }

    /// Whether every live replica that serves, but one, has `generation`.
    pub(super) fn is_everywhere(&self, generation: Generation, but: &ReplicaId, now: Timestamp) -> bool {
        let lags = |replica: &Replica| replica.generation.is_some_and(|known| known < generation);
        !self.replicas.values().any(|other| other.id != *but && self.lives(&other.id, now) && lags(other))
    }

    pub(super) fn check_lease(&self, lease: Option<LeaseToken>) -> Result<(), Fault> {
        match lease {
            Some(token) if token != self.lease => Err(Fault::Changed("the lease".to_owned())),
            _ => Ok(()),
        }
    }

    pub(super) fn forget_replicas(&mut self) {
        self.replicas.clear();
        self.holder = None;
    }

    fn lives(&self, id: &ReplicaId, now: Timestamp) -> bool {
        let seen = self.replicas.get(id).map(|replica| replica.seen_at);
        seen.is_some_and(|at| now.duration_since(at).unsigned_abs() <= LIVE_MAX)
    }

    /// The fault of the write under way: as an error one that writes nothing, else one that only loses the answer.
    pub(super) fn due_fault(&mut self) -> Result<Option<Fault>, Fault> {
        match self.fault.take() {
            Some((0, fault @ Fault::Unknown(_))) => Ok(Some(fault)),
            Some((0, fault)) => Err(fault),
            Some((more, fault)) => {
                self.fault = Some((more - 1, fault));
                Ok(None)
            }
            None => Ok(None),
        }
    }

    pub(super) fn apply(&mut self, write: Write) -> Result<(), Fault> {
        self.written.insert(Row::of(&write), Generation(self.generation.0 + 1));
        match write {
            Write::InsertKey(key) if self.keys.contains_key(&key.id) => {
                Err(Fault::Exists(format!("keys/{}", key.id)))
            }
            Write::InsertKey(key) => {
                self.keys.insert(key.id.clone(), (key, Vec::new()));
                Ok(())
            }
            Write::UpdateKey(key) => match self.keys.get_mut(&key.id) {
                Some((row, _)) if row.revision + 1 == key.revision => {
                    *row = key;
                    Ok(())
                }
                _ => Err(Fault::Changed(format!("keys/{}", key.id))),
            },
            Write::InsertVersion(id, version) => {
                let shares = |row: &KeyVersion| {
                    row.cka_id == version.cka_id && row.token_serial == version.token_serial
                };
                if self.keys.values().flat_map(|(_, versions)| versions).any(shares) {
                    return Err(Fault::Exists(format!("CKA_ID {}", version.cka_id)));
                }
                let versions = self.versions(&id)?;
                let taken = |row: &KeyVersion| row.number == version.number || row.born.is_none();
                if versions.iter().any(taken) {
                    return Err(Fault::Exists(format!("keys/{id}/versions/{}", version.number)));
                }
                versions.push(version);
                Ok(())
            }
            Write::UpdateVersion(id, version) => {
                let row = self.versions(&id)?.iter_mut().find(|row| row.number == version.number);
                let row = row.ok_or_else(|| Fault::Changed(format!("keys/{id}/versions")))?;
                *row = version;
                Ok(())
            }
            Write::PutClass(class) => {
                let stored = self.classes.get(&class.name).map_or(0, |class| class.revision);
                if stored + 1 != class.revision {
                    return Err(Fault::Changed(format!("key class {}", class.name)));
                }
                self.classes.insert(class.name, class);
                Ok(())
            }
            Write::InsertAccessToken(token) => {
                let taken = |row: &AccessToken| row.name == token.name || (row.bootstrap && token.bootstrap);
                if self.access_tokens.iter().any(taken) {
                    return Err(Fault::Exists(format!("accessTokens/{}", token.name)));
                }
                self.access_tokens.push(token);
                Ok(())
            }
            Write::RevokeAccessToken { name, at } => {
                let valid = |row: &&mut AccessToken| row.name == name && row.revoked_at.is_none();
                let row = self.access_tokens.iter_mut().find(valid);
                row.ok_or_else(|| Fault::Changed(format!("accessTokens/{name}")))?.revoked_at = Some(at);
                Ok(())
            }
            Write::RenewAccessToken { name, from, to } => {
                let valid = |row: &&mut AccessToken| {
                    row.name == name && row.revoked_at.is_none() && row.expires_at == Some(from)
                };
                let row = self.access_tokens.iter_mut().find(valid);
                row.ok_or_else(|| Fault::Changed(format!("accessTokens/{name}")))?.expires_at = Some(to);
                Ok(())
            }
            Write::InsertRoleBinding(binding) if self.role_bindings.contains_key(&binding.name) => {
                Err(Fault::Exists(format!("roleBindings/{}", binding.name)))
            }
            Write::InsertRoleBinding(binding) => {
                self.role_bindings.insert(binding.name.clone(), binding);
                Ok(())
            }
            Write::RevokeRoleBinding { name, at } => {
                let row = self.role_bindings.get_mut(&name).filter(|row| row.revoked_at.is_none());
                row.ok_or_else(|| Fault::Changed(format!("roleBindings/{name}")))?.revoked_at = Some(at);
                Ok(())
            }
            Write::InsertPolicy(document) => {
                if self.policies.last().map_or(0, |last| last.version) + 1 != document.version {
                    return Err(Fault::Changed("the policy".to_owned()));
                }
                self.policies.push(document);
                Ok(())
            }
            Write::InsertProposal(proposal) if self.proposals.contains_key(&proposal.id) => {
                Err(Fault::Exists(format!("proposals/{}", proposal.id)))
            }
            Write::InsertProposal(proposal) => {
                self.proposals.insert(proposal.id.clone(), proposal);
                Ok(())
            }
            Write::UpdateProposal(proposal) => match self.proposals.get_mut(&proposal.id) {
                Some(row) if row.revision + 1 == proposal.revision => {
                    let Proposal { votes, state, state_at, reason, revision, .. } = proposal;
                    *row = Proposal { votes, state, state_at, reason, revision, ..row.clone() };
                    Ok(())
                }
                _ => Err(Fault::Changed(format!("proposals/{}", proposal.id))),
            },
            Write::InsertEpoch(_) if self.epoch.is_some() => Err(Fault::Exists("the epoch".to_owned())),
            Write::InsertEpoch(epoch) => {
                self.epoch = Some(epoch);
                Ok(())
            }
            Write::MoveEpoch { past, nonce } => {
                let epoch = self.epoch.as_mut().ok_or_else(|| Fault::Changed("the epoch".to_owned()))?;
                epoch.value = epoch.value.max(past) + 1;
                epoch.nonce = nonce;
                Ok(())
            }
            Write::ConfirmEpoch { value } => match &mut self.epoch {
                Some(epoch) if epoch.value >= value => {
                    // Another replica may have confirmed a later one.
                    epoch.in_token = epoch.in_token.max(value);
                    Ok(())
                }
                _ => Err(Fault::Changed("the epoch".to_owned())),
            },
            Write::ReserveWraps { key, version, from, to } => {
                let row = self.version_use(key, version);
                if row.reserved != from {
                    return Err(Fault::Changed(format!("the budget of keys/{}/versions/{version}", row.key)));
                }
                row.reserved = to;
                Ok(())
            }
            Write::NoteUse { key, version, wrapped_at, unwrapped_at } => {
                let row = self.version_use(key, version);
                row.wrapped_at = row.wrapped_at.max(wrapped_at);
                row.unwrapped_at = row.unwrapped_at.max(unwrapped_at);
                Ok(())
            }
            Write::PutUsageReport(report) => {
                self.usage_reports.insert((report.key.clone(), report.consumer.clone()), report);
                Ok(())
            }
            Write::Quarantine(object) => {
                let place = (object.token_serial.clone(), object.cka_id.clone());
                if self.quarantined.contains_key(&place) {
                    return Err(Fault::Exists("the record of this object".to_owned()));
                }
                self.quarantined.insert(place, object);
                Ok(())
            }
        }
    }

    fn version_use(&mut self, key: KeyId, version: u32) -> &mut VersionUse {
        let unused =
            VersionUse { key: key.clone(), version, reserved: 0, wrapped_at: None, unwrapped_at: None };
        self.uses.entry((key, version)).or_insert(unused)
    }

    fn versions(&mut self, id: &KeyId) -> Result<&mut Vec<KeyVersion>, Fault> {
        self.keys
            .get_mut(id)
            .map(|(_, versions)| versions)
            .ok_or_else(|| Fault::Changed(format!("keys/{id}")))
    }
}

impl Row {
    fn of(write: &Write) -> Self {
        match write {
            Write::InsertKey(key) | Write::UpdateKey(key) => Self::Key(key.id.clone()),
            Write::InsertVersion(id, _) | Write::UpdateVersion(id, _) => Self::Key(id.clone()),
            Write::PutClass(class) => Self::Class(class.name),
            Write::InsertAccessToken(token) => Self::AccessToken(token.name.clone()),
            Write::RevokeAccessToken { name, .. } | Write::RenewAccessToken { name, .. } => {
                Self::AccessToken(name.clone())
            }
            Write::InsertRoleBinding(binding) => Self::RoleBinding(binding.name.clone()),
            Write::RevokeRoleBinding { name, .. } => Self::RoleBinding(name.clone()),
            Write::InsertPolicy(document) => Self::Policy(document.version),
            Write::InsertProposal(proposal) | Write::UpdateProposal(proposal) => {
                Self::Proposal(proposal.id.clone())
            }
            Write::ReserveWraps { key, version, .. } | Write::NoteUse { key, version, .. } => {
                Self::Use(key.clone(), *version)
            }
            Write::PutUsageReport(report) => Self::Report(report.key.clone(), report.consumer.clone()),
            Write::InsertEpoch(_) | Write::MoveEpoch { .. } | Write::ConfirmEpoch { .. } => Self::Epoch,
            Write::Quarantine(object) => {
                Self::Quarantined(object.token_serial.clone(), object.cka_id.clone())
            }
        }
    }
}
