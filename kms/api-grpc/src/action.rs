//! Actions on the wire: each by its one name, that of log, policy and metric.

use kms_core::{Action, Error};

/// Longest part of an unknown action that an error shows, in characters.
const SHOWN_LEN_MAX: usize = 64;

pub(crate) fn parse(field: &'static str, text: &str) -> Result<Action, Error> {
    Action::ALL.into_iter().find(|action| action.to_string() == text).ok_or_else(|| {
        let shown: String = text.chars().take(SHOWN_LEN_MAX).collect();
        Error::invalid(
            field,
            format!("{shown:?} is no action; the policy schema has them all (kms policy schema), e.g. \"sign_jwt\""),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_reads_back_as_itself_and_nothing_else_is_read() {
        for action in Action::ALL {
            assert_eq!(parse("action", &action.to_string()), Ok(action));
        }
        for odd in ["", "Sign", "sign ", "wrap-key", "WrapKey", &"x".repeat(100_000)] {
            let error = parse("action", odd).expect_err("unknown");
            assert_eq!(error.field(), Some("action"));
            assert!(error.to_string().len() < 500, "{} bytes", error.to_string().len());
        }
    }
}
