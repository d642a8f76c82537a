//! Resource names (AIP-122): parsed strictly, so that one resource has one name.

use kms_core::{Error, KeyId, class::ClassName, proposal};

/// `keys/{key}`.
pub(crate) fn key(field: &'static str, name: &str) -> Result<KeyId, Error> {
    name.strip_prefix("keys/").and_then(|id| id.parse().ok()).ok_or_else(|| {
        Error::invalid(field, "a key is named keys/{key}, with 1 to 63 of a-z, 0-9, '.', '_' and '-'")
    })
}

/// `keys/{key}/versions/{number}`.
pub(crate) fn version(field: &'static str, name: &str) -> Result<(KeyId, u32), Error> {
    match split(name) {
        Some((id, Some(number))) => Ok((id, number)),
        _ => Err(Error::invalid(field, "a key version is named keys/{key}/versions/{number}")),
    }
}

/// `keys/{key}` or `keys/{key}/versions/{number}`.
pub(crate) fn key_or_version(field: &'static str, name: &str) -> Result<(KeyId, Option<u32>), Error> {
    split(name).ok_or_else(|| Error::invalid(field, "use keys/{key} or keys/{key}/versions/{number}"))
}

/// `accessTokens/{access_token}`: the last part, which follows the rules of a key's.
pub(crate) fn access_token<'a>(field: &'static str, name: &'a str) -> Result<&'a str, Error> {
    name.strip_prefix("accessTokens/").filter(|id| id.parse::<KeyId>().is_ok()).ok_or_else(|| {
        Error::invalid(
            field,
            "an access token is named accessTokens/{access_token}, with 1 to 63 of a-z, 0-9, '.', '_' and '-'",
        )
    })
}

/// `roleBindings/{role_binding}`: the last part, which follows the rules of a key's.
pub(crate) fn role_binding(field: &'static str, name: &str) -> Result<KeyId, Error> {
    name.strip_prefix("roleBindings/").and_then(|id| id.parse().ok()).ok_or_else(|| {
        Error::invalid(
            field,
            "a role binding is named roleBindings/{role_binding}, with 1 to 63 of a-z, 0-9, '.', '_' and '-'",
        )
    })
}

/// `policies/{version}`, with 0 for the empty one before the first.
pub(crate) fn policy(field: &'static str, name: &str) -> Result<u32, Error> {
    let version =
        name.strip_prefix("policies/").and_then(|text| if text == "0" { Some(0) } else { number(text) });
    version.ok_or_else(|| Error::invalid(field, "a version of the policy is named policies/{version}"))
}

/// `proposals/{proposal}`.
pub(crate) fn proposal(field: &'static str, name: &str) -> Result<proposal::Id, Error> {
    let id = name.strip_prefix("proposals/").and_then(|id| id.to_owned().try_into().ok());
    id.ok_or_else(|| {
        Error::invalid(field, "a proposal is named proposals/{proposal}, with 32 hexadecimal digits")
    })
}

/// A consumer of a key: named as keys are.
pub(crate) fn consumer(name: &str) -> Result<KeyId, Error> {
    let wrong =
        |_| Error::invalid("consumer", "a consumer is named with 1 to 63 of a-z, 0-9, '.', '_' and '-'");
    name.parse().map_err(wrong)
}

/// `keyClasses/{class}`.
pub(crate) fn key_class(field: &'static str, name: &str) -> Result<ClassName, Error> {
    name.strip_prefix("keyClasses/").and_then(|class| class.parse().ok()).ok_or_else(|| {
        let classes = ClassName::ALL.map(ClassName::as_str).join(", ");
        Error::invalid(field, format!("a class is named keyClasses/{{class}}, with one of {classes}"))
    })
}

/// The name of a class.
pub(crate) fn of_key_class(class: ClassName) -> String {
    format!("keyClasses/{class}")
}

/// The name of a key.
pub(crate) fn of_key(id: &KeyId) -> String {
    format!("keys/{id}")
}

/// The name of a version.
pub(crate) fn of_version(id: &KeyId, number: u32) -> String {
    format!("keys/{id}/versions/{number}")
}

/// The name of an access token.
pub(crate) fn of_access_token(id: &str) -> String {
    format!("accessTokens/{id}")
}

/// The name of a role binding.
pub(crate) fn of_role_binding(id: &str) -> String {
    format!("roleBindings/{id}")
}

/// The name of a version of the policy.
pub(crate) fn of_policy(version: u32) -> String {
    format!("policies/{version}")
}

