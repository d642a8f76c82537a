//! `kms policy test`: examples of what policy must say, asked of the document that holds or of one in a file.

use clap::Args;
use kms_client::{Client, v1::explain_policy_request::Question};
use kms_core::verbs::QUESTIONS_MAX;
use serde::{Deserialize, Serialize};

use super::{Context, Explanation, explain, read};
use crate::{
    failure::Failure,
    input::Source,
    name::KeyName,
    output::{self, Format},
};

/// Largest file of examples: 1 MiB.
const EXAMPLES_LEN_MAX: usize = 1 << 20;
/// Most examples of a file.
const EXAMPLES_MAX: usize = 4_096;

/// Ask policy about examples, and fail when it says something else than they expect.
///
/// A file of examples is TOML, or YAML when its name ends in .yaml or .yml:
///
///     [[examples]]
///     caller = "spiffe://example.org/ci"
///     action = "sign_jwt"
///     key = "web"                     # leave it out for the service as a whole
///     context = { tenant = "a" }      # if the operation has an encryption context
///     expect = "allow"                # or "deny"
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Test {
    /// File of examples; - for standard input, as TOML
    file: Source,
    /// File with a document to be tried in the place of the one that holds; - for standard input
    #[arg(long, value_name = "FILE")]
    document: Option<Source>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    examples: Vec<Example>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Example {
    caller: String,
    action: String,
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    context: Context,
    expect: Expect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expect {
    Allow,
    Deny,
}

/// What became of an example.
#[derive(Debug, Serialize)]
struct Outcome {
    passed: bool,
    caller: String,
    action: String,
    key: Option<String>,
    expected: Expect,
    said: Expect,
    rules: Vec<String>,
    reason: String,
}

impl Test {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        if self.file == Source::StandardInput && self.document.as_ref() == Some(&self.file) {
            return Err(Failure::usage("standard input is one file: examples or the document, not both"));
        }
        let examples = parse(&self.file)?;
        let document = self.document.as_ref().map(read).transpose()?;
        let mut outcomes = Vec::with_capacity(examples.len());
        let mut rest = examples.into_iter().peekable();
        while rest.peek().is_some() {
            let asked: Vec<_> = rest.by_ref().take(QUESTIONS_MAX).collect();
            let questions = asked.iter().map(Example::question).collect::<Result<_, _>>()?;
            let said = explain(&client, questions, document.clone()).await?;
            outcomes.extend(asked.into_iter().zip(said).map(|(example, said)| Outcome::of(example, said)));
        }
        format.print_list(&outcomes, &["passed", "caller", "action", "key", "expected", "said", "rules"])?;
        let differ: Vec<_> = outcomes.iter().enumerate().filter(|(_, outcome)| !outcome.passed).collect();
        for (place, outcome) in &differ {
            output::note(&output::one_line(&outcome.told(place + 1)));
        }
        if differ.is_empty() {
            return Ok(());
        }
        Err(Failure::other(format!("policy differs from {} of {} examples", differ.len(), outcomes.len())))
    }
}

fn parse(file: &Source) -> Result<Vec<Example>, Failure> {
    let text = String::from_utf8(file.read(EXAMPLES_LEN_MAX)?)
        .map_err(|_| Failure::usage("the file of examples is not UTF-8"))?;
    let is_yaml = match file {
        Source::File(path) => path.extension().is_some_and(|end| end == "yaml" || end == "yml"),
        Source::StandardInput => false,
    };
    let parsed: Result<File, String> = if is_yaml {
        serde_yaml_ng::from_str(&text).map_err(|error| error.to_string())
    } else {
        toml::from_str(&text).map_err(|error| error.to_string())
    };
    let examples = parsed.map_err(|error| Failure::usage(format!("the file of examples: {error}")))?.examples;
    if (1..=EXAMPLES_MAX).contains(&examples.len()) {
        Ok(examples)
    } else {
        Err(Failure::usage(format!("a file holds 1 to {EXAMPLES_MAX} examples")))
    }
}

impl Example {
    fn question(&self) -> Result<Question, Failure> {
        let key = self.key.as_deref().map(str::parse::<KeyName>).transpose();
        let key = key.map_err(|error| Failure::usage(format!("the key of an example: {error}")))?;
        Ok(Question {
            caller: self.caller.clone(),
            action: self.action.clone(),
            key: key.map(|key| key.to_string()).unwrap_or_default(),
            context: self.context.clone(),
        })
    }
}

impl Outcome {
    fn of(example: Example, explanation: Explanation) -> Self {
        let Explanation { allowed, rules, reason } = explanation;
        let said = if allowed { Expect::Allow } else { Expect::Deny };
        let Example { caller, action, key, expect, .. } = example;
        Self { passed: said == expect, caller, action, key, expected: expect, said, rules, reason }
    }

    /// What differs, in words.
    fn told(&self, number: usize) -> String {
        let Self { caller, action, reason, .. } = self;
        let key = self.key.as_deref().map(|key| format!(" {key}")).unwrap_or_default();
        let said = if self.said == Expect::Allow { "allows it" } else { "denies it" };
        let by = if self.rules.is_empty() { String::new() } else { format!(" ({})", self.rules.join(", ")) };
        format!("example {number}: {caller} {action}{key}: policy {said}: {reason}{by}")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TOML: &str = "[[examples]]\ncaller = 'unix:1'\naction = 'encrypt'\nkey = 'files'\n\
                        context = { tenant = 'a' }\nexpect = 'deny'\n";
    const YAML: &str = "examples:\n- caller: unix:1\n  action: encrypt\n  key: files\n  \
                        context: {tenant: a}\n  expect: deny\n";

    fn parsed(name: &str, text: &str) -> Result<Vec<Example>, Failure> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(name);
        fs::write(&path, text).expect("written");
        parse(&Source::File(path))
    }

    #[test]
    fn examples_are_read_as_toml_and_as_yaml() {
        for (name, text) in [("a.toml", TOML), ("a.yaml", YAML), ("a.yml", YAML), ("a", TOML)] {
            let examples = parsed(name, text).expect(name);
            let question = examples[0].question().expect("a question");
            assert_eq!((question.caller.as_str(), question.key.as_str()), ("unix:1", "keys/files"), "{name}");
            assert_eq!((question.context["tenant"].as_str(), examples[0].expect), ("a", Expect::Deny));
        }
    }

    #[test]
    fn what_is_no_file_of_examples_is_a_mistake_of_its_writer() {
        let many = TOML.repeat(EXAMPLES_MAX + 1);
        for (name, text) in [
            ("a.toml", ""),
            ("a.toml", "examples = []"),
            ("a.toml", YAML),
            ("a.toml", &TOML.replace("deny", "perhaps")),
            ("a.toml", &TOML.replace("caller", "callers")),
            ("a.yaml", "examples: 1"),
            ("a.toml", &many),
        ] {
            let failure = parsed(name, text).expect_err(text);
            assert_eq!(failure.code() as u8, 2, "{}", failure.message());
        }
    }

    #[test]
    fn what_differs_names_the_rule_that_decided() {
        let example = parsed("a.toml", TOML).expect("examples").remove(0);
        let rules = vec!["role-binding:ci".to_owned()];
        let reason = "allowed by these rules".to_owned();
        let outcome = Outcome::of(example, Explanation { allowed: true, rules, reason });
        assert!(!outcome.passed);
        assert_eq!(
            outcome.told(3),
            "example 3: unix:1 encrypt files: policy allows it: allowed by these rules (role-binding:ci)"
        );
    }
}
