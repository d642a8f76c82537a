//! A proposal as it is shown: whole, so that nothing is approved that was not shown.

use aws_lc_rs::digest;
use kms_client::v1;
use serde::Serialize;
use serde_json::Value;

use crate::{
    failure::Failure,
    output::{self, Format},
    view::{lower, some, time_text},
};

/// A proposal.
#[derive(Debug, Serialize)]
pub(super) struct Proposal {
    name: String,
    state: String,
    action: String,
    key: Option<String>,
    proposer: String,
    create_time: Option<String>,
    expire_time: Option<String>,
    required: i32,
    approvals: i32,
    votes: Vec<Vote>,
    state_time: Option<String>,
    reason: Option<String>,
    /// As the service has written it: the text whose SHA-256 is approved.
    change: String,
    pub(super) change_sha256: String,
}

/// One approval or rejection.
#[derive(Debug, Serialize)]
struct Vote {
    voter: String,
    approves: bool,
    time: Option<String>,
    note: Option<String>,
}

/// A proposal without its change and votes.
#[derive(Debug, Serialize)]
pub(super) struct Head<'a> {
    name: &'a str,
    state: &'a str,
    action: &'a str,
    key: Option<&'a str>,
    proposer: &'a str,
    create_time: Option<&'a str>,
    expire_time: Option<&'a str>,
    required: i32,
    approvals: i32,
    reason: Option<&'a str>,
}

impl Proposal {
    /// All of it, as text.
    pub(super) fn shown(&self, format: Format) -> Result<String, Failure> {
        if format != Format::Table {
            return format.all(self);
        }
        let mut text = format.one(&self.head())?;
        if !self.votes.is_empty() {
            text.push_str("\n\n");
            text.push_str(&format.list(&self.votes, &["voter", "approves", "time", "note"])?);
        }
        Ok(format!("{text}\n\nchange:\n{}\nSHA-256 {}", self.readable()?, self.change_sha256))
    }

    pub(super) fn head(&self) -> Head<'_> {
        Head {
            name: &self.name,
            state: &self.state,
            action: &self.action,
            key: self.key.as_deref(),
            proposer: &self.proposer,
            create_time: self.create_time.as_deref(),
            expire_time: self.expire_time.as_deref(),
            required: self.required,
            approvals: self.approvals,
            reason: self.reason.as_deref(),
        }
    }

    /// The change over several lines; a policy document in it as lines of its own.
    fn readable(&self) -> Result<String, Failure> {
        let senseless = Failure::about("the service's proposal makes no sense");
        let change: Value = serde_json::from_str(&self.change).map_err(senseless)?;
        let pretty =
            serde_json::to_string_pretty(&change).map_err(Failure::about("cannot write the change"))?;
        let mut text = plain(&pretty);
        if let Some(document) = change.get("text").and_then(Value::as_str) {
            text.push_str("\n\ntext:\n");
            for line in document.lines() {
                text.push_str(&format!("  | {}\n", plain(&output::lines(line))));
            }
        }
        Ok(text)
    }
}

/// ASCII as it is, and everything else by its number: no letter looks like another one, and none turns the line around.
fn plain(text: &str) -> String {
    let one = |c: char| {
        if c == '\n' || c == '\t' || matches!(c, ' '..='~') {
            c.to_string()
        } else {
            format!("\\u{{{:x}}}", u32::from(c))
        }
    };
    text.chars().map(one).collect()
}

impl TryFrom<v1::Proposal> for Proposal {
    type Error = Failure;

    /// Refuses one whose hash is not that of the change which stands beside it: it would be approved unseen.
    fn try_from(proposal: v1::Proposal) -> Result<Self, Failure> {
        let state = lower(proposal.state().as_str_name());
        let digest = digest::digest(&digest::SHA256, proposal.change.as_bytes());
        let sha256: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if sha256 != proposal.change_sha256 {
            return Err(Failure::other(format!(
                "the service shows another change of {} than the one that would be approved",
                output::one_line(&proposal.name)
            ))
            .hint("do not approve it; look into the server's log, and at the server"));
        }
        let vote = |vote: v1::proposal::Vote| Vote {
            voter: vote.voter,
            approves: vote.approves,
            time: vote.time.and_then(time_text),
            note: some(vote.note),
        };
        Ok(Self {
            name: proposal.name,
            state,
            action: proposal.action,
            key: some(proposal.key),
            proposer: proposal.proposer,
            create_time: proposal.create_time.and_then(time_text),
            expire_time: proposal.expire_time.and_then(time_text),
            required: proposal.required,
            approvals: proposal.approvals,
            votes: proposal.votes.into_iter().map(vote).collect(),
            state_time: proposal.state_time.and_then(time_text),
            reason: some(proposal.reason),
            change: proposal.change,
            change_sha256: sha256,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(change: &str) -> v1::Proposal {
        let digest = digest::digest(&digest::SHA256, change.as_bytes());
        v1::Proposal {
            name: "proposals/1".into(),
            change: change.into(),
            change_sha256: digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_change_that_is_not_the_one_of_the_hash_is_not_shown() {
        let change = r#"{"change":"destroy_key_version","key":"a"}"#;
        assert!(Proposal::try_from(proposal(change)).is_ok());
        let other = v1::Proposal { change: change.replace("\"a\"", "\"b\""), ..proposal(change) };
        let failure = Proposal::try_from(other).expect_err("another change");
        assert!(failure.message().contains("another change"), "{}", failure.message());
    }

    #[test]
    fn a_change_is_shown_whole_with_its_document_and_without_tricks() {
        let text = "permit (principal, action, resource);\n// \u{202e}\u{1b}[2J \u{430}dmin";
        let change = serde_json::json!({ "change": "set_policy", "text": text }).to_string();
        let shown = Proposal::try_from(proposal(&change)).expect("consistent");
        let shown = shown.shown(Format::Table).expect("text");
        assert!(shown.contains("\"change\": \"set_policy\""), "{shown}");
        assert!(shown.contains("  | permit (principal, action, resource);\n"), "{shown}");
        assert!(shown.contains("\\u{202e}") && shown.contains("\\u{430}dmin"), "{shown}");
        assert!(shown.chars().all(|c| c == '\n' || matches!(c, ' '..='~')), "{shown:?}");
    }
}
