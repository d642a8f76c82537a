//! Metrics of rotation: of each key as far as there is room, and of all keys together.

use std::fmt;

use jiff::Timestamp;
use kms_core::verbs::{KeyRotation, Rotations};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Collects [`Rotations`] when it is asked. For a registry without a prefix: the rules of many operators know two of
/// the names as they are.
pub(super) struct RotationCollector<F>(pub(super) F);

/// A gauge that each key has, or may have.
struct PerKey {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    /// Of a key, at a time.
    value: fn(&KeyRotation, Timestamp) -> Option<i64>,
}

const PER_KEY: [PerKey; 8] = [
    PerKey {
        name: "key_rotation_success",
        help: "1: the last due rotation was done. 0: one is overdue, or failed when it was last tried",
        unit: None,
        value: |key, _| Some(key.succeeds.into()),
    },
    PerKey {
        name: "key_expiry_timestamp",
        help: "When the version that signs now is due to be replaced, in seconds since 1970",
        unit: None,
        value: |key, _| key.expires_at.map(Timestamp::as_second),
    },
    PerKey {
        name: "kms_key_version_age",
        help: "Since when the version signs that signs now",
        unit: Some(Unit::Seconds),
        value: |key, now| Some(now.duration_since(key.active_since?).as_secs()),
    },
    PerKey {
        name: "kms_key_next_publish_timestamp",
        help: "When the next version is to be made and published, since 1970",
        unit: Some(Unit::Seconds),
        value: |key, _| key.next_publish_at.map(Timestamp::as_second),
    },
    PerKey {
        name: "kms_key_next_activate_timestamp",
        help: "When the next version begins to sign, at the earliest, since 1970",
        unit: Some(Unit::Seconds),
        value: |key, _| key.next_activate_at.map(Timestamp::as_second),
    },
    PerKey {
        name: "kms_key_next_retire_timestamp",
        help: "When the version that signs now stops, once the next one is made, since 1970",
        unit: Some(Unit::Seconds),
        value: |key, _| key.retires_at.map(Timestamp::as_second),
    },
    PerKey {
        name: "kms_key_promotion",
        help: "How long it is until the next version begins to sign, at the earliest",
        unit: Some(Unit::Seconds),
        value: |key, now| Some(key.next_activate_at?.duration_since(now).as_secs()),
    },
    PerKey {
        name: "kms_key_jwks_versions",
        help: "Versions in the JWKS",
        unit: None,
        value: |key, _| i64::try_from(key.published).ok(),
    },
];

impl<F> fmt::Debug for RotationCollector<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RotationCollector")
    }
}

impl<F: Fn() -> Rotations + Send + Sync + 'static> Collector for RotationCollector<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let rotations = (self.0)();
        encode_keys(&mut encoder, &rotations)?;
        encode_sums(&mut encoder, &rotations)
    }
}

fn encode_keys(encoder: &mut DescriptorEncoder<'_>, rotations: &Rotations) -> fmt::Result {
    for PerKey { name, help, unit, value } in &PER_KEY {
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for key in &rotations.keys {
            if let Some(value) = value(key, rotations.at) {
                ConstGauge::new(value).encode(family.encode_family(&[("key", key.id.as_str())])?)?;
            }
        }
    }
    let help = "Attempts to make a key's next version that failed";
    let mut family =
        encoder.encode_descriptor("kms_key_rotation_failures", help, None, MetricType::Counter)?;
    for key in &rotations.keys {
        ConstCounter::new(key.failures).encode(family.encode_family(&[("key", key.id.as_str())])?)?;
    }
    Ok(())
}

fn encode_sums(encoder: &mut DescriptorEncoder<'_>, rotations: &Rotations) -> fmt::Result {
    for (name, help, value) in [
        ("kms_keys", "Keys", rotations.total),
        (
            "kms_keys_without_series",
            "Keys that have no series of their own: http.metrics_keys_max is less than their number",
            rotations.total - rotations.keys.len(),
        ),
        (
            "kms_keys_rotation_overdue",
            "Keys whose next version should have been made by now",
            rotations.overdue,
        ),
        (
            "kms_keys_rotation_failing",
            "Keys whose due rotation failed when this server last tried",
            rotations.failing,
        ),
        (
            "kms_keys_without_active_version",
            "Keys of which nothing signs, without those that are destroyed or wait for that",
            rotations.without_active_version,
        ),
        (
            "kms_keys_without_successor",
            "Keys that were revoked and have nothing to sign with in its place",
            rotations.without_successor,
        ),
    ] {
        let gauge = ConstGauge::new(value as u64);
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    if let Some(at) = rotations.earliest_expiry {
        let (name, help) =
            ("kms_key_expiry_earliest_timestamp", "The earliest key_expiry_timestamp of all keys");
        let gauge = ConstGauge::new(at.as_second());
        gauge.encode(encoder.encode_descriptor(name, help, Some(&Unit::Seconds), gauge.metric_type())?)?;
    }
    let (name, help) = ("kms_rotation_failures", "kms_key_rotation_failures of all keys");
    let counter = ConstCounter::new(rotations.failures);
    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two keys, of which one has everything, and one that is not listed.
    pub(crate) fn two_of_three() -> Rotations {
        let at = |second| Some(Timestamp::from_second(second).expect("a time"));
        let key = |name: &str| KeyRotation {
            id: name.parse().expect("a key's name"),
            succeeds: false,
            expires_at: None,
            active_since: None,
            next_publish_at: None,
            next_activate_at: None,
            retires_at: None,
            published: 0,
            failures: 0,
        };
        let full = KeyRotation {
            succeeds: true,
            expires_at: at(2_000),
            active_since: at(900),
            next_publish_at: at(1_500),
            next_activate_at: at(2_100),
            retires_at: at(2_200),
            published: 2,
            failures: 3,
            ..key("full")
        };
        Rotations {
            at: at(1_000).expect("some"),
            keys: vec![key("bare"), full],
            total: 3,
            overdue: 4,
            failing: 5,
            without_active_version: 6,
            without_successor: 7,
            earliest_expiry: at(1_900),
            failures: 8,
        }
    }
}
