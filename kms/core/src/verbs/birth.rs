//! Birth: how a key version comes to be, so that no crash loses one and none is served that cannot sign.
//!
//! Write-ahead, in five steps: (1) a CREATING row with a fresh random CKA_ID, durable; (2) generate in the HSM;
//! (3) find by CKA_ID exactly one object of each class, compare the template, let the key prove itself (a pair signs a
//! challenge that verifies, or opens one that was encrypted to it; a secret key opens what it wrapped), and for a key of
//! bundles let the version before it say that this one is next;
//! (4) the row becomes live, durable; (5) answer. A crash in between leaves a CREATING row, from which a birth
//! resumes: it searches before it generates, and an attempt that is given up keeps its CKA_ID on record, so that
//! an object that arrives late is known as an orphan. Nothing is ever destroyed here. The row names its maker, the
//! replica at work on it; how others wait for it, and when they take over, stands in `resumption.rs`.

use std::sync::Arc;

use kms_envelope::SecretBytes;

use crate::{
    Algorithm, AuditLog, Clock, Error, Failpoint, Grant, Hsm, KeyId, KeyVersion, Kms, Store,
    error::Kind,
    gate::SystemWork,
    hsm::{CkaId, Fault, Found, KekRef, KnownAnswer, NewKey, SecretKeyRef, Usage},
    key::{Born, Key, Material},
    key_wrap,
    replica::LeaseToken,
    signature::{self, PublicKey},
    time::Deadline,
    timeline,
    verbs::resumption::AtWork,
};

/// How often the last step is tried again when somebody else changes the key meanwhile.
const COMMIT_ATTEMPTS_MAX: usize = 8;

/// How many attempts may leave objects behind in the HSM before no more are made: somebody must look at them first.
const LEFT_BEHIND_MAX: usize = 8;

/// How many attempts may be given up at all. Those of a token that is full or away leave nothing behind, and it
/// must heal by itself: with the longest pause in between, these last for a week.
const ATTEMPTS_MAX: usize = 1_000;

