//! Classes of keys: the periods that keys of one kind share, until a key has some of its own.
//!
//! A key's row spells its periods out, whoever gave them: nothing that signs or publishes asks for a class. A key
//! remembers which of them it has from its class; a change of the class is written into those keys in the same
//! transaction. One that is made or moved at that very moment follows within seconds, by the scheduler.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Key,
    time::{SignedDuration, Timestamp},
};

/// A kind of key. The names are given, the periods are the operator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassName {
    /// What other keys or certificates stand on.
    Root,
    /// Access tokens and ID tokens.
    #[default]
    JwtSigning,
    /// Keys of databases.
    Database,
    /// Requests and webhooks between services.
    Api,
    /// Sessions of users.
    Session,
    /// Everything that is thrown away.
    Development,
}

/// The periods of a key, or those that a class gives to its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Periods {
    /// How often a new version is made ahead of time; `None` for by hand only.
    pub rotation_period: Option<SignedDuration>,
    /// How long a version is published before it signs.
    pub publish_lead: SignedDuration,
    /// The longest life of a token that `SignJwt` makes.
    pub max_token_ttl: SignedDuration,
    /// How much longer a version stays in the JWKS than its last token needs it.
    pub overlap: SignedDuration,
    /// From a version's withdrawal to its destruction; `None` for by hand only.
    pub destroy_after: Option<SignedDuration>,
}

/// Periods that somebody asks for: `None` for those of the class, and zero for a rotation or a destruction that is to
/// be done by hand only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AskedPeriods {
    /// How often it rotates by itself.
    pub rotation_period: Option<SignedDuration>,
    /// How long versions are published before they sign.
    pub publish_lead: Option<SignedDuration>,
    /// The longest life of its tokens.
    pub max_token_ttl: Option<SignedDuration>,
    /// How much longer versions stay in the JWKS than their last tokens need them.
    pub overlap: Option<SignedDuration>,
    /// From withdrawal to destruction.
    pub destroy_after: Option<SignedDuration>,
}

/// What is to change in the periods of a key: `None` leaves one as it is, `Some(None)` gives it back to the class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeriodChanges {
    /// See [`AskedPeriods::rotation_period`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub rotation_period: Option<Option<SignedDuration>>,
    /// See [`AskedPeriods::publish_lead`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub publish_lead: Option<Option<SignedDuration>>,
    /// See [`AskedPeriods::max_token_ttl`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub max_token_ttl: Option<Option<SignedDuration>>,
    /// See [`AskedPeriods::overlap`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Option<SignedDuration>>,
    /// See [`AskedPeriods::destroy_after`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub destroy_after: Option<Option<SignedDuration>>,
}

/// Which periods a key has from its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inherited {
    /// `rotation_period`.
    pub rotation_period: bool,
    /// `publish_lead`.
    pub publish_lead: bool,
    /// `max_token_ttl`.
    pub max_token_ttl: bool,
    /// `overlap`.
    pub overlap: bool,
    /// `destroy_after`.
    pub destroy_after: bool,
}

/// A class as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyClass {
    /// Which.
    pub name: ClassName,
    /// What its keys have, where they have nothing of their own.
    pub periods: Periods,
    /// How many others must approve what takes protection from its keys: 0 for nobody, at most
    /// [`crate::proposal::APPROVALS_MAX`]. What is about the service as a whole goes by the class `root`.
    pub approvals: u32,
    /// Counts changes, from 0 for a class as it is built in.
    pub revision: u64,
    /// When it was changed last; `None` for never.
    pub updated_at: Option<Timestamp>,
}

/// Longest span that a key may ask for.
pub(crate) const SPAN_MAX: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Longest rotation period, and longest time to a destruction: ten years.
pub(crate) const PERIOD_MAX: SignedDuration = SignedDuration::from_hours(10 * 366 * 24);

/// Most rotation periods that an overlap may last: eight versions stand in a JWKS at once.
const OVERLAP_PERIODS_MAX: i32 = 5;

impl ClassName {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Root, Self::JwtSigning, Self::Database, Self::Api, Self::Session, Self::Development];

    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::JwtSigning => "jwt-signing",
            Self::Database => "database",
            Self::Api => "api",
            Self::Session => "session",
            Self::Development => "development",
        }
    }
}

