//! Logging to standard error. Nothing secret is ever a field: credentials are hashed at the edge, PINs never
//! reach this process, and messages are not logged.

use std::io;

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Log, LogFormat};

/// Installs the subscriber. Fails when the level does not parse, or one is installed already.
pub fn install(log: &Log) -> anyhow::Result<()> {
    let filter = filter(&log.level)?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!("cannot install logging: {error}"))
}

/// Parses `log.level`.
pub(crate) fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    level.parse().with_context(|| {
        format!(
            "log.level = {level:?} is not a level; write for instance \"info\" or \"info,kms_pkcs11=debug\""
        )
    })
}
