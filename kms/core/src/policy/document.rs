//! The policy document: Cedar policies that an operator writes, parsed and validated once.
//!
//! Everything is refused that could mean something else than it says: policies that do not fit the schema in Cedar's strict mode,
//! templates, and two of the same id. Only roles give rights on the service itself and on approvals, so that a few lines in a
//! document cannot make an administrator; what the document forbids holds for them too.

use std::{
    collections::BTreeSet,
    str::FromStr,
    sync::{Arc, LazyLock},
};

use cedar_policy::{Effect, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use miette::Diagnostic as _;

use crate::{Error, access::POLICY_LEN_MAX};

/// The schema, as `kms policy schema` prints it.
pub const SCHEMA: &str = include_str!("kms.cedarschema");
/// Most policies of a document: each is asked in each decision.
const POLICIES_MAX: usize = 256;
/// Most errors that are told at once.
const ERRORS_TOLD_MAX: usize = 8;

/// A document that fits the schema.
#[derive(Debug, Default)]
pub struct Document {
    pub(super) policies: Vec<Policy>,
    /// Whether a decision may depend on the encryption context.
    pub(super) reads_context: bool,
}

impl Document {
    /// Parses and validates.
    pub fn parse(text: &str) -> Result<Arc<Self>, Error> {
        if text.len() > POLICY_LEN_MAX {
            return Err(refused(format!("a document has at most {} KiB", POLICY_LEN_MAX / 1024)));
        }
        let set = PolicySet::from_str(text).map_err(|errors| refused(told(text, errors.iter())))?;
        if set.num_of_templates() > 0 {
            return Err(refused("templates (?principal, ?resource) are not taken; write policies"));
        }
        if set.num_of_policies() > POLICIES_MAX {
            return Err(refused(format!("a document has at most {POLICIES_MAX} policies")));
        }
        let schema = SCHEMA_PARSED.as_ref().map_err(|error| Error::internal(error.clone()))?;
        let validated = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
        if !validated.validation_passed() {
            let errors: Vec<_> =
                validated.validation_errors().take(ERRORS_TOLD_MAX).map(ToString::to_string).collect();
            return Err(refused(errors.join("; ")));
        }
        let (mut ids, mut policies) = (BTreeSet::new(), Vec::new());
        for policy in set.policies() {
            let own = policy.annotation("id").unwrap_or_else(|| policy.id().as_ref());
            let is_name = (1..=63).contains(&own.len())
                && own.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
            if !is_name {
                return Err(refused(format!(
                    "the @id {own:?} is not up to 63 of a-z, A-Z, 0-9, '.', '_' and '-'"
                )));
            }
            if !ids.insert(own.to_owned()) {
                return Err(refused(format!("two policies have the @id {own:?}")));
            }
            policies.push(policy.new_id(PolicyId::new(format!("policy:{own}"))));
        }
        policies.sort_by(|a, b| a.id().cmp(b.id()));
        Ok(Arc::new(Self { policies, reads_context: text.contains("context") }))
    }

    /// Whether it holds no policy.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Those that forbid.
    pub(super) fn forbids(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().filter(|policy| policy.effect() == Effect::Forbid)
    }
}

pub(super) static SCHEMA_PARSED: LazyLock<Result<Schema, String>> = LazyLock::new(|| {
    Schema::from_cedarschema_str(SCHEMA)
        .map(|(schema, _)| schema)
        .map_err(|error| format!("the policy schema: {error}"))
});

fn refused(why: impl Into<String>) -> Error {
    Error::invalid("policy.text", why.into())
}

/// What is wrong, each with its line and column.
fn told<'a>(text: &str, errors: impl Iterator<Item = &'a cedar_policy::ParseError>) -> String {
    let place = |error: &cedar_policy::ParseError| {
        let offset = error.labels().and_then(|mut labels| labels.next()).map(|label| label.offset());
        let before = text.get(..offset.unwrap_or(0)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        format!("line {line}, column {column}: {error}")
    };
    errors.take(ERRORS_TOLD_MAX).map(place).collect::<Vec<_>>().join("; ")
}