impl KeyClass {
    /// A class as nobody has changed it. Nothing is destroyed unless somebody asks for that.
    pub fn built_in(name: ClassName) -> Self {
        const HOUR: SignedDuration = SignedDuration::from_hours(1);
        let days = |days: i64| SignedDuration::from_hours(24 * days);
        let (rotation_period, publish_lead, max_token_ttl, overlap) = match name {
            ClassName::Root => (days(365), days(1), days(1), days(7)),
            ClassName::JwtSigning => (days(30), HOUR, HOUR, SignedDuration::ZERO),
            ClassName::Database => (days(90), HOUR, HOUR, days(1)),
            ClassName::Api => (days(90), days(1), days(1), days(1)),
            ClassName::Session => (days(1), HOUR, HOUR * 12, SignedDuration::ZERO),
            ClassName::Development => (days(1), SignedDuration::from_mins(1), HOUR, SignedDuration::ZERO),
        };
        let rotation_period = Some(rotation_period);
        let periods = Periods { rotation_period, publish_lead, max_token_ttl, overlap, destroy_after: None };
        let approvals = u32::from(name != ClassName::Development);
        Self { name, periods, approvals, revision: 0, updated_at: None }
    }
}

impl Periods {
    /// Whether `after` would take protection away: a longer life of tokens, or less time between two steps of a version's
    /// life.
    pub(crate) fn protects_less(&self, after: &Self) -> bool {
        after.max_token_ttl > self.max_token_ttl
            || after.publish_lead < self.publish_lead
            || after.overlap < self.overlap
    }

    /// Whether `after` would have versions destroyed by themselves, or earlier.
    pub(crate) fn destroys_sooner(&self, after: &Self) -> bool {
        // Never is later than any time.
        after.destroy_after.is_some_and(|after| self.destroy_after.is_none_or(|before| after < before))
    }

    /// Refuses periods that would leave no room: a next version must be publishable, and the last tokens must end,
    /// within one rotation period.
    pub fn check(&self) -> Result<(), Error> {
        check_span("publish_lead", self.publish_lead)?;
        check_span("max_token_ttl", self.max_token_ttl)?;
        if self.overlap != SignedDuration::ZERO {
            check_span("overlap", self.overlap)?;
        }
        if let Some(after) = self.destroy_after
            && (after < SignedDuration::ZERO || after > PERIOD_MAX || after.subsec_nanos() != 0)
        {
            return Err(Error::invalid("destroy_after", "give whole seconds, at most ten years"));
        }
        let Some(period) = self.rotation_period else { return Ok(()) };
        let least = self.publish_lead.saturating_add(self.max_token_ttl);
        if period < least || period > PERIOD_MAX || period.subsec_nanos() != 0 {
            return Err(Error::invalid(
                "rotation_period",
                format!(
                    "a rotation period is in whole seconds, at least publish_lead + max_token_ttl ({} seconds) \
                     and at most ten years",
                    least.as_secs()
                ),
            ));
        }
        if self.overlap > period * OVERLAP_PERIODS_MAX {
            let text = format!(
                "an overlap is at most {OVERLAP_PERIODS_MAX} rotation periods: more versions would stand in the JWKS than \
                 it holds"
            );
            return Err(Error::invalid("overlap", text));
        }
        Ok(())
    }
}

impl AskedPeriods {
    /// What `key` has of its own.
    pub(crate) fn of(key: &Key) -> Self {
        let (all, inherited) = (Self::from(key.periods()), key.inherited);
        Self {
            rotation_period: all.rotation_period.filter(|_| !inherited.rotation_period),
            publish_lead: all.publish_lead.filter(|_| !inherited.publish_lead),
            max_token_ttl: all.max_token_ttl.filter(|_| !inherited.max_token_ttl),
            overlap: all.overlap.filter(|_| !inherited.overlap),
            destroy_after: all.destroy_after.filter(|_| !inherited.destroy_after),
        }
    }

    /// These, changed.
    pub(crate) fn changed(self, changes: PeriodChanges) -> Self {
        Self {
            rotation_period: changes.rotation_period.unwrap_or(self.rotation_period),
            publish_lead: changes.publish_lead.unwrap_or(self.publish_lead),
            max_token_ttl: changes.max_token_ttl.unwrap_or(self.max_token_ttl),
            overlap: changes.overlap.unwrap_or(self.overlap),
            destroy_after: changes.destroy_after.unwrap_or(self.destroy_after),
        }
    }

