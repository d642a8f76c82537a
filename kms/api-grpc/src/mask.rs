//! The field mask of UpdateKey (AIP-134, AIP-161): which fields are meant.

use kms_core::Error;
use kms_proto::v1;
use prost_types::FieldMask;

/// Longest part of an unknown path that an error shows, in characters.
const SHOWN_LEN_MAX: usize = 64;

/// The fields of a key that may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mask {
    pub(crate) owner: bool,
    pub(crate) labels: bool,
    pub(crate) rotation_period: bool,
    pub(crate) publish_lead: bool,
    pub(crate) max_token_ttl: bool,
}

impl Mask {
    const ALL: Self =
        Self { owner: true, labels: true, rotation_period: true, publish_lead: true, max_token_ttl: true };

    /// The fields that `mask` names; without one, those that `key` sets.
    pub(crate) fn parse(mask: Option<&FieldMask>, key: &v1::Key) -> Result<Self, Error> {
        let paths = mask.map_or(&[][..], |mask| &mask.paths);
        let mask = match paths {
            [] => Self::of_what_is_set(key),
            [star] if star == "*" => Self::ALL,
            paths => Self::of_paths(paths)?,
        };
        if mask == Self::default() {
            return Err(Error::invalid("update_mask", "nothing is to be changed; name the fields that are"));
        }
        Ok(mask)
    }

    fn of_paths(paths: &[String]) -> Result<Self, Error> {
        let mut mask = Self::default();
        for path in paths {
            let field = match path.as_str() {
                "owner" => &mut mask.owner,
                "labels" => &mut mask.labels,
                "rotation_period" => &mut mask.rotation_period,
                "publish_lead" => &mut mask.publish_lead,
                "max_token_ttl" => &mut mask.max_token_ttl,
                unknown => {
                    let shown: String = unknown.chars().take(SHOWN_LEN_MAX).collect();
                    return Err(Error::invalid(
                        "update_mask",
                        format!(
                            "{shown:?} cannot be changed; use owner, labels, rotation_period, publish_lead, \
                             max_token_ttl, or * alone for all of them"
                        ),
                    ));
                }
            };
            *field = true;
        }
        Ok(mask)
    }

    fn of_what_is_set(key: &v1::Key) -> Self {
        Self {
            owner: !key.owner.is_empty(),
            labels: !key.labels.is_empty(),
            rotation_period: key.rotation_period.is_some(),
            publish_lead: key.publish_lead.is_some(),
            max_token_ttl: key.max_token_ttl.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(paths: &[&str]) -> Result<Mask, Error> {
        let mask = FieldMask { paths: paths.iter().map(ToString::to_string).collect() };
        Mask::parse(Some(&mask), &v1::Key::default())
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
        assert_eq!(parse(&["*"]), Ok(Mask::ALL));
        assert!(parse(&["*", "owner"]).is_err());
    }

    #[test]
    fn an_endless_path_is_not_shown_whole() {
        let error = parse(&[&"x".repeat(100_000)]).expect_err("unknown");
        assert!(error.to_string().len() < 1000, "{} bytes", error.to_string().len());
    }

    #[test]
    fn named_fields_are_meant_even_when_absent_and_twice() {
        let expected = Mask { labels: true, rotation_period: true, ..Mask::default() };
        assert_eq!(parse(&["labels", "rotation_period", "labels"]), Ok(expected));
    }

    #[test]
    fn without_a_mask_the_fields_that_are_set_are_meant() {
        let key = v1::Key { owner: "payments".into(), ..v1::Key::default() };
        let expected = Mask { owner: true, ..Mask::default() };
        assert_eq!(Mask::parse(None, &key), Ok(expected));
        assert!(Mask::parse(None, &v1::Key::default()).is_err());
    }
}
