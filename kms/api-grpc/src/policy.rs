//! `kms.v1.PolicyService`: the policy document, read, changed, tried and explained.

use kms_core::{
    AuditLog, Clock, Error, Hsm, Store,
    access::PolicyDocument,
    principal::Principal,
    verbs::{Explanation, QUESTIONS_MAX, Question, SetPolicy},
};
use kms_proto::v1::{self, explain_policy_request as asked, explain_policy_response as said};
use tonic::{Request, Response, Status};

use crate::{
    action,
    call::{Call, Door, Kms},
    name, page,
    time::timestamp,
};

/// The service. Its requests must carry a [`kms_core::Caller`].
pub struct PolicyService<H, S, A, C>(pub(crate) Door<H, S, A, C>);

#[tonic::async_trait]
impl<H: Hsm, S: Store, A: AuditLog, C: Clock> v1::policy_service_server::PolicyService
    for PolicyService<H, S, A, C>
{
    async fn get_policy(
        &self,
        request: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::Policy>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::GetPolicyRequest| async move {
            let version = optional_version("name", &request.name)?;
            kms.policy(&call.caller, version).await.map(message)
        };
        self.0.run(request, verb).await
    }

    async fn list_policies(
        &self,
        request: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::ListPoliciesRequest| async move {
            let list = ["ListPolicies", ""];
            let len = page::len(request.page_size)?;
            let last = page::start(&request.page_token, list)?;
            let below = last.map_or(u32::MAX, |last| last.parse().unwrap_or(0));
            let documents = kms.list_policies(&call.caller).await?;
            let is_after = |document: &PolicyDocument| document.version < below;
            let (documents, next_page_token) =
                page::cut(documents, len, list, is_after, |document| document.version.to_string());
            let without_text = |document| v1::Policy { text: String::new(), ..message(document) };
            let policies = documents.into_iter().map(without_text).collect();
            Ok(v1::ListPoliciesResponse { policies, next_page_token })
        };
        self.0.run(request, verb).await
    }

    async fn set_policy(
        &self,
        request: Request<v1::SetPolicyRequest>,
    ) -> Result<Response<v1::Policy>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request| async move {
            kms.set_policy(&call.caller, parse_set(request)?).await.map(message)
        };
        self.0.run_detached(request, verb).await
    }

    async fn explain_policy(
        &self,
        request: Request<v1::ExplainPolicyRequest>,
    ) -> Result<Response<v1::ExplainPolicyResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::ExplainPolicyRequest| async move {
            let questions = parse_questions(request.questions)?;
            let explained = kms.explain_policy(&call.caller, questions, request.candidate).await;
            let explanations = explained.map_err(of_candidate)?.into_iter().map(explanation).collect();
            Ok(v1::ExplainPolicyResponse { explanations })
        };
        self.0.run(request, verb).await
    }
}

fn parse_set(request: v1::SetPolicyRequest) -> Result<SetPolicy, Error> {
    let v1::Policy { text, note, .. } = request
        .policy
        .ok_or_else(|| Error::invalid("policy", "a document is required: its text and a note"))?;
    let expected = optional_version("expected", &request.expected)?;
    Ok(SetPolicy { text, note, expected, allow_empty: request.allow_empty })
}

fn parse_questions(questions: Vec<asked::Question>) -> Result<Vec<Question>, Error> {
    if !(1..=QUESTIONS_MAX).contains(&questions.len()) {
        return Err(Error::invalid("questions", format!("ask 1 to {QUESTIONS_MAX} questions at once")));
    }
    questions.into_iter().map(parse_question).collect()
}

fn parse_question(question: asked::Question) -> Result<Question, Error> {
    let asked::Question { caller, action, key, context } = question;
    let caller: Principal =
        caller.parse().map_err(|error: Error| Error::invalid("questions.caller", error.to_string()))?;
    let key = if key.is_empty() { None } else { Some(name::key("questions.key", &key)?) };
    let action = action::parse("questions.action", &action)?;
    Ok(Question { caller: caller.to_string(), action, key, context })
}

fn optional_version(field: &'static str, name: &str) -> Result<Option<u32>, Error> {
    if name.is_empty() { Ok(None) } else { name::policy(field, name).map(Some) }
}

/// Core tells what is wrong in a document by the field of a new one.
fn of_candidate(error: Error) -> Error {
    match error.field() {
        Some("policy.text") => Error::invalid("candidate", error.to_string()),
        _ => error,
    }
}

fn message(document: PolicyDocument) -> v1::Policy {
    v1::Policy {
        name: name::of_policy(document.version),
        text: document.text,
        note: document.note,
        creator: document.by,
        // Nobody made the empty one that stands before the first.
        create_time: (document.version > 0).then(|| timestamp(document.at)),
    }
}

fn explanation(explanation: Explanation) -> said::Explanation {
    let Explanation { allowed, rules, reason } = explanation;
    said::Explanation { allowed, rules, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong_field(change: impl FnOnce(&mut asked::Question)) -> Option<&'static str> {
        let mut question = asked::Question {
            caller: "access-token:ci".into(),
            action: "sign".into(),
            key: "keys/k".into(),
            ..asked::Question::default()
        };
        change(&mut question);
        parse_questions(vec![question]).err().and_then(|error| error.field())
    }

    #[test]
    fn each_wrong_field_of_a_question_is_named() {
        assert_eq!(wrong_field(|_| {}), None);
        assert_eq!(wrong_field(|question| question.caller = "ci".into()), Some("questions.caller"));
        assert_eq!(wrong_field(|question| question.action = "steal".into()), Some("questions.action"));
        assert_eq!(wrong_field(|question| question.key = "k".into()), Some("questions.key"));
        for count in [0, QUESTIONS_MAX + 1] {
            let questions = vec![asked::Question::default(); count];
            assert_eq!(parse_questions(questions).err().and_then(|error| error.field()), Some("questions"));
        }
    }

    #[test]
    fn each_wrong_field_of_a_document_is_named() {
        let field = |request| parse_set(request).err().and_then(|error| error.field());
        assert_eq!(field(v1::SetPolicyRequest::default()), Some("policy"));
        let policy = Some(v1::Policy::default());
        let odd = v1::SetPolicyRequest { policy, expected: "2".into(), ..v1::SetPolicyRequest::default() };
        assert_eq!(field(odd), Some("expected"));
    }
}