/// Whether the HSM may hold something under the row's CKA_ID already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The row was written a moment ago, by us.
    Fresh,
    /// Somebody began before us: search first.
    Resumed,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Steps 2 to 4 for a CREATING row.
    pub(super) async fn give_birth(
        &self,
        grant: &Grant,
        at_work: AtWork<'_, H, S, A, C>,
        attempt: Attempt,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let (id, number) = at_work.birth();
        let lease = at_work.lease();
        let deadline = deadline.later(self.settings.birth_grace);
        if self.catalog.entry(id)?.version(number)?.row.born.is_some() {
            return Ok(());
        }
        Failpoint::BirthBegun.reached();
        let found = match attempt {
            Attempt::Fresh => None,
            Attempt::Resumed => {
                self.take_over(id, number, lease).await?;
                self.search(grant, id, number, lease, deadline).await?
            }
        };
        let newborn = match found {
            Some(newborn) => newborn,
            None => self.generate(grant, id, number, deadline).await?,
        };
        let proved = self.prove(id, newborn, deadline).await?;
        let cross_signature = match &proved.public {
            Some(pair) => self.cross_sign(id, number, pair, deadline).await?,
            None => None,
        };
        Failpoint::BirthChallenged.reached();
        self.commit_birth(id, number, &proved, cross_signature, lease).await?;
        Failpoint::BirthEnded.reached();
        Ok(())
    }

    /// Looks for what an earlier attempt left. A whole key is taken over; anything else is given up, and the
    /// row gets a fresh CKA_ID before the next attempt.
    async fn search(
        &self,
        grant: &Grant,
        id: &KeyId,
        number: u32,
        lease: Option<LeaseToken>,
        deadline: Deadline,
    ) -> Result<Option<Newborn>, Error> {
        let entry = self.catalog.entry(id)?;
        let row = &entry.version(number)?.row;
        let found = self.hsm.find(grant, row.cka_id, deadline).await?;
        Failpoint::BirthSearched.reached();
        let token_serial = self.hsm.token_serial();
        let whole = match self.catalog.now().quarantined(&token_serial, row.cka_id.as_bytes()) {
            Some(_) => Err("its CKA_ID is quarantined"),
            None => whole_key(entry.key.algorithm, &found),
        };
        match whole {
            Ok(spki) => Newborn::of(entry.key.algorithm, row.cka_id, spki).map(Some),
            Err(reason) => {
                tracing::warn!(key = %id, version = number, cka_id = %row.cka_id, reason, "giving up an attempt");
                self.check_attempts(grant, id, row, &found, deadline).await?;
                self.begin_attempt(&entry.key, row, lease).await?;
                Ok(None)
            }
        }
    }

    /// Refuses another attempt when too many have left something in the token. The token is asked, so that a birth
    /// goes on once the leftovers are cleared away.
    async fn check_attempts(
        &self,
        grant: &Grant,
        id: &KeyId,
        row: &KeyVersion,
        found: &Found,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let given_up = |why: String| {
            let text = format!(
                "keys/{id}/versions/{} {why}; the server's log says what was wrong, `kms doctor` what the token can \
                 do, and `kms hsm inventory` what is left of the attempts",
                row.number
            );
            Err(Error::precondition("BIRTH_GIVEN_UP", text))
        };
        let attempts = row.earlier_attempts.len() + 1;
        if attempts > ATTEMPTS_MAX {
            return given_up(format!("was begun {attempts} times in vain"));
        }
        let is_left =
            |found: &Found| !found.private.is_empty() || !found.public.is_empty() || !found.secret.is_empty();
        let mut left = usize::from(is_left(found));
        if attempts < LEFT_BEHIND_MAX {
            return Ok(());
        }
        for earlier in &row.earlier_attempts {
            left += usize::from(is_left(&self.hsm.find(grant, *earlier, deadline).await?));
            if left >= LEFT_BEHIND_MAX {
                return given_up(format!("was generated {left} times and was never as it must be"));
            }
        }
        Ok(())
    }

    async fn begin_attempt(
        &self,
        key: &Key,
        row: &KeyVersion,
        lease: Option<LeaseToken>,
    ) -> Result<(), Error> {
        let mut row = row.clone();
        row.earlier_attempts.push(row.cka_id);
        row.cka_id = CkaId::from_bytes(self.random()?);
        row.token_serial = self.hsm.token_serial();
        row.maker = Some(self.replica.clone());
        self.write_versions("begin another attempt", key, vec![row], lease).await?;
        Failpoint::BirthAttemptBegun.reached();
        Ok(())
    }

    async fn generate(
        &self,
        grant: &Grant,
        id: &KeyId,
        number: u32,
        deadline: Deadline,
    ) -> Result<Newborn, Error> {
        let entry = self.catalog.entry(id)?;
        let algorithm = entry.key.algorithm;
        let cka_id = entry.version(number)?.row.cka_id;
        let label = format!("{id}/{number}");
        let new = NewKey { id: cka_id, label, spec: algorithm.key_spec(), usage: algorithm.usage() };
        Failpoint::BirthGenerating.reached();
        let generated = self.hsm.generate(grant, &new, deadline).await;
        generated.inspect_err(|fault| {
            tracing::warn!(key = %id, version = number, %fault, "the HSM did not generate");
        })?;
        Failpoint::BirthGenerated.reached();
        let found = self.hsm.find(grant, cka_id, deadline).await?;
        Failpoint::BirthFound.reached();
        let spki = whole_key(algorithm, &found).map_err(|reason| {
            tracing::error!(key = %id, version = number, %cka_id, reason, "a generated key is not as it must be");
            Error::internal("the HSM generated a key that is not as it must be; it is not used")
        })?;
        Newborn::of(algorithm, cka_id, spki)
    }

    /// The new key proves itself.
    async fn prove(&self, id: &KeyId, newborn: Newborn, deadline: Deadline) -> Result<Proved, Error> {
        let (cka_id, public) = match newborn {
            Newborn::Pair(pair) => (pair.key_ref().id, Some(pair)),
            Newborn::Secret(cka_id) => (cka_id, None),
        };
        let material = match &public {
            Some(pair) => {
                if pair.algorithm().is_key_wrap() {
                    self.challenge_to_open(id, pair, deadline).await?;
                } else {
                    self.challenge_to_sign(id, pair, deadline).await?;
                }
                Material::Pair { spki: Arc::clone(pair.spki()), kid: pair.jwk().kid() }
            }
            None => Material::Secret { known_answer: self.learn_answer(id, cka_id, deadline).await? },
        };
        Ok(Proved { cka_id, material, public })
    }

    /// A secret key says how it is known again, then wraps a random challenge and opens it, by that. Under another IV or
    /// AAD it must not open.
    async fn learn_answer(
        &self,
        id: &KeyId,
        cka_id: CkaId,
        deadline: Deadline,
    ) -> Result<KnownAnswer, Error> {
        let unproved = || Error::internal("a new key does not open what it wrapped; it is not used");
        let grant = self.gate.system(SystemWork::Birth, Some(id), self.clock.now());
        let unknown = SecretKeyRef { id: cka_id, known_answer: None };
        let (text, aad) = (SecretBytes::new(KnownAnswer::TEXT.to_vec()), KnownAnswer::aad(cka_id));
        let answer = self.hsm.wrap_key(&grant, &unknown, text, aad, deadline).await?;
        let answer = answer.into_ours();
        let known_answer = KnownAnswer::from_bytes(&answer).ok_or_else(unproved)?;
        let key = SecretKeyRef::new(cka_id, known_answer.clone());
        let (challenge, aad) = (self.random::<32>()?, self.random::<16>()?.to_vec());
        let text = SecretBytes::new(challenge.to_vec());
        let wrapped = self.hsm.wrap_key(&grant, &key, text, aad.clone(), deadline).await?.into_ours();
        let key = KekRef::Secret(key);
        let opened =
            self.hsm.unwrap_key(&grant, &key, wrapped.clone(), aad.clone(), deadline).await?.into_ours();
        if opened.expose_secret() != challenge {
            return Err(unproved());
        }
        // Sealing alone does not show what a module ignores: it ignores the same when it opens.
        let (other_iv, other_aad) = (changed_at_its_start(&wrapped), changed_at_its_start(&aad));
        for (wrapped, aad, ignored) in [(other_iv, aad, "IV"), (wrapped, other_aad, "AAD")] {
            match self.hsm.unwrap_key(&grant, &key, wrapped, aad, deadline).await {
                Err(Fault::NotOpened) => {}
                Err(fault) => return Err(fault.into()),
                Ok(_) => {
                    tracing::error!(key = %id, %cka_id, ignored, "the HSM's AES-GCM ignores a parameter");
                    let text = "a new key opens under another IV or AAD than it wrapped with; it is not used";
                    return Err(Error::internal(text));
                }
            }
        }
        Ok(known_answer)
    }

    /// A pair that wraps opens a random challenge that was encrypted to the public key we read.
    async fn challenge_to_open(&self, id: &KeyId, pair: &PublicKey, deadline: Deadline) -> Result<(), Error> {
        let (challenge, aad) = (self.random::<32>()?, self.random::<16>()?.to_vec());
        let wrapped = key_wrap::oaep_encrypt(pair.spki(), &challenge, &aad)?;
        let grant = self.gate.system(SystemWork::Birth, Some(id), self.clock.now());
        let key = KekRef::Pair(pair.key_ref().clone());
        let opened = self.hsm.unwrap_key(&grant, &key, wrapped, aad, deadline).await?.into_ours();
        if opened.expose_secret() == challenge {
            return Ok(());
        }
        Err(Error::internal("a new key does not open what was encrypted to it; it is not used"))
    }

    /// A pair that signs signs a random challenge that verifies under the public key we read.
    async fn challenge_to_sign(&self, id: &KeyId, pair: &PublicKey, deadline: Deadline) -> Result<(), Error> {
        let algorithm = pair.algorithm();
        let input = signature::input_of(algorithm, &self.random::<32>()?);
        let grant = self.gate.system(SystemWork::Birth, Some(id), self.clock.now());
        let signature = self.hsm.sign(&grant, pair.key_ref(), algorithm, input.clone(), deadline).await?;
        signature
            .try_map(|signature| pair.verifies(&input, &signature).then_some(()).ok_or(()))
            .map(drop)
            .map_err(|()| Error::internal("a new key's signature does not verify; it is not used"))
    }

    /// Step 4. The key may have been changed since step 1 (labels, say): then the step is taken again on the
    /// newer row.
    async fn commit_birth(
        &self,
        id: &KeyId,
        number: u32,
        proved: &Proved,
        cross_signature: Option<Arc<str>>,
        lease: Option<LeaseToken>,
    ) -> Result<(), Error> {
        for _ in 1..COMMIT_ATTEMPTS_MAX {
            match self.try_commit_birth(id, number, proved, cross_signature.clone(), lease).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                outcome => return outcome,
            }
        }
        self.try_commit_birth(id, number, proved, cross_signature, lease).await
    }

    async fn try_commit_birth(
        &self,
        id: &KeyId,
        number: u32,
        proved: &Proved,
        cross_signature: Option<Arc<str>>,
        lease: Option<LeaseToken>,
    ) -> Result<(), Error> {
        let now = self.time_for_all().await?;
        let entry = self.catalog.entry(id)?;
        let row = &entry.version(number)?.row;
        if row.born.is_some() {
            return Ok(());
        }
        // Another attempt may have begun unseen: a commit's answer was lost, or another replica took this maker for dead.
        // What was proved is not this row's then. As long as it is, it does not matter which of the two ends the birth:
        // both have proved the one pair that was ever generated under this CKA_ID.
        if row.cka_id != proved.cka_id {
            return Err(Error::unavailable(
                "BIRTH_OVERTAKEN",
                "another attempt at this birth has begun; retry",
            ));
        }
        let timeline = timeline::of_next(&entry, now, row.takes_over, self.sets_kept());
        let born = Born { material: proved.material.clone(), timeline };
        let born = KeyVersion { born: Some(born), maker: None, cross_signature, ..row.clone() };
        let changed = timeline::with(&entry, &[born], now);
        // A first version takes nothing from anybody; a later one takes over.
        match number {
            1 => self.write_versions("end birth", &entry.key, changed, lease).await,
            _ => self.write_versions_moving("end birth", &entry.key, changed, lease).await,
        }
    }
}

