//! UpdateKey, and the limits on what a key's fields may say.

use crate::{
    Action, AuditLog, Caller, Clock, Error, Hsm, Key, KeyId, KeyVersion, Kms, Store, Unsettled,
    catalog::Entry,
    key::{Born, Labels, Timeline, later},
    kms::KeyView,
    time::{SignedDuration, Timestamp},
    verbs::requests::{Fingerprint, Request, label_text, span},
};

/// Longest publish lead and token life.
const SPAN_MAX: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Longest rotation period.
const ROTATION_PERIOD_MAX: SignedDuration = SignedDuration::from_hours(10 * 366 * 24);

/// What is to change; `None` leaves a field as it is.
#[derive(Debug, Clone)]
pub struct UpdateKey {
    /// The key.
    pub id: KeyId,
    /// Whom to ask about it.
    pub owner: Option<String>,
    /// All labels anew.
    pub labels: Option<Labels>,
    /// How often it rotates; `Some(None)` for never.
    pub rotation_period: Option<Option<SignedDuration>>,
    /// How long versions are published before they sign. Holds for versions yet to be made.
    pub publish_lead: Option<SignedDuration>,
    /// The longest life of its tokens. Raising it first extends the withdrawal of versions that stand in the
    /// JWKS, in the same transaction.
    pub max_token_ttl: Option<SignedDuration>,
    /// The guards.
    pub request: Request,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Changes owner, labels or periods.
    pub async fn update_key(&self, caller: &Caller, request: UpdateKey) -> Result<KeyView, Error> {
        let now = self.clock.now();
        let admission = self.gate.begin(caller, Action::UpdateKey, Some(&request.id), now).await?;
        let result = self.in_effect(self.update_admitted(caller, request).await).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    async fn update_admitted(&self, caller: &Caller, request: UpdateKey) -> Result<KeyView, Error> {
        let id = request.id.clone();
        let fingerprint = request.fingerprint();
        let replayed = self.replayed(caller, &request.request, &fingerprint).await?.is_some();
        let now = self.time_for_all().await?;
        let entry = self.catalog.entry(&id)?;
        if replayed {
            return Ok(KeyView::of(&entry, now));
        }
        request.request.check_etag(&entry.key)?;
        let remembered = request.request.remember(caller, &fingerprint, &id, None, now);
        let mut key = entry.key.clone();
        if let Some(owner) = request.owner {
            key.owner = check_owner(owner)?;
        }
        if let Some(labels) = request.labels {
            key.labels = check_labels(labels)?;
        }
        if let Some(period) = request.rotation_period {
            key.rotation_period = period;
        }
        if let Some(lead) = request.publish_lead {
            key.publish_lead = check_span("publish_lead", lead)?;
        }
        if let Some(ttl) = request.max_token_ttl {
            // Tokens of the life until now are out there, and need their key.
            key.tokens_until = key.tokens_until.max(Some(later(now, key.max_token_ttl)));
            key.max_token_ttl = check_span("max_token_ttl", ttl)?;
        }
        check_rotation_period(&key)?;
        let extended = extend_withdrawals(&entry, &key, now);
        self.write_versions("update a key", &key, extended, remembered).await?;
        Ok(KeyView::of(&*self.catalog.entry(&id)?, now))
    }
}

impl UpdateKey {
    fn fingerprint(&self) -> Fingerprint {
        let period = self.rotation_period.map(span);
        let [lead, ttl] = [self.publish_lead, self.max_token_ttl].map(span);
        let labels = self.labels.as_ref().map_or_else(String::new, label_text);
        let owner = self.owner.as_deref().map_or_else(String::new, |owner| format!("={owner}"));
        let parts = [self.id.as_str(), &owner, &labels, period.as_deref().unwrap_or("same"), &lead, &ttl];
        Fingerprint::of("UpdateKey", &parts)
    }
}

/// No token may outlive its key: versions that still stand in the JWKS stay there as long as tokens of the
/// new, longer life could need them.
fn extend_withdrawals(entry: &Entry, key: &Key, now: Timestamp) -> Vec<KeyVersion> {
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
    let plain = |text: &str| {
        text.len() <= 63
            && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_./".contains(&c))
    };
    let well_formed = |(name, value): (&String, &String)| {
        plain(name) && plain(value) && name.starts_with(|c: char| c.is_ascii_lowercase())
    };
    if labels.len() > Key::LABELS_MAX || !labels.iter().all(well_formed) {
        return Err(Error::invalid(
            "labels",
            format!(
                "a key has at most {} labels; names and values are up to 63 of a-z, 0-9, '-', '_', '.', '/', \
                 and a name begins with a letter",
                Key::LABELS_MAX
            ),
        ));
    }
    Ok(labels)
}

pub(super) fn check_span(field: &'static str, span: SignedDuration) -> Result<SignedDuration, Error> {
    if span < Key::FENCE || span > SPAN_MAX || span.subsec_nanos() != 0 {
        let (least, most) = (Key::FENCE.as_secs(), SPAN_MAX.as_hours() / 24);
        return Err(Error::invalid(
            field,
            format!("give whole seconds, from {least} seconds to {most} days"),
        ));
    }
    Ok(span)
}

/// A period must leave room for the lead of the next version and for the tokens of the last.
pub(super) fn check_rotation_period(key: &Key) -> Result<(), Error> {
    let Some(period) = key.rotation_period else { return Ok(()) };
    let least = key.publish_lead.saturating_add(key.max_token_ttl);
    if period < least || period > ROTATION_PERIOD_MAX || period.subsec_nanos() != 0 {
        return Err(Error::invalid(
            "rotation_period",
            format!(
                "a rotation period is in whole seconds, at least publish_lead + max_token_ttl ({} seconds) and \
                 at most ten years",
                least.as_secs()
            ),
        ));
    }
    Ok(())
}
