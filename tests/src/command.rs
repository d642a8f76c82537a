//! What a command answered.

use std::process;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// Exit code and output of a command that has ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// From what the standard library gives.
    pub fn of(command: impl Into<String>, output: process::Output) -> Self {
        Self {
            command: command.into(),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output, without the line end; an error unless the command succeeded.
    pub fn text(&self) -> anyhow::Result<&str> {
        match self.code {
            Some(0) => Ok(self.stdout.trim_end()),
            _ => bail!("{} ended with {:?}\n{}{}", self.command, self.code, self.stdout, self.stderr),
        }
    }

    /// Standard output as JSON; an error unless the command succeeded.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(self.text()?).with_context(|| format!("{}: {}", self.command, self.stdout))
    }
}

/// The command failed by itself, and said all of `says`.
pub fn refused(output: &Output, says: &[&str]) -> anyhow::Result<()> {
    ensure!(output.code.is_some_and(|code| code != 0), "it did not fail by itself: {output:?}");
    for part in says {
        let said = output.stderr.contains(part);
        ensure!(said, "{} does not say {part:?}:\n{}", output.command, output.stderr);
    }
    ensure!(!output.stderr.contains("panicked"), "{}", output.stderr);
    Ok(())
}
