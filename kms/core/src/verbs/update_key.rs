//! UpdateKey, and the limits on what a key's fields may say.

use kms_envelope::EncryptionContext;
use serde::{Deserialize, Serialize};

use crate::{
    Action, AuditLog, Caller, Clock, Error, Hsm, Key, KeyId, KeyVersion, Kms, Store, Unsettled,
    catalog::{Entry, Picture},
    claim_rules::ClaimRules,
    class::{AskedPeriods, ClassName, PeriodChanges, Periods},
    key::{Born, Labels, Purpose, Timeline, later},
    kms::KeyView,
    policy,
    proposal::Change,
    time::Timestamp,
    verbs::requests::{Fingerprint, Request, label_text, rules_text},
};

/// What is to change; `None` leaves a field as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateKey {
    /// The key.
    pub id: KeyId,
    /// Whom to ask about it.
    pub owner: Option<String>,
    /// All labels anew.
    pub labels: Option<Labels>,
    /// Its class, whose periods hold from now on where it has none of its own.
    pub class: Option<ClassName>,
    /// Its own periods. A new `publish_lead` holds for versions yet to be made. Whatever would keep versions longer in
    /// the JWKS extends the withdrawal of those that stand there, in the same transaction; nothing shortens it.
    pub periods: PeriodChanges,
    /// All claim rules anew.
    pub claim_rules: Option<ClaimRules>,
    /// All names anew that the encryption context of each of its wraps must have. What is wrapped already opens as before.
    pub required_context: Option<Vec<String>>,
    /// The guards.
    pub request: Request,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Changes owner, labels, class, periods or claim rules.
    pub async fn update_key(&self, caller: &Caller, request: UpdateKey) -> Result<KeyView, Error> {
        let now = self.clock.now();
        let mut admission = self.gate.begin(caller, Action::UpdateKey, Some(&request.id), now).await?;
        let result = async {
            let change = || Change::UpdateKey(Box::new(request.clone()));
            self.unless_approval_is_needed(&mut admission, caller, change).await?;
            self.update_admitted(caller, request, false).await
        }
        .await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    pub(super) async fn update_admitted(
        &self,
        caller: &Caller,
        request: UpdateKey,
        has_consent: bool,
    ) -> Result<KeyView, Error> {
        let id = request.id.clone();
        let fingerprint = request.fingerprint();
        let replayed = self.replayed(caller, &request.request, &fingerprint).await?.is_some();
        let now = self.time_for_all().await?;
        let picture = self.catalog.now();
        let entry = picture.entry(&id)?;
        if replayed {
            return Ok(KeyView::of(entry, now));
        }
        request.request.check_etag(&entry.key)?;
        if !has_consent {
            let change = Change::UpdateKey(Box::new(request.clone()));
            self.unless_consent_is_missing(&picture, &change, now)?;
        }
        let remembered = request.request.remember(caller, &fingerprint, &id, None, now);
        let key = self.key_updated(&picture, &request, now)?;
        // Whoever may change a key as it is must be allowed to have it as it becomes, too: else a label or a class would
        // carry it to where its changer may use it.
        if !policy::may_have(&picture, caller, Action::UpdateKey, &key, now) {
            return Err(Error::denied());
        }
        let extended = extend_withdrawals(entry, &key, now);
        self.write_versions("update a key", &key, extended, remembered).await?;
        Ok(KeyView::of(&*self.catalog.entry(&id)?, now))
    }

    /// The key as `request` would have it.
    pub(super) fn key_updated(
        &self,
        picture: &Picture,
        request: &UpdateKey,
        now: Timestamp,
    ) -> Result<Key, Error> {
        let mut key = picture.entry(&request.id)?.key.clone();
        if let Some(owner) = request.owner.clone() {
            key.owner = check_owner(owner)?;
        }
        if let Some(labels) = request.labels.clone() {
            key.labels = check_labels(labels)?;
        }
        if let Some(rules) = request.claim_rules.clone() {
            rules.check()?;
            key.claim_rules = rules;
        }
        if let Some(names) = request.required_context.clone() {
            check_has_contexts(key.purpose, &names)?;
            key.required_context = check_required_context(names)?;
        }
        key.class = request.class.unwrap_or(key.class);
        let asked = AskedPeriods::of(&key).changed(request.periods);
        let (periods, inherited) = asked.under(&picture.class(key.class).periods);
        periods.check()?;
        Ok(Key { inherited, ..with_periods(key, periods, Self::bundles(picture), now) })
    }
}

