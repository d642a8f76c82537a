//! The policy document: read, changed, and asked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Action, AuditLog, Caller, Clock, Error, Hsm, KeyId, Kms, Store, Unsettled,
    access::{NOTE_LEN_MAX, PolicyDocument},
    error::Kind,
    policy::{self, Document},
    proposal::Change,
    store::{Transaction, Write},
    time::Timestamp,
};

/// Most questions of one call.
pub const QUESTIONS_MAX: usize = 256;

/// A policy document to be put in the place of the one that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPolicy {
    /// Cedar policies.
    pub text: String,
    /// Why.
    pub note: String,
    /// The version that the caller has seen; refused when another one holds by now.
    pub expected: Option<u32>,
    /// Whether it may hold no policy at all. An empty file is a mistake more often than a wish.
    pub allow_empty: bool,
}

/// What somebody wants to know of policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Canonical name of a caller.
    pub caller: String,
    /// What it would do.
    pub action: Action,
    /// With which key; `None` for the service.
    pub key: Option<KeyId>,
    /// In which encryption context.
    pub context: BTreeMap<String, String>,
}

/// What policy says, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Whether it would be allowed.
    pub allowed: bool,
    /// The rules that decided: `role-binding:NAME`, `access-token:NAME`, `built-in:NAME` or `policy:ID`.
    pub rules: Vec<String>,
    /// In words.
    pub reason: String,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// The document that holds, or an earlier version.
    pub async fn policy(&self, caller: &Caller, version: Option<u32>) -> Result<PolicyDocument, Error> {
        let admission = self.gate.admit(caller, Action::GetPolicy, None, self.clock.now()).await?;
        let picture = self.catalog.now();
        let found = match version {
            None | Some(0) => picture.policies().last().cloned().filter(|_| version.is_none()),
            Some(version) => picture.policies().iter().find(|document| document.version == version).cloned(),
        };
        let document = match (found, version) {
            (Some(document), _) => Ok(document),
            (None, None | Some(0)) => Ok(PolicyDocument::none()),
            (None, Some(version)) => Err(Error::not_found(format_args!("policies/{version}"))),
        };
        admission.settle(document.map(Unsettled::new)).await
    }

    /// Every version, the latest first.
    pub async fn list_policies(&self, caller: &Caller) -> Result<Vec<PolicyDocument>, Error> {
        let admission = self.gate.admit(caller, Action::GetPolicy, None, self.clock.now()).await?;
        let documents = self.catalog.now().policies().iter().rev().cloned().collect();
        admission.settle(Ok(Unsettled::new(documents))).await
    }

    /// Puts a new document in the place of the one that holds.
    pub async fn set_policy(&self, caller: &Caller, request: SetPolicy) -> Result<PolicyDocument, Error> {
        let mut admission = self.gate.begin(caller, Action::SetPolicy, None, self.clock.now()).await?;
        let result = async {
            self.check_policy(caller, &request)?;
            self.unless_approval_is_needed(&mut admission, caller, || Change::SetPolicy(request.clone()))
                .await?;
            self.set_policy_admitted(caller, request).await
        }
        .await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// What policy would say, by the document that holds or by `candidate`.
    pub async fn explain_policy(
        &self,
        caller: &Caller,
        questions: Vec<Question>,
        candidate: Option<String>,
    ) -> Result<Vec<Explanation>, Error> {
        let now = self.clock.now();
        let admission = self.gate.admit(caller, Action::ExplainPolicy, None, now).await?;
        let explained = self.explain_admitted(&questions, candidate.as_deref(), now);
        admission.settle(explained.map(Unsettled::new)).await
    }

    fn explain_admitted(
        &self,
        questions: &[Question],
        candidate: Option<&str>,
        now: Timestamp,
    ) -> Result<Vec<Explanation>, Error> {
        if !(1..=QUESTIONS_MAX).contains(&questions.len()) {
            return Err(Error::invalid("questions", format!("ask 1 to {QUESTIONS_MAX} questions at once")));
        }
        let candidate = candidate.map(Document::parse).transpose()?;
        let picture = self.catalog.now();
        Ok(questions
            .iter()
            .map(|question| policy::explain(&picture, candidate.as_ref(), question, now))
            .collect())
    }

    /// Refuses a document that nobody could change any more.
    fn check_policy(&self, caller: &Caller, request: &SetPolicy) -> Result<(), Error> {
        if request.note.len() > NOTE_LEN_MAX || request.note.chars().any(char::is_control) {
            let text = format!("a note has at most {NOTE_LEN_MAX} bytes and no control characters");
            return Err(Error::invalid("policy.note", text));
        }
        let document = Document::parse(&request.text)?;
        if document.is_empty() && !request.allow_empty {
            return Err(Error::invalid(
                "policy.text",
                "it holds no policy; say so (allow_empty) if role bindings alone shall decide from now on",
            ));
        }
        let picture = self.catalog.now();
        let last = picture.policies().last().map_or(0, |document| document.version);
        if request.expected.is_some_and(|expected| expected != last) {
            let text = format!("policies/{last} holds by now; read it and try again");
            return Err(Error::new(Kind::Conflict, "ETAG_MISMATCH", text));
        }
        policy::unless_locked_out(&picture, &document, caller, self.clock.now())
    }

    pub(super) async fn set_policy_admitted(
        &self,
        caller: &Caller,
        request: SetPolicy,
    ) -> Result<PolicyDocument, Error> {
        // What was proposed may have become a lockout meanwhile.
        self.check_policy(caller, &request)?;
        let last = self.catalog.now().policies().last().map_or(0, |document| document.version);
        let SetPolicy { text, note, .. } = request;
        let document = PolicyDocument {
            version: last + 1,
            text,
            note,
            by: caller.name().to_owned(),
            at: self.clock.now(),
        };
        let writes = vec![Write::InsertPolicy(document.clone())];
        self.commit_moving(Transaction::new("set the policy", writes)).await?;
        Ok(document)
    }
}
