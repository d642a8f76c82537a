//! A measured profile as the file that `hsm.profile_file` names, with a comment for each field.

use std::fmt;

use super::probe::Measured;

/// What stands above each field and table.
const COMMENTS: [(&str, &str); 9] = [
    ("name", "For logs and kms doctor."),
    (
        "may_die_starting",
        "Whether a process may be killed while it starts. Not measured; true only where kills there harm nothing.",
    ),
    (
        "changes_exclude_finds",
        "Whether generating and destroying must exclude searches. Not measured; true is safe, and slower.",
    ),
    ("edwards_params", "How a curve of Edwards' is named: \"name\" or \"oid\"."),
    ("sessions_max", "Most sessions that one process may have."),
    (
        "iv_source",
        "Whose IV AES-GCM encrypts under, when keys are wrapped by A256GCMKW: \"caller\" or \"hsm\".",
    ),
    ("oaep_hashes", "Hashes that RSA-OAEP takes. Without SHA-256 there are no keys of RSA-OAEP-256."),
    ("[token]", "What it was measured on, and where alone it holds."),
    (
        "[errors]",
        "Return values that mean something else here than on most tokens: input, configuration, capacity, session,\n\
         device, ambiguous or stale-handle.",
    ),
];

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# A profile written by `kms hsm probe`, for hsm.profile_file.")?;
        for remark in &self.remarks {
            writeln!(f, "# - {remark}")?;
        }
        let text = toml::to_string(&self.profile).map_err(|_| fmt::Error)?;
        for line in text.lines().filter(|line| !line.is_empty()) {
            let field = line.split(" = ").next().unwrap_or(line);
            if let Some((_, comment)) = COMMENTS.iter().find(|(name, _)| *name == field) {
                writeln!(f)?;
                comment.lines().try_for_each(|comment| writeln!(f, "# {comment}"))?;
            }
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}
