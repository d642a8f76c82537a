//! Why: which rules allowed or denied.

use std::sync::Arc;

use kms_envelope::EncryptionContext;

use super::{Ask, Document, role::is_about_a_key};
use crate::{
    catalog::Picture,
    time::Timestamp,
    verbs::{Explanation, Question},
};

/// What policy says to `question`, by the document that holds or by `candidate`.
pub(crate) fn explain(
    picture: &Picture,
    candidate: Option<&Arc<Document>>,
    question: &Question,
    now: Timestamp,
) -> Explanation {
    let no = |reason: String| Explanation { allowed: false, rules: Vec::new(), reason };
    let Some(caller) = picture.caller(&question.caller, now) else {
        return no(format!(
            "{} is no canonical name of a caller, or an access token that is unknown, expired or revoked",
            question.caller
        ));
    };
    if is_about_a_key(question.action) != question.key.is_some()
        && question.action != crate::Action::ApproveProposal
    {
        let what = if question.key.is_some() { "the service" } else { "a key" };
        return no(format!("{} is about {what}", question.action));
    }
    let context = match EncryptionContext::new(question.context.clone()) {
        Ok(context) => context,
        Err(error) => return no(error.to_string()),
    };
    let tried = candidate.map(|document| picture.rules.with(Arc::clone(document)));
    let rules = tried.as_ref().unwrap_or(&picture.rules);
    let compiled = match rules.compiled(&caller, now) {
        Ok(compiled) => compiled,
        Err(error) => return no(error.to_string()),
    };
    let ask =
        Ask { action: question.action, about: picture.about(question.key.as_ref()), context: Some(&context) };
    let said = compiled.ask(&ask);
    let rules: Vec<_> =
        said.by.iter().map(|id| id.to_string().trim_end_matches("#service").to_owned()).collect();
    let reason = match (said.allowed, &said.errors[..], &rules[..]) {
        (true, ..) => "allowed by these rules".to_owned(),
        (false, [first, ..], _) => format!("a policy could not be evaluated, which denies: {first}"),
        (false, [], []) => "no rule allows it".to_owned(),
        (false, [], _) => "forbidden by these rules, whatever others allow".to_owned(),
    };
    Explanation { allowed: said.allowed, rules, reason }
}
