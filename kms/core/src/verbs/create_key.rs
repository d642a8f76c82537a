//! CreateKey: the row, then the birth of version 1.

use crate::{
    Action, Admission, Algorithm, AuditLog, Caller, Clock, Error, Hsm, Key, KeyId, KeyUid, KeyVersion, Kms,
    Store, Unsettled,
    error::Kind,
    hsm::{CkaId, Fault},
    key::Labels,
    kms::KeyView,
    store::{self, Transaction, Write},
    time::{Deadline, SignedDuration},
    verbs::{
        birth::Attempt,
        requests::{Fingerprint, Request, label_text, span},
        resumption::still_being_made,
        update_key::{check_labels, check_owner, check_rotation_period, check_span},
    },
};

/// How long a version is published before it signs, unless the key says otherwise: verifiers cache a JWKS for
/// 10 to 20 minutes.
pub const PUBLISH_LEAD_DEFAULT: SignedDuration = SignedDuration::from_hours(1);
/// The longest life of a token, unless the key says otherwise.
pub const MAX_TOKEN_TTL_DEFAULT: SignedDuration = SignedDuration::from_hours(1);

/// A key to be made.
#[derive(Debug, Clone)]
pub struct CreateKey {
    /// Its name.
    pub id: KeyId,
    /// What it signs with, for ever.
    pub algorithm: Algorithm,
    /// Whom to ask about it.
    pub owner: String,
    /// Labels.
    pub labels: Labels,
    /// How often it rotates by itself; `None` for never.
    pub rotation_period: Option<SignedDuration>,
    /// How long versions are published before they sign; [`PUBLISH_LEAD_DEFAULT`].
    pub publish_lead: Option<SignedDuration>,
    /// The longest life of its tokens; [`MAX_TOKEN_TTL_DEFAULT`].
    pub max_token_ttl: Option<SignedDuration>,
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
        let mut admission = self.gate.begin(caller, Action::CreateKey, Some(&request.id), now).await?;
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
                    self.give_birth(admission, at_work, Attempt::Fresh, None, deadline).await?;
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
        // Before the name is taken: a birth that can never succeed should not be begun.
        if !self.hsm.supports(request.algorithm) {
            return Err(Fault::Unsupported(request.algorithm.to_string()).into());
        }
        let now = self.clock.now();
        let remembered = request.request.remember(caller, fingerprint, &request.id, Some(1), now);
        let key = Key {
            uid: KeyUid(self.random()?),
            algorithm: request.algorithm,
            owner: check_owner(request.owner)?,
            labels: check_labels(request.labels)?,
            publish_lead: check_span("publish_lead", request.publish_lead.unwrap_or(PUBLISH_LEAD_DEFAULT))?,
            max_token_ttl: check_span(
                "max_token_ttl",
                request.max_token_ttl.unwrap_or(MAX_TOKEN_TTL_DEFAULT),
            )?,
            rotation_period: request.rotation_period,
            tokens_until: None,
            created_at: now,
            updated_at: now,
            revision: 1,
            id: request.id,
        };
        check_rotation_period(&key)?;
        let version = self.new_version(1)?;
        let id = key.id.clone();
        let writes = vec![Write::InsertKey(key), Write::InsertVersion(id, version)];
        self.commit(Transaction { request: remembered, ..Transaction::new("begin birth of a key", writes) })
            .await
    }

    /// A CREATING row with a fresh CKA_ID.
    pub(super) fn new_version(&self, number: u32) -> Result<KeyVersion, Error> {
        Ok(KeyVersion {
            number,
            cka_id: CkaId::from_bytes(self.random()?),
            earlier_attempts: Vec::new(),
            token_serial: self.hsm.token_serial(),
            created_at: self.clock.now(),
            born: None,
            maker: Some(self.replica.clone()),
            suspended: false,
            compromised_at: None,
            destroyed_at: None,
        })
    }
}

impl CreateKey {
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(
            "CreateKey",
            &[
                self.id.as_str(),
                &self.algorithm.to_string(),
                &self.owner,
                &label_text(&self.labels),
                &span(self.rotation_period),
                &span(self.publish_lead),
                &span(self.max_token_ttl),
            ],
        )
    }
}