impl UpdateKey {
    /// A change of nothing yet.
    pub fn new(id: KeyId) -> Self {
        Self {
            id,
            owner: None,
            labels: None,
            class: None,
            periods: PeriodChanges::default(),
            claim_rules: None,
            required_context: None,
            request: Request::default(),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        let labels = self.labels.as_ref().map_or_else(String::new, label_text);
        let owner = self.owner.as_deref().map_or_else(String::new, |owner| format!("={owner}"));
        let class = self.class.map_or("", ClassName::as_str);
        let rules = self.claim_rules.as_ref().map_or_else(String::new, rules_text);
        let periods = format!("{:?}", self.periods);
        let required = format!("{:?}", self.required_context);
        Fingerprint::of("UpdateKey", &[self.id.as_str(), &owner, &labels, class, &periods, &rules, &required])
    }
}

/// The key with other periods. Tokens of the life until now are out there, and need their key; and, where there are
/// `bundles`, those of the lead until now, which must end before a version signs that they lack. A replica may make some
/// more until it knows. How long bundles may live is a setting that may have been another: half of the lead bounds it.
pub(super) fn with_periods(mut key: Key, periods: Periods, bundles: bool, now: Timestamp) -> Key {
    if bundles && periods.publish_lead < key.publish_lead {
        let last_made = later(now, Key::FENCE + Key::CLOCKS_APART);
        key.bundles_until = key.bundles_until.max(Some(later(last_made, key.publish_lead / 2)));
    }
    if periods.max_token_ttl != key.max_token_ttl {
        key.tokens_until = key.tokens_until.max(Some(later(now, key.max_token_ttl)));
    }
    key.with_periods(periods)
}

/// No token may outlive its key: versions that still stand in the JWKS stay there as long as tokens of the
/// new, longer life could need them.
pub(super) fn extend_withdrawals(entry: &Entry, key: &Key, now: Timestamp) -> Vec<KeyVersion> {
    let rows = entry.versions.iter().map(|version| &version.row);
    rows.filter_map(|row| {
        let born = row.born.as_ref()?;
        let withdrawn_at = born.timeline.withdrawn_at.filter(|at| *at > now)?;
        let needed = key.withdrawal_after(born.timeline.retires_at?);
        (needed > withdrawn_at).then(|| {
            let timeline = Timeline { withdrawn_at: Some(needed), ..born.timeline };
            KeyVersion { born: Some(Born { timeline, ..born.clone() }), ..row.clone() }
        })
    })
    .collect()
}

pub(super) fn check_owner(owner: String) -> Result<String, Error> {
    if owner.len() > Key::OWNER_LEN_MAX || owner.chars().any(char::is_control) {
        return Err(Error::invalid(
            "owner",
            format!("an owner has at most {} bytes and no control characters", Key::OWNER_LEN_MAX),
        ));
    }
    Ok(owner)
}

pub(super) fn check_labels(labels: Labels) -> Result<Labels, Error> {
    if labels.len() > Key::LABELS_MAX {
        return Err(Error::invalid("labels", format!("a key has at most {} labels", Key::LABELS_MAX)));
    }
    labels.iter().try_for_each(|(name, value)| Key::check_label(name, value))?;
    Ok(labels)
}

/// Sorted and without repetition.
pub(super) fn check_required_context(mut names: Vec<String>) -> Result<Vec<String>, Error> {
    names.sort();
    names.dedup();
    let len_max = EncryptionContext::NAME_LEN_MAX;
    let is_name = |name: &String| (1..=len_max).contains(&name.len()) && !name.chars().any(char::is_control);
    if names.len() > Key::REQUIRED_CONTEXT_MAX || !names.iter().all(is_name) {
        let most = Key::REQUIRED_CONTEXT_MAX;
        let text = format!("at most {most} names of 1 to {len_max} bytes without control characters");
        return Err(Error::invalid("required_context", text));
    }
    Ok(names)
}

/// Only wraps have an encryption context.
pub(super) fn check_has_contexts(purpose: Purpose, required: &[String]) -> Result<(), Error> {
    if purpose == Purpose::Wrap || required.is_empty() {
        return Ok(());
    }
    Err(Error::invalid("required_context", "only a key whose purpose is wrap has encryption contexts"))
}
