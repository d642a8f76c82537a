//! Asks the person at the terminal.

use std::io::{self, BufRead, IsTerminal as _};

use crate::{failure::Failure, output};

/// What is typed to approve.
const YES: &str = "approve";
/// Longest answer that is read, in bytes.
const ANSWER_LEN_MAX: u64 = 256;

/// Passes when somebody at a terminal says so.
pub(super) fn whether_to_approve() -> Result<(), Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() || !output::watched() {
        return Err(Failure::usage("nobody at a terminal can be asked")
            .hint("look at the change with `kms approvals show`, and say --yes"));
    }
    output::note(&format!("Type {YES} to approve this change; anything else leaves it as it is:"));
    answer(stdin.lock())
}

fn answer(input: impl BufRead) -> Result<(), Failure> {
    let mut line = String::new();
    input.take(ANSWER_LEN_MAX).read_line(&mut line).map_err(Failure::about("standard input"))?;
    if line.trim() == YES { Ok(()) } else { Err(Failure::other("not approved: nothing was changed")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_word_approves() {
        assert!(answer(&b"approve\n"[..]).is_ok());
        for odd in ["", "\n", "y\n", "yes\n", "approved\n", "Approve\n", "no\napprove\n"] {
            assert!(answer(odd.as_bytes()).is_err(), "{odd:?}");
        }
    }
}