    /// These, those of `class` where there are none, and which these are.
    pub(crate) fn under(self, class: &Periods) -> (Periods, Inherited) {
        let unless_never = |asked: SignedDuration| (asked != SignedDuration::ZERO).then_some(asked);
        let inherited = Inherited {
            rotation_period: self.rotation_period.is_none(),
            publish_lead: self.publish_lead.is_none(),
            max_token_ttl: self.max_token_ttl.is_none(),
            overlap: self.overlap.is_none(),
            destroy_after: self.destroy_after.is_none(),
        };
        let periods = Periods {
            rotation_period: self.rotation_period.map_or(class.rotation_period, unless_never),
            publish_lead: self.publish_lead.unwrap_or(class.publish_lead),
            max_token_ttl: self.max_token_ttl.unwrap_or(class.max_token_ttl),
            overlap: self.overlap.unwrap_or(class.overlap),
            destroy_after: self.destroy_after.map_or(class.destroy_after, unless_never),
        };
        (periods, inherited)
    }

    /// As part of a request's fingerprint.
    pub(crate) fn text(&self) -> String {
        format!("{self:?}")
    }
}

impl From<Periods> for AskedPeriods {
    fn from(periods: Periods) -> Self {
        let or_never = |span: Option<SignedDuration>| span.unwrap_or(SignedDuration::ZERO);
        Self {
            rotation_period: Some(or_never(periods.rotation_period)),
            publish_lead: Some(periods.publish_lead),
            max_token_ttl: Some(periods.max_token_ttl),
            overlap: Some(periods.overlap),
            destroy_after: Some(or_never(periods.destroy_after)),
        }
    }
}

impl Inherited {
    /// The fields that are, by their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        [
            ("rotation_period", self.rotation_period),
            ("publish_lead", self.publish_lead),
            ("max_token_ttl", self.max_token_ttl),
            ("overlap", self.overlap),
            ("destroy_after", self.destroy_after),
        ]
        .into_iter()
        .filter_map(|(name, inherits)| inherits.then_some(name))
    }
}

impl Key {
    /// Its periods.
    pub fn periods(&self) -> Periods {
        Periods {
            rotation_period: self.rotation_period,
            publish_lead: self.publish_lead,
            max_token_ttl: self.max_token_ttl,
            overlap: self.overlap,
            destroy_after: self.destroy_after,
        }
    }

    /// The same key with other periods.
    pub(crate) fn with_periods(self, periods: Periods) -> Self {
        let Periods { rotation_period, publish_lead, max_token_ttl, overlap, destroy_after } = periods;
        Self { rotation_period, publish_lead, max_token_ttl, overlap, destroy_after, ..self }
    }
}

/// What is there, `null` included, is asked for; what is left out is not.
fn given<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<SignedDuration>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn check_span(field: &'static str, span: SignedDuration) -> Result<(), Error> {
    if span < Key::FENCE || span > SPAN_MAX || span.subsec_nanos() != 0 {
        let (least, most) = (Key::FENCE.as_secs(), SPAN_MAX.as_hours() / 24);
        return Err(Error::invalid(
            field,
            format!("give whole seconds, from {least} seconds to {most} days"),
        ));
    }
    Ok(())
}

impl fmt::Display for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ClassName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|class| class.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            Error::invalid("class", format!("a class is one of {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_is_called_by_its_name_and_leaves_room_for_its_rotations() {
        for name in ClassName::ALL {
            assert_eq!(name.as_str().parse(), Ok(name));
            assert_eq!(serde_json::to_value(name).ok(), Some(name.as_str().into()));
            let class = KeyClass::built_in(name);
            assert_eq!(class.periods.check(), Ok(()), "{name}");
            assert_eq!(class.periods.destroy_after, None, "{name} destroys nothing unasked");
            // A retired version leaves the JWKS long before eight of them stand there.
            let kept = class.periods.max_token_ttl + class.periods.publish_lead + class.periods.overlap;
            let period = class.periods.rotation_period.expect("a period");
            assert!(kept + Key::CLOCK_SKEW < period * 3, "{name}");
        }
        assert_eq!("Root".parse::<ClassName>().map_err(|error| error.field()), Err(Some("class")));
    }
}