/// The name of a proposal.
pub(crate) fn of_proposal(id: &proposal::Id) -> String {
    format!("proposals/{id}")
}

fn split(name: &str) -> Option<(KeyId, Option<u32>)> {
    let rest = name.strip_prefix("keys/")?;
    match rest.split_once('/') {
        None => Some((rest.parse().ok()?, None)),
        Some((id, rest)) => Some((id.parse().ok()?, Some(number(rest.strip_prefix("versions/")?)?))),
    }
}

/// Decimal, from 1, in the one way to write it.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number: &u32| *number > 0 && number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_key_names_are_refused_naming_the_field() {
        let long = format!("keys/{}", "a".repeat(64));
        for bad in [
            "",
            "keys",
            "keys/",
            "keys//",
            "keys/A",
            "Keys/a",
            "keys/ä",
            "keys/а",
            "keys/a b",
            "keys/a%20b",
            "keys/a/",
            "/keys/a",
            "keys/a\n",
            "keys/a\0",
            " keys/a",
            "keys/../a",
            "keys/.a",
            "keys/-",
            "a",
            "keys/*",
            &long,
            "keys/a/versions/1",
            "accessTokens/a",
        ] {
            assert_eq!(key("name", bad).expect_err(bad).field(), Some("name"), "{bad:?}");
        }
    }

    #[test]
    fn odd_version_names_are_refused_naming_the_field() {
        for bad in [
            "keys/a",
            "keys/a/versions",
            "keys/a/versions/",
            "keys/a/versions/0",
            "keys/a/versions/01",
            "keys/a/versions/+1",
            "keys/a/versions/-1",
            "keys/a/versions/1/",
            "keys/a/versions/1 ",
            "keys/a/versions/4294967296",
            "keys/a/versions/١",
            "keys/a/Versions/1",
            "keys/A/versions/1",
            "keys/a//versions/1",
            "keys/a/versions/latest",
            "keys/a/b/versions/1",
        ] {
            assert_eq!(version("name", bad).expect_err(bad).field(), Some("name"), "{bad:?}");
            if bad != "keys/a" {
                assert_eq!(key_or_version("name", bad).expect_err(bad).field(), Some("name"), "{bad:?}");
            }
        }
    }

    #[test]
    fn odd_access_token_names_are_refused_naming_the_field() {
        for bad in
            ["", "a", "accessTokens/", "accessTokens/A", "accesstokens/a", "accessTokens/a/b", "keys/a"]
        {
            assert_eq!(access_token("name", bad).expect_err(bad).field(), Some("name"), "{bad:?}");
        }
    }

    #[test]
    fn odd_names_of_bindings_policies_and_proposals_are_refused_naming_the_field() {
        for bad in ["", "a", "roleBindings/", "roleBindings/A", "rolebindings/a", "roleBindings/a/b"] {
            assert_eq!(role_binding("name", bad).expect_err(bad).field(), Some("name"), "{bad:?}");
        }
        for bad in
            ["", "1", "policies/", "policies/01", "policies/00", "policies/-1", "policies/1/", "policies/a"]
        {
            assert_eq!(policy("name", bad).expect_err(bad).field(), Some("name"), "{bad:?}");
        }
        let digits = "0123456789abcdef0123456789abcdef";
        for bad in [digits, "proposals/", "proposals/a", &format!("proposals/{}", digits.to_uppercase())] {
            assert_eq!(proposal("name", bad).expect_err(bad).field(), Some("name"), "{bad:?}");
        }
    }

    #[test]
    fn every_name_reads_back_as_itself() {
        let id: KeyId = "orders.v1_eu-1".parse().expect("well-formed");
        assert_eq!(key("name", &of_key(&id)), Ok(id.clone()));
        assert_eq!(version("name", &of_version(&id, u32::MAX)), Ok((id.clone(), u32::MAX)));
        assert_eq!(key_or_version("name", &of_key(&id)), Ok((id.clone(), None)));
        assert_eq!(key_or_version("name", &of_version(&id, 7)), Ok((id, Some(7))));
        assert_eq!(access_token("name", &of_access_token("ci")), Ok("ci"));
        assert_eq!(
            role_binding("name", &of_role_binding("ci")).map(|id| id.to_string()),
            Ok("ci".to_owned())
        );
        assert_eq!([0, 7].map(|version| policy("name", &of_policy(version))), [Ok(0), Ok(7)]);
        let id = proposal::Id::new([7; 16]);
        assert_eq!(proposal("name", &of_proposal(&id)), Ok(id));
    }
}
