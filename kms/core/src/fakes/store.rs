//! Rows in memory, with every expectation checked, which can be made to fail or to lose its answer.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use crate::{
    Key, KeyId, KeyVersion,
    epoch::Epoch,
    pin_latch::{Place, State},
    replica::{Beat, Lease, LeaseToken, Pulse, Replica, ReplicaId},
    store::{
        AccessToken, Fault, Generation, QuarantinedObject, RememberedRequest, Snapshot, Store, Transaction,
        Write,
    },
    time::Timestamp,
};

/// Rows in memory.
#[derive(Default)]
pub struct MemoryStore(Mutex<Rows>);

#[derive(Default, Clone)]
struct Rows {
    generation: Generation,
    keys: BTreeMap<KeyId, (Key, Vec<KeyVersion>)>,
    access_tokens: Vec<AccessToken>,
    quarantined: BTreeMap<(String, Vec<u8>), QuarantinedObject>,
    requests: HashMap<String, RememberedRequest>,
    epoch: Option<Epoch>,
    /// The fault of a commit to come, and how many come before it.
    fault: Option<(u32, Fault)>,
    pin_latches: HashMap<Place, State>,
    pin_latches_interleave: bool,
    next_load_fails: bool,
}

impl MemoryStore {
    /// The next write fails with `fault`, as in [`MemoryStore::fail_after`].
    pub fn fail_next(&self, fault: Fault) {
        self.fail_after(0, fault);
    }

    /// After `commits` that succeed, one fails with `fault`. It writes nothing, unless its outcome is unknown.
    pub fn fail_after(&self, commits: u32, fault: Fault) {
        self.lock().fault = Some((commits, fault));
    }

    /// The next write is written, but its answer is lost.
    pub fn lose_next_answer(&self) {
        self.fail_next(Fault::Unknown("the answer was lost".to_owned()));
    }

    /// The rows as they are now, in a store of their own: a backup.
    pub fn copy(&self) -> Self {
        Self(Mutex::new(self.lock().clone()))
    }

    /// From now on whoever has read a PIN latch lets others read it too before going on.
    pub fn interleave_pin_latches(&self) {
        self.lock().pin_latches_interleave = true;
    }

    /// The next load fails.
    pub fn fail_next_load(&self) {
        self.lock().next_load_fails = true;
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Arc<MemoryStore> {
    async fn load(&self, _since: Option<Generation>) -> Result<Snapshot, Fault> {
        let mut rows = self.lock();
        if std::mem::take(&mut rows.next_load_fails) {
            return Err(Fault::Unavailable("set by the test".to_owned()));
        }
        Ok(Snapshot {
            generation: rows.generation,
            keys: rows.keys.values().cloned().collect(),
            access_tokens: rows.access_tokens.clone(),
            epoch: rows.epoch,
            quarantined: rows.quarantined.values().cloned().collect(),
        })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Generation, Fault> {
        let mut rows = self.lock();
        let fault = rows.due_fault()?;
        let mut next = rows.clone();
        for write in transaction.writes {
            next.apply(write)?;
        }
        if let Some(request) = transaction.request
            && next.requests.insert(request.id.clone(), request).is_some()
        {
            return Err(Fault::Exists("this request_id".to_owned()));
        }
        next.generation.0 += 1;
        *rows = next;
        fault.map_or(Ok(rows.generation), Err)
    }

    async fn request(&self, id: &str) -> Result<Option<RememberedRequest>, Fault> {
        Ok(self.lock().requests.get(id).cloned())
    }

    async fn forget_requests(&self, before: Timestamp) -> Result<u64, Fault> {
        let mut rows = self.lock();
        let count = rows.requests.len();
        rows.requests.retain(|_, request| request.at >= before);
        Ok((count - rows.requests.len()) as u64)
    }

    async fn pin_latch(&self, place: &Place) -> Result<State, Fault> {
        let (state, interleave) = {
            let rows = self.lock();
            let state = rows.pin_latches.get(place).cloned().unwrap_or(State::UNTRIED);
            (state, rows.pin_latches_interleave)
        };
        if interleave {
            let mut others_had_a_turn = false;
            std::future::poll_fn(|context| {
                if std::mem::replace(&mut others_had_a_turn, true) {
                    return Poll::Ready(());
                }
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        }
        Ok(state)
    }

    async fn set_pin_latch(&self, place: &Place, expected: State, new: State) -> Result<(), Fault> {
        let mut rows = self.lock();
        let fault = rows.due_fault()?;
        if *rows.pin_latches.get(place).unwrap_or(&State::UNTRIED) != expected {
            return Err(Fault::Changed(place.to_string()));
        }
        rows.pin_latches.insert(place.clone(), new);
        fault.map_or(Ok(()), Err)
    }

    async fn check(&self) -> Result<Generation, Fault> {
        Ok(self.lock().generation)
    }

    async fn pulse(&self, beat: Beat) -> Result<Pulse, Fault> {
        let Beat { replica, generation: known, report, .. } = beat;
        let (generation, now) = (self.lock().generation, Timestamp::UNIX_EPOCH);
        let lease = Some(Lease { holder: replica.clone(), token: LeaseToken(0) });
        let replicas = vec![Replica { id: replica, seen_at: now, generation: known, report }];
        Ok(Pulse { generation, now, lease, replicas })
    }

    async fn changed(&self, _known: Generation, _at_most: Duration) {}

    async fn propagated(&self, _generation: Generation, _but: &ReplicaId, _at_most: Duration) {}
}

impl Rows {
    /// The fault of the write under way: as an error one that writes nothing, else one that only loses the answer.
    fn due_fault(&mut self) -> Result<Option<Fault>, Fault> {
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

    fn apply(&mut self, write: Write) -> Result<(), Fault> {
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
                    epoch.in_token = value;
                    Ok(())
                }
                _ => Err(Fault::Changed("the epoch".to_owned())),
            },
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

    fn versions(&mut self, id: &KeyId) -> Result<&mut Vec<KeyVersion>, Fault> {
        self.keys
            .get_mut(id)
            .map(|(_, versions)| versions)
            .ok_or_else(|| Fault::Changed(format!("keys/{id}")))
    }
}