/// What lies in the token under a row's CKA_ID, whole and of the right template, and has not proved itself yet.
enum Newborn {
    Pair(Box<PublicKey>),
    Secret(CkaId),
}

/// A key that has.
struct Proved {
    cka_id: CkaId,
    material: Material,
    /// The public half of a pair.
    public: Option<Box<PublicKey>>,
}

impl Newborn {
    fn of(algorithm: Algorithm, cka_id: CkaId, spki: Option<Vec<u8>>) -> Result<Self, Error> {
        Ok(match spki {
            Some(spki) => Self::Pair(Box::new(PublicKey::from_spki(algorithm, cka_id, &spki)?)),
            None => Self::Secret(cka_id),
        })
    }
}

fn changed_at_its_start(bytes: &[u8]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    changed.iter_mut().take(1).for_each(|byte| *byte ^= 1);
    changed
}

/// The public key of a pair that is complete and as it must be, nothing of a secret key that is, or what is wrong.
fn whole_key(algorithm: Algorithm, found: &Found) -> Result<Option<Vec<u8>>, &'static str> {
    let (key, spki) = match (found.private.as_slice(), found.public.as_slice(), found.secret.as_slice()) {
        ([], [], []) => return Err("nothing is there"),
        ([private], [spki], []) if algorithm.usage() != Usage::EncryptDecrypt => (private, Some(spki)),
        ([], [], [secret]) if algorithm.usage() == Usage::EncryptDecrypt => (secret, None),
        _ => return Err("not exactly one object of each class is there"),
    };
    match key.deviation(algorithm.usage()) {
        None if spki.is_some_and(Vec::is_empty) => Err("its public key is of no kind that is ours"),
        None => Ok(spki.cloned()),
        Some(deviation) => Err(deviation),
    }
}
