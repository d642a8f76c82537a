//! CreateKey: the row, then the birth of version 1.

use crate::{
    Action, Admission, Algorithm, AuditLog, Caller, Clock, Error, Hsm, Key, KeyId, KeyUid, KeyVersion, Kms,
    Store, Unsettled,
    claim_rules::ClaimRules,
    class::{AskedPeriods, ClassName},
    error::Kind,
    hsm::{CkaId, Fault},
    key::{Labels, Purpose, TakeOver},
    kms::KeyView,
    policy::Traits,
    store::{self, Transaction, Write},
    time::Deadline,
    verbs::{
        birth::Attempt,
        requests::{Fingerprint, Request, label_text, rules_text},
        resumption::still_being_made,
        update_key::{check_has_contexts, check_labels, check_owner, check_required_context},
    },
};

/// A key to be made.
#[derive(Debug, Clone)]
pub struct CreateKey {
    /// Its name.
    pub id: KeyId,
    /// What it signs or wraps with, for ever.
    pub algorithm: Algorithm,
    /// What it is for, for ever.
    pub purpose: Purpose,
    /// Where the periods come from that are not asked for.
    pub class: ClassName,
    /// Whom to ask about it.
    pub owner: String,
    /// Labels.
    pub labels: Labels,
    /// Periods of its own.
    pub periods: AskedPeriods,
    /// What its tokens must say.
    pub claim_rules: ClaimRules,
    /// Names that the encryption context of each of its wraps must have.
    pub required_context: Vec<String>,
    /// The guards.
    pub request: Request,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Makes a key and its first version in the HSM. Run it detached: it must not be cut off.
    pub async fn create_key(
        &self,
        caller: &Caller,
        request: CreateKey,
        deadline: Deadline,
    ) -> Result<KeyView, Error> {
        let now = self.clock.now();
        let traits = request.traits();
        let mut admission =
            self.gate.begin_making(caller, Action::CreateKey, &request.id, traits, now).await?;
        let result = self.create_admitted(&mut admission, caller, request, deadline).await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    async fn create_admitted(
        &self,
        admission: &mut Admission<A>,
        caller: &Caller,
        request: CreateKey,
        deadline: Deadline,
    ) -> Result<KeyView, Error> {
        let id = request.id.clone();
        admission.uses_version(1);
        let fingerprint = request.fingerprint();
        let mut lost = None;
        loop {
            if self.replayed(caller, &request.request, &fingerprint).await?.is_some() {
                self.see_born(admission, &id, 1, deadline).await?;
                break;
            }
            if let Some(error) = lost {
                return Err(error);
            }
            let Some(at_work) = self.begin_work(&id, 1, None) else {
                if self.catalog.entry(&id).is_ok() {
                    return Err(store::Fault::Exists(format!("keys/{id}")).into());
                }
                self.wait_for_change(deadline, || still_being_made(&id, 1)).await?;
                continue;
            };
            match self.insert_key(caller, request.clone(), &fingerprint).await {
                Ok(()) => {
                    self.give_birth(admission, at_work, Attempt::Fresh, deadline).await?;
                    break;
                }
                // Another replica may have been asked the same at once.
                Err(error) if error.kind() == Kind::Conflict => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        Ok(KeyView::of(&*self.catalog.entry(&id)?, self.clock.now()))
    }

    async fn insert_key(
        &self,
        caller: &Caller,
        request: CreateKey,
        fingerprint: &Fingerprint,
    ) -> Result<(), Error> {
        check_purpose(request.purpose, request.algorithm)?;
        check_has_contexts(request.purpose, &request.required_context)?;
        // Before the name is taken: a birth that can never succeed should not be begun.
        if !self.hsm.supports(request.algorithm) {
            return Err(Fault::Unsupported(request.algorithm.to_string()).into());
        }
        let now = self.clock.now();
        let remembered = request.request.remember(caller, fingerprint, &request.id, Some(1), now);
        let (periods, inherited) = request.periods.under(&self.catalog.now().class(request.class).periods);
        periods.check()?;
        request.claim_rules.check()?;
        let key = Key {
            uid: KeyUid(self.random()?),
            algorithm: request.algorithm,
            purpose: request.purpose,
            class: request.class,
            inherited,
            owner: check_owner(request.owner)?,
            labels: check_labels(request.labels)?,
            rotation_period: periods.rotation_period,
            publish_lead: periods.publish_lead,
            max_token_ttl: periods.max_token_ttl,
            overlap: periods.overlap,
            destroy_after: periods.destroy_after,
            claim_rules: request.claim_rules,
            required_context: check_required_context(request.required_context)?,
            tokens_until: None,
            bundles_until: None,
            created_at: now,
            updated_at: now,
            revision: 1,
            id: request.id,
        };
        let version = self.new_version(1, TakeOver::AfterLead)?;
        let id = key.id.clone();
        let writes = vec![Write::InsertKey(key), Write::InsertVersion(id, version)];
        self.commit(Transaction { request: remembered, ..Transaction::new("begin birth of a key", writes) })
            .await
    }

    /// A CREATING row with a fresh CKA_ID.
    pub(super) fn new_version(&self, number: u32, takes_over: TakeOver) -> Result<KeyVersion, Error> {
        Ok(KeyVersion {
            number,
            takes_over,
            cka_id: CkaId::from_bytes(self.random()?),
            earlier_attempts: Vec::new(),
            token_serial: self.hsm.token_serial(),
            created_at: self.clock.now(),
            born: None,
            maker: Some(self.replica.clone()),
            cross_signature: None,
            suspended: false,
            compromise: None,
            destroyed_at: None,
        })
    }
}

impl CreateKey {
    fn traits(&self) -> Traits<'_> {
        let Self { class, owner, purpose, algorithm, labels, .. } = self;
        Traits { class: *class, owner, purpose: *purpose, algorithm: *algorithm, labels, revision: None }
    }

    /// A key of tokens, or one that wraps if its algorithm does: all as its class has it, and nobody owns it.
    pub fn new(id: KeyId, algorithm: Algorithm) -> Self {
        Self {
            id,
            algorithm,
            purpose: Purpose::of(algorithm),
            class: ClassName::default(),
            owner: String::new(),
            labels: Labels::new(),
            periods: AskedPeriods::default(),
            claim_rules: ClaimRules::default(),
            required_context: Vec::new(),
            request: Request::default(),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(
            "CreateKey",
            &[
                self.id.as_str(),
                &self.algorithm.to_string(),
                self.purpose.as_str(),
                self.class.as_str(),
                &self.owner,
                &label_text(&self.labels),
                &self.periods.text(),
                &rules_text(&self.claim_rules),
                &format!("{:?}", self.required_context),
            ],
        )
    }
}

/// What signs must not wrap, and the other way round: what a key opens must never be taken for what it has signed.
fn check_purpose(purpose: Purpose, algorithm: Algorithm) -> Result<(), Error> {
    if (purpose == Purpose::Wrap) == algorithm.is_key_wrap() {
        return Ok(());
    }
    let text = "keys of purpose wrap, and they alone, have the algorithm A256GCMKW or RSA-OAEP-256";
    Err(Error::invalid("purpose", text))
}
