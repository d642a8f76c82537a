//! What became of many files: counted, and the failures kept for the end.

use std::path::Path;

use serde::Serialize;

use crate::{
    failure::Failure,
    output::{self, one_line},
};

/// Failures that are named at the end. Of more only the number is told.
const FAILURES_MAX: usize = 1_000;

/// Failures so far.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: u64,
    named: Vec<FailedFile>,
    last: Option<Failure>,
}

/// One file that failed, as it is printed.
#[derive(Debug, Serialize)]
pub(super) struct FailedFile {
    file: String,
    error: String,
}

impl Failures {
    pub(super) fn add(&mut self, path: &Path, failure: Failure) {
        self.count += 1;
        if self.named.len() < FAILURES_MAX {
            let hint = failure.hint_text().map_or_else(String::new, |hint| format!("; {hint}"));
            let error = format!("{}{hint}", failure.message());
            self.named.push(FailedFile { file: path.display().to_string(), error });
        }
        self.last = Some(failure);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn named(&self) -> &[FailedFile] {
        &self.named
    }

    /// Names them on standard error, and fails if there are any. The only file's failure is the command's own.
    pub(super) fn end(self, of_one: bool) -> Result<(), Failure> {
        match self.last {
            None => Ok(()),
            Some(failure) if of_one => Err(failure),
            Some(_) => {
                for FailedFile { file, error } in &self.named {
                    let said = if error.contains(file.as_str()) {
                        error.clone()
                    } else {
                        format!("{file}: {error}")
                    };
                    output::note(&format!("failed: {}", one_line(&said)));
                }
                let count = self.count;
                let files = if count == 1 { "file" } else { "files" };
                Err(Failure::other(format!("{count} {files} failed; the others are done"))
                    .hint("see to those that are named, and run the same command again"))
            }
        }
    }
}

/// `3 files`, `1 file`.
pub(super) fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Code;

    #[test]
    fn one_files_failure_is_the_commands_and_that_of_many_is_exit_code_1() {
        let failed = || {
            let mut failures = Failures::default();
            failures.add(Path::new("a"), Failure::new(Code::NotVerified, "it does not open"));
            failures
        };
        assert_eq!(failed().end(true).expect_err("it failed").code(), Code::NotVerified);
        assert_eq!(failed().end(false).expect_err("it failed").code(), Code::Other);
        assert!(Failures::default().end(false).is_ok());
    }
}
