//! The field masks of UpdateKey and UpdateKeyClass (AIP-134, AIP-161): which fields are meant.

use kms_core::Error;
use kms_proto::v1;
use prost_types::FieldMask;

/// Longest part of an unknown path that an error shows, in characters.
const SHOWN_LEN_MAX: usize = 64;

/// A field of a key, or of a class, that may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyField {
    Owner,
    Labels,
    Class,
    RotationPeriod,
    PublishLead,
    MaxTokenTtl,
    Overlap,
    DestroyAfter,
    ClaimRules,
    RequiredContext,
    Approvals,
}

/// The fields that are meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mask(Vec<KeyField>);

impl KeyField {
    /// Those of a key.
    pub(crate) const OF_KEY: &[Self] = &[
        Self::Owner,
        Self::Labels,
        Self::Class,
        Self::RotationPeriod,
        Self::PublishLead,
        Self::MaxTokenTtl,
        Self::Overlap,
        Self::DestroyAfter,
        Self::ClaimRules,
        Self::RequiredContext,
    ];

    /// Those of a class.
    pub(crate) const OF_CLASS: &[Self] = &[
        Self::RotationPeriod,
        Self::PublishLead,
        Self::MaxTokenTtl,
        Self::Overlap,
        Self::DestroyAfter,
        Self::Approvals,
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Labels => "labels",
            Self::Class => "class",
            Self::RotationPeriod => "rotation_period",
            Self::PublishLead => "publish_lead",
            Self::MaxTokenTtl => "max_token_ttl",
            Self::Overlap => "overlap",
            Self::DestroyAfter => "destroy_after",
            Self::ClaimRules => "claim_rules",
            Self::RequiredContext => "required_context",
            Self::Approvals => "approvals",
        }
    }

    /// Whether a key says something there.
    pub(crate) fn is_set(self, key: &v1::Key) -> bool {
        match self {
            Self::Owner => !key.owner.is_empty(),
            Self::Labels => !key.labels.is_empty(),
            Self::Class => !key.class.is_empty(),
            Self::RotationPeriod => key.rotation_period.is_some(),
            Self::PublishLead => key.publish_lead.is_some(),
            Self::MaxTokenTtl => key.max_token_ttl.is_some(),
            Self::Overlap => key.overlap.is_some(),
            Self::DestroyAfter => key.destroy_after.is_some(),
            Self::ClaimRules => key.claim_rules.is_some(),
            Self::RequiredContext => !key.required_context.is_empty(),
            Self::Approvals => false,
        }
    }
}

impl Mask {
    /// Those of `fields` that `mask` names; without one, those that are set.
    pub(crate) fn parse(
        mask: Option<&FieldMask>,
        fields: &[KeyField],
        is_set: impl Fn(KeyField) -> bool,
    ) -> Result<Self, Error> {
        let paths = mask.map_or(&[][..], |mask| &mask.paths);
        let named: Vec<KeyField> = match paths {
            [] => fields.iter().copied().filter(|field| is_set(*field)).collect(),
            [star] if star == "*" => fields.to_vec(),
            paths => paths.iter().map(|path| named(path, fields)).collect::<Result<_, _>>()?,
        };
        if named.is_empty() {
            return Err(Error::invalid("update_mask", "nothing is to be changed; name the fields that are"));
        }
        Ok(Self(named))
    }

    /// Whether the field is meant.
    pub(crate) fn has(&self, field: KeyField) -> bool {
        self.0.contains(&field)
    }
}

fn named(path: &str, fields: &[KeyField]) -> Result<KeyField, Error> {
    fields.iter().copied().find(|field| field.path() == path).ok_or_else(|| {
        let shown: String = path.chars().take(SHOWN_LEN_MAX).collect();
        let known = fields.iter().map(|field| field.path()).collect::<Vec<_>>().join(", ");
        let text = format!("{shown:?} cannot be changed; use {known}, or * alone for all of them");
        Error::invalid("update_mask", text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(paths: &[&str]) -> Result<Mask, Error> {
        let mask = FieldMask { paths: paths.iter().map(ToString::to_string).collect() };
        Mask::parse(Some(&mask), KeyField::OF_KEY, |_| false)
    }

    #[test]
    fn a_path_that_cannot_change_is_refused_by_name() {
        for bad in ["name", "algorithm", "etag", "Owner", "labels.env", "rotationPeriod", "", " owner", "**"]
        {
            let error = parse(&["owner", bad]).expect_err(bad);
            assert_eq!(error.field(), Some("update_mask"));
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn a_star_stands_alone() {
        assert_eq!(parse(&["*"]), Ok(Mask(KeyField::OF_KEY.to_vec())));
        assert!(parse(&["*", "owner"]).is_err());
    }

    #[test]
    fn an_endless_path_is_not_shown_whole() {
        let error = parse(&[&"x".repeat(100_000)]).expect_err("unknown");
        assert!(error.to_string().len() < 1000, "{} bytes", error.to_string().len());
    }

    #[test]
    fn named_fields_are_meant_even_when_absent_and_twice() {
        let mask = parse(&["labels", "rotation_period", "labels"]).expect("a mask");
        for field in KeyField::OF_KEY {
            let named = matches!(field, KeyField::Labels | KeyField::RotationPeriod);
            assert_eq!(mask.has(*field), named, "{field:?}");
        }
    }

    #[test]
    fn without_a_mask_the_fields_that_are_set_are_meant() {
        let key = v1::Key { owner: "payments".into(), ..v1::Key::default() };
        let parse = |key: &v1::Key| Mask::parse(None, KeyField::OF_KEY, |field| field.is_set(key));
        assert_eq!(parse(&key), Ok(Mask(vec![KeyField::Owner])));
        assert!(parse(&v1::Key::default()).is_err());
    }
}
